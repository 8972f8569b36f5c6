"""What lies in a directory storage: listing, describing, and the sweep at start. Blocks: call it through a thread."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance.errors import ApplianceError, InvalidParameter, NotFound
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeId, VolumeInfo
from appliance.storage import inspection, layers, naming, overlays, snapshots, trees
from appliance.storage.records import Records

log = logging.getLogger(__name__)

DISK_CONTENT: Final = frozenset({ContentType.IMAGES, ContentType.ROOTDIR})


class Catalog:
    """Reads one storage; only `sweep` changes anything."""

    def __init__(self, storage_id: str, root: Path, records: Records) -> None:
        self._id = storage_id
        self._root = root
        self._records = records

    def sweep(self) -> list[str]:
        """Make the layout and remove what interrupted operations left; one line for each thing removed."""
        for directory in (naming.IMAGES_DIRECTORY, *naming.FILE_DIRECTORIES.values()):
            (self._root / directory).mkdir(parents=True, exist_ok=True)
        self._records.prepare()
        done: list[str] = []
        # on a directory volume ids are the container's own: its set-uid programs must not be within reach of the host's
        # users, nor the disks' content
        try:
            (self._root / naming.IMAGES_DIRECTORY).chmod(0o700)
        except PermissionError as error:
            done.append(f"{self._id}: {naming.IMAGES_DIRECTORY} stays open to the host's users: {error.strerror}")
        for path in inspection.temporaries(self._root):
            trees.remove_any(path)
            done.append(f"{self._id}: removed the remains {path.name}")
        for name in list(self._records.names(tidy=True)):
            try:
                place = naming.locate(name)
            except InvalidParameter:
                log.warning("storage %s: %s is no record of a volume, ignored", self._id, name)
                continue
            if not os.path.lexists(self._root / place.path):
                self._records.remove(name)
                done.append(f"{self._id}: removed the record of {name}, which does not exist")
        done += [f"{self._id}: {line}" for line in snapshots.sweep(self._root)]
        done += [f"{self._id}: {line}" for line in overlays.sweep(self._root, self._records)]
        done += [f"{self._id}: {line}" for line in layers.sweep(self._root, self._records)]
        for emptied in (self._root / naming.IMAGES_DIRECTORY).iterdir():
            with contextlib.suppress(OSError):  # not empty
                emptied.rmdir()
        return done

    def list(self, content: ContentType | None, guest_id: GuestId | None) -> Sequence[VolumeInfo]:
        """All volumes (of one content, of one guest). The used bytes of a `subvol` are not counted here."""
        names: list[str] = []
        if content is None or content in DISK_CONTENT:
            names += inspection.disks(self._root, guest_id)
        for kind in naming.FILE_DIRECTORIES:
            if content in (None, kind) and (guest_id is None or kind is ContentType.BACKUP):
                names += (name for name in inspection.files(self._root, kind) if guest_id in (None, _owner(name)))
        infos = (self._describe_or_skip(name) for name in names)
        return [info for info in infos if info is not None and (content is None or info.content is content)]

    def describe(self, name: str, *, count_tree: bool) -> VolumeInfo:
        """One volume. Raises `NotFound`, `InvalidParameter`, `OSError`."""
        place, record = naming.locate(name), self._records.get(name)
        path = self._root / place.path
        is_tree = place.format == "subvol"
        is_image = place.content is ContentType.VZTMPL and record.size > 0  # its layers are in the storage's own store
        try:
            measured = inspection.measure(path, place.format)
            used = trees.tree_bytes(path) if count_tree and is_tree else measured.used_bytes
        except FileNotFoundError as error:
            raise NotFound(f"volume '{self._id}:{name}'") from error
        assumed = ContentType.ROOTDIR if is_tree else ContentType.IMAGES
        return VolumeInfo(
            volume_id=VolumeId(self._id, name),
            content=place.content or ContentType(record.content or assumed),
            format=place.format,
            size_bytes=record.size if is_tree or is_image else measured.size_bytes,
            used_bytes=used,
            created_at=measured.created_at,
            guest_id=place.guest_id or _owner(name),
            parent=VolumeId(self._id, record.parent) if record.parent else None,
            notes=record.notes,
            protected=record.protected,
        )

    def _describe_or_skip(self, name: str) -> VolumeInfo | None:
        try:
            return self.describe(name, count_tree=False)
        except (OSError, ApplianceError) as error:  # removed meanwhile, or no volume of ours
            log.debug("storage %s: %s is not listed: %s", self._id, name, error)
            return None


def _owner(name: str) -> GuestId | None:
    backup = naming.backup_owner(name)
    return backup[1] if backup else None
