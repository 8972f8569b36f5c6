"""Archives, and what is read of them without unpacking them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol


class ArchivedFile(Protocol):
    """An entry of an archive. `kind`: d, f, l, h (hard link), b, c, p or v. Sizes in bytes, times in epoch seconds."""

    @property
    def path(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def mtime(self) -> int: ...


class ArchiveReader(Protocol):
    """Looks into archives, which are hostile."""

    async def read_archived(self, archive: Path, name: str) -> bytes:
        """A small file of an archive. Raises `NotFound`, `InvalidParameter`."""

    async def archived_files(self, archive: Path) -> Sequence[ArchivedFile]:
        """All entries. Raises `InvalidParameter` for a damaged archive."""

    def stream_archived(self, archive: Path, name: str) -> AsyncGenerator[bytes, None]:
        """A regular file's content, in pieces. Raises `NotFound`, `InvalidParameter`."""
