"""The machine that `vmm` attacks: every device there is, those on PCI plugged and taken out as it goes, and what the host
does meanwhile. No KVM; a display without viewers."""

from __future__ import annotations

import errno
import random
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance.vmm import layout
from appliance.vmm.block.backend import CACHE_MODES
from appliance.vmm.block.raw import RawImage
from appliance.vmm.boot.pflash import Pflash
from appliance.vmm.console import ByteChannel
from appliance.vmm.device import Device
from appliance.vmm.display.bochs_display import BochsDisplay
from appliance.vmm.display.virtio_input import VirtioTablet
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.debug_port import DebugPort
from appliance.vmm.legacy.fw_cfg import FwCfg
from appliance.vmm.legacy.i8042 import I8042
from appliance.vmm.legacy.port92 import A20Gate, Port92
from appliance.vmm.legacy.pvpanic import PvPanic
from appliance.vmm.legacy.rtc import Rtc
from appliance.vmm.legacy.serial import SerialPort
from appliance.vmm.legacy.vmgenid import VmGenId
from appliance.vmm.legacy.watchdog import Watchdog
from appliance.vmm.pci.bus import CHIPSET_SLOTS, PciBus
from appliance.vmm.pci.function import PciFunction
from appliance.vmm.pci.hotplug import PciHotplug
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.balloon import VirtioBalloon
from appliance.vmm.virtio.blk import BlkOptions, FullDisk, VirtioBlk
from appliance.vmm.virtio.console import PortOptions, VirtioConsole
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from appliance.vmm.virtio.pci_transport import VirtioPci
from appliance.vmm.virtio.rng import RngLimit, VirtioRng
from appliance.vmm.virtio.vsock import VirtioVsock, VsockOptions
from tests.fakes.block import FakeBackend
from tests.fakes.cable import FakeCable
from tests.fakes.machine import FakeMachine
from tests.fakes.vsock_guest import CID

MEMORY_MIB = 16
DISK_BYTES: Final = 1 << 20
SERVICE_PORT: Final = 52
MAX_CLIENTS: Final = 8
FLASH_BYTES: Final = 4 * layout.PAGE
FLASH: Final = layout.FIRMWARE_END - FLASH_BYTES
_MAC = b"\x02\0\0\0\0\x01"
_ERRNOS = (0, 0, errno.EIO, errno.ENOSPC)


class FuzzMachine:
    """`virtio` are the virtio devices that are plugged, `devices` all that the machine has."""

    def __init__(self, chance: random.Random) -> None:
        self.random = chance
        self.fake = FakeMachine(MEMORY_MIB)
        self.directory = Path(tempfile.mkdtemp(prefix="fuzz-"))
        self.devices: list[Device] = []
        self.virtio: list[VirtioDevice] = []
        self._ejected: list[PciFunction] = []
        self._clients: list[socket.socket] = []
        self._service = socket.socket(socket.AF_UNIX)
        self._makers: dict[str, Callable[[], PciFunction]] = {
            "watchdog": lambda: Watchdog("watchdog", self.fake.context),
            "rng": lambda: self._virtio(VirtioRng("rng", self.fake.context, limit=RngLimit(1 << 14))),
            "console": self._make_console,
            "balloon": self._make_balloon,
            "net0": self._make_net,
            "disk0": self._make_disk,
            "disk1": self._make_failing_disk,
            "vsock": self._make_vsock,
            "display": lambda: BochsDisplay("display", self.fake.context),
            "tablet": self._make_tablet,
        }
        self._make_board()
        for name in self._makers:
            self._plug(name)

    # Its parts

    def _make_board(self) -> None:
        context = self.fake.context
        self.pci = PciBus("pci", context)
        power, fw_cfg, a20 = AcpiPm("acpi-pm", context), FwCfg("fw-cfg", context), A20Gate()
        self.hotplug = PciHotplug("hotplug", context, self.pci, gpe=power.raise_gpe, ejected=self._ejected.append)
        generation = uuid.UUID("00000000-0000-4000-8000-000000000001")
        self.keyboard = I8042("i8042", context, a20=a20)
        self.serials = [SerialPort(f"serial{index}", context, index) for index in range(2)]
        self.channel = ByteChannel("vm 101: serial0", context.bridge)
        self.serials[0].sink = self.channel.feed
        self.devices = [
            self.pci,
            power,
            fw_cfg,
            self.hotplug,
            VmGenId("vmgenid", context, guid=generation, gpe=power.raise_gpe, fw_cfg=fw_cfg),
            self.keyboard,
            Port92("port92", context, a20=a20),
            Rtc("rtc", context),
            DebugPort("debug-port", context),
            PvPanic("pvpanic", context),
            Pflash("pflash", context, FLASH, b"\xff" * FLASH_BYTES, writable=True),
            *self.serials,
        ]

    def _virtio(self, device: VirtioDevice) -> PciFunction:
        self.virtio.append(device)
        return VirtioPci(device)

    def _make_console(self) -> PciFunction:
        ports = [PortOptions(console=True), PortOptions("agent")]
        self.console = VirtioConsole("console", self.fake.context, ports=ports)
        self.console.ports[0].sink = self.channel.feed
        return self._virtio(self.console)

    def _make_balloon(self) -> PciFunction:
        self.balloon = VirtioBalloon("balloon", self.fake.context)
        return self._virtio(self.balloon)

    def _make_tablet(self) -> PciFunction:
        self.tablet = VirtioTablet("tablet", self.fake.context)
        return self._virtio(self.tablet)

    def _make_net(self) -> PciFunction:
        self.cable = FakeCable()
        options = NetOptions(mac=_MAC, data_plane=DataPlane.PYTHON)
        self.net = VirtioNet("net0", self.fake.context, cable=self.cable, options=options)
        return self._virtio(self.net)

    def _make_disk(self) -> PciFunction:
        path = self.directory / "disk.raw"
        with path.open("ab") as image:
            image.truncate(DISK_BYTES)
        backend = RawImage(path, CACHE_MODES["unsafe"], discard=True)
        return self._virtio(VirtioBlk("disk0", self.fake.context, backend=backend, options=BlkOptions(queues=2)))

    def _make_failing_disk(self) -> PciFunction:
        self.failing = FakeBackend(DISK_BYTES)
        self.failing.diary = _Nothing()
        options = BlkOptions(when_full=self.random.choice(list(FullDisk)), writeback=False)
        return self._virtio(VirtioBlk("disk1", self.fake.context, backend=self.failing, options=options))

    def _make_vsock(self) -> PciFunction:
        self._service.close()
        self._service = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        service = self.directory / f"v_{SERVICE_PORT}"
        service.unlink(missing_ok=True)
        self._service.bind(str(service))
        self._service.listen(4)
        options = VsockOptions(guest_cid=CID, socket_path=self.directory / "v")
        return self._virtio(VirtioVsock("vsock", self.fake.context, options=options))

    def _plug(self, name: str) -> None:
        function = self._makers[name]()
        self.devices.append(function)
        self.hotplug.plug(function)

    def close(self) -> None:
        for device in reversed(self.devices):
            device.close()
        for each in (*self._clients, self._service):
            each.close()
        self.fake.close()
        shutil.rmtree(self.directory)

    # Coming and going

    def close_ejected(self) -> list[str]:
        """What the guest has ejected is closed, as the machine does on the loop; the names of those."""
        names = []
        while self._ejected:
            function = self._ejected.pop()
            self.devices.remove(function)
            self.virtio = [device for device in self.virtio if device.name != function.name]
            function.close()
            names.append(function.name)
        return names

    def plug_missing(self) -> str | None:
        """Something that was ejected comes back, a new one of its name."""
        there = {device.name for device in self.devices}
        missing = [name for name in self._makers if name not in there]
        if not missing:
            return None
        name = self.random.choice(missing)
        self._plug(name)
        return name

    def ask_to_unplug(self) -> None:
        slots = [slot for slot in self.pci.functions if slot not in CHIPSET_SLOTS]
        if slots:
            self.hotplug.request_unplug(self.random.choice(slots))

    def eject_what_was_asked(self) -> None:
        """As the DSDT does it."""
        for slot in self.hotplug.unplugging:
            self.fake.ports.write(layout.PORT_ACPI_PCI_HOTPLUG + 8, 4, 1 << slot)

    # What the host does

    def act(self) -> str:
        """Something; says what."""
        talking = (self._talk, self._resize, self._type, self._connect, self._use_sockets)
        changing = (self._set_balloon, self._arrive, self._set_link, self._announce, self._fail, self._grow)
        action = self.random.choice((*talking, *changing))
        action()
        return action.__name__

    def _talk(self) -> None:
        self.random.choice(self.console.ports).receive(self.random.randbytes(self.random.randrange(1, 5000)))

    def _set_balloon(self) -> None:
        self.balloon.target_mib = self.random.randrange(-1, MEMORY_MIB + 2)

    def _resize(self) -> None:
        self.random.choice(self.console.ports).resize(self.random.getrandbits(17), self.random.getrandbits(17))

    def _arrive(self) -> None:
        if not self.cable.closed and not self.cable.waiting():
            self.cable.arrive(b"\xff" * 6 + self.random.randbytes(self.random.randrange(8, 1508)))

    def _set_link(self) -> None:
        if not self.cable.closed:
            self.net.set_link(up=self.random.random() < 0.8)

    def _announce(self) -> None:
        if not self.cable.closed:
            self.net.announce()

    def _fail(self) -> None:
        for call in ("read", "write", "flush", "discard", "write_zeroes"):
            self.failing.failing[call] = self.random.choice(_ERRNOS)

    def _grow(self) -> None:
        disk = next((device for device in self.virtio if device.name == "disk1"), None)
        if isinstance(disk, VirtioBlk) and disk.size_bytes < 2 * DISK_BYTES:
            disk.resize(disk.size_bytes + 512)

    def _type(self) -> None:
        self.keyboard.key(self.random.getrandbits(8), down=self.random.random() < 0.5)
        self.keyboard.pointer(self.random.randrange(-300, 300), self.random.randrange(-300, 300), 1, 0)
        self.tablet.pointer(self.random.random(), self.random.random(), self.random.randrange(8))
        serial = self.random.choice(self.serials)
        serial.receive(self.random.randbytes(self.random.randrange(1, 40)))

    def _connect(self) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            self._clients.pop(self.random.randrange(len(self._clients))).close()
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            client.connect(str(self.directory / "v"))
            client.send(self.random.choice((b"CONNECT 1024\n", b"CONNECT 7\n", b"CONN", b"\n")))
        except OSError:
            client.close()
        else:
            self._clients.append(client)

    def _use_sockets(self) -> None:
        """Take whom the guest has connected to; then everybody says and hears something."""
        with suppress(OSError):
            self._clients.append(self._service.accept()[0])
            self._clients[-1].setblocking(False)
        while len(self._clients) > MAX_CLIENTS:
            self._clients.pop(0).close()
        for each in self._clients:
            with suppress(OSError):
                each.send(self.random.randbytes(self.random.choice((1, 100, 40_000))))
            with suppress(OSError):
                each.recv(self.random.choice((1, 1 << 17)))


class _Nothing(list[tuple[object, ...]]):
    """A diary that nobody keeps."""

    def append(self, entry: tuple[object, ...]) -> None:
        pass
