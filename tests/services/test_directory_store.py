from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.errors import Conflict, HostError, InvalidParameter
from appliance.events import AccessChanged, EventBus
from appliance.services.access import AccessService, Identity
from appliance.services.audit import AuditLog
from appliance.services.directory import Directory, Group, User
from appliance.services.directory_store import DirectoryStore
from appliance.state.sqlite import SqliteStore
from appliance.state.store import Put
from tests.fakes.access import CHEAP
from tests.fakes.store import FakeStore


def _with_user(user_id: str, directory: Directory) -> Directory:
    return directory.with_user(user_id, User())


@pytest.fixture
async def kv() -> AsyncIterator[FakeStore]:
    store = FakeStore()
    yield store
    await store.close()


@pytest.fixture
async def directory_store(kv: FakeStore) -> AsyncIterator[DirectoryStore]:
    store = DirectoryStore(kv, EventBus())
    await store.start()
    yield store
    await store.close()


async def test_an_edit_is_one_transaction_and_seen_when_it_returns(
    kv: FakeStore, directory_store: DirectoryStore
) -> None:
    before = kv.revision
    await directory_store.edit(
        lambda directory: directory.with_user("joe@pve", User()).with_group("dev", Group(members=("joe@pve",)))
    )
    assert kv.revision == before + 1
    assert directory_store.directory.groups_of("joe@pve") == ["dev"]


async def test_an_edit_that_changes_nothing_writes_nothing(kv: FakeStore, directory_store: DirectoryStore) -> None:
    await directory_store.edit(lambda directory: directory.with_user("joe@pve", User()))
    before = kv.revision
    await directory_store.edit(lambda directory: directory.with_user("joe@pve", User()))
    assert kv.revision == before


async def test_an_edit_that_raises_writes_nothing(kv: FakeStore, directory_store: DirectoryStore) -> None:
    def refuse(directory: Directory) -> Directory:
        raise Conflict("no")

    before = kv.revision
    with pytest.raises(Conflict):
        await directory_store.edit(refuse)
    assert kv.revision == before


async def test_a_rule_may_forbid_an_edit(kv: FakeStore) -> None:
    def no_users(old: Directory, new: Directory) -> None:
        if new.users:
            raise Conflict("no users here")

    store = DirectoryStore(kv, EventBus(), rule=no_users)
    await store.start()
    with pytest.raises(Conflict, match="no users"):
        await store.edit(lambda directory: directory.with_user("joe@pve", User()))
    await store.close()


async def test_too_large_an_edit_is_refused(directory_store: DirectoryStore) -> None:
    users = {f"u{number}@pve": User() for number in range(300)}
    with pytest.raises(InvalidParameter, match="too many"):
        await directory_store.edit(lambda directory: replace(directory, users=users))
    with pytest.raises(InvalidParameter):
        await directory_store.edit(lambda directory: directory.with_user("日" * 64, User()))


async def test_who_falls_behind_the_stores_history_loads_anew() -> None:
    kv = FakeStore(history_transactions=4, queue_transactions=2)
    store = DirectoryStore(kv, EventBus())
    await store.start()
    for number in range(20):  # faster than the follower, who gets no turn
        await kv.txn([], [Put(f"access/groups/g{number}", b"{}"), Put("access/generation", b"1")])
    await store.edit(lambda directory: directory.with_user("joe@pve", User()))
    assert len(store.directory.groups) == 20
    assert "joe@pve" in store.directory.users
    await store.close()
    await kv.close()


async def test_a_damaged_document_written_by_another_node_takes_access_from_whom_it_is_about_only(
    kv: FakeStore, directory_store: DirectoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    for user in ("joe@pve", "bad@pve"):
        await directory_store.edit(functools.partial(_with_user, user))
    await kv.txn([], [Put("access/users/bad@pve", b"[]")])
    await directory_store.edit(lambda directory: directory.with_user("ann@pve", User()))
    assert "access/users/bad@pve is damaged" in caplog.text
    assert set(directory_store.directory.users) == {"joe@pve", "ann@pve"}


async def test_every_change_is_told_to_the_event_bus(kv: FakeStore) -> None:
    events = EventBus()
    store = DirectoryStore(kv, events)
    await store.start()
    with events.subscribe() as subscription:
        await store.edit(lambda directory: directory.with_user("joe@pve", User()))
        assert isinstance(await subscription.next(), AccessChanged)
    await store.close()


async def test_access_control_works_on_the_real_store_and_after_a_restart(tmp_path: Path) -> None:
    clock = SystemClock()
    store = await SqliteStore.open(tmp_path / "state.db", clock)
    for start in range(2):
        audit = AuditLog(tmp_path / "audit.log", clock, store)
        access = AccessService(store, EventBus(), clock, data_dir=tmp_path, audit=audit, password_cost=CHEAP)
        await audit.start()
        await access.start()
        password = await asyncio.to_thread((tmp_path / "admin-password").read_text)
        login = await access.login("admin@pve", password.strip(), remote="local")
        assert access.verify_ticket(login.ticket) == Identity("admin@pve")
        if start == 0:
            await access.groups.create(Identity("admin@pve"), "dev")
        assert [row["groupid"] for row in access.groups.list(Identity("admin@pve"))] == ["dev"]
        assert (await audit.verify()).ok
        await access.close()
        await audit.close()
    assert (await asyncio.to_thread((tmp_path / "admin-password").stat)).st_mode & 0o777 == 0o600
    await store.close()


async def test_a_failing_store_fails_the_start(kv: FakeStore) -> None:
    await kv.txn([], [Put("access/acl", b"{}")])
    with pytest.raises(HostError, match="access/acl"):
        await DirectoryStore(kv, EventBus()).start()
