"""The disk, kernel and initial RAM disk of lab hosts, built once and found again by a hash of what decides them.

    .build/lab/VARIANT.KEY/     disk.raw (ext4, no partitions), vmlinuz, initrd: appears by rename, whole
    .build/lab/VARIANT-packages.KEY.tar     the system without kernels: the slow half, kept while its package list stays
    .build/lab/.work-XXXX/      a build under way; the next one removes what a killed one left
    .build/lab/.lock            flock: one build at a time, also between processes

Hosts write to overlays of their own. `python -m tests.lab.image` builds by hand; allow five minutes, then none.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from appliance import command
from appliance.files import sync_directory
from appliance.storage.recipes import apt_sources, bootstrap, root_files
from tests.lab import guest_files, package_archive, recipe
from tests.lab.variants import LAB, Variant

ROOT: Final = Path(__file__).resolve().parent.parent.parent
DIRECTORY: Final = ROOT / ".build" / "lab"
LOCK_TIMEOUT_S: Final = 1800.0
STEP_TIMEOUT_S: Final = 600.0
_LEFT_OUT = frozenset({"mypy", "playwright", "ruff"})
"""Of the locked Python packages: large, and of no use inside of a host."""
_INPUTS = ("image.py", "recipe.py", "guest_files.py", "package_archive.py", "vmlinux.py", "cpio.py")
KEPT_S: Final = 86_400.0
"""Images that nobody has asked for in this time go when another is built: work trees of different ages share them."""
_PYTHON = ".".join(map(str, recipe.PYTHON))

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class HostImage:
    """What QEMU boots a host from. None of the files is ever written to."""

    disk: Path
    kernel: Path
    initrd: Path

    def hold(self) -> BinaryIO:
        """Keep the image from being removed when another is built, until the file returned is closed."""
        file = self.disk.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH)
        return file


async def build(log: Log, variant: Variant = LAB) -> HostImage:
    """Build the image, or find it. Waits for a build under way elsewhere. Raises `CommandFailed`, `TimedOut`."""
    sources = await asyncio.to_thread(_sources, variant.codename)
    packages_key = _hash([sources, *variant.packages])
    key = _hash([packages_key, repr(variant), *await asyncio.to_thread(_input_texts)])
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    published = DIRECTORY / f"{variant.name}.{key}"
    base = DIRECTORY / f"{variant.name}-packages.{packages_key}.tar"
    async with _locked(DIRECTORY / ".lock"):
        if not published.exists():
            await asyncio.to_thread(_remove, [*DIRECTORY.glob(".work-*")])
            work = Path(tempfile.mkdtemp(prefix=".work-", dir=DIRECTORY))
            try:
                began = time.monotonic()
                sources_file = work / "debian.sources"
                sources_file.write_text(sources)
                await _packages(work, sources_file, variant, base, log)
                await _make(work, base, sources_file, variant, log)
                await asyncio.to_thread(_publish, work / "host", published)
                log(f"{published.name}: built in {time.monotonic() - began:.0f} s")
            finally:
                await asyncio.to_thread(_remove, [work])
        for used in (published, base):
            if used.exists():
                os.utime(used)
        await asyncio.to_thread(_remove, _outdated())
    return HostImage(published / "disk.raw", published / "vmlinuz", published / "initrd")


def requirements(lock: str) -> str:
    """The locked requirements without those of `_LEFT_OUT`; each is a line and indented lines below it."""
    blocks = re.findall(r"^[a-z0-9].*(?:\n[ \t#].*)*", lock, re.M)
    return "\n".join(block for block in blocks if re.split(r"[=\[ ;]", block)[0] not in _LEFT_OUT) + "\n"


async def _packages(work: Path, sources_file: Path, variant: Variant, base: Path, log: Log) -> None:
    if not base.exists():
        log(f"lab: installing a {variant.name}'s packages from this machine's package sources")
        await bootstrap.make_base(sources_file, variant.codename, variant.packages, work / base.name)
        (work / base.name).replace(base)


async def _make(work: Path, base: Path, sources_file: Path, variant: Variant, log: Log) -> None:
    root, early, out = work / "root", work / "early", work / "host"
    out.mkdir()
    log("lab: installing kernels")
    await asyncio.to_thread(root_files.write_all, early, recipe.EARLY_FILES)
    hooks = [package_archive.hook(variant.offered)] if variant.offered else []
    await bootstrap.extend(base, sources_file, variant.codename, variant.kernels, root, early=early, hooks=hooks)
    log("lab: files, guests' kernels")
    sources, files = sources_file.read_text(), recipe.FILES
    if variant.offered:
        sources = await asyncio.to_thread(package_archive.write, root)
    if variant.developed:
        await _install_python(work, root)
        files = {**files, **recipe.DEVELOPED_FILES}
    await asyncio.to_thread(root_files.finish, root, files, sources=sources)
    await _run("chroot", root, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", "/etc/ssh/ssh_host_ed25519_key")
    await bootstrap.enable_units(root, recipe.UNITS, recipe.MASKED)
    await asyncio.to_thread(_take_kernel, root, out)
    await asyncio.to_thread(guest_files.write_all, root)
    log("lab: file system")
    await _run(
        "mkfs.ext4", "-q", "-F", "-d", root, "-L", "lab", "-m", "0", "-E", "root_owner=0:0", out / "disk.raw",
        f"{recipe.DISK_SIZE_MIB}M",
    )  # fmt: skip


async def _install_python(work: Path, root: Path) -> None:
    """The host's own interpreter makes the environment; the packages are chosen and unpacked by ours, for that one."""
    venv = root / recipe.VENV_DIR.lstrip("/")
    await _run("chroot", root, "/usr/bin/python3", "-m", "venv", "--without-pip", recipe.VENV_DIR)
    (root / recipe.SOURCE_DIR.lstrip("/")).mkdir(parents=True)
    wanted = work / "requirements.txt"
    wanted.write_text(requirements((ROOT / "requirements.lock").read_text()))
    await _run(
        Path(sys.prefix) / "bin/uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--link-mode=copy",
        "--python-version", _PYTHON, "--python-platform", "x86_64-manylinux_2_28", "--compile-bytecode",
        "--target", venv / f"lib/python{_PYTHON}/site-packages", "-r", wanted,
    )  # fmt: skip


def _take_kernel(root: Path, out: Path) -> None:
    release = guest_files.kernel_release(root, cloud=True)
    shutil.copyfile(root / f"boot/vmlinuz-{release}", out / "vmlinuz")
    (out / "initrd").write_bytes(guest_files.host_initramfs(root))
    for path in (root / "boot").glob("initrd.img-*"):
        path.unlink()
    (root / "var/log/journal").mkdir(exist_ok=True)


async def _run(*argv: str | Path) -> None:
    await command.run([str(word) for word in argv], timeout_s=STEP_TIMEOUT_S)


def _sources(codename: str) -> str:
    here = apt_sources.host_codename()
    return apt_sources.move(apt_sources.read_host(), host_codename=here, codename=codename)


def _input_texts() -> list[str]:
    here = Path(__file__).parent
    return [(here / name).read_text() for name in _INPUTS] + [requirements((ROOT / "requirements.lock").read_text())]


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:12]


def _publish(made: Path, published: Path) -> None:
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    made.rename(published)
    sync_directory(published.parent)


def _outdated() -> list[Path]:
    """What nobody used lately, and no host runs from: these hold a lock (`hold`), for they may be switched on again."""
    since = time.time() - KEPT_S
    found = [path for path in DIRECTORY.glob("*.*") if re.fullmatch(r"[a-z].*\.[0-9a-f]{12}(\.tar)?", path.name)]
    old = [path for path in found if path.stat().st_mtime < since]
    return [path for path in old if path.suffix == ".tar" or not _is_held(path / "disk.raw")]


def _is_held(disk: Path) -> bool:
    with disk.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@asynccontextmanager
async def _locked(path: Path) -> AsyncIterator[None]:
    with path.open("ab") as lock:
        async with asyncio.timeout(LOCK_TIMEOUT_S):
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(0.5)
        yield


if __name__ == "__main__":
    print(asyncio.run(build(lambda line: print(line, flush=True))))
