"""The tab "Inside" of a guest: who has it, and what it says when nothing inside can be reached."""

from __future__ import annotations

import re

import pytest

from appliance.errors import Conflict
from appliance.model.guest import GuestKind, GuestState
from appliance.services.guest_config import Pending
from tests.fakes.house import HOSTILE
from tests.fakes.inside import InsideCt, InsideVm, Interior
from tests.web.conftest import Site

PRIVILEGES = {
    "VM.GuestAgent.Unrestricted": {"data-program", "data-open-file", "data-upload-file"},
    "VM.GuestAgent.FileRead": {"data-open-file"},
    "VM.GuestAgent.FileWrite": {"data-open-file", "data-upload-file"},
}


async def read(house: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> str:
    async with house.client.get(path, headers=house.as_user(user), allow_redirects=False) as reply:
        assert reply.status == status, (path, reply.status)
        return await reply.text()


async def reach(house: Site, path: str) -> str:
    found = re.search(r'data-reach="(\w+)"', await read(house, path))
    assert found is not None
    return found[1]


def run(house: Site, running: InsideCt | InsideVm) -> None:
    """This is what runs of every guest."""
    vars(house.world.guests)["running"] = lambda guest_id, kind=None: running


@pytest.mark.parametrize("privilege", PRIVILEGES)
async def test_each_part_is_there_for_who_may_use_it(house: Site, privilege: str) -> None:
    house.world.access.grant("eve@pve", "/vms/101", "VM.Audit", privilege)
    html = await read(house, "/guests/101/inside", user="eve@pve")
    parts = {part for every in PRIVILEGES.values() for part in every if f" {part}" in html}
    assert parts == PRIVILEGES[privilege]
    assert ('id="save"' in html) == (privilege != "VM.GuestAgent.FileRead")
    status = 403 if privilege == "VM.GuestAgent.FileRead" else 200
    await read(house, "/dialogs/guest/101/upload", user="eve@pve", status=status)


async def test_the_tab_is_absent_for_who_may_do_nothing_there_and_of_a_template(house: Site) -> None:
    house.world.access.grant("eve@pve", "/vms/101", "VM.Audit", "VM.GuestAgent.Audit")
    assert "/guests/101/inside" not in await read(house, "/guests/101", user="eve@pve")
    await read(house, "/guests/101/inside", user="eve@pve", status=404)
    await read(house, "/parts/guest/102/reach", user="eve@pve", status=403)
    assert "/guests/104/inside" not in await read(house, "/guests/104")


async def test_a_guest_that_does_not_run_says_so_instead_of_a_form_that_fails(house: Site) -> None:
    assert await reach(house, "/guests/103/inside") == "stopped"
    assert await reach(house, "/guests/102/inside") == "paused"
    assert await reach(house, "/guests/101/inside") == "stopped"  # it has just ended
    run(house, InsideCt(101, Interior()))
    assert await reach(house, "/guests/101/inside") == "ready"


async def test_a_vms_agent_is_on_then_asked_and_answers_or_is_silent(house: Site) -> None:
    vm = InsideVm(100, Interior())
    run(house, vm)
    assert await reach(house, "/guests/100/inside") == "off"
    house.world.extras.configs[100]["agent"] = "1"
    vars(house.world.guests)["pending"] = lambda kind, guest_id: [Pending("agent", None, "1")]
    assert await reach(house, "/guests/100/inside") == "waiting"
    vars(house.world.guests)["pending"] = lambda kind, guest_id: [Pending("agent", "1", "1,fstrim_cloned_disks=1")]
    assert await reach(house, "/guests/100/inside") == "asked"
    assert vm.asked == []  # not while the page waits for it
    assert await reach(house, "/parts/guest/100/reach") == "ready"
    vm.silent = True
    assert "QEMU guest agent is not running" in await read(house, "/parts/guest/100/reach")
    assert await reach(house, "/parts/guest/100/reach") == "silent"


async def test_a_vm_that_ends_while_it_is_asked_does_not_answer(house: Site) -> None:
    def ended(guest_id: int, kind: GuestKind | None = None) -> object:
        raise Conflict(f"VM {guest_id} not running")

    house.world.extras.configs[100]["agent"] = "1"
    vars(house.world.guests)["running"] = ended
    assert await reach(house, "/parts/guest/100/reach") == "silent"


async def test_a_hostile_directory_and_name_stay_text(house: Site) -> None:
    house.world.guests.add(105, GuestKind.LXC, name=HOSTILE, state=GuestState.STOPPED)
    for path in ("/guests/105/inside", '/dialogs/guest/105/upload?path=/"><script>alert(1)</script>'):
        assert "<script>alert" not in await read(house, path)
