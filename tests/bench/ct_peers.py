"""How long others take for the same: a container of the same root, from nothing to its first program's end. For information.

Each that is installed is timed in turns with the others; what is not is named and left out. `unshare` is the yardstick. podman
gets the runtime that works on every layout of control groups, and resource limits that it need not raise.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from tests.bench.figures import Figure
from tests.e2e.busybox import write_template

ROUNDS = 8
NO_GOAL = 60_000
LIMIT_S = 60
TRUE = ("/bin/busybox", "true")


def peers() -> Iterable[Figure]:
    """See the module's docstring."""
    known: dict[str, Callable[[Path], list[str]]] = {"unshare": _unshare, "lxc-execute": _lxc, "podman": _podman}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory) / "rootfs"
        root.mkdir()
        with tarfile.open(write_template(Path(directory) / "busybox.tar.gz")) as tar:
            tar.extractall(root, filter="fully_trusted")
        present = {name: argv(root) for name, argv in known.items() if shutil.which(name)}
        for name in known.keys() - present.keys():
            sys.stderr.write(f"left out: {name}: not installed\n")
        times: dict[str, list[float]] = {name: [] for name in present}
        for number in range(ROUNDS + 1):
            for name, argv in list(present.items()):
                began = time.monotonic()
                done = subprocess.run(argv, capture_output=True, timeout=LIMIT_S, check=False)
                if done.returncode != 0:
                    sys.stderr.write(f"left out: {name}: {done.stderr.decode(errors='replace').strip()[-300:]}\n")
                    del present[name], times[name]
                elif number:  # the first round warms caches
                    times[name].append(time.monotonic() - began)
    for name, taken in times.items():
        yield Figure(f"{name.replace('-', '_')}_ms", 1000 * statistics.median(taken), "ms", NO_GOAL)


def _unshare(root: Path) -> list[str]:
    """The least there can be: the same namespaces and another root, no limits, no filter, no supervision."""
    return ["unshare", "--pid", "--fork", "--ipc", "--uts", "--net", "--mount", "chroot", str(root), *TRUE]


def _lxc(root: Path) -> list[str]:
    settings = root.parent / "lxc.conf"  # it wants a file, whatever -s says
    settings.write_text(f"lxc.rootfs.path = dir:{root}\nlxc.net.0.type = empty\nlxc.apparmor.profile = unconfined\n")
    return ["lxc-execute", "-n", "bench", "-P", str(root.parent), "-f", str(settings), "--", *TRUE]


def _podman(root: Path) -> list[str]:
    limits = ("--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024")
    return ["podman", "run", "--rm", "--network=none", "--runtime=runc", *limits, "--rootfs", str(root), *TRUE]


BENCHMARKS = [peers]
