"""SQLite's store against the fake: the same random operations, restarts between them, the same answers and changes."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TypeVar

import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from appliance.errors import InvalidParameter, NotFound
from appliance.state.sqlite import SqliteStore
from appliance.state.store import (
    Absent,
    Change,
    Condition,
    Delete,
    DeletePrefix,
    Exists,
    Lease,
    Operation,
    Put,
    RevisionIs,
    Store,
    TxnResult,
)
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore

T = TypeVar("T")
KEYS = st.sampled_from(["a", "a/b", "a/b/c", "a/c", "ab", "b/1", "b/2"])
CONDITIONS = st.one_of(
    st.builds(Absent, KEYS), st.builds(Exists, KEYS), st.builds(RevisionIs, KEYS, st.integers(0, 12))
)
LEASES = st.sampled_from([None, None, None, 1, 2, 3])
OPERATIONS = st.one_of(
    st.builds(Put, KEYS, st.binary(max_size=4), LEASES),
    st.builds(Delete, KEYS),
    st.builds(DeletePrefix, st.sampled_from(["a/", "b", "a/b", "none/"])),
)


class Answer:
    """What an operation came to: a value or the type of its error."""

    @staticmethod
    async def of(operation: Coroutine[object, object, T]) -> T | type[Exception]:
        try:
            return await operation
        except (InvalidParameter, NotFound) as error:
            return type(error)


class SqliteAgainstFake(RuleBasedStateMachine):
    """Each rule does one thing to both stores and compares."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self.directory = tempfile.TemporaryDirectory()
        self.clock = FakeClock()
        self.fake = FakeStore(self.clock)
        self.sqlite = self.runner.run(self._open())
        self.leases: list[tuple[Lease, Lease]] = []
        self.since = 0

    async def _open(self) -> SqliteStore:
        return await SqliteStore.open(Path(self.directory.name) / "state.db", self.clock)

    def both(self, operation: Callable[[Store], Coroutine[object, object, T]]) -> T | type[Exception]:
        """Do it to both; returns the answer they agree on."""

        async def run() -> tuple[T | type[Exception], T | type[Exception]]:
            return await Answer.of(operation(self.fake)), await Answer.of(operation(self.sqlite))

        expected, got = self.runner.run(run())
        assert got == expected
        return got

    @rule(when=st.lists(CONDITIONS, max_size=2), then=st.lists(OPERATIONS, max_size=3))
    def transaction(self, when: list[Condition], then: list[Operation]) -> None:
        self.both(lambda store: store.txn(when, then))

    @rule(key=KEYS)
    def compare_and_set(self, key: str) -> None:
        document = self.both(lambda store: store.get(key))
        assert not isinstance(document, type)
        condition = Absent(key) if document is None else RevisionIs(key, document.mod_revision)
        result = self.both(lambda store: store.txn([condition], [Put(key, b"cas")]))
        assert isinstance(result, TxnResult)
        assert result.succeeded

    @rule(ttl_s=st.sampled_from([1.0, 5.0]))
    def grant(self, ttl_s: float) -> None:
        async def run() -> None:
            self.leases.append((await self.fake.lease(ttl_s), await self.sqlite.lease(ttl_s)))

        self.runner.run(run())
        assert self.leases[-1][0].lease_id == self.leases[-1][1].lease_id

    @rule(index=st.integers(0, 3), renew=st.booleans())
    def renew_or_revoke(self, index: int, renew: bool) -> None:
        async def run() -> None:
            fake, sqlite = self.leases[index]
            answers = [await Answer.of(lease.renew() if renew else lease.revoke()) for lease in (fake, sqlite)]
            assert answers[0] == answers[1]

        if index < len(self.leases):
            self.runner.run(run())

    @rule(seconds=st.sampled_from([0.5, 2.0, 6.0]))
    def let_time_pass(self, seconds: float) -> None:
        async def run() -> None:
            await self.clock.advance(seconds)
            # A lease that has just expired is ended by the store's thread: wait until the stores agree.
            async with asyncio.timeout(30):
                while (await self.sqlite.range(""))[1] < self.fake.revision:
                    await asyncio.sleep(0.001)

        self.runner.run(run())

    @rule()
    def restart(self) -> None:
        """Handles of leases do not outlive a restart, so none may be alive; history does not either."""

        async def run() -> None:
            for fake, sqlite in self.leases:
                await fake.revoke()
                await sqlite.revoke()
            self.leases.clear()
            await self._look_at_changes()
            await self.sqlite.close()
            self.sqlite = await self._open()
            self.since = self.fake.revision

        self.runner.run(run())

    @invariant()
    def documents_agree(self) -> None:
        self.both(lambda store: store.range(""))
        self.both(lambda store: store.range("a/"))

    async def _look_at_changes(self) -> None:
        """Everything since the last restart, as a late watch of each store tells it."""
        stores: tuple[Store, Store] = (self.fake, self.sqlite)
        told: list[list[Sequence[Change]]] = []
        async with asyncio.timeout(30):
            for store in stores:
                marker = (await store.txn([], [Put("a/marker", b"")])).revision
                batches: list[Sequence[Change]] = []
                async with store.watch("a", after=self.since) as changes:
                    while not batches or batches[-1][0].revision < marker:
                        batches.append(await anext(changes))
                told.append(batches)
        assert told[0] == told[1]

    async def _close(self) -> None:
        try:
            await self._look_at_changes()
        finally:
            await self.sqlite.close()
            await self.fake.close()

    def teardown(self) -> None:
        try:
            self.runner.run(self._close())
        finally:
            self.runner.close()
            self.directory.cleanup()


SqliteAgainstFake.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestSqliteAgainstFake = SqliteAgainstFake.TestCase
