"""A minimal Debian system as a directory, for trying the package's files on another release: no kernel, no emulation.

Nothing in it but apt and what every Debian has; mmdebstrap's archive of it is kept beside the lab's images.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from appliance.storage.recipes import apt_sources, bootstrap
from tests.lab.image import DIRECTORY

RUN_TIMEOUT_S: Final = 120.0
PREPARE: Final = """\
set -e
root=$1; shift
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 dev "$root/dev"
mount -t tmpfs run "$root/run"
mkdir "$root/dev/shm"
for entry in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 666 "$root/dev/${entry%:*}" c 1 "${entry#*:}"; done
ip link set lo up
exec chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 HOME=/root "$@"
"""
_ISOLATED = ("unshare", "--mount", "--pid", "--net", "--fork", "--kill-child", "--propagation", "private")


async def archive(codename: str, packages: Sequence[str] = ("netbase",)) -> Path:
    """mmdebstrap's tar archive, with `packages` beside the minimum; made where there is none (a minute)."""
    sources = apt_sources.move(apt_sources.read_host(), host_codename=apt_sources.host_codename(), codename=codename)
    key = hashlib.sha256("\0".join([sources, *packages]).encode()).hexdigest()[:12]
    path = DIRECTORY / f"root-{codename}.{key}.tar"
    if not path.exists():
        DIRECTORY.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DIRECTORY, prefix=".root-") as name:
            sources_file = Path(name) / "debian.sources"
            sources_file.write_text(sources)
            await bootstrap.make_base(sources_file, codename, tuple(packages), Path(name) / path.name)
            (Path(name) / path.name).replace(path)
    os.utime(path)
    return path


class DebianRoot:
    """The system in a directory. `run` has namespaces of its own each time: nothing outlives it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, argv: Sequence[str], *, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """Run a program in it; what it printed, errors included. Raises `CalledProcessError`."""
        whole = [*_ISOLATED, "sh", "-c", PREPARE, "sh", str(self.path), *argv]
        done = subprocess.run(
            whole, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=timeout_s, check=False,
        )  # fmt: skip
        if done.returncode:
            raise AssertionError(f"{' '.join(argv)}: status {done.returncode}\n{done.stdout}")
        return done.stdout

    def sh(self, script: str, *, timeout_s: float = RUN_TIMEOUT_S) -> str:
        """The same for a line of shell."""
        return self.run(["sh", "-ec", script], timeout_s=timeout_s)


@contextlib.contextmanager
def unpacked(tar: Path) -> Iterator[DebianRoot]:
    """The archive's system, for as long as the context lasts."""
    path = Path(tempfile.mkdtemp(prefix="debian-"))
    try:
        subprocess.run(["tar", "-C", path, "--exclude=./dev/*", "-xf", tar], check=True, timeout=RUN_TIMEOUT_S)
        yield DebianRoot(path)
    finally:
        shutil.rmtree(path)
