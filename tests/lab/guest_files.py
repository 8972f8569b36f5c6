"""Kernels and initial RAM disks, taken from the packages installed below a root directory. Blocks.

/opt/guest/vmlinux, bzImage, initramfs               Debian's cloud kernel: boots fastest
/opt/guest/drivers/vmlinux, bzImage, initramfs       Debian's usual kernel, with more drivers
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.lab import recipe, vmlinux
from tests.lab.cpio import CpioArchive

_DEPMOD_TIMEOUT_S = 60.0


def kernel_release(root: Path, *, cloud: bool) -> str:
    """The release of the one kernel of that kind that is installed."""
    found = [path.name for path in (root / "lib/modules").iterdir() if ("-cloud-" in path.name) == cloud]
    if len(found) != 1:
        raise ValueError(f"{root}/lib/modules: expected one kernel, found {sorted(found)}")
    return found[0]


def write_all(root: Path) -> None:
    """Fill /opt/guest below `root`, and take away the kernel that serves guests only, if there is one."""
    directory = root / recipe.GUEST_DIR.lstrip("/")
    _write(root, kernel_release(root, cloud=True), recipe.GUEST_MODULES, directory)
    if all("-cloud-" in path.name for path in (root / "lib/modules").iterdir()):
        return
    drivers = kernel_release(root, cloud=False)
    _write(root, drivers, recipe.DRIVER_KERNEL_MODULES, directory / "drivers")
    shutil.rmtree(root / "lib/modules" / drivers)
    for path in (root / "boot").glob(f"*-{drivers}"):
        path.unlink()


def host_initramfs(root: Path) -> bytes:
    """What finds the host's disk: busybox and a few modules, loaded in the order of their names."""
    release = kernel_release(root, cloud=True)
    archive = _busybox(root, recipe.HOST_INIT)
    for number, path in enumerate(_with_dependencies(root, release, recipe.HOST_INITRD_MODULES)):
        archive.file(f"modules/{number:02}-{path.name}", path.read_bytes())
    for name in ("proc", "dev", "root"):
        archive.directory(name)
    return archive.finish()


def _write(root: Path, release: str, modules: Sequence[str], directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    image = (root / f"boot/vmlinuz-{release}").read_bytes()
    (directory / "bzImage").write_bytes(image)
    (directory / "vmlinux").write_bytes(vmlinux.extract(image))
    archive = _busybox(root, recipe.GUEST_INIT)
    archive.file("sbin/load-drivers", recipe.LOAD_DRIVERS.encode(), mode=0o755)
    for name, data in _module_tree(root, release, modules):
        archive.file(name, data)
    (directory / "initramfs").write_bytes(archive.finish())
    (directory / "release").write_text(f"{release}\n")


def _busybox(root: Path, init: str) -> CpioArchive:
    archive = CpioArchive()
    archive.file("init", init.encode(), mode=0o755)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), mode=0o755)
    archive.character_device("dev/console", major=5, minor=1)
    for name in ("sbin", "usr/bin", "usr/sbin", "etc"):
        archive.directory(name)
    return archive


def _module_tree(root: Path, release: str, names: Sequence[str]) -> Iterable[tuple[str, bytes]]:
    """The modules with their dependencies, and the tables modprobe needs for just these."""
    base = root / "lib/modules" / release
    with tempfile.TemporaryDirectory(dir=root / "tmp") as scratch:
        tree = Path(scratch) / "lib/modules" / release
        for path in _with_dependencies(root, release, names):
            copy = tree / path.relative_to(base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            shutil.copyfile(base / name, tree / name)
        argv = ["chroot", str(root), "depmod", "-b", f"/tmp/{Path(scratch).name}", release]
        subprocess.run(argv, check=True, capture_output=True, timeout=_DEPMOD_TIMEOUT_S)
        wanted = ("modules.dep", "modules.alias", "modules.symbols", "modules.softdep", "modules.devname")
        for path in sorted(tree.rglob("*")):
            if path.suffix == ".ko" or path.name in wanted:
                yield str(path.relative_to(scratch)), path.read_bytes()


def _with_dependencies(root: Path, release: str, names: Sequence[str]) -> list[Path]:
    """Files of `names` and all they need, each after what it needs. What is built into the kernel has none."""
    base = root / "lib/modules" / release
    needs: dict[str, list[str]] = {}
    for line in (base / "modules.dep").read_text().splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    by_name = {Path(path).stem.replace("-", "_"): path for path in needs}
    builtin = {Path(line).stem.replace("-", "_") for line in (base / "modules.builtin").read_text().split()}
    ordered: dict[str, None] = {}
    for name in (name.replace("-", "_") for name in names):
        if name in by_name:
            # modules.dep(5): a module's list is to be loaded from its end
            ordered.update(dict.fromkeys((*reversed(needs[by_name[name]]), by_name[name])))
        elif name not in builtin:
            raise ValueError(f"kernel {release} has no module {name}")
    return [base / path for path in ordered]
