"""From a specification to a machine that can be started, in numbered steps. On the loop; files are read in threads.

    1 board       memory, VM, interrupt controllers, vCPUs                                 `Machine.create`
    2 chipset     PCI, ACPI, clocks, keyboard, serial lines                                `chipset`
    3 devices     virtio and the watchdog, each in a PCI slot of its own                   `SLOTS`
    4 tables      ACPI and SMBIOS
    5 boot        firmware with fw_cfg, or a kernel placed by us; each vCPU's CPUID        `startup`
A step that fails undoes the machine. Nothing here starts anything: that is `Machine.start`'s, or a restore's.

Slots never depend on what else a machine has, so that a guest's interfaces keep their names.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import HostError, InvalidParameter
from appliance.model.guest import NicSpec, VmDisk, VmResources, VmSpec
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm.block.disk import Disk, DiskOptions, open_disk
from appliance.vmm.board import BoardOptions
from appliance.vmm.boot.cpuid import Topology
from appliance.vmm.chipset import Chipset, add_chipset
from appliance.vmm.console import ByteChannel
from appliance.vmm.device import MachineRequest
from appliance.vmm.display.display import Display, make_display
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.watchdog import Watchdog
from appliance.vmm.life import RESETS
from appliance.vmm.machine import Machine
from appliance.vmm.netdev.tap import Tap
from appliance.vmm.pci.function import PciFunction
from appliance.vmm.startup import make_boot
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.balloon import VirtioBalloon
from appliance.vmm.virtio.console import PortOptions, VirtioConsole
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from appliance.vmm.virtio.pci_transport import VirtioPci
from appliance.vmm.virtio.rng import VirtioRng
from appliance.vmm.virtio.vsock import VirtioVsock, VsockOptions

AGENT_PORT = "org.qemu.guest_agent.0"
SLOTS = {"display": 1, "rng": 2, "agent": 3, "balloon": 4, "watchdog": 5, "vsock": 6, "cloudinit": 7, "tablet": 30}
FIRST_DISK_SLOT, DISK_SLOTS = 8, 16
FIRST_NIC_SLOT, NIC_SLOTS = 24, 6


@dataclass
class Built:
    """A machine and what others reach into. `on_panic` is called on the loop when the guest's kernel says so."""

    machine: Machine
    chipset: Chipset
    resources: VmResources
    agent: ByteChannel | None = None
    balloon: VirtioBalloon | None = None
    display: Display | None = None
    disks: dict[str, Disk] = field(default_factory=dict)
    nics: dict[str, VirtioNet] = field(default_factory=dict)
    functions: dict[str, PciFunction] = field(default_factory=dict)
    on_panic: Callable[[], None] = lambda: None

    def notes(self) -> list[str]:
        """Who moves the data of each disk and NIC, for the task's log."""
        planes = {**{slot: disk.data_plane for slot, disk in self.disks.items()},
                  **{slot: nic.data_plane.value for slot, nic in self.nics.items()}}  # fmt: skip
        return [f"{slot}: data plane: {plane}" for slot, plane in planes.items()]

    @property
    def serials(self) -> dict[str, ByteChannel]:
        return self.chipset.serials

    @property
    def power(self) -> AcpiPm:
        return self.chipset.power


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildOptions:
    """`run_dir`: a directory of this machine's own for sockets; `write_log` takes lines for the guest's log, any thread."""

    scope: TaskScope
    clock: Clock
    run_dir: Path
    write_log: Callable[[str], None]


def has_display(spec: VmSpec) -> bool:
    """Whether the machine has a graphical display; without one the firmware's screen is on serial0."""
    return spec.display != "none" and not spec.display.startswith("serial")


def disk_slot(disk: VmDisk) -> int:
    """The PCI slot of a disk. Raises `InvalidParameter` for one that has none."""
    if disk.cloudinit:
        return SLOTS["cloudinit"]
    if disk.bus != "virtio" or disk.index >= DISK_SLOTS:
        raise InvalidParameter({disk.slot: f"the native machine has virtio0 to virtio{DISK_SLOTS - 1}"})
    return FIRST_DISK_SLOT + disk.index


def nic_slot(nic: NicSpec) -> int:
    """The PCI slot of a NIC. Raises `InvalidParameter` for one that has none."""
    index = int(nic.slot.removeprefix("net"))
    if index >= NIC_SLOTS:
        raise InvalidParameter({nic.slot: f"the native machine has net0 to net{NIC_SLOTS - 1}"})
    return FIRST_NIC_SLOT + index


async def build(spec: VmSpec, resources: VmResources, options: BuildOptions) -> Built:
    """A machine BUILT of `spec`. Raises `HostError`, `Unsupported`, `InvalidParameter`; nothing is left then."""
    machine = await Machine.create(
        BoardOptions(
            label=f"vm {spec.guest_id}",
            memory_bytes=spec.memory_mib << 20,
            vcpus=spec.vcpus,
            apic_ids=Topology(sockets=spec.sockets, cores=spec.cores).apic_ids(spec.vcpus),
        ),
        scope=options.scope,
        clock=options.clock,
        write_log=options.write_log,
        resets=RESETS,
    )
    try:
        return await _Builder(machine, spec, resources, options).build()
    except BaseException:
        await to_its_end(machine.stop(), name=f"undo vm {spec.guest_id}")
        raise


class _Builder:
    """Steps 2 to 5 for one machine."""

    def __init__(self, machine: Machine, spec: VmSpec, resources: VmResources, options: BuildOptions) -> None:
        self._machine, self._spec, self._resources, self._options = machine, spec, resources, options
        self._context = replace(machine.context, request=self._request)
        self._built: Built | None = None

    async def build(self) -> Built:
        spec, machine = self._spec, self._machine
        chipset = add_chipset(
            machine,
            self._context,
            serials=spec.serials,
            local_time=spec.local_time,
            generation=uuid.uuid5(uuid.UUID(spec.uuid), "vmgenid"),  # another one in a clone only
            ejected=self._ejected,
        )
        built = self._built = Built(machine, chipset, self._resources)
        self._add_small_devices(built)
        if spec.vsock:
            await self._add_vsock(built)
        if has_display(spec):
            await self._add_display(built)
        for disk in spec.disks:
            if disk.volume is not None:
                await self.add_disk(built, disk)
        for nic in spec.nics:
            await self.add_nic(built, nic)
        slots = {name: each.slot for name, each in built.functions.items() if each.slot is not None}
        machine.boot = await make_boot(machine, spec, self._resources, chipset, boot_slots=slots)
        return built

    def _add_small_devices(self, built: Built) -> None:
        spec, context = self._spec, self._context
        if spec.rng:
            self._plug(built, "rng", VirtioRng("virtio-rng", context), SLOTS["rng"])
        if spec.agent:
            self._add_agent(built)
        if spec.balloon_min_mib is not None:
            built.balloon = VirtioBalloon("virtio-balloon", context)
            self._plug(built, "balloon", built.balloon, SLOTS["balloon"])
        if spec.watchdog:
            self._plug_function(built, "watchdog", Watchdog("watchdog", context), SLOTS["watchdog"])

    def _add_agent(self, built: Built) -> None:
        device = VirtioConsole("virtio-console", self._context, ports=[PortOptions(name=AGENT_PORT)])
        port = device.ports[0]
        built.agent = ByteChannel(f"{self._machine.label}: guest agent", self._context.bridge)
        built.agent.bind(port)
        port.sink, port.on_room = built.agent.feed, built.agent.has_room
        port.set_open(True)
        self._plug(built, "agent", device, SLOTS["agent"])

    async def _add_display(self, built: Built) -> None:
        display = built.display = await make_display("display", self._context, keyboard=built.chipset.keyboard)
        try:
            self._plug_function(built, "display", display.function, SLOTS["display"])
            self._plug(built, "tablet", display.tablet, SLOTS["tablet"])
        except BaseException:
            await to_its_end(display.close(), name=f"{self._machine.label}: display")
            raise

    async def _add_vsock(self, built: Built) -> None:
        """On UNIX sockets in the machine's run directory: `vsock.sock`, and `vsock.sock_PORT` for what the guest asks for."""
        options = VsockOptions(
            guest_cid=self._spec.guest_id, socket_path=self._options.run_dir / "vsock.sock", data_plane=DataPlane.AUTO
        )
        device = await to_the_end(partial(VirtioVsock, "virtio-vsock", self._context, options=options))
        self._plug(built, "vsock", device, SLOTS["vsock"])

    async def add_disk(self, built: Built, disk: VmDisk) -> None:
        """Into a machine that is being built, or runs (hot-plug)."""
        volume = self._resources.disks.get(disk.slot)
        if volume is None:
            raise HostError(f"{self._machine.label}: {disk.slot}: volume {disk.volume} was not opened")
        options = DiskOptions(
            run_dir=self._options.run_dir, data_plane=DataPlane(self._spec.data_plane), queues=self._spec.vcpus
        )
        opened: list[Disk] = []
        try:
            await to_the_end(lambda: opened.append(open_disk(self._context, disk, volume, options)))
        except asyncio.CancelledError:
            for each in opened:
                each.close()
            raise
        built.disks[disk.slot] = opened[0]
        self._plug(built, disk.slot, opened[0], disk_slot(disk))

    async def add_nic(self, built: Built, nic: NicSpec) -> None:
        """Into a machine that is being built, or runs (hot-plug)."""
        name = self._resources.taps.get(nic.slot)
        if name is None:
            raise HostError(f"{self._machine.label}: {nic.slot}: its tap device is missing")
        tap = await asyncio.to_thread(Tap, name, pairs=max(1, nic.queues))
        options = NetOptions(
            mac=bytes.fromhex(nic.mac.replace(":", "")),
            mtu=nic.mtu if nic.mtu and nic.mtu > 1 else None,
            link_up=not nic.link_down,
            data_plane=DataPlane(self._spec.data_plane),
        )
        try:
            device = VirtioNet(f"virtio-{nic.slot}", self._context, cable=tap, options=options)
        except BaseException:
            tap.close()
            raise
        built.nics[nic.slot] = device
        self._plug(built, nic.slot, device, nic_slot(nic))

    def _plug(self, built: Built, name: str, device: VirtioDevice, slot: int) -> None:
        self._plug_function(built, name, VirtioPci(device), slot)

    def _plug_function(self, built: Built, name: str, function: PciFunction, slot: int) -> None:
        try:
            built.chipset.pci.plug(function, slot)
            self._machine.add(function)
        except BaseException:
            function.close()
            raise
        built.functions[name] = function

    # --- doors of the devices ---------------------------------------------------------------------------------------

    def _request(self, request: MachineRequest, why: str) -> None:
        """A panic is told, not acted upon: what follows is the guest's own choice (kernel.panic). Any thread."""
        if request is MachineRequest.PANIC:
            self._context.note(f"{request}: {why}")
            self._context.bridge.post(lambda: self._built.on_panic() if self._built else None)
            return
        if request is MachineRequest.WATCHDOG:
            self._watchdog(why)
            return
        self._machine.request(request, why)

    def _watchdog(self, why: str) -> None:
        self._context.note(f"watchdog expired: {why}; action {self._spec.watchdog}")
        match self._spec.watchdog:
            case "reset":
                self._machine.request(MachineRequest.WATCHDOG, why)
            case "poweroff":
                self._machine.request(MachineRequest.POWER_OFF, f"watchdog: {why}")
            case "shutdown":
                self._context.bridge.post(lambda: self._built.power.press_power_button() if self._built else None)
            case "pause":
                self._context.bridge.post(self._pause)
            case _:
                pass

    def _pause(self) -> None:
        self._options.scope.start(self._machine.pause(), name=f"{self._machine.label} watchdog pauses it")

    def _ejected(self, function: PciFunction) -> None:
        """The guest has let go of it."""
        if self._built is not None:
            for name, each in list(self._built.functions.items()):
                if each is function:
                    del self._built.functions[name]
                    self._built.disks.pop(name, None)
                    self._built.nics.pop(name, None)
        self._machine.remove(function)
