"""Guests when the appliance starts: what was interrupted is undone or finished, what runs is found, `onboot` ones start."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from appliance.errors import ApplianceError, HostError
from appliance.services.applications import ApplicationSupervisor
from appliance.services.guest_creation import GuestCreation
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_moves import GuestMoves
from appliance.services.guest_power import GuestPower
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_snapshots import GuestSnapshots
from appliance.services.guest_volumes import GuestVolumes
from appliance.state.store import Put, Store

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class GuestStartup:
    """`load` first, then the others."""

    def __init__(
        self,
        *,
        store: Store,
        inventory: GuestInventory,
        runner: GuestRunner,
        volumes: GuestVolumes,
        creation: GuestCreation,
        snapshots: GuestSnapshots,
        moves: GuestMoves,
        power: GuestPower,
        applications: ApplicationSupervisor,
        node: str,
    ) -> None:
        self._store = store
        self._inventory = inventory
        self._runner = runner
        self._volumes = volumes
        self._creation = creation
        self._snapshots = snapshots
        self._moves = moves
        self._power = power
        self._applications = applications
        self._node = node

    async def load(self) -> None:
        """Read the guests, undo or finish what was interrupted, and find what really runs."""
        await self._inventory.load()
        await self._creation.recover()
        await self._applications.load(self._inventory)
        for guest in self._inventory:
            try:
                await self._runner.adopt(guest)
            except ApplianceError as error:
                log.error("%s: cannot tell whether it runs: %s", guest.label, error)
        for guest in self._inventory:
            try:
                await self._snapshots.recover(guest)
                await self._moves.recover(guest)
            except ApplianceError as error:
                log.error("%s: %s", guest.label, error)
        for guest_id in sorted(await self._runner.running_ids() - {guest.guest_id for guest in self._inventory}):
            log.error("guest %d runs on this host, but is not defined here; it is left alone", guest_id)

    async def tell_unreferenced(self) -> None:
        """Name the volumes that a process killed between making them and writing the configuration has left.

        They stay: only their owner knows whether they are needed. As with PVE, whose `qm rescan` is asked for, too.
        """
        found = await self._volumes.all()
        named = self._inventory.volumes_of_others(None)
        for guest in self._inventory:
            strays = [str(volume) for owner, volume in found if owner == guest.guest_id and volume not in named]
            if strays and guest.lock.holder is None:  # who holds it may be about to name them
                log.warning("%s: volumes of its id that no configuration names: %s", guest.label, ", ".join(strays))

    async def start_onboot(self) -> None:
        """Start the `onboot` guests, once a boot of the host: an appliance that restarts starts nothing.

        What goes wrong is logged: it is no reason for the appliance not to run.
        """
        await self._applications.start_with_appliance(self._inventory)
        try:
            await self._start_with_host()
        except ApplianceError as error:
            log.error("starting guests with the host: %s", error)

    async def _start_with_host(self) -> None:
        try:
            boot_id = await asyncio.to_thread(BOOT_ID.read_bytes)
        except OSError as error:
            raise HostError.from_os_error(error, f"read {BOOT_ID}") from error
        key = f"nodes/{self._node}/boot"
        seen = await self._store.get(key)
        if seen is not None and seen.value == boot_id:
            return
        if any(self._inventory.summary(guest).onboot for guest in self._inventory):
            await self._power.start_all(user="root@pam")
        await self._store.txn([], [Put(key, boot_id)])  # last: starting what runs already does no harm
