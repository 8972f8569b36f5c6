"""Programs and files inside a container that runs: what is asked for, and what is told of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecRequest:
    """A program to run in a container. `environment` adds to the container's; ids are those inside."""

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    uid: int = 0
    gid: int = 0
    stdin: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileInfo:
    """A file or directory in a container. Ids are the container's own; `entries` of a directory, `more` when cut off.
    `target` is what the symbolic link says by which it was found; "" without one."""

    type: str  # "file" or "directory"
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    target: str = ""
    entries: tuple[Mapping[str, object], ...] | None = None
    more: bool = False

    @staticmethod
    def decode(line: bytes) -> FileInfo:
        """From the helper's line of JSON."""
        fields = json.loads(line)
        entries = fields.pop("entries", None)
        return FileInfo(**fields, entries=None if entries is None else tuple(entries))


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWrite:
    """How a file in a container is written. None: as the file that is replaced, else 0644 and root's.

    `expected` is its SHA-256 before, "absent", or "" when it does not matter.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    parents: bool = False
    expected: str = ""
