"""The network and the socket device on the real bridge and the loop the product runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.vmm.device import DeviceContext
from appliance.vmm.loopbridge import LoopBridge
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from appliance.vmm.virtio.vsock import VirtioVsock, VsockOptions
from appliance.vmm.vsock.packet import HEADER_BYTES, HOST_CID, TYPE_STREAM, Header, Op
from tests.fakes.cable import PLAIN, FakeCable
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach

MAC = bytes.fromhex("525400000001")
FRAME = MAC + MAC + bytes(50)
CID = 42


@pytest.fixture
async def context(machine: FakeMachine) -> AsyncIterator[DeviceContext]:
    """The machine, with the real bridge."""
    errors: list[BaseException] = []
    bridge = LoopBridge(asyncio.get_running_loop(), label="vm 101", on_error=errors.append)
    yield replace(machine.context, bridge=bridge)
    await bridge.close()
    assert errors == []


async def until(done: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not done():
            await asyncio.sleep(0.002)


async def collected(queue: DriverQueue, count: int) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []

    def enough() -> bool:
        found.extend(queue.used())
        return len(found) >= count

    await until(enough)
    return found


async def test_frames_and_control_requests_cross(context: DeviceContext) -> None:
    cable = FakeCable()
    device = VirtioNet("net0", context, cable=cable, options=NetOptions(mac=MAC, data_plane=DataPlane.PYTHON))
    rx, tx, control = await asyncio.to_thread(attach, device)  # DRIVER_OK comes on a vCPU's thread
    for _ in range(3):
        cable.arrive(FRAME)
    rx.add([], [1526])
    rx.kick()
    assert await collected(rx, 1) == [(0, 12 + len(FRAME))]
    rx.add([], [1526])
    rx.add([], [1526])
    await asyncio.to_thread(rx.kick)
    assert len(await collected(rx, 2)) == 2
    tx.add([PLAIN + FRAME])
    tx.kick()
    assert len(await collected(tx, 1)) == 1
    head = control.add([b"\0\0\0"], [1])
    control.kick()  # served in the pool
    await collected(control, 1)
    assert control.read_back(head) == b"\0"
    await asyncio.to_thread(device.reset)
    cable.arrive(FRAME)
    await asyncio.sleep(0)
    assert cable.waiting()
    device.close()


async def test_a_client_reaches_the_guest_and_is_waited_for(context: DeviceContext, tmp_path: Path) -> None:
    path = tmp_path / "v.sock"
    options = VsockOptions(guest_cid=CID, socket_path=path)
    device = await asyncio.to_thread(lambda: VirtioVsock("vsock0", context, options=options))
    rx, tx, _ = await asyncio.to_thread(attach, device)
    for _ in range(16):
        rx.add([], [4096])
    rx.kick()
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"CONNECT 80\n")
    ((head, _),) = await collected(rx, 1)
    request = Header.unpack(rx.read_back(head))
    assert request.op == Op.REQUEST

    def send(op: Op, data: bytes = b"", *, port: int = request.src_port) -> None:
        header = Header(CID, HOST_CID, 80, port, len(data), TYPE_STREAM, op, 0, 1 << 20, 0)
        tx.add([header.pack() + data])
        tx.kick()

    send(Op.RESPONSE)
    assert await reader.readline() == b"OK %d\n" % request.src_port
    send(Op.RW, b"hello")
    assert await reader.readexactly(5) == b"hello"
    writer.write(b"world")
    ((head, _),) = await collected(rx, 1)
    assert rx.read_back(head)[HEADER_BYTES:] == b"world"
    send(Op.RST)
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()
    met = asyncio.Event()

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()
        met.set()

    async with await asyncio.start_unix_server(hang_up, f"{path}_52"):
        send(Op.REQUEST, port=52)
        async with asyncio.timeout(10):
            await met.wait()
        answers = [Header.unpack(rx.read_back(head)).op for head, _ in await collected(rx, 2)]
    assert answers == [Op.RESPONSE, Op.SHUTDOWN]
    send(Op.RST, port=52)
    await until(lambda: not device.connections)
    device.close()
    assert device.connections == 0
