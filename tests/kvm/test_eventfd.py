"""The counter that crosses between the process and KVM."""

from __future__ import annotations

import os
import select
import threading

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


def test_a_signal_never_goes_to_a_number_that_is_another_files_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread of the pool kicks a device that the loop closes."""
    event, write = EventFd(), os.eventfd_write
    closing = threading.Thread(target=event.close)

    def slow(fd: int, count: int) -> None:
        closing.start()
        closing.join(0.05)
        assert event.fileno() == fd, "closed under it"
        write(fd, count)

    monkeypatch.setattr(os, "eventfd_write", slow)
    event.signal()
    closing.join()
    assert event.fileno() == -1
