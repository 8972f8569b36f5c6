"""Rules of the state machine, the start order and the queueing lock."""

from __future__ import annotations

import asyncio

import pytest

from appliance.errors import Conflict
from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.services import autostart, guest_lock
from appliance.services.guest_lock import GuestLock
from appliance.services.lifecycle import Action, can_move, require, task_type
from tests.fakes.clock import FakeClock

VM = (GuestKind.QEMU, GuestId(100))


@pytest.mark.parametrize("state", [GuestState.RUNNING, GuestState.PAUSED, GuestState.STARTING])
def test_a_guest_that_exists_in_memory_cannot_be_started_or_destroyed(state: GuestState) -> None:
    with pytest.raises(Conflict, match="already running"):
        require(Action.START, *VM, state)
    with pytest.raises(Conflict, match="running"):
        require(Action.DESTROY, *VM, state)


@pytest.mark.parametrize("action", [Action.SHUTDOWN, Action.REBOOT, Action.RESET, Action.SUSPEND, Action.RESUME])
def test_what_needs_a_running_guest_is_refused_when_stopped(action: Action) -> None:
    with pytest.raises(Conflict, match="VM 100 not running"):
        require(action, *VM, GuestState.STOPPED)


def test_stopping_a_stopped_guest_is_no_error() -> None:
    require(Action.STOP, *VM, GuestState.STOPPED)


def test_every_state_can_come_back_to_stopped() -> None:
    for state in GuestState:
        if state is not GuestState.STOPPED:
            assert can_move(state, GuestState.STOPPED)


def test_task_types_are_pves() -> None:
    assert [task_type(Action.START, kind) for kind in GuestKind] == ["qmstart", "vzstart"]


def test_guests_start_by_order_then_id_and_those_without_order_last() -> None:
    configs = {103: {"startup": "order=2,up=5"}, 102: {"startup": "1"}, 101: {}, 104: {"startup": "order=2"}}
    rules = [autostart.rule(GuestId(guest_id), config) for guest_id, config in configs.items()]
    groups = [[rule.guest_id for rule in group] for group in autostart.start_order(rules)]
    assert groups == [[102], [103, 104], [101]]
    assert [[rule.guest_id for rule in group] for group in autostart.stop_order(rules)] == [[101], [103, 104], [102]]


def test_start_delays_are_read() -> None:
    rule = autostart.rule(GuestId(100), {"startup": "order=3,up=10,down=20"})
    assert (rule.order, rule.up_s, rule.down_s) == (3, 10.0, 20.0)


async def test_operations_on_one_guest_queue_in_the_order_they_came() -> None:
    lock = GuestLock("vm 100", FakeClock())
    seen: list[int] = []

    async def operate(number: int) -> None:
        async with lock.hold(f"operation {number}"):
            seen.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(operate(number) for number in range(10)))
    assert seen == list(range(10))


async def test_a_waiting_operation_learns_who_holds_the_lock() -> None:
    lock = GuestLock("vm 100", FakeClock())
    lines: list[str] = []
    async with lock.hold("qmstart by admin@pve"):
        waiting = asyncio.ensure_future(_hold(lock, "qmstop", lines))
        await asyncio.sleep(0)
        assert lines == ["waiting for 'qmstart by admin@pve', which holds the lock"]
    await waiting


async def test_a_cancelled_waiter_leaves_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest_lock, "QUEUE_LIMIT", 1)
    lock = GuestLock("vm 100", FakeClock())
    async with lock.hold("first"):
        waiting = asyncio.ensure_future(_hold(lock, "second", []))
        await asyncio.sleep(0)
        with pytest.raises(Conflict, match="wait for it already"):
            await _hold(lock, "third", [])
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await _hold(lock, "fourth", [])
    assert lock.holder is None


async def _hold(lock: GuestLock, what: str, lines: list[str]) -> None:
    async with lock.hold(what, log=lines.append):
        pass
