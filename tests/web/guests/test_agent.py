"""/nodes/{node}/qemu/{vmid}/agent: what PVE's clients ask of a VM's agent, files byte for byte."""

from __future__ import annotations

import pytest

from appliance.model.guest import GuestKind
from tests.fakes.guests import AgentVm
from tests.web.guests.guest_site import GuestSite, define

AGENT = "qemu/100/agent"


@pytest.fixture
def vm(site: GuestSite) -> AgentVm:
    site.guests.add(100, GuestKind.QEMU, agent="1")
    site.guests.guests[100].running = found = AgentVm(100)
    found.answers["file-open"] = [3]
    return found


async def test_the_agent_answers_in_pves_form(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU, agent="1")
    not_running = await site.call("POST", f"{path}/agent/ping")
    assert not_running.status == 409
    vm = AgentVm(100)
    site.guests.guests[100].running = vm
    vm.answers["network-get-interfaces"] = [[{"name": "lo"}]]
    assert await site.get(f"{path}/agent/network-get-interfaces") == {"result": [{"name": "lo"}]}
    assert await site.do("POST", f"{path}/agent/ping") == {"result": {}}
    assert await site.do("POST", f"{path}/agent", command="info") == {"result": {}}
    assert (await site.call("POST", f"{path}/agent", {"command": "exec"})).status == 400
    assert (await site.call("POST", f"{path}/agent/shutdown")).status == 501
    site.guests.add(104)
    no_agent = await site.call("POST", "qemu/104/agent/ping")
    assert "No QEMU guest agent configured" in no_agent.reason


async def test_programs_and_files_pass_through_the_agent(site: GuestSite) -> None:
    path = define(site, GuestKind.QEMU, agent="1")
    vm = AgentVm(100)
    site.guests.guests[100].running = vm
    vm.answers |= {
        "exec": [{"pid": 7}],
        "exec-status": [{"exited": True, "exitcode": 0, "out-data": "aGk="}],
        "file-open": [3],
        "file-read": [{"count": 2, "buf-b64": "aGk=", "eof": False}, {"count": 0, "buf-b64": "", "eof": True}],
    }
    assert await site.do("POST", f"{path}/agent/exec", command="ls,-l", input__data="x") == {"pid": 7}
    assert vm.asked[-1] == ("exec", {"path": "ls", "arg": ["-l"], "capture-output": True, "input-data": "eA=="})
    assert (await site.get(f"{path}/agent/exec-status", pid=7))["out-data"] == "hi"
    assert await site.get(f"{path}/agent/file-read", file="/etc/hostname") == {"content": "hi"}
    await site.do("POST", f"{path}/agent/file-write", file="/x", content="hi")
    assert ("file-write", {"handle": 3, "buf-b64": "aGk="}) in vm.asked
    assert vm.asked[-1] == ("file-close", {"handle": 3})
    await site.do("POST", f"{path}/agent/set-user-password", username="u", password="secret")
    assert vm.asked[-1][1]["password"] == "c2VjcmV0"


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


async def test_a_file_that_has_changed_is_not_overwritten(site: GuestSite, vm: AgentVm) -> None:
    vm.answers["file-read"] = [{"count": 2, "buf-b64": "aGk=", "eof": True}]
    answer = await site.call("POST", f"{AGENT}/file-write", {"file": "/x", "content": "mine", "expected": "absent"})
    assert (answer.status, "changed by somebody else" in answer.reason) == (409, True)
    assert "file-write" not in [command for command, _ in vm.asked]
    assert (
        await site.call("POST", f"{AGENT}/file-write", {"file": "/x", "content": "", "expected": "X"})
    ).status == 400


async def test_whether_file_systems_are_frozen_is_known_to_who_may_freeze_them(site: GuestSite, vm: AgentVm) -> None:
    assert (await site.call("POST", f"{AGENT}/fsfreeze-status", user="eve@pve")).status == 403
    site.grant("/vms/100", "VM.GuestAgent.FileSystemMgmt")
    assert (await site.call("POST", f"{AGENT}/fsfreeze-status", user="eve@pve")).status == 200
