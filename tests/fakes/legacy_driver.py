"""What a driver of old devices does, on a machine without KVM: port accesses, and time that passes."""

from __future__ import annotations

import random
from collections.abc import Iterator

from appliance.vmm.device import Device
from tests.fakes.machine import FakeMachine

I8042_TRIES = 10_000  # Linux' I8042_CTL_TIMEOUT, SeaBIOS' too


class Driver:
    """`exits` counts the accesses: each costs a guest its microseconds."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.exits = 0

    def inb(self, port: int) -> int:
        return self.read(port, 1)

    def outb(self, port: int, value: int) -> None:
        self.write(port, 1, value)

    def read(self, port: int, size: int) -> int:
        self.exits += 1
        value = self.machine.ports.read(port, size)
        assert 0 <= value < 1 << (8 * size)
        return value

    def write(self, port: int, size: int, value: int) -> None:
        self.exits += 1
        self.machine.ports.write(port, size, value)

    # the 8042, as Linux' i8042.c and SeaBIOS' ps2port.c talk to it

    def i8042_command(self, command: int, *parameters: int, answers: int = 0) -> list[int]:
        self._wait(0x02, 0)
        self.outb(0x64, command)
        for each in parameters:
            self._wait(0x02, 0)
            self.outb(0x60, each)
        return [self.i8042_byte()[0] for _ in range(answers)]

    def i8042_byte(self) -> tuple[int, bool]:
        """(byte, whether it is the mouse's)"""
        status = self._wait(0x01, 1)
        return self.inb(0x60), bool(status & 0x20)

    def i8042_flush(self) -> list[tuple[int, bool]]:
        found = []
        while (status := self.inb(0x64)) & 1:
            found.append((self.inb(0x60), bool(status & 0x20)))
            assert len(found) <= 16
        return found

    def ps2(self, byte: int, *, aux: bool = False) -> None:
        """A byte to the keyboard or mouse, acknowledged."""
        if aux:
            self.i8042_command(0xD4, byte)
        else:
            self._wait(0x02, 0)
            self.outb(0x60, byte)
        assert self.i8042_byte() == (0xFA, aux)

    def _wait(self, mask: int, wanted: int) -> int:
        for _ in range(I8042_TRIES):
            status = self.inb(0x64)
            if bool(status & mask) == bool(wanted):
                return status
        raise AssertionError("the 8042 does not answer")


async def pass_time(machine: FakeMachine, seconds: float) -> None:
    """Clock and timers together; each timer runs at its own moment."""
    bridge = machine.bridge
    end = bridge.now_s + seconds
    while due := [each.due_s for each in bridge.timers if not each.cancelled and each.due_s <= end]:
        step = max(0.0, min(due) - bridge.now_s)
        await machine.clock.advance(step)
        bridge.advance(step)
    await machine.clock.advance(end - bridge.now_s)
    bridge.advance(end - bridge.now_s)


def hammer(driver: Driver, ranges: list[tuple[int, int]], *, seed: int, times: int = 3000) -> None:
    """Accesses of every size and value anywhere in the ranges, as a hostile guest makes them."""
    chance = random.Random(seed)
    for port, size in _accesses(chance, ranges, times):
        if chance.random() < 0.5:
            driver.read(port, size)
        else:
            driver.write(port, size, chance.getrandbits(8 * size))


def _accesses(chance: random.Random, ranges: list[tuple[int, int]], times: int) -> Iterator[tuple[int, int]]:
    for _ in range(times):
        base, length = chance.choice(ranges)
        size = chance.choice((1, 1, 1, 2, 4, 8))
        if size <= length:
            yield base + chance.randrange(length - size + 1), size


def transplant(old: Device, new: Device) -> None:
    """Save one, restore into the other, as a migration does."""
    old.pause()
    state = old.save()
    assert state is not None
    assert type(state) is old.state_type
    new.pause()
    new.restore(state)
    new.resume()
