"""Container templates as an enemy would make them: each function returns the bytes of a .tar.gz or .tar.zst."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.e2e.busybox import write_template

Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, link: str = "", **more: object) -> Entry:
    """One member; `more` sets other fields of its header."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.mode = kind, link, len(data), 0o755
    for field, value in more.items():
        setattr(info, field, value)
    return info, data


def archive(*entries: Entry, before: Iterable[str] = ("etc", "sbin", "bin", "root")) -> bytes:
    """Directories of a root file system, then `entries`."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for name in before:
            tar.addfile(entry(name, kind=tarfile.DIRTYPE)[0])
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return target.getvalue()


def claiming(size: int, sent: int) -> bytes:
    """A regular file that claims `size` bytes, of which `sent` follow."""
    info, _ = entry("etc/big")
    info.size = size
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(sent), 1)


def many_files(count: int, size: int) -> bytes:
    """Files that are each small enough, together not."""
    data = bytes(size)
    return archive(*(entry(f"etc/{number}", data) for number in range(count)))


def header_bomb(size: int) -> bytes:
    """An extended header of `size` zero bytes, which a careless reader keeps in memory; a few KiB as .tar.zst."""
    info, _ = entry("etc/x", kind=tarfile.XHDTYPE)
    info.size = size
    head = info.tobuf(tarfile.GNU_FORMAT)
    with subprocess.Popen(["zstd", "-q", "-1", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as zstd:
        assert zstd.stdin is not None
        assert zstd.stdout is not None
        zstd.stdin.write(head)
        block = bytes(1 << 20)
        for _ in range(size >> 20):  # the answer is smaller than a pipe
            zstd.stdin.write(block)
        zstd.stdin.close()
        return zstd.stdout.read()


def truncated(directory: Path) -> bytes:
    """Half of a good template."""
    data = write_template(directory / "whole.tar.gz").read_bytes()
    return data[: len(data) // 2]


def hostile(secret: Path) -> dict[str, tuple[Callable[[], bytes], str]]:
    """By name: how to make the archive, and a word its refusal must have. `secret` is a file of the host."""
    link, hard, device = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.BLKTYPE
    outside = str(secret)
    climbing = "../" * 12 + outside.lstrip("/")
    return {
        "dotdot": (lambda: archive(entry("../../../../evil", b"x")), r"\.\."),
        "dotdot-inside": (lambda: archive(entry("etc/../../evil", b"x")), r"\.\."),
        "absolute": (lambda: archive(entry("/etc/evil", b"x")), "absolute"),
        "link-out": (lambda: archive(entry("etc/out", kind=link, link=climbing)), "etc/out"),
        "through-link": (
            lambda: archive(entry("out", kind=link, link=str(secret.parent)), entry("out/secret", b"overwritten")),
            "out/secret",
        ),
        "through-root-link": (
            lambda: archive(entry("up", kind=link, link="/"), entry("up/evil", b"x")),
            "up/evil",
        ),
        "link-over-directory": (lambda: archive(entry("etc", kind=link, link="/tmp")), "etc"),
        "hard-link-out": (lambda: archive(entry("etc/hard", kind=hard, link=climbing)), r"\.\."),
        "hard-link-absolute": (lambda: archive(entry("etc/hard", kind=hard, link=outside)), "absolute"),
        "hard-link-nowhere": (lambda: archive(entry("etc/hard", kind=hard, link="etc/shadow")), "etc/hard"),
        "hard-link-through-link": (
            lambda: archive(
                entry("out", kind=link, link=str(secret.parent)), entry("etc/hard", kind=hard, link="out/secret")
            ),
            "out",
        ),
        "device": (lambda: archive(entry("disk", kind=device, devmajor=8, devminor=0)), "devices"),
        "device-kmem": (lambda: archive(entry("etc/mem", kind=tarfile.CHRTYPE, devmajor=1, devminor=1)), "devices"),
        "owner": (lambda: archive(entry("etc/x", b"x", uid=2_000_000)), "owner"),
        "deep": (lambda: archive(entry("d/" * 2000 + "x", b"x")), "deep"),
        "long-name": (lambda: archive(entry("etc/" + "n" * 5000, b"x")), "n{50}"),
        "claims-much": (lambda: claiming(1 << 40, 1 << 20), "over"),
        "claims-more-than-sent": (lambda: claiming(1 << 20, 1 << 10), "damaged"),
        "nothing": (lambda: b"", "damaged"),
        "no-archive": (lambda: b"MZ" * 9999, "damaged"),
        "gzip-of-nothing": (lambda: gzip.compress(b""), "damaged|empty"),
        "gzip-of-noise": (lambda: gzip.compress(b"noise" * 9999), "damaged"),
    }
