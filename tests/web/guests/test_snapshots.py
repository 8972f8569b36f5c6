"""Snapshots of guests, as PVE's clients make and list them."""

from __future__ import annotations

from appliance.model.guest import GuestKind
from tests.web.guests.guest_site import KINDS, GuestSite, define


@KINDS
async def test_snapshots_are_made_returned_to_and_removed(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    assert (await site.get(f"{path}/snapshot"))[-1]["name"] == "current"
    await site.do("POST", f"{path}/snapshot", snapname="a", description="first")
    assert [row["name"] for row in await site.get(f"{path}/snapshot")] == ["a", "current"]
    assert (await site.get(f"{path}/snapshot/a/config"))["snaptime"] == "5"
    assert "snaptime" in await site.get(f"{path}/config", snapshot="a")
    await site.do("PUT", f"{path}/snapshot/a/config", description="second")
    await site.do("POST", f"{path}/snapshot/a/rollback", start=1)
    await site.do("DELETE", f"{path}/snapshot/a")
    asked = [(call[0], call[2]) for call in site.guests.calls]
    assert asked == [
        ("snapshot", {"name": "a", "description": "first", "with_state": False}),
        ("describe", {"name": "a", "description": "second"}),
        ("rollback", {"name": "a", "start": True}),
        ("delsnapshot", {"name": "a", "force": False}),
    ]
    answer = await site.call("GET", f"{path}/snapshot/a/config")
    assert "does not exist" in answer.reason
    assert "digest" in await site.get(f"{path}/snapshot/current/config")
    assert (await site.call("POST", f"{path}/snapshot", {"snapname": "1x"})).status == 400


async def test_only_vms_have_a_memory_to_keep(site: GuestSite) -> None:
    vm, ct = define(site, GuestKind.QEMU), define(site, GuestKind.LXC)
    await site.do("POST", f"{vm}/snapshot", snapname="a", vmstate=1)
    assert site.guests.calls[-1][2]["with_state"] is True
    assert (await site.call("POST", f"{ct}/snapshot", {"snapname": "a", "vmstate": 1})).status == 400
