"""The host of a test: an engine over real QEMU in a short-named directory, with a boot-sector guest ready to start.

    async with qemu_host() as host:
        vm = await host.start()

Whatever a test does, no process and no directory is left of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.kernel.cgroups import Cgroup, CgroupLayout, ParentGroup, parent_name
from appliance.model.guest import GuestId, GuestState, VmDisk, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.qemu import engine as engine_module
from appliance.qemu.capabilities import HostFacts, probe_host
from appliance.qemu.console import SerialConsole
from appliance.qemu.engine import QemuEngine
from appliance.qemu.process import find_launched_with, read_stat
from appliance.qemu.run_dir import RunDir
from appliance.qemu.vm import RunningVm
from appliance.tasks import TaskScope
from tests.qemu.boot_sector import GREETING, write_disk

READ_TIMEOUT_S = 30.0
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"


def boot_spec(**changes: object) -> VmSpec:
    """VM 100: the boot sector on virtio0, 32 MiB, one serial console."""
    disk = VmDisk(slot="virtio0", volume="local:100/vm-100-disk-0.raw")
    spec = VmSpec(
        guest_id=GuestId(100),
        name="sector",
        uuid=UUID,
        memory_mib=32,
        serials=(0,),
        disks=(disk,),
        boot_order=("virtio0",),
    )
    return replace(spec, **changes)  # type: ignore[arg-type]  # the caller names VmSpec's own fields


def opened(path: Path, format: VolumeFormat = VolumeFormat.RAW) -> OpenedVolume:
    """A file as an opened volume."""
    return OpenedVolume(volume_id=None, path=path, format=format, size_bytes=path.stat().st_size)


@dataclass
class QemuHost:
    """The engine and what it told."""

    engine: QemuEngine
    directory: Path
    scope: TaskScope
    states: list[tuple[GuestState, str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    def paths(self, guest_id: int = 100) -> RunDir:
        """The run directory of a VM."""
        return RunDir.of(self.run_dir, GuestId(guest_id))

    def groups(self) -> list[Path]:
        """Every control group of this engine's VMs, and the one above them. Blocking."""
        return groups_below(self.run_dir)

    def disk(self, boot: bytes | None = None, name: str = "disk.raw") -> OpenedVolume:
        """A boot disk on this host."""
        return opened(write_disk(self.directory / name, boot))

    def on_state(self, state: GuestState, reason: str) -> None:
        """Remembers."""
        self.states.append((state, reason))

    async def start(self, spec: VmSpec | None = None, resources: VmResources | None = None) -> RunningVm:
        """Start `spec`; its disks default to one boot disk on virtio0."""
        used = resources or VmResources(disks={"virtio0": self.disk()})
        return await self.engine.start(spec or boot_spec(), used, on_state=self.on_state, log=self.lines.append)

    async def adopt(self, spec: VmSpec | None = None) -> RunningVm | None:
        """Adopt `spec`."""
        return await self.engine.adopt(spec or boot_spec(), on_state=self.on_state)


_asked: list[HostFacts] = []


async def _facts() -> HostFacts:
    """What this host's QEMUs said when they were first asked: they say the same to every test."""
    if not _asked:
        _asked.append(await probe_host())
    return _asked[0]


@contextlib.asynccontextmanager
async def qemu_host(directory: Path | None = None) -> AsyncIterator[QemuHost]:
    """A probed engine. Without `directory` in one of its own."""
    own = directory or Path(tempfile.mkdtemp(prefix="vm-"))
    scope = TaskScope("test")
    host = QemuHost(QemuEngine(own / "run", scope, SystemClock()), own, scope)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine_module, "probe_host", _facts)
            await host.engine.probe()
        yield host
    finally:
        for guest_id in await host.engine.running_ids():
            vm = host.engine.running(guest_id)
            if vm is not None:
                await vm.stop()
        await host.engine.close()
        await scope.close()
        running = await host.engine.running_ids()
        groups = await asyncio.to_thread(host.groups)
        await asyncio.to_thread(remove_everything, own)
    assert running or not groups, f"control groups were left behind: {groups}"


def remove_everything(directory: Path) -> None:
    """Kill every QEMU launched below `directory` and remove it. Blocking."""
    for path in (directory / "run" / "vm").glob("*"):
        pid = find_launched_with(path / "pid")
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    layout, parent = CgroupLayout.detect(), parent_name(directory / "run")
    for name in {path.name for path in groups_below(directory / "run")} - {parent}:
        Cgroup(layout, parent, name).remove()
    ParentGroup.named(parent).remove(layout)
    shutil.rmtree(directory, ignore_errors=True)


def groups_below(run_dir: Path) -> list[Path]:
    """The control groups of an engine's VMs and the one above them, in every tree. Blocking."""
    parents = [root / parent_name(run_dir) for root in CgroupLayout.detect().roots]
    return [path for parent in parents if parent.exists() for path in (parent, *parent.glob("vm-*"))]


async def greeted(vm: RunningVm) -> SerialConsole:
    """The console of a guest that has greeted, be it before we attached (then history holds it) or after."""
    console = await vm.open_console("serial0")
    await read_until(console, GREETING, said=console.history())
    return console


async def read_until(console: SerialConsole, marker: bytes, *, said: bytes = b"") -> bytes:
    """`said` already and everything the console says up to and with `marker`, which may be in `said`."""
    async with asyncio.timeout(READ_TIMEOUT_S):
        while marker not in said:
            chunk = await console.read()
            assert chunk, f"the console ended after {said!r}"
            said += chunk
    return said


async def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    stat = await asyncio.to_thread(read_stat, pid)
    return stat is not None and stat.alive
