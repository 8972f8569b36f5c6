"""The guided set-up: what is done, what comes next, when it is offered."""

from __future__ import annotations

import pytest

from appliance.errors import NotFound
from appliance.services import setup_guide
from appliance.services.setup_guide import HostState, SetupState
from tests.fakes.store import FakeStore

FRESH = HostState(password_is_own=False, has_template=False)
READY = HostState(password_is_own=True, has_template=True)


def test_what_the_host_shows_is_done_whoever_did_it() -> None:
    assert setup_guide.next_step(SetupState(), FRESH) == "password"
    assert setup_guide.next_step(SetupState(), READY) == "storage"
    assert setup_guide.next_step(SetupState(done=("storage", "network")), READY) is None


def test_it_is_offered_until_it_is_done_or_skipped() -> None:
    assert setup_guide.is_offered(SetupState(), FRESH)
    assert not setup_guide.is_offered(SetupState(dismissed=True), FRESH)
    assert not setup_guide.is_offered(SetupState(done=("storage", "network")), READY)


async def test_steps_are_remembered_and_skipping_keeps_them() -> None:
    store = FakeStore()
    await setup_guide.finish_step(store, "storage")
    await setup_guide.dismiss(store, dismissed=True)
    await setup_guide.finish_step(store, "network")
    assert (await setup_guide.read(store))[0] == SetupState(done=("network", "storage"), dismissed=True)
    await setup_guide.dismiss(store, dismissed=False)
    assert setup_guide.next_step((await setup_guide.read(store))[0], FRESH) == "password"
    with pytest.raises(NotFound, match="nonsense"):
        await setup_guide.finish_step(store, "nonsense")
    await store.close()
