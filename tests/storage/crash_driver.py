"""Runs every operation of the directory storage in a child that dies right before its N-th effect, for every N.

A program of its own, so that forking is safe: `python -m tests.storage.crash_driver DIRECTORY`. Prints one JSON object a
case: the operation, the effect it died before, what `recover` then says and what is left. The test judges.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat, VolumeId
from appliance.storage.directory import DirectoryBackend
from tests.fakes.storage import MIB, leftovers, stream

DIED = 9
Operation = Callable[[DirectoryBackend], Awaitable[object]]
DISK = VolumeId("local", "100/vm-100-disk-0.qcow2")
ROOT = VolumeId("local", "101/vm-101-disk-0.raw")
TREE = VolumeId("local", "101/subvol-101-disk-1.subvol")
LAYERED = VolumeId("local", "102/subvol-102-disk-0.subvol")
NEW = GuestId(200)


def ignore(_: str) -> None:
    """A log nobody reads."""


async def clone(backend: DirectoryBackend, source: VolumeId, volume_format: VolumeFormat, *, full: bool) -> VolumeId:
    return await backend.clone(await backend.open(source), NEW, format=volume_format, full=full, log=ignore)


def create(volume_format: VolumeFormat, content: ContentType) -> Operation:
    return lambda backend: backend.create(NEW, format=volume_format, size_bytes=8 * MIB, content=content)


async def layered(backend: DirectoryBackend, guest_id: GuestId) -> VolumeId:
    """A root over an unpacked archive."""
    archive = backend.root / "template/cache/x.tar"

    async def fill(path: Path) -> None:
        (path / "file").write_text("template")

    async with backend.layer(archive, fill) as base:
        return await backend.create(
            guest_id, format=VolumeFormat.SUBVOL, size_bytes=0, content=ContentType.ROOTDIR, base=base
        )


async def archived(path: Path) -> None:
    """What a backup writes."""
    path.write_bytes(b"archive")


OPERATIONS: dict[str, Operation] = {
    "create qcow2": create(VolumeFormat.QCOW2, ContentType.IMAGES),
    "create raw root": create(VolumeFormat.RAW, ContentType.ROOTDIR),
    "create subvol": create(VolumeFormat.SUBVOL, ContentType.ROOTDIR),
    "full clone": lambda backend: clone(backend, DISK, VolumeFormat.RAW, full=True),
    "linked clone": lambda backend: clone(backend, DISK, VolumeFormat.QCOW2, full=False),
    "tree clone": lambda backend: clone(backend, TREE, VolumeFormat.SUBVOL, full=True),
    "delete disk": lambda backend: backend.delete(DISK),
    "delete tree": lambda backend: backend.delete(TREE),
    "resize disk": lambda backend: backend.resize(DISK, 12 * MIB),
    "resize root": lambda backend: backend.resize(ROOT, 24 * MIB),
    "resize tree": lambda backend: backend.resize(TREE, 24 * MIB),
    "snapshot of a disk": lambda backend: backend.snapshot(DISK, "new"),
    "snapshot of a tree": lambda backend: backend.snapshot(TREE, "new"),
    "return of a disk": lambda backend: backend.roll_back(DISK, "old"),
    "return of a tree": lambda backend: backend.roll_back(TREE, "old"),
    "removal of a disk's snapshot": lambda backend: backend.delete_snapshot(DISK, "old"),
    "removal of a tree's snapshot": lambda backend: backend.delete_snapshot(TREE, "old"),
    "layered root": lambda backend: layered(backend, NEW),
    "snapshot of layers": lambda backend: backend.snapshot(LAYERED, "new"),
    "snapshot of layers in use": lambda backend: backend.snapshot(LAYERED, "new", in_use=True),
    "return of layers": lambda backend: backend.roll_back(LAYERED, "old"),
    "removal of the layers' snapshot": lambda backend: backend.delete_snapshot(LAYERED, "old"),
    "linked clone of layers": lambda backend: clone(backend, LAYERED, VolumeFormat.SUBVOL, full=False),
    "full clone of layers": lambda backend: clone(backend, LAYERED, VolumeFormat.SUBVOL, full=True),
    "delete layers": lambda backend: backend.delete(LAYERED),
    "backup": lambda backend: backend.backups.write("vzdump-lxc-101-2026_01_01-00_00_00.tar", archived, notes="mine"),
    "receive": lambda backend: backend.receive(ContentType.ISO, "x.iso", stream(b"abc"), checksum=None),
}


async def prepare(root: Path) -> None:
    backend = DirectoryBackend("local", root)
    await backend.recover()
    await backend.create(GuestId(100), format=VolumeFormat.QCOW2, size_bytes=8 * MIB, content=ContentType.IMAGES)
    await backend.create(GuestId(101), format=VolumeFormat.RAW, size_bytes=16 * MIB, content=ContentType.ROOTDIR)
    await backend.create(GuestId(101), format=VolumeFormat.SUBVOL, size_bytes=16 * MIB, content=ContentType.ROOTDIR)
    (root / "template/cache/x.tar").write_bytes(b"an archive")
    await layered(backend, GuestId(102))
    file = root / "images/101/subvol-101-disk-1.subvol/file"
    file.write_text("old")
    for volume in (DISK, TREE, LAYERED):
        await backend.snapshot(volume, "old")
    file.write_text("content")


def run_child(root: Path, operation: Operation, effect: int, told: int) -> None:
    count = 0

    def die_before(name: str) -> None:
        nonlocal count
        count += 1
        if count == effect:
            os.write(told, name.encode())
            os._exit(DIED)

    asyncio.run(_run(operation, DirectoryBackend("local", root, before_effect=die_before)))
    os._exit(0)


async def _run(operation: Operation, backend: DirectoryBackend) -> None:
    await operation(backend)


async def state(root: Path) -> dict[str, object]:
    backend = DirectoryBackend("local", root)
    done = await backend.recover()
    again = await backend.recover()
    volumes = {str(info.volume_id): info.size_bytes for info in await backend.list()}
    for text in volumes:
        await backend.open(VolumeId.parse(text))
    snapshots = {
        str(volume): await backend.snapshots(volume) for volume in (DISK, TREE, LAYERED) if str(volume) in volumes
    }
    file = root / "images/101/subvol-101-disk-1.subvol/file"
    content = [file.read_text() if file.exists() else None]
    if str(LAYERED) in volumes:
        opened = await backend.open(LAYERED)
        assert opened.layers is not None
        assert all(
            lower.is_dir() for lower in (opened.layers.upper, opened.layers.work, *opened.layers.lowers) if lower
        )
        content.append(str(len(opened.layers.lowers)))
    return {"recovered": list(done), "again": list(again), "volumes": volumes, "snapshots": snapshots,
            "content": content, "files": leftovers(root)}  # fmt: skip


def case(directory: Path, name: str, effect: int) -> dict[str, object] | None:
    """Die before effect number `effect` of operation `name`; None when it has no such effect and completes."""
    root = directory / f"{name.replace(' ', '-')}-{effect}"
    asyncio.run(prepare(root))
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        run_child(root, OPERATIONS[name], effect, writer)
    os.close(writer)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    died_before = os.read(reader, 200).decode()
    os.close(reader)
    assert status in (0, DIED), f"{name}: status {status}"
    return {"operation": name, "before": died_before, "died": status == DIED, **asyncio.run(state(root))}


def main() -> None:
    directory = Path(sys.argv[1])
    for name in OPERATIONS:
        for effect in range(1, 20):
            result = case(directory, name, effect)
            print(json.dumps(result), flush=True)
            if result is None or not result["died"]:
                break


if __name__ == "__main__":
    main()
