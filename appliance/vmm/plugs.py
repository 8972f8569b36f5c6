"""The PCI functions of one machine: opened and plugged while it is built, and disks and NICs also while it runs. On the loop.

    built     straight onto the bus: firmware finds it
    running   `pci.hotplug`: the guest is told, and scans the slot
    out       the guest is asked and ejects it when it has let go; or it ejects by itself. Then it is closed

What goes wrong half-way is closed again. A name ("virtio1", "net0", "rng") is free again when its function is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from appliance.errors import Conflict, NotFound, TimedOut
from appliance.model.guest import NicSpec, VmDisk
from appliance.model.volume import OpenedVolume
from appliance.threads import to_the_end
from appliance.vmm.block.disk import Disk, DiskOptions, open_disk
from appliance.vmm.device import DeviceContext, close_wholly
from appliance.vmm.life import MachineState
from appliance.vmm.machine import Machine
from appliance.vmm.netdev.tap import Tap
from appliance.vmm.pci.bus import PciBus
from appliance.vmm.pci.function import PciFunction
from appliance.vmm.pci.hotplug import PciHotplug
from appliance.vmm.places import disk_slot, nic_slot
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from appliance.vmm.virtio.pci_transport import VirtioPci

EJECT_TIMEOUT_S = 10.0


class Plugs:
    """`functions`, and of these the `disks` and `nics`, by name. `on_ejected` is called with the name of what the guest
    has let go of, when it is closed."""

    def __init__(
        self, machine: Machine, context: DeviceContext, *, run_dir: Path, data_plane: DataPlane, queues: int
    ) -> None:
        """`context` is the machine's, perhaps with doors of the builder's own. `queues`: as many as are of use to the
        guest. `attach` follows, once there is a bus."""
        self._machine, self._context = machine, context
        self._data_plane = data_plane
        self._disk_options = DiskOptions(run_dir=run_dir, data_plane=data_plane, queues=queues)
        self._bus: PciBus | None = None
        self._hotplug: PciHotplug | None = None
        self._awaited: dict[str, asyncio.Future[None]] = {}
        self.functions: dict[str, PciFunction] = {}
        self.disks: dict[str, Disk] = {}
        self.nics: dict[str, VirtioNet] = {}
        self.on_ejected: Callable[[str], None] = lambda name: None

    def attach(self, bus: PciBus, hotplug: PciHotplug) -> None:
        """Where functions are plugged from now on."""
        self._bus, self._hotplug = bus, hotplug

    # --- in ---------------------------------------------------------------------------------------------------------

    def plug(self, name: str, device: VirtioDevice, slot: int) -> None:
        """A virtio device into a machine that is being built. Raises `Conflict`, `HostError`; it is closed then."""
        self.plug_function(name, _on_pci(device), slot)

    def plug_function(self, name: str, function: PciFunction, slot: int) -> None:
        """The same for what is a PCI function itself. Never while the machine is between two states: see `add_disk`."""
        try:
            self._machine.add(function)
        except BaseException:
            close_wholly(function)
            raise
        try:
            bus = self._bus if self._machine.state is MachineState.BUILT else self._hotplug
            assert bus is not None, "attach comes first"
            bus.plug(function, slot)
        except BaseException:
            self._machine.remove(function)
            raise
        self.functions[name] = function

    async def add_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        """Open `volume` and plug it in. Raises `InvalidParameter` without a slot for it, `Conflict` when there is one
        already or somebody else has the image, `Unsupported`, `HostError`."""
        slot = disk_slot(disk)
        self._require_free(disk.slot)
        opened: list[Disk] = []

        def open_it() -> None:
            opened.append(open_disk(self._context, disk, volume, self._disk_options))

        try:
            await to_the_end(open_it)
        except asyncio.CancelledError:
            for each in opened:
                await to_the_end(close_wholly, each)
            raise
        await self._add(disk.slot, opened[0], slot)

    async def add_nic(self, nic: NicSpec, tap_name: str) -> None:
        """Attach to the tap and plug it in. Raises `InvalidParameter` without a slot for it, `Conflict` when there is one
        already, `HostError`."""
        slot = nic_slot(nic)
        self._require_free(nic.slot)
        attached: list[Tap] = []

        def attach_it() -> None:
            attached.append(Tap(tap_name, pairs=max(1, nic.queues)))

        options = NetOptions(
            mac=bytes.fromhex(nic.mac.replace(":", "")),
            mtu=nic.mtu if nic.mtu and nic.mtu > 1 else None,
            link_up=not nic.link_down,
            data_plane=self._data_plane,
        )
        try:
            await to_the_end(attach_it)
            device = VirtioNet(f"virtio-{nic.slot}", self._context, cable=attached[0], options=options)
        except BaseException:
            for tap in attached:
                tap.close()
            raise
        await self._add(nic.slot, device, slot)

    async def _add(self, name: str, device: Disk | VirtioNet, slot: int) -> None:
        """Not while the machine is being paused, reset or ended: what is added half-way would miss it."""

        def plug() -> None:
            self.plug(name, device, slot)
            if isinstance(device, VirtioNet):
                self.nics[name] = device
            else:
                self.disks[name] = device

        await self._machine.between(plug)

    def _require_free(self, name: str) -> None:
        if name in self.functions:
            raise Conflict(f"{self._machine.label}: {name} is there already")

    # --- out --------------------------------------------------------------------------------------------------------

    async def remove(self, name: str, *, timeout_s: float = EJECT_TIMEOUT_S) -> None:
        """Ask the guest to let go of it, and wait until it has and it is closed.

        One caller at a time. Raises `NotFound`; `Conflict` unless the machine runs; `TimedOut` when the guest does not (no
        driver, or one that needs it): it may still do so later, `on_ejected` tells.
        """
        function, label = self.functions.get(name), f"{self._machine.label}: {name}"
        if function is None or function.slot is None:
            raise NotFound(label)
        if self._machine.state is not MachineState.RUNNING:
            raise Conflict(f"{label}: the guest cannot let go of it: it is {self._machine.state}")
        assert self._hotplug is not None
        ejected = self._awaited[name] = asyncio.get_running_loop().create_future()
        ended = asyncio.ensure_future(self._machine.wait())
        try:
            self._hotplug.request_unplug(function.slot)
            await asyncio.wait((ejected, ended), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()  # only the wait: nothing when it is over
            self._awaited.pop(name, None)
        if ejected.done():
            await self._machine.released()  # its image or tap may be another's now
            return
        if ended.done():
            raise Conflict(f"{label}: the machine has ended")
        raise TimedOut(f"{label}: the guest letting go of it", timeout_s)

    def ejected(self, function: PciFunction) -> None:
        """For `PciHotplug`: the guest has let go of it."""
        self._machine.remove(function)
        for name in [name for name, each in self.functions.items() if each is function]:
            del self.functions[name]
            self.disks.pop(name, None)
            self.nics.pop(name, None)
            self.on_ejected(name)
            awaited = self._awaited.pop(name, None)
            if awaited is not None and not awaited.done():
                awaited.set_result(None)


def _on_pci(device: VirtioDevice) -> PciFunction:
    try:
        return VirtioPci(device)
    except BaseException:
        close_wholly(device)
        raise
