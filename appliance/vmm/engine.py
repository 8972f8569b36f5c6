"""NativeEngine: starts VMs as machines in this process, and takes up those that were saved as the appliance last went down.

    RUN_DIR/ID/            sockets, also of helper processes; gone with the machine
    DATA_DIR/ID.saved      a machine between two lives of the appliance (`saved_files`): it is removed before it goes on,
                           so that none ever runs twice from one state
A saved machine of an earlier boot of the host is not taken up: its ports and the world it spoke with are gone. It is
removed, and told in the log. Nor is one that cannot be restored. To the guest either is a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.clock import Clock
from appliance.cloud_init import render, write_drive
from appliance.errors import ApplianceError, Conflict, HostError, Unsupported
from appliance.kernel import hugepages, kvm_capabilities, virtiofsd
from appliance.lazy import LazyModule, load
from appliance.model.guest import Capabilities, GuestId, VmResources, VmSpec
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm import refusal
from appliance.vmm.boot import firmware
from appliance.vmm.refusal import HostFacts
from appliance.vmm.saved_files import SavedFiles

_MACHINE = ("appliance.vmm.builder", "appliance.vmm.snapshot", "appliance.vmm.vm")

if TYPE_CHECKING:
    from appliance.vmm import builder, snapshot
    from appliance.vmm import vm as native
    from appliance.vmm.builder import Built
    from appliance.vmm.vm import LogLine, NativeVm, StateCallback
else:  # the machine's hundred modules are loaded, in a thread, when the first one is wanted: many hosts never do
    builder, snapshot, native = (LazyModule(name) for name in _MACHINE)

NAME = "native"

log = logging.getLogger(__name__)


class NativeEngine:
    """Fulfils `services.ports.engine.GuestEngine[VmSpec, VmResources]`. `scope` owns its tasks; `close` before closing it."""

    name = NAME

    def __init__(self, run_dir: Path, data_dir: Path, scope: TaskScope, clock: Clock) -> None:
        self._run_dir = run_dir.absolute() / "vmm"
        self._saved = SavedFiles(data_dir.absolute() / "vmm")
        self._scope, self._clock = scope, clock
        self._facts: HostFacts | None = None
        self._busy: set[GuestId] = set()
        self._running: dict[GuestId, NativeVm] = {}

    async def probe(self) -> Capabilities:
        """Ask /dev/kvm and look for the firmware; some milliseconds."""
        self._facts = await asyncio.to_thread(_look_at_host)
        facts = self._facts
        available, missing = {"start", "firmware:seabios", "console", "pause"}, {}
        if problem := facts.kvm.machine_problem():
            available, missing["start"] = set(), problem
        elif problem := facts.kvm.problem():
            missing["kvm"] = f"{problem}: only guests that ask for engine=native run natively"
        if facts.no_firmware:
            available.discard("firmware:seabios")
            missing["firmware:seabios"] = facts.no_firmware
        if facts.no_storage_daemon:
            missing["disk:qcow2"] = facts.no_storage_daemon
        missing |= {f"KVM_CAP_{feature.cap.name}": feature.lost for feature in facts.kvm.missing}
        return Capabilities(engine=NAME, version="1", available=frozenset(available), missing=missing)

    def refuse(self, spec: VmSpec) -> Sequence[str]:
        """Why the native machine cannot run `spec`. Raises `HostError` before the first `probe`."""
        if self._facts is None:
            raise HostError("the native engine has not been probed")
        return refusal.reasons(spec, self._facts)

    async def start(self, spec: VmSpec, resources: VmResources, *, on_state: StateCallback, log: LogLine) -> NativeVm:
        """Start it. Raises `Unsupported` with all reasons, `Conflict` when it runs already, `HostError`."""
        if found := self.refuse(spec):
            raise Unsupported(f"vm {spec.guest_id}: {'; '.join(found)}")
        with self._claim(spec.guest_id):
            await to_the_end(self._saved.forget, spec.guest_id)
            await _write_cloud_init(spec, resources)
            built = await self._build(spec, resources)
            try:
                await built.machine.start()
            except BaseException:
                await to_its_end(self._undo(built), name=f"undo vm {spec.guest_id}")
                raise
            for line in built.notes():
                log(line)
            return self._keep(built, started_at=self._clock.now(), on_state=on_state)

    async def adopt(self, spec: VmSpec, *, on_state: StateCallback) -> NativeVm | None:
        """The VM if this engine runs it, or if it was saved as the appliance went down: it goes on then, as it was, whatever
        `spec` says. None, and nothing left of it, when there is nothing to go on from: that is told in the log.

        When cancelled before it goes on it stays saved. Raises `HostError` when the host's files cannot be read.
        """
        if (known := self._running.get(spec.guest_id)) is not None and not known.ended:
            return known
        with self._claim(spec.guest_id):
            try:
                path = await to_the_end(self._saved.take, spec.guest_id)
                if path is not None:
                    return await self._take_up(path, on_state)
                await to_the_end(partial(shutil.rmtree, self._directory(spec.guest_id), ignore_errors=True))
                return None
            except asyncio.CancelledError:
                await to_the_end(self._saved.give_back, spec.guest_id)
                raise
            except ApplianceError as error:
                log.error("vm %d: cannot go on from its saved state, it has ended: %s", spec.guest_id, error)
                await to_the_end(self._saved.discard, spec.guest_id)
                return None

    async def running_ids(self) -> Sequence[GuestId]:
        """What runs here, and what waits to be taken up."""
        saved = await asyncio.to_thread(self._saved.ids)
        return sorted({guest_id for guest_id, vm in self._running.items() if not vm.ended} | set(saved))

    async def close(self) -> None:
        """Save what still runs, all at the same time, for the next life of the appliance. What cannot be saved is shut down."""
        await asyncio.gather(*(self._detach(vm) for vm in list(self._running.values())))

    # --- inside -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _claim(self, guest_id: GuestId) -> Iterator[None]:
        running = self._running.get(guest_id)
        if guest_id in self._busy or (running is not None and not running.ended):
            raise Conflict(f"vm {guest_id}: already running")
        self._busy.add(guest_id)
        try:
            yield
        finally:
            self._busy.discard(guest_id)

    def _directory(self, guest_id: GuestId) -> Path:
        return self._run_dir / str(guest_id)

    async def _build(self, spec: VmSpec, resources: VmResources) -> Built:
        await asyncio.to_thread(load, *_MACHINE)
        directory, label = self._directory(spec.guest_id), f"vm {spec.guest_id}"
        options = builder.BuildOptions(
            scope=self._scope, clock=self._clock, run_dir=directory, write_log=partial(log.info, "%s: %s", label)
        )
        try:
            await to_the_end(_fresh_directory, directory)
            return await builder.build(spec, resources, options)
        except BaseException:
            await to_the_end(partial(shutil.rmtree, directory, ignore_errors=True))
            raise

    async def _undo(self, built: Built) -> None:
        await built.end()
        await to_the_end(partial(shutil.rmtree, self._directory(built.spec.guest_id), ignore_errors=True))

    def _keep(self, built: Built, *, started_at: float, on_state: StateCallback) -> NativeVm:
        guest_id = built.spec.guest_id
        vm = self._running[guest_id] = native.NativeVm(
            built,
            started_at=started_at,
            scope=self._scope,
            clock=self._clock,
            on_state=on_state,
            clean_up=partial(self._clean_up, guest_id),
            detach=self._detach,
        )
        return vm

    async def _clean_up(self, guest_id: GuestId) -> None:
        await to_the_end(partial(shutil.rmtree, self._directory(guest_id), ignore_errors=True))
        self._running.pop(guest_id, None)

    async def _detach(self, vm: NativeVm) -> None:
        """Save it and end it here, whole: what waits for this may be out of patience, but a guest's life hangs on it."""

        async def detach() -> None:
            await vm.save_and_end(self._saved.path(vm.guest_id))
            await self._clean_up(vm.guest_id)

        await to_its_end(detach(), name=f"vm {vm.guest_id}: detach")

    async def _take_up(self, path: Path, on_state: StateCallback) -> NativeVm:
        """From the file to a machine that goes on. The file is gone before the guest's first instruction."""
        await asyncio.to_thread(load, *_MACHINE)
        header = await asyncio.to_thread(snapshot.load_header, path)
        spec, life = snapshot.saved_spec(header), snapshot.life_of(header)
        if life.boot != await asyncio.to_thread(snapshot.boot_id):
            raise Unsupported("it is of an earlier boot of the host")
        built = await self._build(spec, life.resources())
        try:
            await snapshot.restore_machine(built, path)
        except BaseException:
            await to_its_end(self._undo(built), name=f"undo vm {spec.guest_id}")
            raise
        vm = self._keep(built, started_at=life.started_at, on_state=on_state)
        try:  # once it is gone from the disk there is no way back, also for whoever is in a hurry: `close` saves it again
            await to_its_end(self._go_on(vm, run=life.was_running), name=f"vm {spec.guest_id} goes on")
        except ApplianceError:
            await to_its_end(vm.stop(), name=f"undo vm {spec.guest_id}")
            raise
        return vm

    async def _go_on(self, vm: NativeVm, *, run: bool) -> None:
        await to_the_end(self._saved.discard, vm.guest_id)
        if run:
            await vm.built.machine.resume()


def _look_at_host() -> HostFacts:
    return HostFacts(
        kvm=kvm_capabilities.probe(),
        no_firmware=firmware.problem(),
        no_ovmf=firmware.problem(firmware.OVMF_CODE) or firmware.problem(firmware.OVMF_VARS),
        no_storage_daemon="" if shutil.which("qemu-storage-daemon") else "qemu-storage-daemon is not installed",
        virtiofsd=virtiofsd.find_program(),
        huge_pages_kib=hugepages.sizes_kib(),
    )


def _fresh_directory(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"mkdir {path}") from error


async def _write_cloud_init(spec: VmSpec, resources: VmResources) -> None:
    if spec.cloud_init is None:
        return
    files = render(spec.cloud_init, hostname=spec.name, nics=spec.nics)
    for disk in spec.disks:
        volume = resources.disks.get(disk.slot)
        if disk.cloudinit and volume is not None:
            await write_drive(volume, files)
