"""A child that waits has its namespaces, ends with its user, and never outlives who made it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.kernel import libc
from tests.harness import ROOT

pytestmark = pytest.mark.host

CLONE_FILES, CLONE_NEWNET = 0x400, 0x4000_0000

MAKER = f"""
import signal, sys
from appliance.kernel import libc
with libc.paused_child({CLONE_NEWNET | CLONE_FILES:#x}) as pid:
    print(pid, flush=True)
    signal.pause()
"""


def namespace(pid: int) -> str:
    return os.readlink(f"/proc/{pid}/ns/net")


def test_it_waits_in_its_own_namespace_and_is_collected() -> None:
    with libc.paused_child(CLONE_NEWNET | CLONE_FILES) as pid:
        assert namespace(pid) != namespace(os.getpid())
        assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "RS"
    assert not Path(f"/proc/{pid}").exists()


def test_many_at_the_same_time_do_not_meet() -> None:
    with libc.paused_child(CLONE_NEWNET | CLONE_FILES) as one, libc.paused_child(CLONE_NEWNET | CLONE_FILES) as other:
        assert len({namespace(pid) for pid in (one, other, os.getpid())}) == 3


def test_it_ends_when_its_maker_is_killed() -> None:
    """What it shares, the table of open files with every lock and socket in it, is gone with it."""
    maker = subprocess.Popen([sys.executable, "-c", MAKER], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert maker.stdout is not None
        child = os.pidfd_open(int(maker.stdout.readline()))
    finally:
        maker.send_signal(signal.SIGKILL)
        maker.wait(10)
        maker.stdout.close() if maker.stdout else None
    try:
        ended, _, _ = select.select([child], [], [], 10)
        assert ended
    finally:
        os.close(child)
