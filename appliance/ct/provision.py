"""Filling a new root file system from a template: unpacked by a helper process, then credentials and identity.

The helper (`unpack.py`) is confined to the volume by chroot; it is killed when the task is cancelled. What is written
afterwards goes through `RootTree`, because the tree's links are the template's.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

from appliance import command
from appliance.ct import layers, pack, rootfs, unpack
from appliance.ct.tree import RootTree
from appliance.errors import CommandFailed, HostError, InvalidParameter, NoSpace, NotFound
from appliance.kernel import mount
from appliance.kernel.openat2 import open_in_root
from appliance.model.guest import CtCredentials
from appliance.model.volume import OpenedVolume, OverlayLayers
from appliance.threads import to_the_end

UNPACK_LIMIT_S = 1800.0
ID_LIMIT = 65_536
UNSIZED_LIMIT_BYTES = 1 << 40
_HELPER = (sys.executable, "-I", "-S", str(Path(unpack.__file__)))
LogLine = Callable[[str], None]


async def populate(root: OpenedVolume, template: Path, *, credentials: CtCredentials, log: LogLine) -> None:
    """Unpack `template` into the empty volume and make it a machine of its own. See ports.CtProvisioner."""
    _check(credentials)
    await unpack_into(root, template, log=log)
    await personalise(root, credentials)


async def unpack_into(
    root: OpenedVolume,
    template: Path,
    *,
    log: LogLine,
    below: str = "",
    exclude: Sequence[str] = (),
    backup: bool = False,
) -> None:
    """Unpack `template` (or a `backup`) into the empty volume, and nothing else; `below`, `exclude`: see `unpack.py`."""
    if not await asyncio.to_thread(template.is_file):
        raise NotFound(f"template {template.name}")
    about = f"volume {root.volume_id or root.path}"
    async with opened(root, about) as fd:
        log(f"extracting {template.name}")
        options = {"below": below, "exclude": list(exclude)} | ({"depth": pack.DEPTH_LIMIT + 1} if backup else {})
        log(await _unpack(fd, template, root.size_bytes or UNSIZED_LIMIT_BYTES, about, options))


async def copy_layers(volume: OpenedVolume, lowers: Sequence[Path], *, path: str = "/") -> bool:
    """Copy what an overlay of `lowers` (the nearest first) shows at `path` into the empty volume; False when there is no
    directory. Raises `HostError`, `NoSpace`."""
    about = f"volume {volume.volume_id or volume.path}"
    with ExitStack() as held:
        async with opened(volume, about) as target:
            try:
                source = await to_the_end(_open_in_layers, held, lowers, path)
                if source is None:
                    return False
                places = [f"/proc/self/fd/{source}/.", f"/proc/self/fd/{target}/."]
                argv = ["cp", "--archive", "--no-target-directory", *places]
                await command.run(argv, timeout_s=UNPACK_LIMIT_S, pass_fds=(source, target))
            except OSError as error:
                raise HostError.from_os_error(error, f"{about}: mount the image's layers") from error
            except CommandFailed as error:
                if "No space left on device" in error.stderr:
                    raise NoSpace(f"{about}: the image is larger than the volume") from error
                raise
    return True


def _open_in_layers(held: ExitStack, lowers: Sequence[Path], path: str) -> int | None:
    """A directory of what the layers show; None when there is none at `path`. Links in it lead nowhere else."""
    shown = OverlayLayers(upper=None, work=lowers[0], lowers=tuple(lowers))
    fd = layers.mount_plain(shown, mount.MOUNT_ATTR_NODEV)
    held.callback(os.close, fd)
    try:
        found = open_in_root(fd, path, os.O_RDONLY | os.O_DIRECTORY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    held.callback(os.close, found)
    return found


async def personalise(root: OpenedVolume, credentials: CtCredentials) -> None:
    """Make an unpacked template a machine of its own."""
    _check(credentials)
    about = f"volume {root.volume_id or root.path}"
    async with opened(root, about) as fd:
        await to_the_end(_personalise, RootTree(fd, about), credentials)


@asynccontextmanager
async def opened(root: OpenedVolume, about: str) -> AsyncIterator[int]:
    """The volume's top directory, with the container's own ids, and no device usable in it."""
    held: list[int] = []  # filled in the thread: a cancellation must not lose a mount
    try:
        await to_the_end(lambda: held.append(rootfs.open_detached(root, about=about)[0]))
        yield held[0]
    finally:
        for each in held:
            await to_the_end(os.close, each)


async def _unpack(fd: int, template: Path, byte_limit: int, about: str, options: Mapping[str, object]) -> str:
    argv = [*_HELPER, str(fd), str(template), str(byte_limit), str(ID_LIMIT), json.dumps(options)]
    done = await command.run(argv, timeout_s=UNPACK_LIMIT_S, check=False, pass_fds=(fd,))
    if done.returncode == 0:
        return done.text
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"the unpacking helper ended with status {done.returncode}"
    match done.returncode:
        case unpack.REFUSED:
            raise InvalidParameter({"ostemplate": f"{template.name}: {reason}"})
        case unpack.FULL:
            raise NoSpace(f"{about}: {reason}")
        case _:
            raise HostError(f"{about}: extracting {template.name}: {reason}")


def _personalise(tree: RootTree, credentials: CtCredentials) -> None:
    tree.write("/etc/fstab", b"# file systems of a container are its configuration's\n")
    tree.write("/etc/machine-id", b"")  # systemd makes one at the first boot (machine-id(5))
    if credentials.password_hash:
        shadow = (tree.read("/etc/shadow") or b"root:*:19000:0:99999:7:::\n").decode(errors="surrogateescape")
        changed = with_password(shadow, credentials.password_hash)
        tree.write("/etc/shadow", changed.encode(errors="surrogateescape"), mode=0o640)
    if credentials.ssh_keys:
        keys = "".join(f"{key.strip()}\n" for key in credentials.ssh_keys)
        tree.write("/root/.ssh/authorized_keys", keys.encode(), mode=0o600, directory_mode=0o700)


def with_password(shadow: str, password_hash: str, *, user: str = "root") -> str:
    """shadow(5) with the user's password set; a line is added when there is none."""
    lines = shadow.splitlines()
    for number, line in enumerate(lines):
        fields = line.split(":")
        if fields[0] == user and len(fields) > 1:
            lines[number] = ":".join([user, password_hash, *fields[2:]])
            break
    else:
        lines.append(f"{user}:{password_hash}:19000:0:99999:7:::")
    return "\n".join([*lines, ""])


def _check(credentials: CtCredentials) -> None:
    if _has(credentials.password_hash, ":\n\0"):
        raise InvalidParameter({"password": "not a crypt(3) string"})
    if any(_has(key, "\n\0") for key in credentials.ssh_keys):
        raise InvalidParameter({"ssh-public-keys": "a key must be one line"})


def _has(text: str, characters: Sequence[str]) -> bool:
    return any(character in text for character in characters)
