"""The guest agent belongs to the guest: what it answers is bounded and checked."""

from __future__ import annotations

import base64
import hashlib
from typing import cast

import pytest

from appliance.errors import Conflict, GuestFault, NotFound, Unsupported
from appliance.services import guest_agent
from appliance.services.ports.running_guest import RunningGuest
from tests.fakes.guests import AgentVm


def vm_with(**answers: list[object]) -> tuple[AgentVm, RunningGuest]:
    """A VM whose agent gives these answers ("_" for "-" in the commands), the last one again and again."""
    vm = AgentVm(100)
    vm.answers = {name.replace("_", "-"): values for name, values in answers.items()}
    return vm, cast(RunningGuest, vm)


def piece(data: bytes, *, eof: bool = False) -> dict[str, object]:
    return {"count": len(data), "buf-b64": base64.b64encode(data).decode(), "eof": eof}


async def test_a_file_comes_in_pieces_and_is_closed() -> None:
    vm, running = vm_with(file_open=[7], file_read=[piece(b"hello "), piece(b"world", eof=True)])
    assert await guest_agent.read_file(running, "/etc/motd") == (b"hello world", False)
    assert vm.asked[-1] == ("file-close", {"handle": 7})


async def test_a_file_over_the_limit_is_cut_and_said_to_be() -> None:
    _, running = vm_with(file_open=[7], file_read=[piece(b"x" * 10)])
    assert await guest_agent.read_file(running, "/dev/zero", limit_bytes=25) == (b"x" * 25, True)


async def test_an_agent_that_answers_a_byte_at_a_time_does_not_keep_the_request_for_ever() -> None:
    vm, running = vm_with(file_open=[7], file_read=[piece(b"x")])
    with pytest.raises(GuestFault, match="too small pieces"):
        await guest_agent.read_file(running, "/dev/zero")
    assert len(vm.asked) == guest_agent.READS_LIMIT + 2


@pytest.mark.parametrize("answer", [["no object"], [{"buf-b64": "%%%"}]])
async def test_answers_that_make_no_sense_are_the_guests_fault(answer: list[object]) -> None:
    _, running = vm_with(file_open=[7], file_read=answer)
    with pytest.raises(GuestFault):
        await guest_agent.read_file(running, "/etc/motd")


NO_SUCH_FILE = GuestFault(
    "vm 100: guest agent: guest-file-open: failed to open file '/x' (mode: 'rb'): No such file or directory"
)


async def test_a_file_that_is_not_there_is_not_the_guests_fault() -> None:
    _, running = vm_with(file_open=[NO_SUCH_FILE])
    with pytest.raises(NotFound, match="vm 100: /x does not exist"):
        await guest_agent.read_file(running, "/x")
    _, running = vm_with(file_open=[GuestFault("vm 100: guest agent: guest-file-open: Permission denied")])
    with pytest.raises(GuestFault, match="Permission denied"):
        await guest_agent.read_file(running, "/x")


async def test_a_file_is_replaced_only_if_it_is_what_it_was_when_it_was_read() -> None:
    was = hashlib.sha256(b"one").hexdigest()
    vm, running = vm_with(file_open=[7], file_read=[piece(b"one", eof=True)])
    await guest_agent.write_file(running, "/x", b"two", expected=was)
    assert ("file-write", {"handle": 7, "buf-b64": "dHdv"}) in vm.asked
    vm, running = vm_with(file_open=[7], file_read=[piece(b"theirs", eof=True)])
    for expected in (was, "absent"):
        with pytest.raises(Conflict, match="changed by somebody else"):
            await guest_agent.write_file(running, "/x", b"two", expected=expected)
    assert "file-write" not in [command for command, _ in vm.asked]


async def test_a_file_is_written_to_its_end_however_little_the_agent_takes_at_once() -> None:
    vm, running = vm_with(file_open=[7], file_write=[{"count": 3, "eof": False}, {"count": 2, "eof": False}])
    await guest_agent.write_file(running, "/x", b"hello")
    assert [arguments["buf-b64"] for command, arguments in vm.asked if command == "file-write"] == ["aGVsbG8=", "bG8="]
    assert [command for command, _ in vm.asked][-2:] == ["file-flush", "file-close"]


@pytest.mark.parametrize("count", [0, -1, 6, None, True])
async def test_an_agent_that_takes_nothing_or_more_than_there_is_is_not_believed(count: object) -> None:
    vm, running = vm_with(file_open=[7], file_write=[{"count": count, "eof": False}])
    with pytest.raises(GuestFault, match=r"vm 100: /x: the guest agent has written .* of 5 bytes"):
        await guest_agent.write_file(running, "/x", b"hello")
    assert vm.asked[-1] == ("file-close", {"handle": 7})


async def test_a_new_file_is_written_where_there_is_none() -> None:
    vm, running = vm_with(file_open=[NO_SUCH_FILE, 7])
    await guest_agent.write_file(running, "/x", b"new", expected="absent")
    assert vm.asked[1] == ("file-open", {"path": "/x", "mode": "wb"})


async def test_an_engine_without_an_agent_channel_says_so() -> None:
    with pytest.raises(Unsupported, match="no guest agent channel"):
        await guest_agent.ask(cast(RunningGuest, _Mute()), "ping")


class _Mute:
    guest_id = 100
