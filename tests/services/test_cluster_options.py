"""Settings of the whole cluster: which ids new guests get."""

from __future__ import annotations

import pytest

from appliance.errors import Conflict, HostError
from appliance.services.cluster_options import OPTIONS_KEY, NextIdRange, next_id_range
from appliance.services.guest_records import GuestTable
from appliance.state.store import Put
from tests.fakes.store import FakeStore
from tests.services.test_guest_records import record


async def test_new_ids_come_from_the_range_that_was_set() -> None:
    store = FakeStore()
    assert await next_id_range(store) == NextIdRange(100, 1_000_000)
    await store.txn([], [Put(OPTIONS_KEY, b'{"next-id": "lower=200,upper=202"}')])
    bounds = await next_id_range(store)
    table = GuestTable(store)
    for expected in (200, 201):
        assert table.lowest_free_id(lower=bounds.lower, upper=bounds.upper) == expected
        await table.insert(record(expected), own_id_range=False)
    with pytest.raises(Conflict, match=r"any free VMID in range \[200, 202\]"):
        table.lowest_free_id(lower=bounds.lower, upper=bounds.upper)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lower=5000", (5000, 1_000_000)),
        ("upper=5000", (100, 5000)),
        ("upper=9,lower=8", None),
        ("lower=2000000", None),
    ],
)
def test_a_range_is_a_property_string(text: str, expected: tuple[int, int] | None) -> None:
    if expected is None:
        with pytest.raises(ValueError, match=r"lower|upper"):
            NextIdRange.parse(text)
    else:
        assert NextIdRange.parse(text) == NextIdRange(*expected)


async def test_a_damaged_range_is_named() -> None:
    store = FakeStore()
    await store.txn([], [Put(OPTIONS_KEY, b'{"next-id": "nonsense"}')])
    with pytest.raises(HostError, match="cluster/options: next-id"):
        await next_id_range(store)
