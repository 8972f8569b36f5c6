"""The disks and NICs of a VM that runs, as they come and go. What it has is kept in its record: see `run_dir`.

    in    the parts in order (`plugging`); what fails is undone in reverse
    out   device_del, QEMU asks the guest; DEVICE_DELETED tells that it has let go; the parts behind it go
A guest that does not let go in time may do so later, or when it is reset: the parts go then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace

from appliance.clock import Clock
from appliance.errors import Conflict, HostError, NotFound, ServiceStopping, TimedOut, Unsupported
from appliance.model.guest import NicSpec, VmDisk, VmSpec
from appliance.model.volume import OpenedVolume
from appliance.qemu import mirror, prepare
from appliance.qemu.drives import block_node
from appliance.qemu.mirror import DiskMirror, node_of
from appliance.qemu.monitor import Monitor
from appliance.qemu.plugging import Part, disk_parts, nic_parts, nic_parts_to_remove
from appliance.qemu.run_dir import RunDir
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end

EJECT_TIMEOUT_S = 10.0

log = logging.getLogger(__name__)


class Plugs:
    """Those of one VM. `spec` None: it was started by an appliance that kept none. `vhost`: this host has vhost-net."""

    def __init__(
        self, spec: VmSpec | None, paths: RunDir, monitor: Monitor, *, scope: TaskScope, name: str, vhost: bool
    ) -> None:
        self._spec, self._paths, self._monitor = spec, paths, monitor
        self._scope, self._name, self._vhost = scope, name, vhost
        self._one_at_a_time = asyncio.Lock()
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self._leaving: dict[str, _Leaving] = {}  # by the name of a device the guest was asked for

    @property
    def attached(self) -> Mapping[str, VmDisk | NicSpec]:
        """By slot."""
        if self._spec is None:
            return {}
        disks = {disk.slot: disk for disk in self._spec.disks if disk.volume is not None}
        return {**disks, **{nic.slot: nic for nic in self._spec.nics}}

    async def attach_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        """Raises `Unsupported`, `Conflict`, `HostError`; nothing has changed then."""

        async def attach(spec: VmSpec) -> VmSpec:
            buffered = await asyncio.to_thread(prepare.check_disk, self._name, disk, volume)
            await self._make(disk_parts(spec, disk, volume, await self._present(), buffered=buffered))
            return replace(spec, disks=(*spec.disks, disk))

        await self._change(disk.slot, attach, new=True)

    async def attach_nic(self, nic: NicSpec, tap: str) -> None:
        """As `attach_disk`."""

        async def attach(spec: VmSpec) -> VmSpec:
            await asyncio.to_thread(prepare.check_tap, self._name, nic.slot, tap)
            is_virtio = nic.model == "virtio"
            await self._make(nic_parts(spec, nic, tap, await self._present(), vhost=is_virtio and self._vhost))
            if nic.link_down:
                await self._monitor.execute("set_link", {"name": nic.slot, "up": False})
            return replace(spec, nics=(*spec.nics, nic))

        await self._change(nic.slot, attach, new=True)

    async def detach(self, slot: str) -> None:
        """Raises `NotFound`, `Unsupported`, `TimedOut`, `HostError`."""

        async def detach(spec: VmSpec) -> VmSpec:
            device = self.attached[slot]
            if isinstance(device, NicSpec):
                await self._unmake(slot, nic_parts_to_remove(device))
            else:
                stands_on = await node_of(self._monitor, slot)
                await self._unmake(slot, disk_parts(spec, device, None, (), stands_on=stands_on))
            return _without(self._spec or spec, slot)

        await self._change(slot, detach, new=False)

    async def set_link(self, slot: str, *, up: bool) -> None:
        """Raises `NotFound`, `HostError`."""

        async def set_link(spec: VmSpec) -> VmSpec:
            await self._monitor.execute("set_link", {"name": slot, "up": up})
            nics = tuple(replace(each, link_down=not up) if each.slot == slot else each for each in spec.nics)
            return replace(spec, nics=nics)

        await self._change(slot, set_link, new=False)

    @asynccontextmanager
    async def mirroring(
        self, slot: str, volume: OpenedVolume, *, bytes_per_s: int, clock: Clock
    ) -> AsyncIterator[DiskMirror]:
        """Raises `NotFound`, `Unsupported`, `HostError`. Left before the drive has been switched over, it stays as it was."""
        disk = self.attached.get(slot)
        if not isinstance(disk, VmDisk) or disk.cdrom:
            raise NotFound(f"{self._name}: disk {slot}")
        moved = replace(disk, volume=str(volume.volume_id))
        buffered = await asyncio.to_thread(prepare.check_disk, self._name, disk, volume)

        async def switched() -> None:
            assert self._spec is not None
            await self._keep(_with_volumes(self._spec, {slot: str(moved.volume)}))

        node = block_node(moved, volume, buffered=buffered)
        moving = DiskMirror(self._monitor, slot, node, clock, switched=switched)
        try:
            await to_its_end(moving.begin(bytes_per_s=bytes_per_s), name=f"{self._name}: mirror {slot}")
            yield moving
        finally:
            if moving.unfinished:
                await to_its_end(moving.give_up(), name=f"{self._name}: give up mirroring {slot}")

    async def settle_mirrors(self, keep: Mapping[str, str], clock: Clock) -> Mapping[str, str]:
        """End what an earlier appliance began: see `mirror.settle`. `keep` has the volume each of these slots shall be on."""
        async with self._one_at_a_time:
            stands_on = await mirror.settle(self._monitor, keep, clock)
            if self._spec is not None and keep:
                await self._keep(_with_volumes(self._spec, keep))
            return stands_on

    def deleted(self, name: str) -> None:
        """QEMU's event: the device `name` has gone."""
        awaited = self._awaited.pop(name, None)
        if awaited is not None:
            if not awaited.done():
                awaited.set_result(None)
        elif (leaving := self._leaving.get(name)) is not None:  # nobody waits any more
            with suppress(ServiceStopping):
                self._scope.start(self._gone_late(leaving), name=f"{self._name}: {name} has gone")

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _change(self, slot: str, work: Callable[[VmSpec], Awaitable[VmSpec]], *, new: bool) -> None:
        async def change() -> None:
            async with self._one_at_a_time:
                spec = self._spec
                if spec is None:
                    raise Unsupported(f"{self._name}: {slot}: it was started by an earlier version of the appliance")
                if new and slot in self.attached:
                    raise Conflict(f"{self._name}: {slot} is there already")
                if not new and slot not in self.attached:
                    raise NotFound(f"{self._name}: {slot}")
                await self._keep(await work(spec))

        await to_its_end(change(), name=f"{self._name}: {slot}")

    async def _keep(self, spec: VmSpec) -> None:
        self._spec = spec
        await to_the_end(self._paths.update_spec, spec)

    async def _present(self) -> frozenset[str]:
        answer = await self._monitor.execute("qom-list", {"path": "/machine/peripheral"})
        entries = answer if isinstance(answer, list) else []
        return frozenset(str(entry.get("name", "")) for entry in entries if isinstance(entry, dict))

    async def _make(self, parts: Sequence[Part]) -> None:
        made: list[Part] = []
        try:
            for part in parts:
                await self._monitor.execute(*part.make())
                made.append(part)
        except HostError as error:
            for part in reversed(made):
                with suppress(HostError):
                    await self._monitor.execute(*part.unmake())
            if "does not support hotplugging" in str(error):
                raise Unsupported(str(error)) from error
            raise

    async def _unmake(self, slot: str, parts: Sequence[Part]) -> None:
        leaving = _Leaving(slot, parts, [part for part in reversed(parts) if part.is_device])
        self._leaving |= {part.name: leaving for part in leaving.devices}
        await self._see_off(leaving)

    async def _see_off(self, leaving: _Leaving) -> None:
        """Devices one after the other, the disk before its controller; then what is behind them."""
        while leaving.devices:
            await self._ask_for(leaving.devices[0])
            leaving.devices.pop(0)
        for part in leaving.parts:
            self._leaving.pop(part.name, None)
        await self._remove_behind(leaving.parts)

    async def _ask_for(self, part: Part) -> None:
        gone = self._awaited[part.name] = asyncio.get_running_loop().create_future()
        try:
            try:
                await self._monitor.execute(*part.unmake())
            except HostError as error:
                if "not found" in str(error):  # it went when it was asked for before
                    return
                if "in the process of unplug" not in str(error):
                    raise
            async with asyncio.timeout(EJECT_TIMEOUT_S):
                await gone
        except TimeoutError as error:
            raise TimedOut(f"{self._name}: {part.name}: the guest letting go of it", EJECT_TIMEOUT_S) from error
        finally:
            self._awaited.pop(part.name, None)

    async def _remove_behind(self, parts: Sequence[Part]) -> None:
        for part in reversed([each for each in parts if not each.is_device]):
            try:
                await self._monitor.execute(*part.unmake())
            except HostError as error:
                log.warning("%s: %s stays: %s", self._name, part.name, error)

    async def _gone_late(self, leaving: _Leaving) -> None:
        """The guest has let go of something when nobody waited any more: on with what was begun."""
        async with self._one_at_a_time:
            if leaving.slot not in self.attached:
                return
            try:
                await self._see_off(leaving)
            except HostError as error:
                log.info("%s: %s", self._name, error)  # the next event, or the next attempt
                return
            log.info("%s: the guest has let go of %s", self._name, leaving.slot)
            if self._spec is not None:
                await self._keep(_without(self._spec, leaving.slot))


@dataclass(slots=True)
class _Leaving:
    """A disk or NIC on its way out: all its parts, and the devices of it that are still there, in the order they go."""

    slot: str
    parts: Sequence[Part]
    devices: list[Part]


def _with_volumes(spec: VmSpec, volumes: Mapping[str, str]) -> VmSpec:
    disks = tuple(replace(disk, volume=volumes.get(disk.slot, disk.volume)) for disk in spec.disks)
    return replace(spec, disks=disks)


def _without(spec: VmSpec, slot: str) -> VmSpec:
    return replace(
        spec,
        disks=tuple(disk for disk in spec.disks if disk.slot != slot),
        nics=tuple(nic for nic in spec.nics if nic.slot != slot),
    )
