"""A container template of one megabyte: busybox as init, shell and everything else."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

APPLETS = (
    "cat", "df", "echo", "head", "hostname", "ip", "ls", "mount",
    "poweroff", "ps", "reboot", "sh", "sleep", "stty", "tail", "udhcpc", "yes",
)  # fmt: skip


def write_template(path: Path, *, sbin: Sequence[str] = ()) -> Path:
    """Write the archive to `path` (.tar.gz) and return it. Its init keeps a shell on the console. `sbin`: more applets."""
    with tarfile.open(path, "w:gz") as tar:
        for name in ("bin", "dev", "etc", "proc", "root", "run", "sbin", "sys", "tmp", "usr", "var", "var/run"):
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(info)
        _file(tar, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        for applet in APPLETS:
            _link(tar, f"bin/{applet}", "busybox")
        for applet in ("init", *sbin):
            _link(tar, f"sbin/{applet}", "../bin/busybox")
        _file(tar, "etc/inittab", b"console::respawn:/bin/sh\n", 0o644)
        _file(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        _file(tar, "etc/shadow", b"root:*:19000:0:99999:7:::\n", 0o640)
        _file(tar, "etc/group", b"root:x:0:\n", 0o644)
    return path


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    tar.addfile(info)


def _file(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), mode
    tar.addfile(info, io.BytesIO(data))
