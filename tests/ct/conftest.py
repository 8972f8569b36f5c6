"""A container engine on this host, and small root file systems to run in it. Removes by id whatever a test leaves."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.ct import oci, runtime
from appliance.ct.confinement import parse_capability_mask
from appliance.ct.engine import CtEngine
from appliance.ct.host import Places
from appliance.ct.running import RunningCt
from appliance.ct.runtime import OciRuntime
from appliance.errors import ApplianceError
from appliance.kernel import mount
from appliance.kernel.cgroups import CgroupLayout
from appliance.kernel.pidfd import identify
from appliance.model.guest import CtMount, CtResources, CtSpec, GuestId, GuestState
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope

BUSYBOX = Path("/bin/busybox")
APPLETS = (
    "cat",
    "dd",
    "echo",
    "head",
    "id",
    "ls",
    "mkdir",
    "mknod",
    "mount",
    "ps",
    "seq",
    "sh",
    "sleep",
    "stty",
    "tail",
    "touch",
    "unshare",
)
SPEC = CtSpec(
    guest_id=GuestId(101),
    hostname="web",
    root=CtMount(slot="rootfs", volume="local:101/root", path="/"),
    memory_mib=64,
    swap_mib=0,
    command=("/bin/sh", "-c", "echo up; exec sleep 1000"),
)
"""The runs of `SPEC` say "up" on their console and then do nothing."""


def shell(script: str, **fields: object) -> CtSpec:
    """A container whose init is a shell script."""
    return replace(SPEC, command=("/bin/sh", "-c", script), **fields)  # type: ignore[arg-type]  # fields of CtSpec


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Short, and passable by a container's root, as the real one is (pytest's are not)."""
    path = Path(tempfile.mkdtemp(prefix="appl-t-", dir="/run"))
    path.chmod(0o711)
    yield path
    assert mount.mounts_under(path) == [], "mounts were left behind"
    shutil.rmtree(path)


@pytest.fixture
def make_root(tmp_path: Path) -> Callable[[str], OpenedVolume]:
    """Makes a directory volume with a static busybox."""

    def make(name: str) -> OpenedVolume:
        root = tmp_path / name
        for directory in ("bin", "etc", "tmp"):
            (root / directory).mkdir(parents=True)
        shutil.copy(BUSYBOX, root / "bin/busybox")
        for applet in APPLETS:
            (root / "bin" / applet).symlink_to("busybox")
        return OpenedVolume(volume_id=None, path=root, format=VolumeFormat.SUBVOL, size_bytes=0)

    return make


@dataclass
class Host:
    """An engine under test, what it told, and a start that needs no volumes spelled out."""

    engine: CtEngine
    scope: TaskScope
    volume: OpenedVolume
    states: list[GuestState] = field(default_factory=list)
    connected: list[int] = field(default_factory=list)

    @property
    def permitted(self) -> list[str]:
        """The capabilities we have."""
        status = Path("/proc/self/status").read_text()
        return parse_capability_mask(next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm")))

    async def start(self, spec: CtSpec = SPEC, **volumes: OpenedVolume) -> RunningCt:
        return await self.engine.start(
            spec,
            CtResources(open=opening({"rootfs": self.volume, **volumes}), connect=self.connect),
            on_state=self.on_state,
            log=lambda line: None,
        )

    async def connect(self, namespace: Path) -> None:
        self.connected.append((await asyncio.to_thread(namespace.stat)).st_ino)

    def on_state(self, state: GuestState, reason: str) -> None:
        self.states.append(state)


def opening(volumes: Mapping[str, OpenedVolume]) -> Callable[[], Awaitable[Mapping[str, OpenedVolume]]]:
    """They are open already."""

    async def opened() -> Mapping[str, OpenedVolume]:
        return volumes

    return opened


real_self_test = runtime.self_test
_tested: dict[tuple[Path, bool], ApplianceError | OSError | None] = {}


@pytest.fixture(autouse=True)
def runtimes_test_themselves_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that passed its self-test passes it for every test: only the first engine tries."""

    async def remembered(program: OciRuntime, places: Places, facts: oci.HostFacts) -> None:
        key = (program.program, program.takes_pipe)
        if key not in _tested:
            try:
                await real_self_test(program, places, facts)
                _tested[key] = None
            except (ApplianceError, OSError) as error:
                _tested[key] = error
        if (refusal := _tested[key]) is not None:
            raise refusal

    monkeypatch.setattr(runtime, "self_test", remembered)


each_runtime = pytest.mark.parametrize("runtime_name", ["runc", "crun"], indirect=True)
"""What a container does must not depend on who runs it: the test is run with every runtime that is installed."""

_CRUN_WITHOUT_V2 = """#!/bin/sh
exec unshare --mount --propagation slave sh -c 'umount /sys/fs/cgroup/unified && exec {crun} "$@"' crun "$@"
"""


@pytest.fixture(scope="session")
def programs_here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of programs that work on this host as they do elsewhere: crun refuses cgroups of both versions at once, which
    are seen in laboratories only, and so sees those of version 1 alone there."""
    directory = tmp_path_factory.mktemp("programs")
    crun = shutil.which("crun")
    layout = CgroupLayout.detect()
    if crun is not None and not layout.pure_v2 and Path("/sys/fs/cgroup/unified/cgroup.procs").exists():
        (directory / "crun").write_text(_CRUN_WITHOUT_V2.format(crun=crun))
        (directory / "crun").chmod(0o755)
    return directory


@pytest.fixture
def runtime_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, programs_here: Path) -> str:
    """The runtime under test where a test is for each; else "", and the engine chooses."""
    name: str = getattr(request, "param", "")
    if name:
        if shutil.which(name) is None:
            pytest.skip(f"{name} is not installed")
        monkeypatch.setenv("PATH", f"{programs_here}:{os.environ['PATH']}")
        monkeypatch.setattr(runtime, "candidates", lambda layout: [name])
    return name


@pytest.fixture
async def host(runtime_name: str, run_dir: Path, make_root: Callable[[str], OpenedVolume]) -> AsyncIterator[Host]:
    """The engine, probed. Afterwards every container it still knows is stopped, and nothing of it may be left."""
    scope = TaskScope("test")
    engine = CtEngine(run_dir, run_dir, scope, SystemClock(), pids_limit=40)
    capabilities = await engine.probe()
    assert capabilities.usable, capabilities.missing
    assert runtime_name in ("", capabilities.version.split()[0]), capabilities.version
    yield Host(engine, scope, make_root("root"))
    for guest_id in await engine.running_ids():
        left = await engine.adopt(replace(SPEC, guest_id=guest_id), on_state=lambda state, reason: None)
        if left is not None:
            await left.stop()
    await engine.recover()
    await engine.close()
    await scope.close()
    assert await leftovers(run_dir) == []


async def leftovers(run_dir: Path) -> list[str]:
    """What an engine of `run_dir` has left on the host."""
    return await asyncio.to_thread(_leftovers, run_dir)


async def is_alive(pid: int) -> bool:
    """Whether the process runs."""
    return await asyncio.to_thread(identify, pid) is not None


def _leftovers(run_dir: Path) -> list[str]:
    places = Places(run_dir, CgroupLayout.detect())
    groups = [str(root / places.cgroup_parent.name) for root in places.layout.roots]
    bundles = [str(path) for path in places.directory.iterdir() if path.name not in ("runtime", "runtime.json")]
    states = [str(path) for path in places.runtime_state.iterdir()] if places.runtime_state.is_dir() else []
    mounts = [str(path) for path in mount.mounts_under(run_dir)]
    return [*(path for path in groups if Path(path).exists()), *bundles, *states, *mounts]
