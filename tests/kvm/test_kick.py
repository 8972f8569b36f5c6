"""The kick makes a thread leave KVM_RUN, and Python's own handling of signals does not notice."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from appliance.kernel import kick
from appliance.kernel.kvm_run_abi import ExitReason
from tests.kvm.machine import SmallMachine

pytestmark = pytest.mark.host


def test_a_kick_interrupts_kvm_run_and_wakes_no_event_loop(machine: SmallMachine) -> None:
    machine.load("ebfe")  # jmp $
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before, handler = signal.set_wakeup_fd(writing), signal.getsignal(kick.KICK)
    reasons, may_end = list[int](), threading.Event()

    def run() -> None:
        reasons.append(machine.vcpu.run())
        may_end.wait(20)

    thread = threading.Thread(target=run)
    try:
        kick.install()
        kick.install()
        thread.start()
        assert thread.ident is not None
        while not reasons:  # the first may come before KVM_RUN: without `immediate_exit` that one is lost
            kick.send(thread.ident)
            may_end.wait(0.005)
        assert reasons == [ExitReason.INTR]
        assert signal.getsignal(kick.KICK) == handler
        with pytest.raises(BlockingIOError):
            os.read(reading, 1)
    finally:
        may_end.set()
        thread.join(20)
        signal.set_wakeup_fd(before)
        os.close(reading)
        os.close(writing)
