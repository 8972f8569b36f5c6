"""Directory volumes of containers as layers: one that is written to over others that never change again.

    images/101/subvol-101-disk-0.subvol/    UPPER (written to), work (the kernel's), further layers of its own
    .appliance/layers/KEY/                  an unpacked template, below every volume made from it (layers.py)
    the volume's record                     `upper`, `layers` (topmost first, relative to the storage), `kept` (snapshots)

Making a volume, a snapshot of one at rest and a return are some directories and one atomic write of the record, whatever the
size: what no record names is a remain. Ids on all layers are the container's own (0…). How it is mounted: `ct/rootfs.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from appliance.errors import Conflict, HostError, NotFound
from appliance.files import sync_directory
from appliance.model.volume import OverlayLayers
from appliance.storage import naming, tools
from appliance.storage.records import OVERLAY, Records, VolumeRecord
from appliance.storage.trees import remove_any
from appliance.threads import to_the_end

WORK: Final = "work"
CHAIN_LIMIT: Final = 64
"""Layers below the upper one; beyond that a snapshot copies instead of adding one (the kernel mounts at most 500)."""
_OVERLAY_XATTR = "trusted.overlay."


def new_name() -> str:
    """Of a layer; unique in the storage."""
    return f"l-{secrets.token_hex(6)}"


def new_record(content: str, size: int, layers: list[str], *, parent: str = "") -> VolumeRecord:
    """The record of a volume over `layers`."""
    return VolumeRecord(content=content, size=size, parent=parent, layout=OVERLAY, upper=new_name(), layers=layers)


def own(volume: str, layer: str) -> str:
    """The layer `layer` in the directory of `volume`, relative to the storage."""
    return str(naming.locate(volume).path / layer)


def linked_record(volume: str, record: VolumeRecord) -> VolumeRecord:
    """The record of a linked clone of `volume`, which must never be written to again."""
    return new_record(record.content, record.size, [own(volume, record.upper), *record.layers], parent=volume)


def copied_record(target: str, record: VolumeRecord) -> VolumeRecord:
    """The record of a full clone `target`: layers of templates are shared, all others its own copies."""
    layers = [layer if _is_shared(layer) else own(target, PurePosixPath(layer).name) for layer in record.layers]
    return msgspec.structs.replace(record, layers=layers, kept={}, parent="", notes="", protected=False)


def kept_record(volume: str, record: VolumeRecord, name: str) -> VolumeRecord:
    """The record `volume` would have if it were what its snapshot is: the topmost layer is always its own. Raises `NotFound`."""
    layers = record.kept.get(name)
    if layers is None:
        raise NotFound(f"volume {volume}: snapshot '{name}'")
    return msgspec.structs.replace(record, upper=PurePosixPath(layers[0]).name, layers=layers[1:])


def clones_of_snapshot(volume: str, record: VolumeRecord, name: str, children: Mapping[str, VolumeRecord]) -> list[str]:
    """Those of the linked clones `children` of `volume` that stand on its snapshot `name` and on nothing that stays without it.

    Pure. What other snapshots keep stays; what only the present state has does not, as a return drops it. Clones of the present
    state (of a template) stand on that.
    """
    others = {layer for each, layers in record.kept.items() if each != name for layer in layers}
    only = {layer for layer in record.kept.get(name, ()) if _is_of(layer, volume)} - others
    return [
        child
        for child, made in children.items()
        if own(volume, record.upper) not in made.layers and not only.isdisjoint(made.layers)
    ]


def opened(root: Path, volume: str, record: VolumeRecord) -> OverlayLayers:
    """The paths of a volume."""
    place = root / naming.locate(volume).path
    return OverlayLayers(
        upper=place / record.upper, work=place / WORK, lowers=tuple(root / layer for layer in record.layers)
    )


def opened_snapshot(root: Path, volume: str, record: VolumeRecord, name: str) -> OverlayLayers:
    """The paths of a snapshot, to be read only. Raises `NotFound`."""
    layers = record.kept.get(name)
    if layers is None:
        raise NotFound(f"volume {volume}: snapshot '{name}'")
    place = root / naming.locate(volume).path
    return OverlayLayers(upper=None, work=place / WORK, lowers=tuple(root / layer for layer in layers))


def make(root: Path, path: Path, record: VolumeRecord) -> None:
    """A volume's directory at `path`, empty but for what its layers show. Blocks. Raises `OSError`."""
    path.mkdir(0o700)
    (path / WORK).mkdir(0o700)
    _new_upper(path / record.upper, root / record.layers[0])


async def copy(root: Path, volume: str, record: VolumeRecord, path: Path) -> None:
    """A volume's directory at `path` with copies of all layers of `volume` that are not templates'."""
    await to_the_end(path.mkdir, 0o700)
    await to_the_end((path / WORK).mkdir, 0o700)
    for layer in (own(volume, record.upper), *record.layers):
        if not _is_shared(layer):
            await tools.copy_tree(root / layer, path / PurePosixPath(layer).name)


class OverlaySnapshots:
    """Snapshots of such volumes; the caller has reserved the volume. Same contract as `VolumeSnapshots`."""

    def __init__(self, root: Path, records: Records, before_effect: Callable[[str], None]) -> None:
        self._root = root
        self._records = records
        self._before_effect = before_effect

    async def make(self, volume: str, name: str, *, in_use: bool) -> None:
        """At rest the upper layer is written to no more and a new one begun; in use it is copied: it cannot be changed."""
        record = await asyncio.to_thread(self._records.get, volume)
        if name in record.kept:
            raise Conflict(f"volume {volume}: snapshot '{name}' already exists")
        place, layer = self._root / naming.locate(volume).path, new_name()
        try:
            if in_use or len(record.layers) >= CHAIN_LIMIT:
                await tools.copy_tree(place / record.upper, place / layer)
                kept = {**record.kept, name: [own(volume, layer), *record.layers]}
                changed = msgspec.structs.replace(record, kept=kept)
            else:
                await self._run(_new_upper, place / layer, place / record.upper)
                layers = [own(volume, record.upper), *record.layers]
                changed = msgspec.structs.replace(
                    record, upper=layer, layers=layers, kept={**record.kept, name: layers}
                )
            self._before_effect("write the record")
            await self._run(self._put, volume, changed)
        except BaseException:
            await self._run(collect, self._root, volume, self._records)
            raise

    async def roll_back(self, volume: str, name: str) -> None:
        """A new upper layer over the snapshot's; the old one goes."""
        record = await asyncio.to_thread(self._records.get, volume)
        layers = record.kept.get(name)
        if layers is None:
            raise NotFound(f"volume {volume}: snapshot '{name}'")
        upper = new_name()
        try:
            await self._run(_new_upper, self._root / naming.locate(volume).path / upper, self._root / layers[0])
            self._before_effect("write the record")
            await self._run(self._put, volume, msgspec.structs.replace(record, upper=upper, layers=layers))
            self._before_effect("remove what it was")
        finally:
            await self._run(collect, self._root, volume, self._records)

    async def remove(self, volume: str, name: str) -> None:
        """Not an error when there is none. Layers the present state stands on stay."""
        record = await asyncio.to_thread(self._records.get, volume)
        if name in record.kept:
            kept = {each: layers for each, layers in record.kept.items() if each != name}
            self._before_effect("write the record")
            await self._run(self._put, volume, msgspec.structs.replace(record, kept=kept))
            self._before_effect("remove its layers")
            await self._run(collect, self._root, volume, self._records)

    def _put(self, volume: str, record: VolumeRecord) -> None:
        place = self._root / naming.locate(volume).path
        sync_directory(place)
        self._records.put(volume, record)

    @staticmethod
    async def _run(function: Callable[..., object], *arguments: object) -> None:
        try:
            await to_the_end(function, *arguments)
        except OSError as error:
            raise HostError.from_os_error(error, "layers of a volume") from error


def collect(root: Path, volume: str, records: Records) -> list[str]:
    """Remove the directories in a volume's own that its record does not name; their names. Blocks."""
    record = records.get(volume)
    place = root / naming.locate(volume).path
    named = {WORK, record.upper, *_own_layers(place, root, record.layers)}
    for layers in record.kept.values():
        named.update(_own_layers(place, root, layers))
    gone = [path for path in sorted(place.iterdir()) if path.name not in named]
    for path in gone:
        remove_any(path)
    return [path.name for path in gone]


def layers_in_use(records: Records) -> frozenset[str]:
    """Every layer that a volume, or a snapshot of one, stands on. Blocks. Raises `HostError` for a damaged record."""
    found = [records.get(name) for name in records.names()]
    return frozenset(each for record in found for layers in (record.layers, *record.kept.values()) for each in layers)


def sweep(root: Path, records: Records) -> Iterator[str]:
    """`collect` for all volumes; one line for each remain. Blocks."""
    for volume, record in records.readable():
        if record.layout == OVERLAY and (root / naming.locate(volume).path).is_dir():
            for name in collect(root, volume, records):
                yield f"removed the layer {name} of {volume}, which nothing stands on"


def _is_of(layer: str, volume: str) -> bool:
    return PurePosixPath(layer).parent == PurePosixPath(naming.locate(volume).path)


def _own_layers(place: Path, root: Path, layers: list[str]) -> list[str]:
    return [PurePosixPath(layer).name for layer in layers if (root / layer).parent == place]


def _is_shared(layer: str) -> bool:
    return not layer.startswith(f"{naming.IMAGES_DIRECTORY}/")


def _new_upper(path: Path, like: Path) -> None:
    """An empty layer whose top directory shows what `like` shows: the topmost layer's counts. Blocks."""
    path.mkdir(0o700)
    status = like.lstat()
    os.chown(path, status.st_uid, status.st_gid)
    for name in os.listxattr(like, follow_symlinks=False):
        if not name.startswith(_OVERLAY_XATTR):
            with contextlib.suppress(OSError):  # of a kind this file system or host does not let us write
                os.setxattr(path, name, os.getxattr(like, name))
    path.chmod(stat.S_IMODE(status.st_mode))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
