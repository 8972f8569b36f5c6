"""The console of a real container: every byte, both directions, history, sizes, and readers that do not read."""

from __future__ import annotations

import asyncio
import base64
import os

import pytest

from appliance.ct import console as console_module
from appliance.errors import HostError, NotFound
from appliance.services.ports.console import ConsoleSource
from tests.ct.conftest import SPEC, Host, each_runtime, shell

pytestmark = pytest.mark.host
MIB = 1 << 20


async def read_until(console: ConsoleSource, end: bytes, *, timeout_s: float = 30) -> bytes:
    text = bytearray()
    async with asyncio.timeout(timeout_s):
        while end not in text[-len(end) - (64 << 10) :]:
            chunk = await console.read()
            assert chunk, "the console ended"
            text += chunk
    return bytes(text)


def big_file(host: Host, size: int) -> bytes:
    """A file of random lines in the container, and what the terminal makes of it."""
    lines = base64.encodebytes(os.urandom(size * 3 // 4))
    (host.volume.path / "big").write_bytes(lines)
    return lines.replace(b"\n", b"\r\n")


@each_runtime
async def test_every_byte_of_a_long_output_arrives_in_order(host: Host) -> None:
    expected = await asyncio.to_thread(big_file, host, 12 * MIB)
    guest = await host.start(shell("read go; cat /big; echo -END-; exec sleep 1000"))
    console = await guest.open_console("console")
    await console.write(b"go\n")
    said = await read_until(console, b"-END-\r\n")
    await console.close()
    assert said.replace(b"go\r\n", b"", 1) == expected + b"-END-\r\n"


async def test_history_and_the_attachment_together_tell_everything_once(host: Host) -> None:
    guest = await host.start(shell("i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; exec sleep 1000"))
    consoles = []
    for _ in range(4):  # attached at four different moments of the output
        console = await guest.open_console("console")
        consoles.append((console, console.history()))
        await asyncio.sleep(0.01)
    expected = b"".join(b"line %d\r\n" % number for number in range(1, 3001))
    for console, history in consoles:
        text = history
        if not text.endswith(b"line 3000\r\n"):
            text += await read_until(console, b"line 3000\r\n")
        assert text == expected
        await console.close()


async def test_a_reader_that_never_reads_does_not_stop_the_container(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_module, "STALL_LIMIT_S", 0.1)
    await asyncio.to_thread(big_file, host, 4 * MIB)
    guest = await host.start(shell("read go; cat /big; echo END > /etc/done; exec sleep 1000"))
    stalled = await guest.open_console("console")
    await stalled.write(b"go\n")
    async with asyncio.timeout(30):
        while not await asyncio.to_thread((host.volume.path / "etc/done").exists):
            await asyncio.sleep(0.05)
    newest = await stalled.read()
    assert newest
    await stalled.close()


@each_runtime
async def test_the_terminal_has_the_size_it_is_told(host: Host) -> None:
    guest = await host.start(shell("while read go; do stty size; done"))
    console = await guest.open_console("console")
    await console.resize(132, 40)
    said = b""
    async with asyncio.timeout(30):
        while b"40 132\r\n" not in said:  # the shim reads its control pipe when it comes to it
            await console.write(b"go\n")
            said += await console.read()
    await console.close()


@each_runtime
async def test_the_console_ends_with_the_container(host: Host) -> None:
    guest = await host.start()
    console = await guest.open_console("console")
    await guest.stop()
    async with asyncio.timeout(30):
        while await console.read():
            pass
    assert await console.read() == b""
    with pytest.raises(HostError, match="write to the console"):
        await console.write(b"x")
    await console.resize(80, 24)
    await console.close()
    with pytest.raises(HostError, match="attach"):
        await guest.open_console("console")


async def test_other_consoles_do_not_exist(host: Host) -> None:
    guest = await host.start(SPEC)
    with pytest.raises(NotFound, match="console serial0 does not exist"):
        await guest.open_console("serial0")
    with pytest.raises(NotFound, match="display does not exist"):
        await guest.open_display()
