"""From a specification to a machine that can be started, in numbered steps. On the loop; files are read in threads.

    1 board       memory, VM, interrupt controllers, vCPUs                                 `Machine.create`
    2 chipset     PCI, ACPI, clocks, keyboard, serial lines                                `chipset`
    3 devices     virtio and the watchdog, each in a PCI slot of its own                   `plugs`, `places`
    4 tables      ACPI and SMBIOS
    5 boot        firmware with fw_cfg, or a kernel placed by us; each vCPU's CPUID        `startup`
A step that fails undoes the machine. Nothing here starts anything: that is `Machine.start`'s, or a restore's.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import HostError, ServiceStopping
from appliance.kernel.virtiofsd import ShareOptions
from appliance.model.guest import NicSpec, VmDisk, VmResources, VmShare, VmSpec
from appliance.model.volume import OpenedVolume
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end
from appliance.vmm.backing import memory_options
from appliance.vmm.block.disk import Disk
from appliance.vmm.board import BoardOptions
from appliance.vmm.boot.cpuid import Topology
from appliance.vmm.chipset import Chipset, add_chipset
from appliance.vmm.console import ByteChannel
from appliance.vmm.device import MachineRequest, close_wholly
from appliance.vmm.display.display import Display, make_display
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.watchdog import Watchdog
from appliance.vmm.life import RESETS
from appliance.vmm.machine import Machine
from appliance.vmm.places import SLOTS, share_slot
from appliance.vmm.plugs import Plugs
from appliance.vmm.startup import make_boot
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.balloon import VirtioBalloon
from appliance.vmm.virtio.console import ConsolePort, PortOptions, VirtioConsole
from appliance.vmm.virtio.fs import VirtioFs, open_shared
from appliance.vmm.virtio.net import VirtioNet
from appliance.vmm.virtio.rng import VirtioRng
from appliance.vmm.virtio.vsock import VirtioVsock, VsockOptions

AGENT_PORT = "org.qemu.guest_agent.0"
PANIC_INTERVAL_S = 10.0


@dataclass
class Built:
    """A machine and what others reach into. `spec` and `resources` are what it has now: hot-plug changes them.

    Called on the loop: `on_panic` when the guest's kernel says so, `on_paused` when its watchdog has paused it.
    """

    machine: Machine
    chipset: Chipset
    plugs: Plugs
    spec: VmSpec
    resources: VmResources
    agent: ByteChannel | None = None
    agent_port: ConsolePort | None = None
    balloon: VirtioBalloon | None = None
    display: Display | None = None
    vsock: VirtioVsock | None = None
    on_panic: Callable[[], None] = lambda: None
    on_paused: Callable[[str], None] = lambda reason: None

    def notes(self) -> list[str]:
        """For the task's log: cautions, and who moves the data of each device that another may serve."""
        planes = {**{slot: disk.data_plane for slot, disk in self.disks.items()},
                  **{slot: nic.data_plane.value for slot, nic in self.nics.items()}}  # fmt: skip
        if self.vsock is not None:
            planes["vsock"] = self.vsock.data_plane.value
        return [*self._cautions(), *(f"{slot}: data plane: {plane}" for slot, plane in planes.items())]

    def _cautions(self) -> list[str]:
        """What whoever starts it should know."""
        found = []
        if self.spec.firmware == "ovmf" and not self.spec.kernel:
            found.append("EXPERIMENTAL: UEFI (OVMF) on the native machine has not been proved; engine=qemu has it")
            if self.spec.efi_disk is None:
                found.append("no EFI disk: UEFI variables are forgotten when the VM stops")
        if self.spec.shares:
            found.append("while a shared directory is mounted, a restart of the appliance shuts this guest down")
        return found

    @property
    def disks(self) -> Mapping[str, Disk]:
        return self.plugs.disks

    @property
    def nics(self) -> Mapping[str, VirtioNet]:
        return self.plugs.nics

    @property
    def serials(self) -> dict[str, ByteChannel]:
        return self.chipset.serials

    @property
    def power(self) -> AcpiPm:
        return self.chipset.power

    async def end(self) -> None:
        """Stop the machine if it has not ended, and show out everybody who listens or looks. Harmless when done twice."""
        await self.machine.stop()
        for channel in (*self.serials.values(), *([self.agent] if self.agent else [])):
            channel.end()
        if self.display is not None:
            await self.display.close()


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


async def build(spec: VmSpec, resources: VmResources, options: BuildOptions) -> Built:
    """A machine BUILT of `spec`. Raises `HostError`, `Unsupported`, `InvalidParameter`; nothing is left then."""
    memory = await to_the_end(memory_options, spec)
    machine = await Machine.create(
        BoardOptions(
            label=f"vm {spec.guest_id}",
            memory_bytes=spec.memory_mib << 20,
            memory=memory,
            vcpus=spec.vcpus,
            apic_ids=Topology(sockets=spec.sockets, cores=spec.cores).apic_ids(spec.vcpus),
        ),
        scope=options.scope,
        clock=options.clock,
        write_log=options.write_log,
        resets=RESETS,
    )
    builder = _Builder(machine, spec, resources, options)
    try:
        return await builder.build()
    except BaseException:
        undo = machine.stop if builder.built is None else builder.built.end
        await to_its_end(undo(), name=f"undo vm {spec.guest_id}")
        raise


class _Builder:
    """Steps 2 to 5 for one machine."""

    def __init__(self, machine: Machine, spec: VmSpec, resources: VmResources, options: BuildOptions) -> None:
        self._machine, self._spec, self._resources, self._options = machine, spec, resources, options
        self._context = replace(machine.context, request=self._request)
        self._panic_told_at = float("-inf")
        self.built: Built | None = None

    async def build(self) -> Built:
        spec, machine = self._spec, self._machine
        plugs = Plugs(
            machine,
            self._context,
            run_dir=self._options.run_dir,
            data_plane=DataPlane(spec.data_plane),
            queues=spec.vcpus,
        )
        chipset = add_chipset(
            machine,
            self._context,
            serials=spec.serials,
            local_time=spec.local_time,
            generation=uuid.uuid5(uuid.UUID(spec.uuid), "vmgenid"),  # another one in a clone only
            ejected=plugs.ejected,
        )
        plugs.attach(chipset.pci, chipset.hotplug)
        built = self.built = Built(machine, chipset, plugs, spec, self._resources)
        self._add_small_devices(built)
        if spec.vsock:
            built.vsock = await self._make_vsock()
            plugs.plug("vsock", built.vsock, SLOTS["vsock"])
        if has_display(spec):
            await self._add_display(built)
        for disk in spec.disks:
            if disk.volume is not None:
                await plugs.add_disk(disk, self._volume(disk))
        for share in spec.shares:
            await self._add_share(built, share)
        for nic in spec.nics:
            await plugs.add_nic(nic, self._tap(nic))
        slots = {name: each.slot for name, each in plugs.functions.items() if each.slot is not None}
        machine.boot = await make_boot(machine, spec, self._resources, chipset, boot_slots=slots)
        return built

    def _volume(self, disk: VmDisk) -> OpenedVolume:
        volume = self._resources.disks.get(disk.slot)
        if volume is None:
            raise HostError(f"{self._machine.label}: {disk.slot}: volume {disk.volume} was not opened")
        return volume

    def _tap(self, nic: NicSpec) -> str:
        name = self._resources.taps.get(nic.slot)
        if name is None:
            raise HostError(f"{self._machine.label}: {nic.slot}: its tap device is missing")
        return name

    def _add_small_devices(self, built: Built) -> None:
        spec, context = self._spec, self._context
        if spec.rng:
            built.plugs.plug("rng", VirtioRng("virtio-rng", context), SLOTS["rng"])
        if spec.agent:
            self._add_agent(built)
        if spec.balloon_min_mib is not None:
            built.balloon = VirtioBalloon("virtio-balloon", context)
            built.plugs.plug("balloon", built.balloon, SLOTS["balloon"])
        if spec.watchdog:
            built.plugs.plug_function("watchdog", Watchdog("watchdog", context), SLOTS["watchdog"])

    def _add_agent(self, built: Built) -> None:
        device = VirtioConsole("virtio-console", self._context, ports=[PortOptions(name=AGENT_PORT)])
        port = device.ports[0]
        built.agent = ByteChannel(f"{self._machine.label}: guest agent", self._context.bridge)
        built.agent.bind(port)
        port.sink, port.on_room = built.agent.feed, built.agent.has_room
        port.set_open(True)
        built.agent_port = port
        built.plugs.plug("agent", device, SLOTS["agent"])

    async def _add_display(self, built: Built) -> None:
        display = built.display = await make_display("display", self._context, keyboard=built.chipset.keyboard)
        built.plugs.plug_function("display", display.function, SLOTS["display"])
        built.plugs.plug("tablet", display.tablet, SLOTS["tablet"])

    async def _add_share(self, built: Built, share: VmShare) -> None:
        """Served by a virtiofsd of its own, which ends with the machine."""
        directory = self._resources.directories.get(share.slot)
        if directory is None:
            raise HostError(f"{self._machine.label}: {share.slot}: directory mapping {share.mapping} was not looked up")
        options = ShareOptions(cache=share.cache, direct_io=share.direct_io, acl=share.acl, xattr=share.xattr)
        made: list[VirtioFs] = []

        def make() -> None:
            socket_path = self._options.run_dir / f"{share.slot}.sock"
            made.append(
                open_shared(
                    share.slot,
                    self._context,
                    tag=share.mapping,
                    directory=directory,
                    socket_path=socket_path,
                    options=options,
                )
            )

        try:
            await to_the_end(make)
        except asyncio.CancelledError:
            for each in made:
                await to_the_end(close_wholly, each)
            raise
        built.plugs.plug(share.slot, made[0], share_slot(share))

    async def _make_vsock(self) -> VirtioVsock:
        """On UNIX sockets in the machine's run directory: `vsock.sock`, and `vsock.sock_PORT` for what the guest asks for.
        On the host's own AF_VSOCK, the guest's ID as its CID, where the data is to leave this process."""
        offload = self._spec.data_plane == DataPlane.OFFLOAD
        options = VsockOptions(
            guest_cid=self._spec.guest_id, socket_path=None if offload else self._options.run_dir / "vsock.sock"
        )
        made: list[VirtioVsock] = []

        def make() -> None:
            made.append(VirtioVsock("virtio-vsock", self._context, options=options))

        try:
            await to_the_end(make)
        except asyncio.CancelledError:
            for each in made:
                each.close()
            raise
        return made[0]

    # --- doors of the devices ---------------------------------------------------------------------------------------

    def _request(self, request: MachineRequest, why: str) -> None:
        """A panic is told, not acted upon: what follows is the guest's own choice (kernel.panic). Any thread."""
        if request is MachineRequest.PANIC:
            self._panicked(why)
            return
        if request is MachineRequest.WATCHDOG:
            self._watchdog(why)
            return
        self._machine.request(request, why)

    def _panicked(self, why: str) -> None:
        """A guest can say it a million times a second: the loop hears of it now and then."""
        self._context.note(f"{MachineRequest.PANIC}: {why}")
        now = self._options.clock.monotonic()
        if now - self._panic_told_at > PANIC_INTERVAL_S:
            self._panic_told_at = now
            self._context.bridge.post(lambda: self.built.on_panic() if self.built else None)

    def _watchdog(self, why: str) -> None:
        self._context.note(f"watchdog expired: {why}; action {self._spec.watchdog}")
        match self._spec.watchdog:
            case "reset":
                self._machine.request(MachineRequest.WATCHDOG, why)
            case "poweroff":
                self._machine.request(MachineRequest.POWER_OFF, f"watchdog: {why}")
            case "shutdown":
                self._context.bridge.post(lambda: self.built.power.press_power_button() if self.built else None)
            case "pause":
                self._context.bridge.post(partial(self._begin_pause, why))
            case _:
                pass

    def _begin_pause(self, why: str) -> None:
        with contextlib.suppress(ServiceStopping):  # whoever closes the scope ends the machine
            self._options.scope.start(self._pause(why), name=f"{self._machine.label} watchdog pauses it")

    async def _pause(self, why: str) -> None:
        await self._machine.pause()
        if self.built is not None:
            self.built.on_paused(f"watchdog: {why}")
