"""Wrong parameters of every shape: refused by name, and no guest comes of them."""

from __future__ import annotations

from typing import Any

import pytest

from tests.e2e.bad_input.client import Client
from tests.harness import Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VM = "/nodes/{node}/qemu"
CT = "/nodes/{node}/lxc"


def no_guest(client: Client) -> None:
    assert client.call("GET", "/cluster/resources", params={"type": "vm"}).body["data"] == []


@pytest.mark.parametrize(
    ("path", "form", "wrong"),
    [
        (VM, {"memory": "lots"}, "memory"),
        (VM, {"memory": "-1"}, "memory"),
        (VM, {"memory": "9" * 400}, "memory"),
        (VM, {"memory": "NaN"}, "memory"),
        (VM, {"cores": "0"}, "cores"),
        (VM, {"cores": "1e99"}, "cores"),
        (VM, {"cores": "Ⅷ"}, "cores"),
        (VM, {"onboot": "perhaps"}, "onboot"),
        (VM, {"no-such-key": "1"}, "no-such-key"),
        (VM, {"scsi99999999999999999999": "local:1"}, "scsi99999999999999999999"),
        (VM, {"scsi0": "local:1,cache=nonsense"}, "scsi0"),
        (VM, {"scsi0": "local:1,size=1,size=2"}, "scsi0"),
        (VM, {"scsi0": "=,=,="}, "scsi0"),
        (VM, {"scsi0": "a," * 10000}, "scsi0"),
        (VM, {"scsi0": "local:99999999999999999999"}, "scsi0"),
        (VM, {"scsi0": "local:-5"}, "scsi0"),
        (VM, {"scsi0": "local:../../../etc/shadow"}, "scsi0"),
        (VM, {"scsi0": "local:100/../../../../etc/shadow"}, "scsi0"),
        (VM, {"scsi0": "/etc/shadow"}, "scsi0"),
        (VM, {"scsi0": "local:0,import-from=/etc/shadow"}, "scsi0"),
        (VM, {"scsi0": "local:0,import-from=local:import/../../../etc/shadow.raw"}, "scsi0"),
        (VM, {"ide2": "local:iso/../../state.db,media=cdrom"}, "ide2"),
        (VM, {"ide2": "/etc/shadow,media=cdrom"}, "ide2"),
        (VM, {"net0": "virtio,bridge=vmbr0;reboot"}, "net0"),
        (VM, {"net0": "virtio,bridge=../../x"}, "net0"),
        (VM, {"net0": "virtio,macaddr=FF:FF:FF:FF:FF:FF"}, "net0"),
        (VM, {"net0": "virtio,tag=4095"}, "net0"),
        (VM, {"args": "-name 'unbalanced"}, "args"),
        (VM, {"hookscript": "local:snippets/../../x"}, "hookscript"),
        (VM, {"name": "a b"}, "name"),
        (VM, {"name": "-" * 300}, "name"),
        (VM, {"vmid": "99"}, "vmid"),
        (VM, {"vmid": "1000000000"}, "vmid"),
        (VM, {"vmid": "1 OR 1=1"}, "vmid"),
        (CT, {"ostemplate": "local:vztmpl/../../../etc/shadow"}, "ostemplate"),
        (CT, {"ostemplate": "/etc/passwd"}, "ostemplate"),
        (CT, {"ostemplate": ""}, "ostemplate"),
        (CT, {"ostemplate": "local:vztmpl/x.tar.gz", "hostname": "a_b;c"}, "hostname"),
        (CT, {"ostemplate": "local:vztmpl/x.tar.gz", "mp0": "local:1,mp=/../../etc"}, "mp0"),
        (CT, {"ostemplate": "local:vztmpl/x.tar.gz", "mp0": "/srv/../etc,mp=/host"}, "mp0"),
        (CT, {"ostemplate": "local:vztmpl/x.tar.gz", "net0": "name=../x,bridge=vmbr0"}, "net0"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(client: Client, path: str, form: dict[str, str], wrong: str) -> None:
    reply = client.call("POST", path, data={"vmid": "100", **form})
    assert (reply.status, list(reply.errors)) == (400, [wrong]), reply.text
    assert len(reply.text) < 2000, "what is wrong is told, not sent back whole"
    no_guest(client)


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        ({"memory": {"a": 1}}, "memory"),
        ({"memory": [1, 2]}, "memory"),
        ({"memory": 10**300}, "memory"),
        ({"memory": 1.5}, "memory"),
        ({"name": ["a", "b"]}, "name"),
        ({"name": True, "vmid": {"x": []}}, "vmid"),
        ({"vmid": None}, "vmid"),
        ({"vmid": True}, "vmid"),
        ({"net0": {"bridge": "x"}}, "net0"),
        ({"description": "a\0b"}, "description"),
        ({"": "x"}, ""),
        ({"a" * 5000: "x"}, "a"),
    ],
)
def test_a_wrong_json_type_is_refused_by_its_name(client: Client, form: dict[str, Any], wrong: str) -> None:
    reply = client.call("POST", VM, json={"vmid": 100, **form})
    assert reply.status == 400, reply.text
    assert any(name.startswith(wrong) for name in reply.errors), reply.text
    assert len(reply.text) < 2000
    no_guest(client)


def test_two_different_values_of_one_parameter_are_refused(client: Client) -> None:
    reply = client.call("POST", VM, data=[("vmid", "100"), ("memory", "64"), ("memory", "128")])
    assert (reply.status, list(reply.errors)) == (400, ["memory"]), reply.text
    reply = client.call("POST", VM + "?vmid=101", data={"vmid": "100"})
    assert (reply.status, list(reply.errors)) == (400, ["vmid"]), reply.text
    no_guest(client)


@pytest.mark.parametrize(
    "path",
    [
        "/nodes/{node}/storage/local/content/local:iso/../../../etc/shadow",
        "/nodes/{node}/storage/local/content/local:iso%2F..%2F..%2F..%2Fetc%2Fshadow",
        "/nodes/{node}/storage/local/content/local:100%2F%2E%2E%2F%2E%2E%2Fstate.db",
        "/nodes/{node}/storage/local/content/%2Fetc%2Fshadow",
        "/nodes/{node}/storage/local/content/local:iso%2Fa%00.iso",
        "/nodes/{node}/storage/..%2F..%2Fetc/content",
        "/nodes/..%2F../storage",
        "/nodes/{node}/tasks/..%2F..%2F..%2Fetc%2Fpasswd/log",
        "/nodes/{node}/tasks/UPID:x:0:0:0:..%2F..%2Fx:1:root@pam:/log",
        "/nodes/{node}/qemu/..%2F100/config",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/nodes/%ff%fe/status",
    ],
)
@pytest.mark.parametrize("verb", ["GET", "DELETE"])
def test_no_path_leads_out_of_its_object(client: Client, verb: str, path: str) -> None:
    """Sent as bytes: a client library would tidy the path first."""
    answer = client.raw(client.head(verb, path, "Connection: close"))
    status = int(answer.split(b" ")[1])
    assert status in (400, 401, 404, 501), answer[:400]
    assert b"root:" not in answer


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>\n\"'&amp;",
        "right \u202eto left\u202c and \u200b zero width",
        "tab\tand newline\nand é漢🎉",
        "# comment\nmemory: 1\n[PENDING]\nargs: x",
    ],
)
def test_a_description_comes_back_as_it_went_in(appliance: Appliance, api: Any, text: str) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=150, memory=32, description=text))
    config = node.qemu(150).config.get()
    assert config["description"].rstrip("\n") == text.rstrip("\n")
    assert set(config) >= {"memory", "description", "digest"}
    assert "args" not in config
    assert int(config["memory"]) == 32
    appliance.finish(api, node.qemu(150).delete())


@pytest.mark.parametrize("key", ["name", "tags", "description"])
@pytest.mark.parametrize("text", ["\x1b[31mred", "a\x00b", "a\x7f", "\x9b31m", "\ud800"])
def test_control_characters_are_refused_or_kept_exactly(client: Client, api: Any, key: str, text: str) -> None:
    body = b'{"vmid":151,"memory":32,"%s":"%s"}' % (
        key.encode(),
        text.encode("unicode-escape").replace(b"\\x", b"\\u00"),
    )
    reply = client.call("POST", VM, data=body, headers={"Content-Type": "application/json"})
    if reply.status == 200:
        assert key == "description"
        node = client.node
        assert api.nodes(node).qemu(151).config.get()[key] == text
        upid = api.nodes(node).qemu(151).delete()
        while api.nodes(node).tasks(upid).status.get()["status"] == "running":
            pass
    else:
        assert reply.status == 400, reply.text
        assert key in reply.errors or "body" in reply.errors, reply.text


@pytest.mark.parametrize("name", ["<img src=x>", "a\u202eb", "a/b", "..", "xn--", "a\nb"])
def test_a_name_that_is_no_host_name_is_refused(client: Client, name: str) -> None:
    for path, key in ((VM, "name"), (CT, "hostname")):
        more = {"ostemplate": "local:vztmpl/x.tar.gz"} if path == CT else {}
        reply = client.call("POST", path, data={"vmid": "152", key: name, **more})
        assert reply.status == 400, reply.text
        assert key in reply.errors, reply.text


def test_update_delete_and_digest_are_checked(appliance: Appliance, api: Any, client: Client) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=153, memory=32))
    before = node.qemu(153).config.get()
    config = VM + "/153/config"
    for form, wrong, status in (
        ({"delete": "no-such-key"}, "delete", 400),
        ({"delete": "digest"}, "delete", 400),
        ({"delete": "memory", "memory": "64"}, "delete", 400),
        ({"digest": "0" * 40, "memory": "64"}, "", 409),
        ({"digest": "x" * 5000, "memory": "64"}, "digest", 400),
        ({"memory": "64", "scsi0": "nowhere:1"}, "", 400),
        ({"memory": "64", "ide2": "local:iso/not-there.iso,media=cdrom"}, "", 400),
    ):
        reply = client.call("PUT", config, data=form)
        assert reply.status in {status, 404 if not wrong else status}, (form, reply.text)
        if wrong:
            assert wrong in reply.text, (form, reply.text)
    assert node.qemu(153).config.get() == before, "a refused change changes nothing"
    for size in ("-1G", "+99999999T", "", "1", "+0", "1GiB", "nan"):
        reply = client.call("PUT", VM + "/153/resize", data={"disk": "scsi0", "size": size})
        assert reply.status == 400, (size, reply.text)
    appliance.finish(api, node.qemu(153).delete())
