"""Helper programs of storage, run so that no image and no full disk can do harm: bounded in time, memory and CPU.

Formats are always named: QEMU's tools must never guess one from bytes a guest wrote.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance import command
from appliance.errors import CommandFailed, Conflict, NoSpace
from appliance.model.volume import VolumeFormat

QUICK_TIMEOUT_S: Final = 60.0
CHECK_TIMEOUT_S: Final = 600.0
COPY_TIMEOUT_S: Final = 6 * 3600.0
_LIMITED = ("prlimit", "--as=4294967296", "--core=0", "--")
_EXT4 = ("-O", "^metadata_csum_seed,^orphan_file", "-E", "lazy_itable_init=1,root_owner=0:0", "-m", "1")
_CHECK_SOUND = (0, 3)  # qemu-img(1): 3 is clusters that nobody uses, a waste of space only
_FSCK_REPAIRED = 1  # e2fsck(8): errors corrected


async def create_qcow2(path: Path, size_bytes: int) -> None:
    """An empty qcow2 image."""
    await _run("qemu-img", "create", "-q", "-f", "qcow2", path, str(size_bytes))


async def create_overlay(path: Path, backing: str, backing_format: VolumeFormat) -> None:
    """A qcow2 image of the same size on top of `backing`, a path relative to the image's directory."""
    await _run("qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", backing_format, path)


async def convert(source: Path, source_format: VolumeFormat, target: Path, target_format: VolumeFormat) -> None:
    """A full copy, holes kept."""
    await _run(
        "qemu-img", "convert", "-q", "-f", source_format, "-O", target_format, source, target,
        timeout_s=COPY_TIMEOUT_S,
    )  # fmt: skip


async def convert_snapshot(
    source: Path, source_format: VolumeFormat, target: Path, target_format: VolumeFormat, *, snapshot: str
) -> None:
    """A full copy of what a snapshot holds; `source` is the image it is inside of, or a file of its own. Also while the image
    is in use: a snapshot's clusters never change. An image that has grown since is copied in its size of now."""
    inside = ("-U", "-l", f"snapshot.name={snapshot}") if source_format is VolumeFormat.QCOW2 else ()
    await _run(
        "qemu-img", "convert", "-q", *inside, "-f", source_format, "-O", target_format, source, target,
        timeout_s=COPY_TIMEOUT_S,
    )  # fmt: skip


async def export(source: Path, source_format: VolumeFormat, target: Path, *, snapshot: str, in_use: bool) -> None:
    """A full copy as qcow2, of a snapshot inside a qcow2 image where one is named. `in_use`: whoever has it open does not
    write what is read: a snapshot's clusters never change, and a guest that stands still writes nothing."""
    shared = ["-U"] if in_use else []
    inside = ["-l", f"snapshot.name={snapshot}"] if snapshot else []
    await _run(
        "qemu-img", "convert", "-q", *shared, *inside, "-f", source_format, "-O", "qcow2", source, target,
        timeout_s=COPY_TIMEOUT_S,
    )  # fmt: skip


async def pack_files(directory: Path, names: Sequence[str], target: Path, compressor: str) -> None:
    """A tar of files of `directory`, in this order; `compressor` is a command line for tar's `-I`, or ""."""
    packed = ["-I", compressor] if compressor else []
    await _run("tar", *packed, "--create", "--sparse", "--numeric-owner", "--owner=0", "--group=0", "--directory", directory,
               "--file", target, "--", *names, timeout_s=COPY_TIMEOUT_S)  # fmt: skip


async def resize_qcow2(path: Path, size_bytes: int) -> None:
    """Grow it. Raises `Conflict` while QEMU has it open: then only QEMU itself may."""
    await _run("qemu-img", "resize", "-q", "-f", "qcow2", path, str(size_bytes))


async def inspect_qcow2(path: Path) -> None:
    """Let QEMU check all tables of the (already judged) image. Raises `CommandFailed` for a damaged or cut off one."""
    argv = [*_LIMITED, "qemu-img", "check", "-q", "-U", "-f", "qcow2", str(path)]
    checked = await command.run(argv, timeout_s=CHECK_TIMEOUT_S, check=False)
    if checked.returncode not in _CHECK_SOUND:
        raise CommandFailed(["qemu-img"], checked.returncode, checked.stderr.decode(errors="replace"))


async def snapshot_qcow2(path: Path, action: str, name: str) -> None:
    """Make (`-c`), return to (`-a`) or remove (`-d`) a snapshot inside the image. Raises `Conflict` while QEMU has it open."""
    image = f"driver=qcow2,file.driver=file,file.filename={str(path).replace(',', ',,')}"
    await _run("qemu-img", "snapshot", "-q", action, name, "--image-opts", image, timeout_s=COPY_TIMEOUT_S)


async def snapshot_names(path: Path) -> list[str]:
    """The snapshots inside an image, sorted; also while QEMU has it open."""
    argv = [*_LIMITED, "qemu-img", "info", "-U", "--output=json", "-f", "qcow2", str(path)]
    told = json.loads((await command.run(argv, timeout_s=QUICK_TIMEOUT_S)).stdout)
    return sorted(str(each.get("name", "")) for each in told.get("snapshots", []))


async def copy_file(source: Path, target: Path) -> None:
    """A copy of an image, by reference where the file system can, holes kept; on the disk when this returns."""
    await _run("cp", "--reflink=auto", "--sparse=always", "--no-target-directory", source, target,
               timeout_s=COPY_TIMEOUT_S)  # fmt: skip
    await _run("sync", target)


async def make_ext4(path: Path) -> None:
    """A file system that fills the file."""
    await _run("mkfs.ext4", "-q", "-F", *_EXT4, path, timeout_s=QUICK_TIMEOUT_S)


async def grow_ext4(path: Path) -> None:
    """Check the file system and let it fill the file; it must not be mounted. Safe to repeat after an interruption."""
    argv = ["e2fsck", "-f", "-y", str(path)]
    checked = await command.run(argv, timeout_s=COPY_TIMEOUT_S, check=False)
    if checked.returncode > _FSCK_REPAIRED:
        raise CommandFailed(argv, checked.returncode, checked.stderr.decode(errors="replace"))
    await _run("resize2fs", path, timeout_s=COPY_TIMEOUT_S)


async def copy_tree(source: Path, target: Path) -> None:
    """A copy of a directory tree with owners, modes, times, links and attributes; `target` must not exist."""
    await _run("cp", "--archive", "--reflink=auto", "--one-file-system", "--no-target-directory", source, target,
               timeout_s=COPY_TIMEOUT_S)  # fmt: skip
    await sync(target)


async def sync(path: Path) -> None:
    """Everything written below `path` is on the disk when this returns."""
    await _run("sync", "--file-system", path)


async def _run(*argv: str | Path, timeout_s: float = QUICK_TIMEOUT_S) -> None:
    words = [str(word) for word in argv]
    limited = [*_LIMITED, *words] if words[0] == "qemu-img" else words
    try:
        await command.run(limited, timeout_s=timeout_s)
    except CommandFailed as error:
        if "No space left on device" in error.stderr or "Disk quota exceeded" in error.stderr:
            raise NoSpace(f"{words[-1]}: no space left on the storage") from error
        if 'Failed to get "' in error.stderr:
            raise Conflict(f"{Path(words[-1]).name}: in use by a running guest") from error
        raise CommandFailed(words, error.returncode, error.stderr) from error
