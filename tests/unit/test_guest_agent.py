"""The guest agent is a program in the guest: slow, silent, garbled and hostile ones are that guest's fault only."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from appliance import guest_agent as agent_module
from appliance.errors import GuestFault
from appliance.guest_agent import ANSWER_LIMIT_BYTES, GuestAgent

Answer = Callable[[dict[str, object]], bytes]


@contextlib.asynccontextmanager
async def guest_with(answer: Answer, *, stale: bytes = b"") -> AsyncIterator[GuestAgent]:
    """A guest whose agent says `stale`, then answers each request by `answer`."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(stale)
        while line := await reader.readline():
            request = json.loads(line.lstrip(b"\xff"))
            if request["execute"] == "guest-sync-delimited":
                writer.write(b"\xff" + json.dumps({"return": request["arguments"]["id"]}).encode() + b"\n")
            else:
                writer.write(answer(request))
        writer.close()

    with tempfile.TemporaryDirectory(prefix="qga-") as directory:
        path = Path(directory) / "qga.sock"
        server = await asyncio.start_unix_server(serve, str(path))
        try:
            yield GuestAgent(partial(asyncio.open_unix_connection, str(path), limit=ANSWER_LIMIT_BYTES), name="vm 100")
        finally:
            server.close()
            await server.wait_closed()


async def test_a_command_returns_its_value_whatever_was_left_in_the_line() -> None:
    async with guest_with(
        lambda _: b'{"return": [1]}\n', stale=b'{"return": 99}\n\xff{"return": 77}\nrubbish'
    ) as agent:
        assert await agent.execute("guest-network-get-interfaces", {}) == [1]
        assert await agent.execute("guest-shutdown", {"mode": "powerdown"}, answers=False) == {}


async def test_an_agent_that_synchronises_for_ever_is_given_up() -> None:
    async with guest_with(lambda _: b'{"return": {}}\n', stale=b"\xff{}\n" * 10_000) as agent:
        with pytest.raises(GuestFault, match="not understood"):
            await agent.execute("guest-ping", {})


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b'{"error": {"desc": "no such command"}}\n', "no such command"),
        (b'{"error": 5}\n', "no reason given"),
        (b"[]\n", "not understood"),
        (b'{"return": "\\ud800"}\n', "not understood"),
        (b'{"return": NaN}\n', "not understood"),
        (b"\xfe\n", "not understood"),
        (b"[" * 100_000 + b"\n", "not understood"),
        (b"x" * 9000 + b"\n", "not understood"),
        (b"", "not running"),
    ],
)
async def test_refusals_and_nonsense_are_the_guests_fault(
    answer: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "ANSWER_LIMIT_BYTES", 200_000 if answer.startswith(b"[[") else 4096)
    async with guest_with(lambda _: answer) as agent:
        with pytest.raises(GuestFault, match=f"vm 100: .*{message}"):
            await agent.execute("guest-ping", {}, timeout_s=0.3 if message == "not running" else 30)


async def test_without_a_socket_the_agent_is_not_running(tmp_path: Path) -> None:
    with pytest.raises(GuestFault, match="QEMU guest agent is not running"):
        await GuestAgent(partial(asyncio.open_unix_connection, str(tmp_path / "none")), name="vm 100").execute(
            "guest-ping", {}
        )


async def test_an_answer_that_is_too_long_is_said_to_be() -> None:
    async with guest_with(lambda _: b"x" * (ANSWER_LIMIT_BYTES + 9) + b"\n") as agent:
        with pytest.raises(GuestFault, match="vm 100: the guest agent's answer is longer than 4 MiB"):
            await agent.execute("guest-exec-status", {"pid": 7})
