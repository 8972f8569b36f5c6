"""Unpacking layers through the helper `unpack_layer.py`: confined to the layer's directory, bounded, killed when cancelled."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from appliance import command
from appliance.ct import provision, unpack, unpack_layer
from appliance.ct.provision import ID_LIMIT
from appliance.errors import HostError, InvalidParameter, NoSpace
from appliance.model.volume import OpenedVolume
from appliance.threads import to_the_end

UNPACK_LIMIT_S = 1800.0
RATIO_LIMIT = 100
"""Text compresses 10 : 1; a layer of mostly zeros may come near this. gzip itself ends at 1032 : 1."""
BOMB_FLOOR_BYTES = 1 << 30
"""However small a layer is, it may unpack to this."""
RESERVE_BYTES = 64 << 20
_HELPER = (sys.executable, "-I", "-S", str(Path(unpack_layer.__file__)))
LogLine = Callable[[str], None]


async def unpack_into(
    target: Path, blob: Path, *, compression: str, diff_id: str, lowers: Sequence[Path], log: LogLine
) -> None:
    """Unpack `blob` into the empty directory `target`, over the trees `lowers` (the nearest first).

    Raises `InvalidParameter` naming what is refused, `NoSpace`, `HostError`; the caller removes the directory then.
    """
    about = f"layer {diff_id}"
    with ExitStack() as held:
        root_fd, lower_fds, size, free = await to_the_end(_open, held, target, blob, lowers)
        limits = (max(BOMB_FLOOR_BYTES, RATIO_LIMIT * size), max(free - RESERVE_BYTES, 0), ID_LIMIT)
        argv = [*_HELPER, str(root_fd), str(blob), compression, *map(str, limits), diff_id, *map(str, lower_fds)]
        done = await command.run(argv, timeout_s=UNPACK_LIMIT_S, check=False, pass_fds=(root_fd, *lower_fds))
    if done.returncode == 0:
        log(f"{about}: unpacked, {done.text}")
        return
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"the unpacking helper ended with status {done.returncode}"
    match done.returncode:
        case unpack.REFUSED:
            raise InvalidParameter({"ostemplate": f"{about}: {reason}"}, message="The image is refused.")
        case unpack.FULL:
            raise NoSpace(f"{about}: {reason}")
        case _:
            raise HostError(f"{about}: {reason}")


class ImageLayers:
    """Fulfils ports.LayerUnpacker."""

    async def unpack_layer(
        self, target: Path, blob: Path, *, compression: str, diff_id: str, lowers: Sequence[Path], log: LogLine
    ) -> None:
        await unpack_into(target, blob, compression=compression, diff_id=diff_id, lowers=lowers, log=log)

    async def copy_layers(self, volume: OpenedVolume, lowers: Sequence[Path], *, path: str = "/") -> bool:
        return await provision.copy_layers(volume, lowers, path=path)


def _open(held: ExitStack, target: Path, blob: Path, lowers: Sequence[Path]) -> tuple[int, list[int], int, int]:
    """Descriptors of the directories, the blob's size, the bytes that are free."""
    try:
        fds = []
        for path in (target, *lowers):
            fds.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
            held.callback(os.close, fds[-1])
        space = os.fstatvfs(fds[0])
        return fds[0], fds[1:], blob.stat().st_size, space.f_bavail * space.f_frsize
    except OSError as error:
        raise HostError.from_os_error(error, f"unpack {blob.name}") from error
