"""The pure parts of pages: which guests the list shows, what the tree takes over, what needs attention, settings."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.model.guest import GuestKind, GuestState, GuestStats
from appliance.model.volume import StorageUsage
from appliance.services.node import derive
from appliance.web.api.cluster import Options
from appliance.web.pages import notices, tree
from appliance.web.pages.datacenter import shares
from appliance.web.pages.guest_window import LIMIT, WINDOW, Wanted, choose
from appliance.web.pages.render import tag_hue
from appliance.web.pages.settings import SETTINGS
from tests.services.test_node import HOST, SAMPLE


def guest(guest_id: int, **changes: object) -> Any:
    plain = {
        "guest_id": guest_id, "name": f"g{guest_id}", "kind": GuestKind.QEMU, "state": GuestState.STOPPED, "tags": (),
        "pool": None, "node": "n", "addresses": (), "template": False, "stats": None, "cpu_ratio": 0.0, "uptime_s": 0,
        "problem": "",
    }  # fmt: skip
    return SimpleNamespace(**(plain | changes))


def test_words_tags_states_and_columns_choose_and_sort() -> None:
    some = [
        guest(100, name="shop", tags=("web",), state=GuestState.RUNNING, cpu_ratio=0.5),
        guest(101, name="Shop-db", kind=GuestKind.LXC, pool="office", addresses=("10.0.0.7",)),
        guest(102, name="mail", state=GuestState.RUNNING, cpu_ratio=0.9, stats=GuestStats(memory_bytes=5)),
    ]

    def ids(query: str) -> list[int]:
        return [each.guest_id for each in choose(some, Wanted.parse(query)).guests]

    assert ids("q=shop") == [100, 101]
    assert ids("q=shop+web") == [100]
    assert ids("q=10.0.0.7") == [101]
    assert ids("q=container+office") == [101]
    assert ids("state=running&sort=-cpu") == [102, 100]
    assert ids("tag=web") == [100]
    assert ids("pool=office") == ids("kind=lxc") == [101]
    assert ids("sort=name") == [102, 100, 101]
    assert ids("node=elsewhere") == []


def test_a_window_tells_how_many_there_are_beyond_it() -> None:
    window = choose([guest(number) for number in range(100, 350)], Wanted.parse("limit=20"))
    assert (len(window.guests), window.matching, window.total) == (20, 250, 250)


@given(st.text(max_size=300))
def test_any_query_is_understood_somehow_and_said_again_the_same(query: str) -> None:
    wanted = Wanted.parse(query)
    assert 1 <= wanted.limit <= LIMIT
    assert Wanted.parse(wanted.query) == wanted


def test_a_limit_that_is_none_is_the_usual_one() -> None:
    assert Wanted.parse("limit=99999999999").limit == Wanted.parse("limit=x").limit == WINDOW
    assert Wanted.parse("limit=0").limit == 1


def row(identity: str, **changes: Any) -> tree.TreeRow:
    return tree.TreeRow(id=identity, name=changes.pop("name", "x"), state=changes.pop("state", "running"), **changes)


def test_a_page_is_told_what_differs_only() -> None:
    before = [row("qemu/100"), row("qemu/101"), row("lxc/102")]
    after = [row("qemu/100"), row("qemu/101", state="stopped"), row("lxc/103")]
    change = tree.difference({each.id: each for each in before}, after)
    assert change is not None
    assert [each.id for each in change.rows] == ["qemu/101", "lxc/103"]
    assert change.gone == ["lxc/102"]
    assert change.digest == tree.digest(after) != tree.digest(before)
    assert tree.difference({each.id: each for each in after}, after) is None


def test_rows_are_small_on_the_wire() -> None:
    rows = [row(f"qemu/{number}", name=f"guest-{number}", node="node-1", tags=("bench",)) for number in range(1000)]
    assert len(msgspec.json.encode(tree.TreeChange(rows=rows, digest="x", whole=True))) < 80_000


def test_a_full_disk_is_bad_and_a_filling_one_a_warning() -> None:
    status = derive(SAMPLE, None, HOST, now=0.0)
    full = dataclasses.replace(status, rootfs_total_bytes=100, rootfs_used_bytes=95, memory_used_bytes=850)
    found = notices.of_node("pve", full)
    assert [(each.severity, each.text) for each in found] == [
        ("warn", "Memory is 85 % used"), ("bad", "The root file system is 95 % used"),
    ]  # fmt: skip
    config = cast(Any, SimpleNamespace(storage_id="local", enabled=True, problem=""))
    assert not notices.of_storage(config, StorageUsage(total_bytes=100, used_bytes=50, available_bytes=50))
    (notice,) = notices.of_storage(config, StorageUsage(total_bytes=100, used_bytes=99, available_bytes=1))
    assert (notice.severity, notice.href) == ("bad", "/storage/local")
    broken = cast(Any, SimpleNamespace(storage_id="nfs", enabled=True, problem="not mounted"))
    assert notices.of_storage(broken, None)[0].text == "not mounted"
    assert notices.of_guests([guest(100, problem="what?"), guest(101)])[0].href == "/guests/100"


def test_guests_are_counted_by_state_and_templates_apart() -> None:
    found = shares([guest(1, state=GuestState.RUNNING), guest(2, kind=GuestKind.LXC), guest(3, template=True)])
    assert [(share.state, share.vms, share.containers) for share in found] == [
        ("running", 1, 0), ("stopped", 0, 1), ("template", 1, 0),
    ]  # fmt: skip


def test_every_option_of_the_cluster_can_be_set_on_a_page() -> None:
    options = {field.encode_name for field in msgspec.structs.fields(Options)}
    assert options == {setting.name for setting in SETTINGS}


@pytest.mark.parametrize(("tag", "hue"), [("web", 1), ("production", 10), ("", 1)])
def test_a_tags_colour_is_always_the_same(tag: str, hue: int) -> None:
    assert tag_hue(tag) == hue
