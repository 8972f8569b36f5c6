"""What is stored of a storage (`storage/ID` in the store) and what it means. Pure.

Only directory storages exist; the parameters are PVE's `dir` ones, those that are honoured here and no others.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from appliance.errors import InvalidParameter
from appliance.model.volume import ContentType
from appliance.services import digests

DEFAULT_STORAGE: Final = "local"
DEFAULT_CONTENT: Final = (ContentType.IMAGES, ContentType.ROOTDIR)
ALL_CONTENT: Final = tuple(ContentType)
SUPPORTED_TYPES: Final = ("dir",)
_ID = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,98}[A-Za-z0-9]")
_SYSTEM_DIRECTORIES = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr",
)  # fmt: skip


class StorageDocument(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored form. An empty `path` is the default place below the data directory, so that this can be moved."""

    type: str = "dir"
    path: str = ""
    content: tuple[ContentType, ...] = ALL_CONTENT
    nodes: tuple[str, ...] = ()
    disable: bool = False
    shared: bool = False
    is_mountpoint: str = ""
    prune_backups: str = ""

    def digest(self) -> str:
        """Changes with every change; what `digest` parameters are compared with."""
        return digests.digest(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """A storage as the rest of the product sees it. `problem` says why it cannot be used now; "" when it can."""

    storage_id: str
    kind: str
    path: Path
    content_types: frozenset[ContentType]
    document: StorageDocument
    problem: str = ""

    @property
    def enabled(self) -> bool:
        """Whether its operator wants it used."""
        return not self.document.disable

    @property
    def active(self) -> bool:
        """Whether it can be used now."""
        return self.enabled and not self.problem


def check_id(storage_id: str) -> None:
    """Raises `InvalidParameter` unless it is a storage's name by PVE's rule."""
    if not _ID.fullmatch(storage_id):
        raise InvalidParameter({"storage": f"'{storage_id}' is not a storage ID"})


def parse_content(words: Sequence[str]) -> tuple[ContentType, ...]:
    """Content types in a fixed order. Raises `InvalidParameter` naming the unknown ones."""
    unknown = [word for word in words if word not in tuple(ContentType)]
    if unknown:
        raise InvalidParameter({"content": f"unknown content type: {', '.join(unknown)}"})
    return tuple(kind for kind in ContentType if kind in words)


def check_path(path: str, *, others: Mapping[str, Path]) -> Path:
    """The directory of a new storage. Raises `InvalidParameter` for the system's directories and for one that lies
    within, or around, another storage's (`others`, by what they are)."""
    pure = PurePosixPath(path)
    if not pure.is_absolute() or ".." in pure.parts or "\0" in path or len(path) > 500:
        raise InvalidParameter({"path": f"'{path[:100]}' is not an absolute path"})
    if str(pure) in ("/", "/var", "/srv", "/home", "/mnt", "/opt", "/media") or is_of_the_system(pure):
        raise InvalidParameter({"path": f"'{pure}' belongs to the system"})
    for owner, other in others.items():
        if pure.is_relative_to(other) or PurePosixPath(other).is_relative_to(pure):
            raise InvalidParameter({"path": f"'{pure}' overlaps with {owner} ({other})"})
    return Path(pure)


def is_of_the_system(path: PurePosixPath) -> bool:
    """Whether it lies in one of the directories that the distribution and the kernel own."""
    return any(path.is_relative_to(directory) for directory in _SYSTEM_DIRECTORIES)


def to_api(config: StorageConfig) -> dict[str, object]:
    """The configuration as GET /storage shows it."""
    document = config.document
    shown: dict[str, object] = {
        "storage": config.storage_id,
        "type": config.kind,
        "path": str(config.path),
        "content": ",".join(document.content),
        "digest": document.digest(),
        "shared": int(document.shared),
        "prune-backups": document.prune_backups or None,
        "nodes": ",".join(document.nodes) or None,
        "disable": 1 if document.disable else None,
        "is_mountpoint": document.is_mountpoint or None,
    }
    return {name: value for name, value in shown.items() if value is not None}
