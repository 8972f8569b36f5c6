"""Placing devices on the board, and the devices that are neither drives nor the machine itself. Pure."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from types import MappingProxyType

from appliance.errors import HostError
from appliance.model.guest import NicSpec, VmResources, VmShare, VmSpec
from appliance.qemu import pci
from appliance.qemu.launch import I440FX, VIRT, Launch, board_of
from appliance.qemu.options import as_json, as_list, escape

NIC_MODELS = {
    "virtio": ("virtio-net-pci", "efi-virtio.rom"),
    "e1000": ("e1000", "efi-e1000.rom"),
    "e1000e": ("e1000e", "efi-e1000e.rom"),
    "rtl8139": ("rtl8139", "efi-rtl8139.rom"),
    "vmxnet3": ("vmxnet3", "efi-vmxnet3.rom"),
}
DISPLAYS = {"std": "VGA", "virtio": "virtio-vga", "cirrus": "cirrus-vga", "vmware": "vmware-svga"}
NIC_LIMIT, SERIAL_LIMIT = 32, 4


class Devices:
    """Gives devices their addresses, making each PCI bridge before the first device that sits on it."""

    def __init__(self, spec: VmSpec) -> None:
        self.spec = spec
        self.board = board_of(spec.machine, spec.arch)
        self._root = "pci.0" if self.board == I440FX else "pcie.0"
        self._bridges: set[int] = set()

    def place(self, name: str) -> Mapping[str, object]:
        """Bus and address of the device `name`. Its bridge must exist: `bridge_for` makes it."""
        return self._at(pci.address_of(name))

    def bridge_for(self, name: str) -> Iterator[str]:
        """The arguments that make the bridge `name` sits on, once."""
        bridge = pci.address_of(name).bus
        if bridge != pci.ROOT and bridge not in self._bridges:
            self._bridges.add(bridge)
            place = self._at(pci.bridge_address(bridge))
            yield from (
                "-device",
                as_json({"driver": "pci-bridge", "id": f"bridge{bridge}", "chassis_nr": bridge, **place}),
            )

    def add(self, driver: str, name: str, options: Mapping[str, object] = MappingProxyType({})) -> Iterator[str]:
        """A PCI device with its bridge, in place."""
        yield from self.bridge_for(name)
        yield from ("-device", as_json({"driver": driver, "id": name, **self.place(name), **options}))

    def boot_index(self, slot: str) -> int | None:
        """Its place in the boot order, from 1; None when it is not booted from."""
        return self.spec.boot_order.index(slot) + 1 if slot in self.spec.boot_order else None

    def _at(self, address: pci.PciAddress) -> Mapping[str, object]:
        bus = self._root if address.bus == pci.ROOT else f"bridge{address.bus}"
        return {"bus": bus, "addr": hex(address.device)}


def has_display(spec: VmSpec) -> bool:
    """Whether the VM has a graphical display (and so a VNC socket)."""
    return spec.display != "none" and not spec.display.startswith("serial")


def display_driver(spec: VmSpec) -> str:
    """QEMU's device for the display. `virt` has no VGA: it always gets the virtio GPU."""
    return "virtio-gpu-pci" if board_of(spec.machine, spec.arch) == VIRT else DISPLAYS[spec.display]


def device_arguments(spec: VmSpec, resources: VmResources, launch: Launch, devices: Devices) -> Iterator[str]:
    """Everything that plugs in, drives apart."""
    yield from _display(spec, launch, devices)
    yield from _serials(spec, launch, devices)
    for nic in spec.nics:
        yield from _nic(nic, resources, launch, devices)
    for share in spec.shares:
        yield from _share(share, launch, devices)
    if spec.balloon_min_mib is not None:
        yield from devices.add("virtio-balloon-pci", "balloon0", {"free-page-reporting": True})
    if spec.rng:
        yield from ("-object", as_json({"qom-type": "rng-random", "id": "entropy0", "filename": "/dev/urandom"}))
        yield from devices.add("virtio-rng-pci", "rng0", {"rng": "entropy0", "max-bytes": 1024, "period": 1000})
    if spec.agent:
        yield from _agent(launch, devices)
    if spec.watchdog:
        yield from devices.add("i6300esb", "watchdog0", {})
    yield from _paravirtual(spec, devices)


def _display(spec: VmSpec, launch: Launch, devices: Devices) -> Iterator[str]:
    if not has_display(spec):
        yield from ("-display", "none")
        return
    yield from ("-vnc", f"unix:{escape(launch.paths.vnc)}")
    if spec.keyboard:
        yield from ("-k", spec.keyboard)
    yield from devices.add(display_driver(spec), "vga")
    if not spec.tablet and devices.board != VIRT:
        return
    # UHCI where old guests are expected, xHCI (which does not wake the host 1,000 times a second) elsewhere
    yield from devices.add("piix3-usb-uhci" if devices.board == I440FX else "qemu-xhci", "usb")
    if devices.board == VIRT:
        yield from ("-device", as_json({"driver": "usb-kbd", "id": "keyboard", "bus": "usb.0"}))
    if spec.tablet:
        yield from ("-device", as_json({"driver": "usb-tablet", "id": "tablet", "bus": "usb.0"}))


def _serials(spec: VmSpec, launch: Launch, devices: Devices) -> Iterator[str]:
    for number in spec.serials:
        options = {
            "id": f"chardev-serial{number}",
            "path": launch.paths.serial(number),
            "server": "on",
            "wait": "off",
            "logfile": launch.paths.serial_log(number),
            "logappend": "on",
        }
        yield from ("-chardev", as_list("socket", options))
        if devices.board != VIRT:
            device = {"driver": "isa-serial", "id": f"serial{number}", "index": number}
            yield from ("-device", as_json(device | {"chardev": options["id"]}))
        elif number == 0:
            yield from ("-serial", f"chardev:{options['id']}")  # the board's own PL011
        else:
            yield from devices.add("pci-serial", f"serial{number}", {"chardev": options["id"]})


def _nic(nic: NicSpec, resources: VmResources, launch: Launch, devices: Devices) -> Iterator[str]:
    tap = resources.taps.get(nic.slot)
    if tap is None:
        raise HostError(f"vm {devices.spec.guest_id}: {nic.slot}: no tap device was made for it")
    vhost = nic.model == "virtio" and not launch.facts.no_vhost
    yield from ("-netdev", as_json(netdev(nic, tap, vhost=vhost)))
    driver, options = nic_device(nic, devices, boot_roms=launch.facts.boot_roms)
    yield from devices.add(driver, nic.slot, options)


def netdev(nic: NicSpec, tap: str, *, vhost: bool) -> dict[str, object]:
    """What is behind a NIC."""
    queues = _queues(nic)
    ends: dict[str, object] = {
        "type": "tap",
        "id": nic.slot,
        "ifname": tap,
        "script": "no",
        "downscript": "no",
        "queues": queues,
    }
    return ends | {"vhost": vhost}


def nic_device(nic: NicSpec, devices: Devices, *, boot_roms: frozenset[str]) -> tuple[str, dict[str, object]]:
    """The NIC itself: its driver and options, without its place."""
    driver, rom = NIC_MODELS[nic.model]
    queues, index = _queues(nic), devices.boot_index(nic.slot)
    options: dict[str, object] = {
        "netdev": nic.slot,
        "mac": nic.mac,
        "bootindex": index,
        "romfile": None if index is not None and rom in boot_roms else "",
        "mq": True if queues else None,
        "vectors": 2 * queues + 2 if queues else None,  # a pair per queue, configuration and control
        "host_mtu": nic.mtu if nic.model == "virtio" else None,
    }
    return driver, options


def _queues(nic: NicSpec) -> int | None:
    return nic.queues if nic.model == "virtio" and nic.queues > 1 else None


def _share(share: VmShare, launch: Launch, devices: Devices) -> Iterator[str]:
    options = {"id": f"chardev-{share.slot}", "path": launch.paths.share(share.slot)}
    yield from ("-chardev", as_list("socket", options))
    yield from devices.add("vhost-user-fs-pci", share.slot, {"chardev": options["id"], "tag": share.mapping})


def _agent(launch: Launch, devices: Devices) -> Iterator[str]:
    options = {"id": "chardev-agent", "path": launch.paths.agent, "server": "on", "wait": "off"}
    yield from ("-chardev", as_list("socket", options))
    yield from devices.add("virtio-serial-pci", "agent")
    port = {"driver": "virtserialport", "bus": "agent.0", "chardev": options["id"], "name": "org.qemu.guest_agent.0"}
    yield from ("-device", as_json({"id": "agent-port", **port}))


def _paravirtual(spec: VmSpec, devices: Devices) -> Iterator[str]:
    """pvpanic tells us of a guest's panic; the generation id (x86, ACPI) changes with the VM's uuid, as in a clone."""
    if devices.board == VIRT:
        yield from devices.add("pvpanic-pci", "panic")
        return
    yield from ("-device", as_json({"driver": "pvpanic", "id": "panic"}))
    if spec.acpi:
        generation = str(uuid.uuid5(uuid.UUID(spec.uuid), "vmgenid"))
        yield from ("-device", as_json({"driver": "vmgenid", "id": "generation", "guid": generation}))
