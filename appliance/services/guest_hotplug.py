"""Disks and NICs of a VM that runs: what a changed configuration means for it is done at once, where its engine can.

The configuration is written before: what fails here, or has to wait, applies at the next start. One change of a guest at a
time (its lock is held). Nothing is left of a step that fails: an engine undoes its part, the port of a NIC goes again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass

from appliance.errors import ApplianceError, NotFound, Unsupported
from appliance.model.guest import GuestKind, NicSpec
from appliance.model.volume import VolumeId
from appliance.services import guest_config
from appliance.services.guest_config import Attach, Detach, SetLink, Step
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.ports.hotplug import HotPlug
from appliance.services.ports.network import NetworkBackend
from appliance.services.storage import StorageService
from appliance.tasks import to_its_end


@dataclass(frozen=True, slots=True)
class Applied:
    """The keys that the running guest has taken up, and what went wrong with others."""

    done: frozenset[str]
    problems: Mapping[str, str]


class GuestHotplug:
    """Holds no state."""

    def __init__(self, *, storage: StorageService, network: NetworkBackend) -> None:
        self._storage, self._network = storage, network

    @staticmethod
    def held(guest: GuestRuntime) -> frozenset[VolumeId] | None:
        """The volumes that the running guest has open; None where its engine cannot tell."""
        if (running := _hot_plug(guest)) is None:
            return None
        disks = [each for each in running.attached.values() if not isinstance(each, NicSpec)]
        return frozenset(VolumeId.parse(disk.volume) for disk in disks if disk.volume)

    async def apply(self, guest: GuestRuntime, changed: Collection[str], log_line: LogLine) -> Applied:
        """Do what the `changed` keys mean for the guest, if it runs."""
        running, config = _hot_plug(guest), guest.stored.record.config
        if running is None:
            return Applied(frozenset(), {})
        spec = guest_config.to_vm_spec(guest.guest_id, config)
        plan = guest_config.live_plan(changed, running.attached, spec, kinds=guest_config.hotplug_kinds(config))
        problems: dict[str, str] = {}
        waiting = dict.fromkeys(plan.waiting, "")
        for step in plan.steps:
            slot = step.device.slot
            if slot in problems or slot in waiting:
                continue
            try:
                log_line(f"{slot}: {await self._do(guest, running, step)}")
            except Unsupported as error:
                waiting[slot] = f": {error}"
            except ApplianceError as error:
                problems[slot] = f"hotplug problem - {error}"
                log_line(f"{slot}: {error}")
        for slot, why in waiting.items():
            log_line(f"{slot}: applies at the next start{why}")
        done = {step.device.slot for step in plan.steps} - problems.keys() - waiting.keys()
        return Applied(frozenset(done), problems)

    async def _do(self, guest: GuestRuntime, running: HotPlug, step: Step) -> str:
        match step:
            case Detach(device):
                await self._detach(guest, running, device.slot, is_nic=isinstance(device, NicSpec))
                return "taken out"
            case SetLink(nic):
                await running.set_link(nic.slot, up=not nic.link_down)
                await self._network.set_link(guest.guest_id, nic.slot, up=not nic.link_down)
                return "cable pulled" if nic.link_down else "cable plugged in"
            case Attach(NicSpec() as nic):
                await self._attach_nic(guest, running, nic)
            case Attach(device):
                assert not isinstance(device, NicSpec)
                volume = await self._storage.open(VolumeId.parse(device.volume or ""))
                await running.attach_disk(device, volume)
        return "plugged in"

    async def _detach(self, guest: GuestRuntime, running: HotPlug, slot: str, *, is_nic: bool) -> None:
        with suppress(NotFound):  # the guest has let go of it by itself
            await (running.detach_nic(slot) if is_nic else running.detach_disk(slot))
        if is_nic:
            await self._network.unplug_one(guest.guest_id, slot)

    async def _attach_nic(self, guest: GuestRuntime, running: HotPlug, nic: NicSpec) -> None:
        await self._network.check(nic)
        try:
            tap = await self._network.plug_vm(guest.guest_id, nic)
            await running.attach_nic(nic, tap)
        except BaseException:
            undo = self._network.unplug_one(guest.guest_id, nic.slot)
            await to_its_end(undo, name=f"{guest.label}: port of {nic.slot}")
            raise


def _hot_plug(guest: GuestRuntime) -> HotPlug | None:
    running = guest.running
    if running is None or guest.kind is not GuestKind.QEMU or not isinstance(running, HotPlug):
        return None
    return running
