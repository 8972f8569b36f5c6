"""Shared objects: stripped, and bound to the libraries we bundle instead of the host's.

A bundled library gets a name of its own (libssl.so.3 -> libssl-appliance.so.3). The process also loads libraries of the
host: PAM's modules, libnftables, libcrypt. Those may need the host's libssl.so.3, perhaps a newer one, and the dynamic linker
tells libraries apart by nothing but this name (ld.so(8)); with two names both may be in one process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from appliance_build.run import BuildError, run

HOST_LIBRARIES = frozenset({
    "ld-linux-x86-64.so.2", "libc.so.6", "libdl.so.2", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0", "librt.so.1",
    "libutil.so.1",
})  # fmt: skip
"""glibc's own, and libgcc_s, which glibc's package depends on."""

_CXX = "libstdc++.so.6"

_GLIBC = (2, 36)
"""Debian 12's."""


def objects(root: Path) -> Sequence[Path]:
    """ELF files below `root`, sorted."""
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink() and _is_elf(path))


def strip(path: Path) -> None:
    """Drop symbols that the dynamic linker does not use. Before `bind`: strip(1) does not know what patchelf moves.

    The build ids stay: with their section strip(1) would take away GNU_RELRO, the linker's promise to make the tables of
    resolved symbols read-only. Raises `BuildError` when it went all the same.
    """
    protected = _has_relro(path)
    run(["strip", "--strip-unneeded", "--remove-section=.comment", path])
    if protected and not _has_relro(path):
        raise BuildError(f"{path}: strip(1) has removed GNU_RELRO")


def drop_unused_cxx(path: Path) -> None:
    """Forget libstdc++ where it was only linked: Cython's atomics are C++ headers, and nothing of the library is used."""
    if _CXX not in needed(path):
        return
    undefined = run(["nm", "--dynamic", "--undefined-only", path]).decode()
    if not re.search(r" (_Z|__gxx|__cxa_(?!finalize))", undefined):
        run(["patchelf", "--remove-needed", _CXX, path])


def own_name(soname: str) -> str:
    """libssl.so.3 -> libssl-appliance.so.3"""
    return soname.replace(".so", "-appliance.so", 1)


def bind(root: Path, libraries: Path) -> None:
    """Give the libraries in `libraries` their own names, and make what is below `root` use them.

    Raises `BuildError` when an object needs a library that is neither bundled nor glibc's, or a newer glibc.
    """
    renamed = {path.name: own_name(path.name) for path in sorted(libraries.glob("lib*.so.*"))}
    for name, own in renamed.items():
        (libraries / name).rename(libraries / own)
        run(["patchelf", "--set-soname", own, libraries / own])
    for path in objects(root):
        _bind_one(path, libraries, renamed)
    _forget_unused(root, libraries)
    _check(root, libraries)


def _forget_unused(root: Path, libraries: Path) -> None:
    """Packages bring more libraries than the one that is asked for."""
    used = {name for path in objects(root) for name in needed(path)}
    for path in sorted(libraries.glob("lib*.so.*")):
        if path.name not in used:
            path.unlink()


def _bind_one(path: Path, libraries: Path, renamed: Mapping[str, str]) -> None:
    ours = [name for name in needed(path) if name in renamed]
    if not ours:
        return
    # one change at a time: patchelf 0.14 mixes up several (the new name becomes the search path)
    way = os.path.relpath(libraries, path.parent)
    run(["patchelf", "--set-rpath", "$ORIGIN" if way == "." else f"$ORIGIN/{way}", path])
    for name in ours:
        run(["patchelf", "--replace-needed", name, renamed[name], path])


def _check(root: Path, libraries: Path) -> None:
    bundled = {path.name for path in objects(root)}
    for path in objects(root):
        for name in needed(path):
            if name not in HOST_LIBRARIES and name not in bundled:
                raise BuildError(f"{path.relative_to(root)} needs {name}, which is not bundled: see DEBIAN_PACKAGES")
        for version in _glibc_versions(path):
            if version > _GLIBC:
                raise BuildError(f"{path.relative_to(root)} needs glibc {version}, Debian 12 has {_GLIBC}")


def needed(path: Path) -> Sequence[str]:
    """DT_NEEDED."""
    return run(["patchelf", "--print-needed", path]).decode().split()


def _glibc_versions(path: Path) -> Iterator[tuple[int, int]]:
    for match in re.finditer(r"\bGLIBC_(\d+)\.(\d+)", run(["objdump", "-p", path]).decode()):
        yield int(match[1]), int(match[2])


def _has_relro(path: Path) -> bool:
    return b"GNU_RELRO" in run(["readelf", "--program-headers", "--wide", path])


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"
