"""From a recipe to a published image, once per cache key.

    DIRECTORY/debian-12-vm.qcow2           a link to the newest image: what callers use
    DIRECTORY/debian-12-vm.KEY.qcow2       appears by rename, whole and synced
    DIRECTORY/debian-12-base.KEY.tar       what both kinds begin with; removed when both are there
    DIRECTORY/.build-XXXX/                 a build under way; whoever gets the lock removes what others left
    DIRECTORY/.lock                        flock: one build at a time, also between processes

KEY is a hash of the recipe's part and the host's apt sources: what a change touches is built anew, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance import command
from appliance.errors import NotFound, TimedOut
from appliance.files import sync_directory
from appliance.storage.recipes import apt_sources, bootstrap, disk_image, root_files
from appliance.storage.recipes.recipe import RECIPES, ImageKind, Recipe
from appliance.threads import to_the_end

FORMAT_VERSION: Final = 1
"""Raise when the code (not a recipe's data) changes what an image holds."""
LOCK_TIMEOUT_S: Final = 3600.0
PACK_TIMEOUT_S: Final = 600.0
_LOCK_POLL_S = 0.5
_SUFFIX: Final = {ImageKind.VM: "qcow2", ImageKind.CT: "tar.zst"}
_REMOVE_ATTEMPTS = 20

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Build:
    """One build under way."""

    recipe: Recipe
    kind: ImageKind
    key: str
    sources: str
    out_dir: Path
    work: Path
    log: Log


async def build(recipe_name: str, kind: str, out_dir: Path, log: Log) -> Path:
    """Build recipe `recipe_name` as `kind` ("vm" or "ct") into `out_dir`, or find it built there already.

    Returns the image's stable path (`debian-12-vm.qcow2`, `debian-12-ct.tar.zst`). Builds run one after another, waiting
    at most `LOCK_TIMEOUT_S`. After an error, a cancellation or a crash at any point the old image is still there, and
    what was begun is removed now or by the next build. Raises `NotFound`, `Unsupported`, `CommandFailed`, `NoSpace`,
    `TimedOut`.
    """
    recipe = find(recipe_name)
    image_kind = ImageKind(kind)
    out_dir = await asyncio.to_thread(out_dir.absolute)  # helpers run in other directories
    stable = out_dir / f"{recipe.name}-{image_kind}.{_SUFFIX[image_kind]}"
    sources = await asyncio.to_thread(_sources_for, recipe)
    key = cache_key(recipe, sources, image_kind)
    await asyncio.to_thread(lambda: out_dir.mkdir(parents=True, exist_ok=True))
    async with _lock(out_dir / ".lock"):
        await asyncio.to_thread(_remove_remains, out_dir)
        image = _keyed(stable, key)
        if await asyncio.to_thread(image.exists):
            log(f"{stable.name}: already built")
        else:
            work = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix=".build-", dir=out_dir))
            try:
                await _make(
                    _Build(
                        recipe=recipe, kind=image_kind, key=key, sources=sources, out_dir=out_dir, work=work, log=log
                    )
                )
            finally:
                await to_the_end(_remove_tree, work)
        await asyncio.to_thread(_point_to, stable, image)
        await asyncio.to_thread(_remove_outdated, stable, recipe, sources)
    return stable


def find(recipe_name: str) -> Recipe:
    """The recipe of that name. Raises `NotFound`."""
    recipe = RECIPES.get(recipe_name)
    if recipe is None:
        raise NotFound(f"template recipe '{recipe_name}'")
    return recipe


def cache_key(recipe: Recipe, sources: str, kind: ImageKind | None) -> str:
    """Twelve hex digits that change with everything that decides an image's content, but the archive's own.

    `kind` None is the base both kinds begin with.
    """
    parts = [str(FORMAT_VERSION), recipe.name, recipe.codename, sources, *recipe.base_packages]
    if kind is not None:
        parts += [kind, *recipe.units[kind], *recipe.masked[kind]]
        parts += [f"{name} {entry}" for name, entry in sorted(recipe.files[kind].items())]
    if kind is ImageKind.VM:
        parts += [*recipe.vm_packages, recipe.kernel_arguments, str(recipe.disk_size_mib)]
        parts += [f"{name} {entry}" for name, entry in sorted(recipe.vm_early_files.items())]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


async def _make(build: _Build) -> None:
    began = time.monotonic()
    sources_file = build.work / "debian.sources"
    await asyncio.to_thread(sources_file.write_text, build.sources)
    base = await _base(build, sources_file)
    root = build.work / "root"
    recipe, kind, log = build.recipe, build.kind, build.log
    if kind is ImageKind.VM:
        log("installing the kernel and the packages of a virtual machine")
        early = build.work / "early"
        await asyncio.to_thread(root_files.write_all, early, recipe.vm_early_files)
        await bootstrap.extend(base, sources_file, recipe.codename, recipe.vm_packages, root, early=early)
    else:
        await asyncio.to_thread(root.mkdir)
        await bootstrap.unpack(base, root)
    await bootstrap.enable_units(root, recipe.units[kind], recipe.masked[kind])
    await asyncio.to_thread(root_files.finish, root, recipe.files[kind], sources=build.sources)
    output = build.work / f"image.{_SUFFIX[kind]}"
    if kind is ImageKind.VM:
        await disk_image.make_disk(
            root, build.work, output,
            size_mib=recipe.disk_size_mib, kernel_arguments=recipe.kernel_arguments, log=log,
        )  # fmt: skip
    else:
        log("packing the root directory")
        await _pack(root, output)
    stable = build.out_dir / f"{recipe.name}-{kind}.{_SUFFIX[kind]}"
    size = await asyncio.to_thread(_publish, output, _keyed(stable, build.key))
    log(f"{stable.name}: {size >> 20} MiB, built in {time.monotonic() - began:.0f} s")


async def _base(build: _Build, sources_file: Path) -> Path:
    base = _base_path(build.out_dir, build.recipe, build.sources)
    if not await asyncio.to_thread(base.exists):
        build.log(f"installing {build.recipe.title} from this host's package sources")
        made = build.work / "base.tar"
        await bootstrap.make_base(sources_file, build.recipe.codename, build.recipe.base_packages, made)
        await asyncio.to_thread(_publish, made, base)
    return base


async def _pack(root: Path, output: Path) -> None:
    archive = [
        "tar", "--create", f"--directory={root}", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--sort=name",
        "--exclude=./dev/*", "--use-compress-program=zstd -T0 -6", f"--file={output}", ".",
    ]  # fmt: skip
    await command.run(archive, timeout_s=PACK_TIMEOUT_S)


def _sources_for(recipe: Recipe) -> str:
    return apt_sources.move(
        apt_sources.read_host(), host_codename=apt_sources.host_codename(), codename=recipe.codename
    )


def _keyed(stable: Path, key: str) -> Path:
    name, _, suffix = stable.name.partition(".")
    return stable.with_name(f"{name}.{key}.{suffix}")


def _base_path(out_dir: Path, recipe: Recipe, sources: str) -> Path:
    return out_dir / f"{recipe.name}-base.{cache_key(recipe, sources, None)}.tar"


@asynccontextmanager
async def _lock(path: Path) -> AsyncIterator[None]:
    lock = await to_the_end(path.open, "ab")
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT_S
        while not _try_lock(lock.fileno()):
            if time.monotonic() > deadline:
                raise TimedOut(f"another build in {path.parent}", LOCK_TIMEOUT_S)
            await asyncio.sleep(_LOCK_POLL_S)
        yield
    finally:
        lock.close()


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _publish(made: Path, target: Path) -> int:
    fd = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
        size = os.fstat(fd).st_size
    finally:
        os.close(fd)
    made.rename(target)
    sync_directory(target.parent)
    return size


def _point_to(stable: Path, image: Path) -> None:
    temporary = stable.with_name(f".{stable.name}.link")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(image.name)
    temporary.replace(stable)


def _remove_outdated(stable: Path, recipe: Recipe, sources: str) -> None:
    """Older images of this kind, and bases that nothing will begin with: older ones, and the present one when done."""
    name, _, suffix = stable.name.partition(".")
    current = {
        kind: _keyed(stable.with_name(f"{recipe.name}-{kind}.{ending}"), cache_key(recipe, sources, kind))
        for kind, ending in _SUFFIX.items()
    }
    kept = set(current.values())
    if not all(image.exists() for image in current.values()):
        kept.add(_base_path(stable.parent, recipe, sources))
    found = [*stable.parent.glob(f"{name}.*.{suffix}"), *stable.parent.glob(f"{recipe.name}-base.*.tar")]
    for path in found:
        if path not in kept:
            path.unlink()


def _remove_remains(out_dir: Path) -> None:
    for path in out_dir.glob(".build-*"):
        _remove_tree(path)


def _remove_tree(path: Path) -> None:
    """Remove `path`; a killed build's last processes may write into it for a moment longer."""
    for _ in range(_REMOVE_ATTEMPTS):
        with contextlib.suppress(OSError):
            shutil.rmtree(path)
        if not path.exists():
            return
        time.sleep(0.1)
