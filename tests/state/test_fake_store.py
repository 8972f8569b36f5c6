"""The fake store keeps the contract, so a test that passes with it means something."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore
from tests.state.contract import HISTORY_TRANSACTIONS, QUEUE_TRANSACTIONS, PassTime, StoreContract


class TestFakeStore(StoreContract):
    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock()

    @pytest.fixture
    def pass_time(self, clock: FakeClock) -> PassTime:
        return clock.advance

    @pytest.fixture
    async def store(self, clock: FakeClock) -> AsyncIterator[FakeStore]:
        store = FakeStore(clock, history_transactions=HISTORY_TRANSACTIONS, queue_transactions=QUEUE_TRANSACTIONS)
        yield store
        await store.close()
