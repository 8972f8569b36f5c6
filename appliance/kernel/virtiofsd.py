"""virtiofsd, which serves a directory by vhost-user-fs: where it is, and what it is told. One for each directory and guest.

Debian 13 has the one in Rust (package virtiofsd), Debian 12 the one of QEMU 7.2, in C. Both put themselves into namespaces
of their own with the directory as root, and end when their one connection does.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

RUST, C = "/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd"
PROGRAMS: Final = (RUST, C)


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareOptions:
    """PVE's options of `virtiofsN`. `cache`: "auto", "always", "metadata" or "never"."""

    cache: str = "auto"
    direct_io: bool = False
    acl: bool = False
    xattr: bool = False


def find_program() -> str | None:
    """Blocking. virtiofsd, where this host has it."""
    return next((each for each in PROGRAMS if shutil.which(each)), None)


def problem(program: str | None, options: ShareOptions) -> str:
    """Pure. Why it cannot serve a directory so; "" when it can."""
    if program is None:
        return "virtiofsd is not installed"
    if options.cache == "metadata" and program == C:
        return f"cache=metadata needs the virtiofsd of Debian 13 ({RUST})"
    return ""


def arguments(program: str, directory: Path, options: ShareOptions, *, listener_fd: int) -> list[str]:
    """Pure: the command line. `listener_fd` is the listening socket's number in the daemon."""
    told = _of_c(directory, options) if program == C else _of_rust(directory, options)
    return [program, f"--fd={listener_fd}", *told]


def _of_c(directory: Path, options: ShareOptions) -> Iterator[str]:
    """virtiofsd(1) of QEMU 7.2; its options end at a comma, so a directory's name must not have one."""
    assert "," not in str(directory)
    cache = {"never": "none"}.get(options.cache, options.cache)
    words = [f"source={directory}", f"cache={cache}", "sandbox=namespace", "announce_submounts"]
    words.append("xattr" if options.xattr or options.acl else "no_xattr")
    words += ["posix_acl"] if options.acl else []
    words += ["allow_direct_io"] if options.direct_io else []
    yield "-f"
    for word in words:
        yield from ("-o", word)


def _of_rust(directory: Path, options: ShareOptions) -> Iterator[str]:
    yield from (
        "--shared-dir",
        str(directory),
        "--sandbox",
        "namespace",
        "--cache",
        options.cache,
        "--announce-submounts",
    )
    if options.xattr or options.acl:
        yield "--xattr"
    if options.acl:
        yield "--posix-acl"
    if options.direct_io:
        yield "--allow-direct-io"
