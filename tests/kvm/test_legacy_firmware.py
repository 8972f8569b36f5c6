"""SeaBIOS, unmodified, on the real /dev/kvm uses the legacy devices: fw_cfg's DMA, clock, timer, keyboard, reset."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest

from appliance.clock import SystemClock
from appliance.tasks import TaskScope
from appliance.vmm import layout
from appliance.vmm.board import BoardOptions
from appliance.vmm.boot.table_loader import Blob, Tables, WritePointer, Zone, script
from appliance.vmm.layout import MIB, PAGE
from appliance.vmm.legacy.acpi_pm import AcpiPm
from appliance.vmm.legacy.debug_port import DebugPort
from appliance.vmm.legacy.fw_cfg import KEY_BOOT_MENU, FwCfg
from appliance.vmm.legacy.i8042 import I8042
from appliance.vmm.legacy.port92 import A20Gate, Port92
from appliance.vmm.legacy.rtc import Rtc
from appliance.vmm.legacy.rtc_nvram import pc_nvram
from appliance.vmm.legacy.serial import SerialPort
from appliance.vmm.legacy.vmgenid import FILE_ADDRESS, FILE_GUID, GUID_OFFSET, VmGenId
from appliance.vmm.life import Boot
from appliance.vmm.machine import Machine
from appliance.vmm.pci.bus import PciBus

pytestmark = pytest.mark.host

SEABIOS = Path("/usr/share/seabios/bios-256k.bin")  # of Debian's package seabios, which QEMU needs as well
SHADOW = 0x2_0000
RAM_BYTES = 32 * MIB
DEADLINE_S = 60.0
GUID = UUID("324e6eaf-d1d1-4bf6-bf41-b9bb6c91fb87")
KEY_ESC, KEY_CTRL, KEY_ALT, KEY_DELETE = 0x01, 0x1D, 0x38, 0xD3


class Pc:
    """A machine with SeaBIOS, every legacy device and an empty PCI bus."""

    def __init__(self, machine: Machine) -> None:
        context, rom = machine.context, SEABIOS.read_bytes()
        self.machine = machine
        self._loop = asyncio.get_running_loop()
        self._said: asyncio.Queue[str] = asyncio.Queue()
        machine.board.add_rom(layout.FIRMWARE_END - len(rom), rom, name="seabios")
        machine.boot = Boot(load=lambda: context.memory.write(MIB - SHADOW, rom[-SHADOW:]))
        a20 = A20Gate()
        self.fw_cfg, self.keyboard = FwCfg("fw-cfg", context), I8042("i8042", context, a20=a20)
        self.pm = AcpiPm("acpi-pm", context)
        self.serial_said: list[bytes] = []
        self.devices = [
            PciBus("pci", context),
            self.fw_cfg,
            self.keyboard,
            self.pm,
            Port92("port92", context, a20=a20),
            Rtc("rtc", context, nvram=pc_nvram(RAM_BYTES, vcpus=1)),
            SerialPort("serial0", context, 0, sink=self.serial_said.append),
            DebugPort("debug-port", context, on_line=self._heard),
            VmGenId("vmgenid", context, guid=GUID, gpe=self.pm.raise_gpe, fw_cfg=self.fw_cfg),
        ]
        for device in self.devices:
            machine.add(device)
        self._configure()

    def _configure(self) -> None:
        self.fw_cfg.add_item(KEY_BOOT_MENU, (1).to_bytes(2, "little"))
        self.fw_cfg.add_file("etc/screen-and-debug", (1).to_bytes(8, "little"))
        self.fw_cfg.add_file("etc/sercon-port", layout.PORT_COM[0].to_bytes(2, "little"))
        page = Blob(FILE_GUID, b"", align=PAGE, zone=Zone.HIGH)
        tables = Tables((page,), (WritePointer(FILE_ADDRESS, 0, 8, FILE_GUID, GUID_OFFSET),))
        self.fw_cfg.add_file("etc/table-loader", script(tables))

    def _heard(self, line: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has gone
            self._loop.call_soon_threadsafe(self._said.put_nowait, line)

    async def says(self, text: str) -> list[str]:
        """What it says until it says `text`."""
        lines: list[str] = []
        try:
            async with asyncio.timeout(DEADLINE_S):
                while not lines or text not in lines[-1]:
                    lines.append(await self._said.get())
        except TimeoutError:
            raise AssertionError(f"no {text!r} in " + "\n".join(lines)) from None
        return lines

    def type(self, *keys: int) -> None:
        """All down, then all up."""
        for key in keys:
            self.keyboard.key(key, down=True)
        for key in reversed(keys):
            self.keyboard.key(key, down=False)


@asynccontextmanager
async def running_pc() -> AsyncIterator[Pc]:
    scope = TaskScope("test")
    options = BoardOptions(label="vm 101", memory_bytes=RAM_BYTES)
    machine = await Machine.create(options, scope=scope, clock=SystemClock())
    try:
        pc = Pc(machine)
        await machine.start()
        yield pc
    finally:
        await machine.stop()
        await scope.close()


async def test_seabios_uses_every_device_a_key_opens_its_menu_and_three_restart_it() -> None:
    if not SEABIOS.is_file():
        pytest.skip("needs Debian's package seabios")
    async with running_pc() as pc:
        lines = await pc.says("Press ESC for boot menu")
        assert "QEMU fw_cfg DMA interface supported" in lines
        assert "Using pmtimer, ioport 0x608" in lines
        assert "Found 1 serial ports" in lines
        assert "PS2 keyboard initialized" in lines
        at = int.from_bytes(pc.fw_cfg.file(FILE_ADDRESS), "little")
        assert pc.machine.context.memory.read(at, 16) == GUID.bytes_le
        pc.type(KEY_ESC)
        await pc.says("Select boot device")
        assert b"Select boot device" in b"".join(pc.serial_said)
        await pc.machine.pause()  # mid-way, as a migration finds them
        for device in pc.devices:
            if (state := device.save()) is not None:
                device.restore(state)
        await pc.machine.resume()
        pc.type(KEY_CTRL, KEY_ALT, KEY_DELETE)
        await pc.says("SeaBIOS (version")
        await pc.says("PS2 keyboard initialized")
