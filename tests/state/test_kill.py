"""kill -9 of a writing process at random moments, 200 times, always on the same store: no acknowledged write is lost,
no half transaction is ever seen.

What this proves is the order of commit and acknowledgement and SQLite's recovery after the death of a process; that
the kernel's buffers survive a power cut as well rests on `synchronous = FULL` (asserted in `test_sqlite.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.state.sqlite import SqliteStore
from appliance.state.store import Document
from tests.state import kill_writer

KILLS = 200
LOAD_LIMIT_S = 0.06
PATIENCE_S = 20.0


class Victim:
    """The program that forks writers, and what its writers have acknowledged."""

    def __init__(self, path: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.state.kill_writer", str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )
        self._pid = 0
        self.told = b""

    def begin(self) -> None:
        """Fork a writer."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"x")
        self._pid = int(self._line())
        self.told = b""

    def live_for(self, seconds: float) -> None:
        """Listen to acknowledgements for a while."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._process.stdout], [], [], left)[0]:
                self.told += os.read(self._process.stdout.fileno(), 1 << 16)

    def wait_until_it_writes(self) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not self.told and time.monotonic() < deadline:
            self.live_for(0.002)
        assert self.told, "the writer did not begin"

    def kill(self) -> None:
        """kill -9, and take what was still in the pipe."""
        os.kill(self._pid, signal.SIGKILL)
        assert self._line() == "dead", "the writer died by itself"
        self._pid = 0
        self.live_for(0)
        assert self._process.stdout is not None
        while select.select([self._process.stdout], [], [], 0)[0]:
            self.told += os.read(self._process.stdout.fileno(), 1 << 16)

    def end(self) -> None:
        assert self._process.stdin is not None
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        self._process.stdin.close()
        self._process.wait(PATIENCE_S)
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _line(self) -> str:
        assert self._process.stderr is not None
        line = self._process.stderr.readline().decode().strip()
        assert line == "dead" or line.isdigit(), line + self._process.stderr.read(4096).decode()
        return line


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path / "state.db")
    yield victim
    victim.end()


async def _look(path: Path) -> tuple[dict[str, Document], int]:
    store = await SqliteStore.open(path, SystemClock())
    documents, revision = await store.range("")
    await store.close()
    return {document.key: document for document in documents}, revision


class Ledger:
    """The newest acknowledged counter of each writer, over all children."""

    def __init__(self) -> None:
        self.counters = dict.fromkeys(range(kill_writer.WRITERS), 0)
        self.revision = 0
        self.acknowledged = 0

    def add(self, told: bytes) -> None:
        for writer, counter, revision in kill_writer.acknowledged(told):
            if writer != kill_writer.READY:
                assert counter > self.counters[writer]
                self.counters[writer] = counter
                self.revision = max(self.revision, revision)
                self.acknowledged += 1

    def check(self, documents: dict[str, Document], revision: int) -> None:
        """Nothing acknowledged is lost, nothing is half done."""
        assert revision >= self.revision
        self._check_pairs(documents)
        balances = [int(d.value) for key, d in documents.items() if key.startswith("bank/")]
        assert (sum(balances), len(balances)) in ((kill_writer.TOTAL, kill_writer.ACCOUNTS), (0, 0))
        toggles = [key for key in documents if key.startswith("toggle/")]
        assert len(toggles) == len({key.rsplit("/", 1)[0] for key in toggles})

    def _check_pairs(self, documents: dict[str, Document]) -> None:
        for writer, counter in self.counters.items():
            trio = [documents.get(f"pair/{writer}/{name}") for name in "abc"]
            found = [document for document in trio if document is not None]
            assert len(found) in (0, 3)
            if not found:
                assert counter == 0
                continue
            stored = int(found[0].value.partition(b":")[0])
            # One more than acknowledged: committed, but killed before it could say so.
            assert stored in (counter, counter + 1)
            assert len({document.mod_revision for document in found}) == 1
            for document, size_bytes in zip(found, kill_writer.PADDING_BYTES, strict=True):
                assert document.value == kill_writer.pair_value(stored, size_bytes)
            self.counters[writer] = stored


@pytest.mark.timeout(180)
def test_200_kills_lose_nothing_acknowledged_and_show_nothing_half_done(victim: Victim, tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    ledger = Ledger()
    for number in range(KILLS):
        victim.begin()
        if number % 10:
            victim.wait_until_it_writes()
        # Every tenth is killed while it opens, recovers or checks the file.
        victim.live_for(chance.uniform(0, LOAD_LIMIT_S))
        victim.kill()
        ledger.add(victim.told)
        if (tmp_path / "state.db").exists():
            ledger.check(*asyncio.run(_look(tmp_path / "state.db")))
    print(f"{ledger.acknowledged} acknowledged writes")
    assert ledger.acknowledged > KILLS * 5
