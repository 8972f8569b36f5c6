"""/nodes/{node}/qemu/{vmid}/agent: files of a guest, byte for byte."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.model.guest import GuestKind
from appliance.web.application import build_application
from tests.fakes.guests import AgentVm
from tests.web.guest_site import RESOURCES, GuestSite, guest_services

AGENT = "qemu/100/agent"


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[GuestSite]:
    services, world, guests = guest_services(tmp_path)
    async with TestClient(TestServer(build_application(services, resources=RESOURCES))) as client:
        yield GuestSite(client, world, guests)


@pytest.fixture
def vm(site: GuestSite) -> AgentVm:
    site.guests.add(100, GuestKind.QEMU, agent="1")
    site.guests.guests[100].running = found = AgentVm(100)
    found.answers["file-open"] = [3]
    return found


async def test_a_file_is_read_from_an_offset_and_as_it_is(site: GuestSite, vm: AgentVm) -> None:
    vm.answers["file-read"] = [{"count": 2, "buf-b64": "/wA=", "eof": True}]
    assert await site.get(f"{AGENT}/file-read", file="/x", offset=7, decode=0) == {"content": "/wA="}
    assert ("file-seek", {"handle": 3, "offset": 7, "whence": "set"}) in vm.asked
    assert vm.asked[-1] == ("file-close", {"handle": 3})


async def test_a_file_is_written_from_base64(site: GuestSite, vm: AgentVm) -> None:
    await site.do("POST", f"{AGENT}/file-write", file="/x", content="/wA=", encode=0)
    assert ("file-write", {"handle": 3, "buf-b64": "/wA="}) in vm.asked
    answer = await site.call("POST", f"{AGENT}/file-write", {"file": "/x", "content": "no base64!", "encode": 0})
    assert (answer.status, "content" in answer.errors) == (400, True)


async def test_whether_file_systems_are_frozen_is_known_to_who_may_freeze_them(site: GuestSite, vm: AgentVm) -> None:
    assert (await site.call("POST", f"{AGENT}/fsfreeze-status", user="eve@pve")).status == 403
    site.grant("/vms/100", "VM.GuestAgent.FileSystemMgmt")
    assert (await site.call("POST", f"{AGENT}/fsfreeze-status", user="eve@pve")).status == 200
