"""The guest agent belongs to the guest: what it answers is bounded and checked."""

from __future__ import annotations

import base64
from typing import cast

import pytest

from appliance.errors import GuestFault, Unsupported
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


async def test_an_engine_without_an_agent_channel_says_so() -> None:
    with pytest.raises(Unsupported, match="no guest agent channel"):
        await guest_agent.ask(cast(RunningGuest, _Mute()), "ping")


class _Mute:
    guest_id = 100
