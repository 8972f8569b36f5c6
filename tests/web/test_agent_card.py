"""The card of a VM's guest agent: who sees and does what, and that nothing it says is more than bounded text."""

from __future__ import annotations

import pytest

from appliance.errors import GuestFault
from appliance.web.pages.agent_card import ACTIONS, TEXT_LIMIT
from tests.fakes.house import HOSTILE
from tests.fakes.inside import InsideVm, Interior
from tests.web.conftest import Site

PART = "/parts/guest/100/agent"


@pytest.fixture
def vm(house: Site) -> InsideVm:
    found = InsideVm(100, Interior())
    found.answers = {
        "get-osinfo": [{"pretty-name": "Debian GNU/Linux 12", "kernel-release": "6.1.0"}],
        "get-host-name": [{"host-name": "shop"}], "get-timezone": [{"zone": "CET", "offset": 3600}],
        "get-users": [[{"user": "ada"}, {"user": "ada"}, {"user": "eve"}, "x"]], "info": [{"version": "8.2.1"}],
    }  # fmt: skip
    vars(house.world.guests)["running"] = lambda guest_id, kind=None: found
    return found


async def read(house: Site, path: str, *, user: str = "admin@pve", status: int = 200) -> str:
    async with house.client.get(path, headers=house.as_user(user), allow_redirects=False) as reply:
        assert reply.status == status, (path, reply.status)
        return await reply.text()


async def test_what_the_agent_says_is_shown_to_who_may_see_it(house: Site, vm: InsideVm) -> None:
    html = await read(house, PART)
    for word in ("Debian GNU/Linux 12", "6.1.0", "shop", "CET", "ada, eve", "8.2.1", "File systems thawed"):
        assert word in html
    house.world.access.grant("eve@pve", "/vms/100", "VM.Audit", "VM.GuestAgent.FileSystemMgmt")
    html = await read(house, PART, user="eve@pve")
    assert ("Debian" in html, 'data-agent="freeze"' in html) == (False, True)
    house.world.access.grant("eve@pve", "/vms/100", "VM.Audit", "VM.GuestAgent.Audit")
    html = await read(house, PART, user="eve@pve")
    assert ("Debian" in html, "data-agent" in html) == (True, False)
    await read(house, "/dialogs/guest/100/agent/freeze", user="eve@pve", status=403)
    house.world.access.grant("eve@pve", "/vms/100", "VM.Audit")
    await read(house, PART, user="eve@pve", status=403)


async def test_frozen_file_systems_are_told_and_can_only_be_thawed(house: Site, vm: InsideVm) -> None:
    vm.frozen = True
    html = await read(house, PART)
    assert "stands still until they are thawed" in html
    assert ('data-agent="thaw"' in html, 'data-agent="freeze"' in html) == (True, False)
    assert [command for command, _ in vm.asked] == ["ping", "fsfreeze-status"]  # it answers nothing else then


async def test_nothing_an_agent_says_is_markup_or_without_a_bound(house: Site, vm: InsideVm) -> None:
    vm.answers |= {
        "get-osinfo": [{"pretty-name": HOSTILE, "kernel-release": "x" * 10_000}],
        "get-host-name": ["text"], "get-timezone": [{"zone": 7}], "get-users": [{"user": "x"}],
        "info": [GuestFault("unknown command")],
    }  # fmt: skip
    html = await read(house, PART)
    assert "<script>alert" not in html
    assert "x" * TEXT_LIMIT in html
    assert "x" * (TEXT_LIMIT + 1) not in html


async def test_a_silent_agent_says_why(house: Site, vm: InsideVm) -> None:
    vm.silent = True
    html = await read(house, PART)
    assert "QEMU guest agent is not running" in html
    assert "data-agent" not in html
    await read(house, "/parts/guest/101/agent", status=404)
    await read(house, "/dialogs/guest/100/agent/explode", status=404)


@pytest.mark.parametrize("action", ACTIONS)
async def test_each_action_is_a_call_of_the_api(house: Site, vm: InsideVm, action: str) -> None:
    html = await read(house, f"/dialogs/guest/100/agent/{action}")
    assert f'data-api="POST /nodes/testnode/qemu/100/agent/fsfreeze-{action}"' in html
