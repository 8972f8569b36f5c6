"""Typed documents: the round trip, compare-and-set, damage named by key."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from appliance.state.documents import Documents, Stored, encode
from appliance.state.store import Put, StoreError
from tests.fakes.store import FakeStore


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    every_s: int = 60


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def jobs(store: FakeStore) -> Documents[Job]:
    return Documents(store, "jobs/", Job)


async def test_a_value_comes_back_with_its_id_and_revision(store: FakeStore, jobs: Documents[Job]) -> None:
    await store.txn([], [jobs.put("a", Job("a")), jobs.put("b", Job("b", 5)), Put("jobsx", b"other")])
    assert await jobs.get("b") == Stored("b", Job("b", 5), 1)
    assert await jobs.get("c") is None
    assert await jobs.all() == ([Stored("a", Job("a"), 1), Stored("b", Job("b", 5), 1)], 1)
    await store.txn([], [jobs.delete("a")])
    assert await jobs.get("a") is None


async def test_who_read_before_another_wrote_does_not_overwrite(store: FakeStore, jobs: Documents[Job]) -> None:
    assert (await store.txn([jobs.unchanged("a", None)], [jobs.put("a", Job("1"))])).succeeded
    assert not (await store.txn([jobs.unchanged("a", None)], [jobs.put("a", Job("2"))])).succeeded
    read = await jobs.get("a")
    assert (await store.txn([jobs.unchanged("a", read)], [jobs.put("a", Job("3"))])).succeeded
    assert not (await store.txn([jobs.unchanged("a", read)], [jobs.put("a", Job("4"))])).succeeded


async def test_older_and_newer_documents_are_understood(store: FakeStore, jobs: Documents[Job]) -> None:
    await store.txn([], [Put("jobs/a", b'{"name": "a", "of_a_later_version": [1]}')])
    assert await jobs.get("a") == Stored("a", Job("a"), 1)


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"name": 1}', b"\xff"])
async def test_a_damaged_document_is_named(store: FakeStore, jobs: Documents[Job], value: bytes) -> None:
    await store.txn([], [Put("jobs/a", value)])
    with pytest.raises(StoreError, match="jobs/a"):
        await jobs.all()


def test_equal_values_are_equal_bytes() -> None:
    assert encode({"b": 1, "a": 2}) == encode({"a": 2, "b": 1}) == b'{"a":2,"b":1}'
