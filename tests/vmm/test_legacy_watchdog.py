"""The 6300ESB watchdog as Linux' i6300esb driver uses it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.vmm.device import MachineRequest
from appliance.vmm.legacy.watchdog import Watchdog
from tests.fakes.legacy_driver import pass_time, transplant
from tests.fakes.machine import FakeMachine

BAR = 0xC000_0000


class Linux:
    """drivers/watchdog/i6300esb.c."""

    def __init__(self, machine: FakeMachine, watchdog: Watchdog) -> None:
        self.mmio = machine.mmio
        self.config = watchdog.config
        watchdog.plugged(4)
        self.config.write(0x10, 4, BAR)
        self.config.write(0x04, 2, 0x02)

    def unlocked(self, offset: int, size: int, value: int) -> None:
        self.mmio.write(BAR + 0xC, 1, 0x80)
        self.mmio.write(BAR + 0xC, 1, 0x86)
        self.mmio.write(BAR + offset, size, value)

    def probe(self, heartbeat_s: int, *, nowayout: bool = False) -> bool:
        """Whether it had expired before; started."""
        self.config.write(0x60, 2, 0x0003)
        self.config.write(0x68, 1, 0x00)
        triggered = bool(self.mmio.read(BAR + 0xC, 2) & 1 << 9)
        self.unlocked(0xC, 2, 0x300)
        for register in (0x0, 0x4):
            self.unlocked(register, 4, heartbeat_s << 9)
        self.keepalive()
        self.config.write(0x68, 1, 0x03 if nowayout else 0x02)
        return triggered

    def keepalive(self) -> None:
        self.unlocked(0xC, 2, 0x100)


@pytest.fixture
def watchdog(machine: FakeMachine) -> Iterator[Watchdog]:
    made = Watchdog("watchdog", machine.context)
    yield made
    made.close()
    assert not [each for each in machine.bridge.timers if not each.cancelled]


@pytest.fixture
def linux(machine: FakeMachine, watchdog: Watchdog) -> Linux:
    return Linux(machine, watchdog)


def asked(machine: FakeMachine) -> list[MachineRequest]:
    return [request for request, _ in machine.requests]


async def test_a_guest_that_reloads_is_left_alone_and_a_hung_one_is_not(
    machine: FakeMachine, watchdog: Watchdog, linux: Linux
) -> None:
    assert not linux.probe(30)
    for _ in range(5):
        await pass_time(machine, 25)
        linux.keepalive()
    await pass_time(machine, 20)
    assert asked(machine) == []
    await pass_time(machine, 11)
    assert asked(machine) == [MachineRequest.WATCHDOG]
    await pass_time(machine, 100)
    assert len(machine.requests) == 1
    watchdog.reset()
    linux.config.write(0x10, 4, BAR)
    linux.config.write(0x04, 2, 0x02)
    assert linux.probe(30)  # the driver learns that it had expired
    assert not linux.mmio.read(BAR + 0xC, 2) & 1 << 9


async def test_stage_one_ends_with_a_status_bit(machine: FakeMachine, linux: Linux) -> None:
    linux.probe(30)
    await pass_time(machine, 16)
    assert linux.mmio.read(BAR + 0x8, 4) == 1
    linux.mmio.write(BAR + 0x8, 4, 1)
    assert linux.mmio.read(BAR + 0x8, 4) == 0
    assert asked(machine) == []


async def test_registers_are_locked_without_the_two_magic_writes(machine: FakeMachine, linux: Linux) -> None:
    linux.probe(2)
    linux.mmio.write(BAR + 0xC, 2, 0x100)
    linux.mmio.write(BAR + 0x0, 4, 5)
    linux.mmio.write(BAR + 0xC, 1, 0x86)
    linux.mmio.write(BAR + 0x0, 4, 5)
    assert linux.mmio.read(BAR, 4) == 2 << 9
    await pass_time(machine, 2.1)
    assert asked(machine) == [MachineRequest.WATCHDOG]


async def test_disabled_it_stands_and_locked_it_cannot_be_disabled(machine: FakeMachine, linux: Linux) -> None:
    linux.probe(2)
    linux.config.write(0x68, 1, 0)
    await pass_time(machine, 10)
    assert asked(machine) == []
    linux.probe(2, nowayout=True)
    linux.config.write(0x68, 1, 0)
    assert linux.config.read(0x68, 1) == 3
    await pass_time(machine, 3)
    assert asked(machine) == [MachineRequest.WATCHDOG]


async def test_the_action_is_the_owners_choice(machine: FakeMachine) -> None:
    for action, wanted in ((MachineRequest.POWER_OFF, [MachineRequest.POWER_OFF]), (None, [])):
        machine.requests.clear()
        watchdog = Watchdog("watchdog", machine.context, action=action)
        Linux(machine, watchdog).probe(1)
        await pass_time(machine, 2)
        assert asked(machine) == wanted
        watchdog.close()
    assert machine.notes == ["watchdog: expired: the guest has hung"]


async def test_reboot_forbidden_and_free_running_it_only_counts_bounded(machine: FakeMachine, linux: Linux) -> None:
    linux.config.write(0x60, 2, 0x27)
    for register in (0x0, 0x4):
        linux.unlocked(register, 4, 0)
    linux.config.write(0x68, 1, 0x06)
    before = len(machine.bridge.timers)
    await pass_time(machine, 0.5)
    assert asked(machine) == []
    assert len(machine.bridge.timers) == before == 1


async def test_the_count_stands_while_paused_and_goes_on_after_a_restore(
    machine: FakeMachine, watchdog: Watchdog, linux: Linux
) -> None:
    linux.probe(30)
    await pass_time(machine, 20)
    watchdog.pause()
    await pass_time(machine, 1000)
    watchdog.resume()
    await pass_time(machine, 5)
    assert asked(machine) == []
    other = FakeMachine()
    new = Watchdog("watchdog", other.context)
    new.plugged(4)
    transplant(watchdog, new)
    await pass_time(other, 4)
    assert other.requests == []
    await pass_time(other, 2)
    assert asked(other) == [MachineRequest.WATCHDOG]
    new.close()
    other.close()


@pytest.mark.parametrize("seed", range(3))
def test_random_accesses_raise_nothing(machine: FakeMachine, watchdog: Watchdog, linux: Linux, seed: int) -> None:
    import random

    chance = random.Random(seed)
    for _ in range(2000):
        size = chance.choice((1, 2, 4, 8))
        offset = chance.randrange(0, 17 - size)
        value = chance.choice((0x80, 0x86, 0x100, chance.getrandbits(8 * size))) & (1 << 8 * size) - 1
        linux.mmio.write(BAR + offset, size, value)
        linux.mmio.read(BAR + offset, size)
        linux.config.write(chance.choice((0x60, 0x64, 0x66, 0x68)), chance.choice((1, 2, 4)), chance.getrandbits(8))
        if chance.random() < 0.05:
            machine.bridge.advance(0.02)
