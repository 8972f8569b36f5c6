"""Power: PVE's parameters of each method, and guests that are locked."""

from __future__ import annotations

from appliance.model.guest import GuestKind, GuestState
from tests.web.guests.guest_site import KINDS, GuestSite, define


@KINDS
async def test_power_methods_take_pves_parameters(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind)
    for verb, data in (
        ("start", {}), ("shutdown", {"timeout": 5, "forceStop": 1}), ("start", {"skiplock": 1}), ("reboot", {"timeout": 7}),
        ("suspend", {}), ("resume", {}), ("stop", {"overrule-shutdown": 1, "skiplock": 1}),
    ):  # fmt: skip
        answer = await site.call("POST", f"{path}/status/{verb}", data)
        assert answer.status == 200, answer.reason
        assert answer.data.startswith("UPID:")
    verbs = [(verb, options) for verb, _, options in site.guests.calls]
    assert verbs[1] == ("shutdown", {"timeout_s": 5, "force_stop": True})
    assert verbs[3] == ("reboot", {"timeout_s": 7})


async def test_a_vm_is_reset_and_what_cannot_be_done_is_refused(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU)
    await site.do("POST", f"{path}/status/reset")
    for verb, data, named in (
        ("suspend", {"todisk": 1}, "todisk"), ("start", {"migratedfrom": "x"}, "migratedfrom"),
        ("start", {"machine": "q35"}, "machine"), ("shutdown", {"timeout": -1}, "timeout"), ("stop", {"nope": 1}, "nope"),
    ):  # fmt: skip
        answer = await site.call("POST", f"{path}/status/{verb}", data)
        assert (answer.status, list(answer.errors)) == (400, [named])
    assert (await site.call("POST", f"{define(site, GuestKind.LXC)}/status/reset")).status == 501


@KINDS
async def test_a_locked_guest_is_left_alone_unless_skiplock_says_otherwise(site: GuestSite, kind: GuestKind) -> None:
    path = define(site, kind, lock="backup", cores=1)
    slot = "scsi0" if kind is GuestKind.QEMU else "rootfs"
    for verb, where, data in (
        ("POST", f"{path}/status/start", {}), ("POST", f"{path}/status/stop", {}), ("POST", f"{path}/status/shutdown", {}),
        ("POST", f"{path}/status/suspend", {}), ("POST", f"{path}/status/resume", {}),
        ("PUT", f"{path}/config", {"cores": 2}), ("PUT", f"{path}/resize", {"disk": slot, "size": "+1G"}),
        ("DELETE", path, {}),
    ):  # fmt: skip
        answer = await site.call(verb, where, data)
        assert (answer.status, "is locked (backup)" in answer.reason) == (409, True), where
        assert (await site.call(verb, where, {**data, "skiplock": 1})).status == 200, where
        if verb == "POST":
            site.guests.guests[int(path.partition("/")[2])].state = GuestState.STOPPED
    path = define(site, kind, lock="backup")
    assert (await site.call("POST", f"{path}/clone", {"newid": 200})).status == 409
    assert (await site.call("POST", f"{path}/template")).status == 409
    assert (await site.call("PUT", f"{path}/config", {"delete": "lock"})).status == 200
    assert (await site.call("POST", f"{path}/status/start")).status == 200
