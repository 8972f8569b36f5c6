"""Calls that contradict each other at the same time: one wins, the others are told, and nothing is torn."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_input.client import Client, Reply
from tests.harness import Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VM = "/nodes/{node}/qemu"


def at_once(*calls: Callable[[], Reply]) -> list[Reply]:
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


def outcome(client: Client, reply: Reply) -> str:
    """ "refused: …" or the task's exit status, once it has ended."""
    if reply.status != 200:
        assert reply.status in (400, 409), reply.text
        return f"refused: {reply.text}"
    while True:
        task = client.call("GET", f"/nodes/{{node}}/tasks/{reply.body['data']}/status").body["data"]
        if task["status"] == "stopped":
            return str(task["exitstatus"])


def nothing_is_left(appliance: Appliance, client: Client) -> None:
    assert client.call("GET", "/cluster/resources", params={"type": "vm"}).body["data"] == []
    assert client.call("GET", "/nodes/{node}/storage/local/content", params={"content": "images"}).body["data"] == []
    assert appliance.lasting_traces("qemu-system") == []


def test_of_many_creations_of_one_vmid_one_wins(appliance: Appliance, client: Client) -> None:
    form = {"vmid": "100", "memory": "32", "scsi0": "local:0.001"}
    replies = at_once(*(lambda: client.call("POST", VM, data=form) for _ in range(8)))
    outcomes = [outcome(client, reply) for reply in replies]
    assert outcomes.count("OK") == 1, outcomes
    assert all("already exists" in text for text in outcomes if text != "OK")
    assert all("100" in text for text in outcomes if text != "OK")
    volumes = client.call("GET", "/nodes/{node}/storage/local/content").body["data"]
    assert len(volumes) == 1, "those who lost made no volume"
    assert outcome(client, client.call("DELETE", VM + "/100")) == "OK"
    nothing_is_left(appliance, client)


def test_of_a_vm_and_a_container_with_one_vmid_one_wins(
    appliance: Appliance, client: Client, busybox_template: Path
) -> None:
    cache = appliance.data_dir / "storage/local/template/cache"
    (cache / "b.tar.gz").write_bytes(busybox_template.read_bytes())
    ct = {"vmid": "100", "ostemplate": "local:vztmpl/b.tar.gz", "rootfs": "local:0.05", "memory": "32"}
    replies = at_once(
        *(
            call
            for _ in range(3)
            for call in (
                lambda: client.call("POST", VM, data={"vmid": "100", "memory": "32"}),
                lambda: client.call("POST", "/nodes/{node}/lxc", data=ct),
            )
        )
    )
    outcomes = [outcome(client, reply) for reply in replies]
    assert outcomes.count("OK") == 1, outcomes
    (row,) = client.call("GET", "/cluster/resources", params={"type": "vm"}).body["data"]
    assert outcome(client, client.call("DELETE", f"/nodes/{{node}}/{row['id']}")) == "OK"
    (cache / "b.tar.gz").unlink()
    nothing_is_left(appliance, client)


def test_deleting_while_starting_either_waits_or_is_refused(appliance: Appliance, api: Any, client: Client) -> None:
    for _ in range(3):
        appliance.finish(api, appliance.node(api).qemu.post(vmid=100, memory=32, scsi0="local:0.001"))
        replies = at_once(
            lambda: client.call("POST", VM + "/100/status/start"), lambda: client.call("DELETE", VM + "/100")
        )
        started, deleted = (outcome(client, reply) for reply in replies)
        if deleted == "OK":
            assert started != "OK"
            assert "100" in started
        else:
            assert started == "OK"
            assert "running" in deleted
            assert outcome(client, client.call("POST", VM + "/100/status/stop")) == "OK"
            assert outcome(client, client.call("DELETE", VM + "/100")) == "OK"
        nothing_is_left(appliance, client)


def test_changing_a_configuration_while_cloning_tears_neither(appliance: Appliance, api: Any, client: Client) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=100, memory=32, name="before", tags="a", scsi0="local:0.01"))
    clone = {"newid": "101", "full": "1"}
    change = {"name": "after", "tags": "b"}
    replies = at_once(
        lambda: client.call("POST", VM + "/100/clone", data=clone),
        lambda: client.call("PUT", VM + "/100/config", data=change),
        lambda: client.call("POST", VM + "/100/clone", data=clone),
    )
    clones = [outcome(client, replies[0]), outcome(client, replies[2])]
    assert sorted(text.split(":")[0] for text in clones) == ["OK", "refused"], clones
    assert replies[1].status == 200, replies[1].text
    assert (node.qemu(100).config.get()["name"], node.qemu(100).config.get()["tags"]) == ("after", "b")
    assert node.qemu(101).config.get()["tags"] in ("a", "b")
    for vmid in (100, 101):
        appliance.finish(api, node.qemu(vmid).delete())
    nothing_is_left(appliance, client)


def test_of_changes_with_one_digest_one_wins(appliance: Appliance, api: Any, client: Client) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=100, memory=32))
    digest = node.qemu(100).config.get()["digest"]
    replies = at_once(
        *(
            lambda number=number: client.call(
                "PUT", VM + "/100/config", data={"digest": digest, "memory": str(64 + number)}
            )
            for number in range(6)
        )
    )
    assert sorted(reply.status for reply in replies) == [200] + [409] * 5
    appliance.finish(api, node.qemu(100).delete())


def test_a_volume_is_given_to_one_guest_only(appliance: Appliance, api: Any, client: Client) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=100, memory=32, scsi0="local:0.001"))
    volume = node.qemu(100).config.get()["scsi0"].split(",")[0]
    reply = client.call("POST", VM, data={"vmid": "101", "memory": "32", "scsi0": volume})
    words = outcome(client, reply)
    assert words != "OK"
    assert volume in words
    reply = client.call("DELETE", f"/nodes/{{node}}/storage/local/content/{volume}")
    assert "in use" in outcome(client, reply)
    appliance.finish(api, node.qemu(100).delete())
    nothing_is_left(appliance, client)
