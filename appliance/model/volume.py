"""Volumes: named pieces of storage, `STORAGE:NAME`, exactly as PVE writes them.

A directory storage names disks `local:100/vm-100-disk-0.qcow2`, and files `local:iso/x.iso`, `local:vztmpl/y.tar.zst`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from appliance.errors import InvalidParameter

_STORAGE = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,98}[a-zA-Z0-9]|[a-zA-Z]")
_PART = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9_.+=@-]{0,251}")


class ContentType(StrEnum):
    """What a storage may hold; PVE's words."""

    IMAGES = "images"
    ROOTDIR = "rootdir"
    ISO = "iso"
    VZTMPL = "vztmpl"
    IMPORT = "import"
    BACKUP = "backup"
    SNIPPETS = "snippets"


class VolumeFormat(StrEnum):
    """`subvol` is a plain directory tree, for containers only."""

    RAW = "raw"
    QCOW2 = "qcow2"
    SUBVOL = "subvol"


@dataclass(frozen=True, slots=True, order=True)
class VolumeId:
    """`storage:name`. Construct through `parse`, which refuses anything that could leave the storage."""

    storage: str
    name: str

    @staticmethod
    def parse(text: str) -> VolumeId:
        """Parse `storage:dir/name` or `storage:name`. Raises `InvalidParameter` on a bad name or path traversal."""
        storage, colon, name = text.partition(":")
        parts = name.split("/")
        if not colon or not _STORAGE.fullmatch(storage) or not 1 <= len(parts) <= 3:
            raise InvalidParameter({"volume": f"{text!r} is not STORAGE:NAME"})
        if not all(_PART.fullmatch(part) for part in parts):
            raise InvalidParameter({"volume": f"{text!r} holds a forbidden name (path traversal is refused)"})
        return VolumeId(storage, name)

    def __str__(self) -> str:
        return f"{self.storage}:{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumeInfo:
    """What a listing says of a volume. `size_bytes` is the virtual size, `used_bytes` what it occupies."""

    volume_id: VolumeId
    content: ContentType
    format: str
    size_bytes: int
    used_bytes: int
    created_at: float
    guest_id: int | None = None
    parent: VolumeId | None = None
    notes: str = ""
    protected: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OverlayLayers:
    """The directories of a `subvol` in layers: one written to (and the kernel's own beside it), over `lowers`, topmost
    first, which nobody writes to. Without `upper` it can only be read. Owners are the container's own ids."""

    upper: Path | None
    work: Path
    lowers: tuple[Path, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedVolume:
    """A volume an engine can use: a path on this host (file, block device, or directory for `subvol`).

    A `subvol` with `layers` is no tree by itself: its content is what an overlay of them shows. `snapshot` names the snapshot
    whose content is meant: of a qcow2 image `path` is the image it is inside of, which only copying understands.
    """

    volume_id: VolumeId | None
    path: Path
    format: VolumeFormat
    size_bytes: int
    read_only: bool = False
    layers: OverlayLayers | None = None
    snapshot: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageUsage:
    """Space of the file system behind a storage, in bytes."""

    total_bytes: int
    used_bytes: int
    available_bytes: int
