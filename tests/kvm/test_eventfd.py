"""The counter that crosses between the process and KVM."""

from __future__ import annotations

import os
import select

import pytest

from appliance.kernel.eventfd import MAX_COUNT, EventFd


def test_signals_add_up_and_draining_takes_them_all() -> None:
    with EventFd() as event:
        assert event.drain() == 0
        event.signal()
        event.signal(2)
        assert select.select([event], [], [], 0)[0] == [event]
        assert (event.drain(), event.drain()) == (3, 0)


def test_a_full_counter_neither_blocks_nor_fails() -> None:
    with EventFd() as event:
        event.signal(MAX_COUNT)
        event.signal()
        assert event.drain() == MAX_COUNT


def test_closing_twice_is_harmless_and_use_afterwards_is_an_error() -> None:
    event = EventFd()
    fd = event.fileno()
    event.close()
    event.close()
    assert event.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    with pytest.raises(ValueError, match="negative"):
        event.signal()
