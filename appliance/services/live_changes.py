"""Giving a running container the changes of its configuration that it can take: limits and network interfaces.

    memory swap cores cpulimit cpuunits pids iolimit      written to its control group
    netN                                                  port made, removed or made anew; addresses by the tools inside

What could not be done is told, and stays pending: the guest takes it at its next start. VMs: `guest_hotplug.py`.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from appliance.errors import ApplianceError, Unsupported
from appliance.model.guest import CtSpec, GuestKind, GuestState, NicSpec
from appliance.services import guest_config
from appliance.services.guest_hotplug import Applied
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports import LogLine
from appliance.services.ports.network import NetworkBackend
from appliance.services.ports.running_guest import RunningGuest

log = logging.getLogger(__name__)

LIMITS = frozenset({"memory", "swap", "cores", "cpulimit", "cpuunits", "pids", "iolimit"})
_ADDRESSES = frozenset({"ip", "gw", "ip6", "gw6"})


@runtime_checkable
class ChangeableContainer(Protocol):
    """The part of a running container that takes changes."""

    async def update_limits(self, spec: CtSpec, keys: Collection[str]) -> Mapping[str, str]:
        """Set the limits these keys of `spec` ask for; why it could not be done, by key."""

    async def renew_network(self, spec: CtSpec, names: Collection[str]) -> str:
        """Have the interfaces `names` configured inside as `spec` says; a line about how that went."""


class LiveChanges:
    """See the module's docstring. Called with the guest's lock held."""

    def __init__(self, network: NetworkBackend) -> None:
        self._network = network

    async def apply(self, guest: GuestRuntime, waiting: Mapping[str, str | None], log_line: LogLine) -> Applied:
        """Try every pending change of `guest` (`waiting`: key to what it runs with, None for nothing)."""
        running = guest.running
        if guest.kind is not GuestKind.LXC or guest.state is not GuestState.RUNNING or running is None:
            return Applied(frozenset(), {})
        if not waiting or not isinstance(running, ChangeableContainer):
            return Applied(frozenset(), {})
        record = guest.stored.record
        spec = guest_config.to_ct_spec(guest.guest_id, record.config, id_base=record.id_base, id_count=record.id_count)
        done: set[str] = set()
        problems: dict[str, str] = {}
        if limits := LIMITS & waiting.keys():
            problems |= await running.update_limits(spec, limits)
            done |= limits - problems.keys()
        renew: set[str] = set()
        for slot in sorted(key for key in waiting if key.startswith("net") and key[3:].isdigit()):
            try:
                renew |= await self._change_nic(guest, running, waiting[slot] or "", spec, slot)
                done.add(slot)
            except Unsupported as error:
                log_line(f"{slot}: applies at the next start: {error}")
            except ApplianceError as error:
                problems[slot] = f"hotplug problem - {error}"
        for key, reason in problems.items():
            log_line(f"{key}: {reason}")
        if renew:
            log_line(await running.renew_network(spec, renew))
        return Applied(frozenset(done), problems)

    async def _change_nic(
        self, guest: GuestRuntime, running: RunningGuest, before: str, spec: CtSpec, slot: str
    ) -> set[str]:
        """Bring one port to what is wanted; the names inside whose addresses are to be set then."""
        wanted = next((nic for nic in spec.nics if nic.slot == slot), None)
        if wanted is None:
            await self._network.unplug_one(guest.guest_id, slot)
            return set()
        differing = _differing(before, guest.stored.record.config[slot])
        if differing <= _ADDRESSES and not wanted.host_managed:
            return {wanted.name}
        if differing == {"link_down"}:
            await self._network.set_link(guest.guest_id, slot, up=not wanted.link_down)
            return set()
        await self._replug(guest, running, wanted)
        return set() if wanted.host_managed else {wanted.name}

    async def _replug(self, guest: GuestRuntime, running: RunningGuest, nic: NicSpec) -> None:
        await self._network.check(nic)
        await self._network.unplug_one(guest.guest_id, nic.slot)
        await self._network.plug_ct(guest.guest_id, nic, Path(f"/proc/{running.pid}/ns/net"))


def _differing(old: str, new: str) -> set[str]:
    """The parts in which two NIC texts differ. Booleans that are 0 count as absent."""
    before, after = (
        {name: value for name, value in guest_config.parse_one(GuestKind.LXC, "net0", text).items() if value != "0"}
        if text
        else {}
        for text in (old, new)
    )
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
