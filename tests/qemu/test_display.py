"""The display: RFB over a UNIX socket, no TCP port; and firmware that draws on it."""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path

import pytest

from appliance.model.guest import GuestId, VmResources
from tests.qemu.host import QemuHost, boot_spec, qemu_host

pytestmark = pytest.mark.host

PATIENCE_S = 60.0


async def _greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[int, int]:
    """RFC 6143 §7.1 and §7.3 with security type None; returns the screen's size."""
    assert await reader.readexactly(12) == b"RFB 003.008\n"
    writer.write(b"RFB 003.008\n")
    count = (await reader.readexactly(1))[0]
    assert 1 in await reader.readexactly(count)
    writer.write(b"\x01")
    assert await reader.readexactly(4) == b"\0\0\0\0"
    writer.write(b"\x01")
    width, height = struct.unpack(">HH", (await reader.readexactly(20))[:4])
    await reader.readexactly(struct.unpack(">I", await reader.readexactly(4))[0])
    return width, height


async def _screen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, width: int, height: int) -> bytes:
    """One full, raw update (§7.5.3, §7.6.1)."""
    writer.write(struct.pack(">BxHi", 2, 1, 0))
    writer.write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
    pixels = b""
    while not pixels:
        kind = (await reader.readexactly(1))[0]
        assert kind == 0
        (count,) = struct.unpack(">xH", await reader.readexactly(3))
        for _ in range(count):
            _, _, w, h, encoding = struct.unpack(">HHHHi", await reader.readexactly(12))
            assert encoding == 0
            pixels += await reader.readexactly(w * h * 4)
    return pixels


async def test_the_display_speaks_rfb_without_a_password_and_without_a_port() -> None:
    async with qemu_host() as host:
        vm = await host.start()
        reader, writer = await vm.open_display()
        async with asyncio.timeout(PATIENCE_S):
            width, height = await _greet(reader, writer)
            assert width >= 640
            while not any(await _screen(reader, writer, width, height)):
                await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
        assert not await asyncio.to_thread(_listening_inodes, vm.pid)


async def test_uefi_firmware_draws_on_the_display_of_both_boards() -> None:
    async with qemu_host() as host:
        await asyncio.gather(*(_draws(host, 100 + n, machine) for n, machine in enumerate(("i440fx", "q35"))))
        assert sum("no EFI disk" in line for line in host.lines) == 2


async def _draws(host: QemuHost, guest_id: int, machine: str) -> None:
    spec = boot_spec(guest_id=GuestId(guest_id), firmware="ovmf", machine=machine, memory_mib=128, boot_order=())
    vm = await host.start(spec, VmResources(disks={"virtio0": host.disk(name=machine)}))
    async with asyncio.timeout(PATIENCE_S):
        while True:
            reader, writer = await vm.open_display()
            width, height = await _greet(reader, writer)
            pixels = await _screen(reader, writer, width, height)
            writer.close()
            await writer.wait_closed()
            if (width, height) >= (800, 600) and len(set(pixels[::4])) > 2:
                break
            await asyncio.sleep(0.2)
    await vm.stop()


def _listening_inodes(pid: int) -> set[str]:
    """Blocking. The TCP sockets of `pid` that listen (proc(5), /proc/net/tcp; state 0A)."""
    own = {path.readlink().name for path in Path(f"/proc/{pid}/fd").iterdir() if path.exists() or path.is_symlink()}
    listening = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                listening.add(f"socket:[{fields[9]}]")
    return own & listening
