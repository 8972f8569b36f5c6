"""NativeEngine: starts VMs as machines in this process, and takes up those that were saved as the appliance last went down.

    RUN_DIR/ID/            sockets of helper processes, console log; gone with the machine
    DATA_DIR/ID.saved      a machine between two lives of the appliance: who takes it up removes it first, so that no
                           machine ever runs twice from one state
A saved machine of an earlier boot of the host is not taken up: its ports and the world it spoke with are gone. It is
removed, and told in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.clock import Clock
from appliance.cloud_init import render, write_drive
from appliance.errors import ApplianceError, Conflict, HostError, Unsupported
from appliance.files import write_atomic
from appliance.kernel import kvm_capabilities
from appliance.lazy import LazyModule, load
from appliance.model.guest import Capabilities, GuestId, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat, VolumeId
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm import refusal
from appliance.vmm.boot import firmware
from appliance.vmm.refusal import HostFacts

_MACHINE = ("appliance.vmm.builder", "appliance.vmm.snapshot", "appliance.vmm.vm")

if TYPE_CHECKING:
    from appliance.vmm import builder, snapshot
    from appliance.vmm import vm as native
    from appliance.vmm.builder import Built
    from appliance.vmm.vm import LogLine, NativeVm, StateCallback
else:  # the machine's hundred modules are loaded, in a thread, when the first one is wanted: many hosts never do
    builder, snapshot, native = (LazyModule(name) for name in _MACHINE)

NAME = "native"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

log = logging.getLogger(__name__)


class NativeEngine:
    """Fulfils `services.ports.GuestEngine[VmSpec, VmResources]`. `scope` owns its tasks; `close` before closing it."""

    name = NAME

    def __init__(self, run_dir: Path, data_dir: Path, scope: TaskScope, clock: Clock) -> None:
        self._run_dir, self._data_dir = run_dir.absolute() / "vmm", data_dir.absolute() / "vmm"
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
            await to_the_end(self._forget_saved, spec.guest_id)
            await _write_cloud_init(spec, resources)
            built = await self._build(spec, resources)
            try:
                await built.machine.start()
            except BaseException:
                await to_its_end(self._undo(spec.guest_id, built), name=f"undo vm {spec.guest_id}")
                raise
            for line in built.notes():
                log(line)
            return self._keep(built, spec, started_at=self._clock.now(), on_state=on_state)

    async def adopt(self, spec: VmSpec, *, on_state: StateCallback) -> NativeVm | None:
        """The VM if this engine runs it, or if it was saved as the appliance went down: it goes on then.

        What cannot be restored is told in the log and removed: to the guest that is a power cut.
        """
        if (known := self._running.get(spec.guest_id)) is not None and not known.ended:
            return known
        with self._claim(spec.guest_id):
            found = await to_the_end(self._take_saved, spec.guest_id)
            if found is None:
                return None
            path, volumes, taps = found
            try:
                return await self._restore(path, VmResources(disks=volumes, taps=taps), on_state)
            except ApplianceError as error:
                log.error("vm %d: its saved state cannot be restored, it has ended: %s", spec.guest_id, error)
                return None
            finally:
                await to_the_end(partial(path.unlink, missing_ok=True))

    async def running_ids(self) -> Sequence[GuestId]:
        """What runs here, and what waits to be taken up."""
        saved = await asyncio.to_thread(self._saved_ids)
        return sorted({guest_id for guest_id, vm in self._running.items() if not vm.ended} | set(saved))

    async def close(self) -> None:
        """Save what still runs, all at the same time, for the next life of the appliance."""
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

    async def _build(self, spec: VmSpec, resources: VmResources) -> Built:
        await asyncio.to_thread(load, *_MACHINE)
        directory = self._run_dir / str(spec.guest_id)
        await to_the_end(_fresh_directory, directory)
        label = f"vm {spec.guest_id}"
        options = builder.BuildOptions(
            scope=self._scope, clock=self._clock, run_dir=directory, write_log=partial(log.info, "%s: %s", label)
        )
        try:
            return await builder.build(spec, resources, options)
        except BaseException:
            await to_the_end(partial(shutil.rmtree, directory, ignore_errors=True))
            raise

    async def _undo(self, guest_id: GuestId, built: Built) -> None:
        await built.machine.stop()
        await to_the_end(partial(shutil.rmtree, self._run_dir / str(guest_id), ignore_errors=True))

    def _keep(self, built: Built, spec: VmSpec, *, started_at: float, on_state: StateCallback) -> NativeVm:
        vm = native.NativeVm(
            built,
            spec,
            started_at=started_at,
            scope=self._scope,
            clock=self._clock,
            on_state=on_state,
            clean_up=partial(self._clean_up, spec.guest_id),
            detach=self._detach,
        )
        self._running[spec.guest_id] = vm
        return vm

    async def _clean_up(self, guest_id: GuestId) -> None:
        await to_the_end(partial(shutil.rmtree, self._run_dir / str(guest_id), ignore_errors=True))
        self._running.pop(guest_id, None)

    async def _detach(self, vm: NativeVm) -> None:
        """Save it and end it here."""
        path = self._saved(vm.guest_id)
        if await vm.save_and_end(path):
            await to_the_end(_write_companion, path, vm.built.resources)
        await self._clean_up(vm.guest_id)

    async def _restore(self, path: Path, resources: VmResources, on_state: StateCallback) -> NativeVm:
        header = await asyncio.to_thread(snapshot.load_header, path)
        spec = snapshot.saved_spec(header)
        built = await self._build(spec, resources)
        try:
            await snapshot.restore_machine(built, path)
            if header.extra.get("was_running"):
                await built.machine.resume()
        except BaseException:
            await to_its_end(self._undo(spec.guest_id, built), name=f"undo vm {spec.guest_id}")
            raise
        started_at = float(header.extra.get("started_at", b"0"))
        return self._keep(built, spec, started_at=started_at, on_state=on_state)

    # --- files; in a thread -------------------------------------------------------------------------------------------

    def _saved(self, guest_id: GuestId) -> Path:
        return self._data_dir / f"{guest_id}.saved"

    def _saved_ids(self) -> list[GuestId]:
        return [GuestId(int(path.stem)) for path in self._data_dir.glob("*.saved") if path.stem.isdecimal()]

    def _forget_saved(self, guest_id: GuestId) -> None:
        for path in (self._saved(guest_id), _companion(self._saved(guest_id))):
            path.unlink(missing_ok=True)

    def _take_saved(self, guest_id: GuestId) -> tuple[Path, dict[str, OpenedVolume], dict[str, str]] | None:
        """Claim the saved state: whoever dies after this has not left one that could be used a second time."""
        path = self._saved(guest_id)
        try:
            told = json.loads(_companion(path).read_text())
            taken = path.rename(path.with_suffix(".taken"))
        except FileNotFoundError:
            self._forget_saved(guest_id)
            return None
        except (OSError, ValueError) as error:
            log.error("vm %d: its saved state cannot be taken up: %s", guest_id, error)
            self._forget_saved(guest_id)
            return None
        _companion(path).unlink(missing_ok=True)
        if told["boot"] != BOOT_ID.read_text():
            log.warning("vm %d: its saved state is of an earlier boot of the host: removed", guest_id)
            taken.unlink()
            return None
        volumes = {slot: _volume(each) for slot, each in told["volumes"].items()}
        return taken, volumes, told["taps"]


def _look_at_host() -> HostFacts:
    return HostFacts(
        kvm=kvm_capabilities.probe(),
        no_firmware=firmware.problem(),
        no_storage_daemon="" if shutil.which("qemu-storage-daemon") else "qemu-storage-daemon is not installed",
    )


def _fresh_directory(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    try:
        path.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"mkdir {path}") from error


def _companion(path: Path) -> Path:
    """What a saved machine needs of its host, beside it."""
    return path.with_suffix(".json")


def _write_companion(path: Path, resources: VmResources) -> None:
    volumes = {
        slot: {
            "id": str(volume.volume_id) if volume.volume_id else None,
            "path": str(volume.path),
            "format": volume.format.value,
            "size_bytes": volume.size_bytes,
            "read_only": volume.read_only,
        }
        for slot, volume in resources.disks.items()
    }
    told = {"boot": BOOT_ID.read_text(), "volumes": volumes, "taps": dict(resources.taps)}
    write_atomic(_companion(path), json.dumps(told).encode())


def _volume(told: dict[str, object]) -> OpenedVolume:
    return OpenedVolume(
        volume_id=VolumeId.parse(str(told["id"])) if told["id"] else None,
        path=Path(str(told["path"])),
        format=VolumeFormat(str(told["format"])),
        size_bytes=int(str(told["size_bytes"])),
        read_only=bool(told["read_only"]),
    )


async def _write_cloud_init(spec: VmSpec, resources: VmResources) -> None:
    if spec.cloud_init is None:
        return
    files = render(spec.cloud_init, hostname=spec.name, nics=spec.nics)
    for disk in spec.disks:
        volume = resources.disks.get(disk.slot)
        if disk.cloudinit and volume is not None:
            await write_drive(volume, files)
