"""The guest agent's port of a native machine as a stream, as often as it is wanted: a task for each pumps the bytes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import Final

from appliance.errors import HostError
from appliance.guest_agent import ANSWER_LIMIT_BYTES
from appliance.tasks import TaskScope
from appliance.vmm.builder import Built
from appliance.vmm.console import ByteChannel

PUMP_BYTES: Final = 64 << 10

log = logging.getLogger(__name__)


async def connect(built: Built, scope: TaskScope) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises `ConnectionRefusedError` when nobody in the guest has opened the port."""
    channel, port, label = built.agent, built.agent_port, built.machine.label
    if channel is None or port is None or not port.guest_open:
        raise ConnectionRefusedError(f"{label}: nobody in the guest has opened the agent's port")
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    try:
        connection = await asyncio.open_connection(sock=theirs, limit=ANSWER_LIMIT_BYTES)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    try:
        scope.start(_pump(channel, ours), name=f"{label} guest agent")
    except BaseException:
        ours.close()
        connection[1].close()
        raise
    return connection


async def _pump(channel: ByteChannel, connection: socket.socket) -> None:
    """Until the other end of `connection` closes: bytes both ways, from now on. It hears of the machine's end."""
    loop = asyncio.get_running_loop()
    listening = channel.attach()

    async def said() -> None:
        with contextlib.suppress(OSError):
            while data := await listening.read():
                await loop.sock_sendall(connection, data)
            connection.shutdown(socket.SHUT_WR)

    hearing = loop.create_task(said(), name=f"{channel.name} said")
    try:
        while data := await loop.sock_recv(connection, PUMP_BYTES):
            await channel.write(data)
    except (OSError, HostError) as error:
        log.debug("%s: %s", channel.name, error)
    finally:
        hearing.cancel()
        await asyncio.wait((hearing,))
        await listening.close()
        connection.close()
