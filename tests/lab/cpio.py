"""Archives that the kernel unpacks at boot: cpio's "new ASCII" format (Documentation/driver-api/early-userspace/buffer-format).

Uncompressed: under emulation, unpacking costs more than reading. Pure.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass, field
from pathlib import PurePosixPath

_TRAILER = "TRAILER!!!"


@dataclass(slots=True)
class CpioArchive:
    """An archive in the making; parents of what is added are made as needed, everything belongs to root."""

    _parts: list[bytes] = field(default_factory=list)
    _directories: set[str] = field(default_factory=set)
    _inode: int = 0

    def directory(self, name: str) -> None:
        """A directory, mode 0755; nothing when it is there."""
        if name in ("", ".") or name in self._directories:
            return
        self.directory(str(PurePosixPath(name).parent))
        self._directories.add(name)
        self._entry(name, stat.S_IFDIR | 0o755, b"")

    def file(self, name: str, data: bytes, *, mode: int = 0o644) -> None:
        """A regular file."""
        self.directory(str(PurePosixPath(name).parent))
        self._entry(name, stat.S_IFREG | mode, data)

    def character_device(self, name: str, *, major: int, minor: int) -> None:
        """A device node, mode 0600."""
        self.directory(str(PurePosixPath(name).parent))
        self._entry(name, stat.S_IFCHR | 0o600, b"", device=(major, minor))

    def finish(self) -> bytes:
        """The archive's bytes."""
        self._entry(_TRAILER, 0, b"")
        return b"".join(self._parts)

    def _entry(self, name: str, mode: int, data: bytes, *, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.encode() + b"\0"
        # ino mode uid gid nlink mtime filesize maj min rmaj rmin namesize chksum
        numbers = (self._inode, mode, 0, 0, 1, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded
        self._parts += [header, bytes(-len(header) % 4), data, bytes(-len(data) % 4)]
