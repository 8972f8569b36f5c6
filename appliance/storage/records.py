"""What is known of volumes beside their names: one small JSON file a volume, below the storage's `.appliance/`.

    .appliance/records/100/vm-100-disk-0.qcow2.json    {"content", "size", "parent", "notes", "protected"}
    .appliance/growing/100~vm-100-disk-0.raw.json      {"volume", "size"}: a file system that must fill this size

A record is written before its volume appears and removed after it has gone: one without a volume is a remain. A growing
mark is written before a file is lengthened, and removed when its file system fills it: at the next start it is finished.
All functions block; files are written atomically.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from appliance.errors import HostError, InvalidParameter
from appliance.files import sync_directory, write_atomic
from appliance.storage import naming

HIDDEN_DIRECTORY: Final = ".appliance"
OVERLAY: Final = "overlay"
_RECORD_LIMIT_BYTES = 1 << 20


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One volume's record. `size` in bytes counts for `subvol` only; `parent` is a name without the storage.

    With `layout` `OVERLAY` the volume is `upper` over `layers`, and `kept` are the layers of its snapshots: overlays.py.
    """

    content: str = ""
    size: int = 0
    parent: str = ""
    notes: str = ""
    protected: bool = False
    layout: str = ""
    upper: str = ""
    layers: list[str] = msgspec.field(default_factory=list)
    kept: dict[str, list[str]] = msgspec.field(default_factory=dict)


class GrowingMark(msgspec.Struct, frozen=True, kw_only=True):
    """A volume whose file is being lengthened to `size` bytes."""

    volume: str
    size: int


class Records:
    """The records of one storage."""

    def __init__(self, root: Path) -> None:
        self._records = root / HIDDEN_DIRECTORY / "records"
        self._growing = root / HIDDEN_DIRECTORY / "growing"

    def prepare(self) -> None:
        """Make the directories."""
        for directory in (self._records, self._growing):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    def get(self, name: str) -> VolumeRecord:
        """The record of volume `name`; an empty one when there is none. Raises `HostError` when it is damaged."""
        path = self._path(name)
        try:
            return msgspec.json.decode(path.read_bytes(), type=VolumeRecord)
        except FileNotFoundError:
            return VolumeRecord()
        except (OSError, msgspec.DecodeError) as error:
            raise HostError(f"{path}: cannot be read: {error}") from error

    def put(self, name: str, record: VolumeRecord) -> None:
        """Write or replace."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, msgspec.json.encode(record), mode=0o600)

    def change(self, name: str, **changes: object) -> None:
        """Change fields of a record; those given as None stay as they are."""
        wanted = {field: value for field, value in changes.items() if value is not None}
        self.put(name, msgspec.structs.replace(self.get(name), **wanted))

    def remove(self, name: str) -> None:
        """Remove; not an error when absent."""
        path = self._path(name)
        path.unlink(missing_ok=True)
        if path.parent.is_dir():
            with contextlib.suppress(OSError):  # not empty: other volumes of the same guest
                path.parent.rmdir()

    def names(self, *, tidy: bool = False) -> Iterator[str]:
        """Names of all volumes with a record; with `tidy`, when nobody writes, the remains of interrupted writes go."""
        found: list[str] = []
        for directory, _, names in os.walk(self._records):  # passes over directories that have just gone
            for name in names:
                path = Path(directory) / name
                if name.startswith("."):
                    if tidy:
                        path.unlink(missing_ok=True)
                elif path.suffix == ".json":
                    found.append(path.relative_to(self._records).as_posix().removesuffix(".json"))
        yield from sorted(found)

    def readable(self) -> Iterator[tuple[str, VolumeRecord]]:
        """All records of volumes; damaged ones and strangers are passed over."""
        for name in list(self.names()):
            with contextlib.suppress(HostError, InvalidParameter):
                naming.locate(name)
                yield name, self.get(name)

    def children(self, name: str) -> list[str]:
        """Names of the linked clones of `name`."""
        return [child for child in self.names() if self.get(child).parent == name]

    def mark_growing(self, name: str, size_bytes: int) -> None:
        """Durably say that `name` is about to be lengthened."""
        write_atomic(self._mark(name), msgspec.json.encode(GrowingMark(volume=name, size=size_bytes)), mode=0o600)

    def unmark_growing(self, name: str) -> None:
        """Its file system fills it."""
        self._mark(name).unlink(missing_ok=True)
        sync_directory(self._growing)

    def growing(self) -> list[GrowingMark]:
        """The marks an interruption left; what is no mark is removed."""
        found: list[GrowingMark] = []
        for path in sorted(self._growing.iterdir()):
            try:
                with path.open("rb") as file:
                    mark = msgspec.json.decode(file.read(_RECORD_LIMIT_BYTES), type=GrowingMark)
                naming.locate(mark.volume)
                found.append(mark)
            except (msgspec.DecodeError, InvalidParameter):
                path.unlink()
        return found

    def _path(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _mark(self, name: str) -> Path:
        return self._growing / f"{name.replace(os.sep, '~')}.json"
