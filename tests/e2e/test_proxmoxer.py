"""proxmoxer, unchanged, against a running appliance: what Proxmox VE's own users do with their scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException
from proxmoxer.tools import Tasks

from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def api(appliance: Appliance) -> Any:
    return appliance.api()


@pytest.fixture(scope="module")
def template(appliance: Appliance, api: Any, busybox_template: Path) -> str:
    return appliance.upload(api, busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")


def test_the_version_is_one_that_clients_understand(api: Any) -> None:
    major = int(api.version.get()["version"].split(".")[0])
    assert major >= 8


def test_a_wrong_password_is_refused(appliance: Appliance) -> None:
    with pytest.raises(Exception, match="authenticate"):
        appliance.log_in(user="admin@pve", password="wrong")


def test_a_vm_goes_through_its_life(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    vmid = 610
    assert str(api.cluster.nextid.get(vmid=vmid)) == str(vmid)
    upid = node.qemu.post(
        vmid=vmid,
        name="life",
        memory=64,
        scsi0="local:0.01",
        serial0="socket",
        net0=f"virtio,bridge={appliance.bridge}",
    )
    assert Tasks.blocking_status(api, upid, timeout=60)["exitstatus"] == "OK"
    vm = node.qemu(vmid)
    config = vm.config.get()
    assert config["name"] == "life"
    assert config["scsi0"].startswith("local:")
    assert len(config["digest"]) == 40
    appliance.finish(api, vm.status.start.post())
    status = vm.status.current.get()
    assert (status["status"], status["qmpstatus"]) == ("running", "running")
    assert status["pid"] > 0
    appliance.finish(api, vm.status.suspend.post())
    assert vm.status.current.get()["qmpstatus"] == "paused"
    appliance.finish(api, vm.status.resume.post())
    appliance.finish(api, vm.status.reset.post())
    assert [row["name"] for row in vm.snapshot.get()] == ["current"]
    appliance.finish(api, vm.snapshot.post(snapname="running", description="while it ran"))
    assert vm.status.current.get()["qmpstatus"] == "running"
    assert [(row["name"], row.get("parent")) for row in vm.snapshot.get()] == [
        ("running", None),
        ("current", "running"),
    ]
    appliance.finish(api, vm.resize.put(disk="scsi0", size="+10M"))
    appliance.finish(api, vm.status.stop.post())
    assert vm.status.current.get()["status"] == "stopped"
    appliance.finish(api, vm.snapshot("running").rollback.post(start=1))
    assert vm.config.get()["scsi0"] == config["scsi0"]
    assert vm.status.current.get()["status"] == "running"
    appliance.finish(api, vm.snapshot("running").delete())
    appliance.finish(api, vm.status.stop.post())
    appliance.finish(api, vm.delete())
    with pytest.raises(ResourceException, match="does not exist") as caught:
        vm.config.get()
    assert caught.value.status_code == 404


def test_a_vm_goes_on_from_its_memory(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    disk = {"scsi0": "local:0.01", "serial0": "socket", "engine": "qemu", "memory": 64}
    appliance.finish(api, node.qemu.post(vmid=612, start=1, **disk))
    vm = node.qemu(612)
    pid = vm.status.current.get()["pid"]
    appliance.finish(api, vm.snapshot.post(snapname="memory", vmstate=1))
    assert vm.snapshot("memory").config.get()["vmstate"].startswith("local:612/")
    appliance.finish(api, vm.snapshot("memory").rollback.post())
    status = vm.status.current.get()
    assert status["qmpstatus"] == "running"
    assert status["pid"] != pid
    appliance.finish(api, vm.status.stop.post())
    appliance.finish(api, vm.delete())


def test_a_container_goes_through_its_life(appliance: Appliance, api: Any, template: str) -> None:
    node = appliance.node(api)
    vmid = 611
    net0 = f"name=eth0,bridge={appliance.bridge},ip=manual"
    appliance.finish(
        api, node.lxc.post(vmid=vmid, hostname="life", ostemplate=template, rootfs="local:0.1", memory=64, net0=net0)
    )
    container = node.lxc(vmid)
    assert container.config.get()["hostname"] == "life"
    appliance.finish(api, container.status.start.post())
    assert container.status.current.get()["status"] == "running"
    with appliance.terminal(api, f"lxc/{vmid}") as console:
        console.type("echo $((6*7))-$(cat /proc/sys/kernel/hostname)\n")
        console.wait_for("42-life", timeout_s=20)
    appliance.finish(
        api, container.resize.put(disk="rootfs", size="+40M")
    )  # a warning where the host cannot do it live
    appliance.finish(api, container.status.stop.post())
    appliance.finish(api, container.status.start.post())
    with appliance.terminal(api, f"lxc/{vmid}") as console:
        console.type("df -m / | tail -n 1\n")
        console.wait_for(r"\s1[23]\d\s", timeout_s=20)
    with pytest.raises(ResourceException, match="running"):
        container.delete()
    appliance.finish(api, container.status.stop.post())
    appliance.finish(api, container.delete())
    assert vmid not in [row["vmid"] for row in node.lxc.get()]


def test_a_container_of_layers_is_kept_returned_and_cloned(appliance: Appliance, api: Any, template: str) -> None:
    node = appliance.node(api)
    for vmid in (613, 614):
        appliance.finish(api, node.lxc.post(vmid=vmid, ostemplate=template, rootfs="local:0", memory=64))
    container = node.lxc(613)
    assert container.config.get()["rootfs"] == "local:613/subvol-613-disk-0.subvol"
    appliance.finish(api, container.status.start.post())
    with appliance.terminal(api, "lxc/613") as console:
        console.type("echo old >/file; sync; echo wri''tten\n")
        console.wait_for("written", timeout_s=20)
    appliance.finish(api, container.snapshot.post(snapname="one"))
    with appliance.terminal(api, "lxc/613") as console:
        console.type("echo new >/file; rm -r /etc; echo chan''ged\n")
        console.wait_for("changed", timeout_s=20)
    appliance.finish(api, container.snapshot("one").rollback.post(start=1))
    with appliance.terminal(api, "lxc/613") as console:
        console.type("echo $(cat /file)-$(ls -d /etc)\n")
        console.wait_for("old-/etc", timeout_s=20)
    appliance.finish(api, container.status.stop.post())
    appliance.finish(api, container.snapshot("one").delete())
    appliance.finish(api, container.template.post())
    appliance.finish(api, container.clone.post(newid=615, full=0))
    appliance.finish(api, node.lxc(615).status.start.post())
    with appliance.terminal(api, "lxc/615") as console:
        console.type("echo $(cat /file)-here\n")
        console.wait_for("old-here", timeout_s=20)
    appliance.finish(api, node.lxc(615).status.stop.post())
    with pytest.raises(Exception, match="linked clone"):
        appliance.finish(api, container.delete())
    for vmid in (615, 614, 613):
        appliance.finish(api, node.lxc(vmid).delete())


def test_parallel_operations_on_one_guest_queue(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=700, memory=32))
    upids = [node.qemu(700).status.start.post(), node.qemu(700).status.stop.post(), node.qemu(700).status.start.post()]
    upids.append(node.qemu(700).status.stop.post())
    assert [appliance.finish(api, upid) for upid in upids] == ["OK"] * 4
    assert node.qemu(700).status.current.get()["status"] == "stopped", "the last that was asked for"
    appliance.finish(api, node.qemu(700).delete())


def test_an_api_token_works_within_its_privileges(appliance: Appliance, api: Any) -> None:
    api.access.users.post(userid="ci@pve", password="correct horse battery")
    api.access.acl.put(path="/", users="ci@pve", roles="PVEAuditor")
    token = api.access.users("ci@pve").token("one").post(privsep=0)
    other = appliance.log_in(user="ci@pve", token_name="one", token_value=token["value"])
    assert other.nodes.get()
    with pytest.raises(ResourceException) as caught:
        appliance.node(other).qemu.post(vmid=800, memory=32)
    assert caught.value.status_code == 403


@pytest.mark.parametrize(
    ("form", "wrong"),
    [
        ({"memory": "lots"}, "memory"),
        ({"no-such-key": "1"}, "no-such-key"),
        ({"scsi0": "local:8,nonsense=1"}, "scsi0"),
        ({"scsi0": "local:../../etc/passwd"}, "scsi0"),
        ({"net0": "virtio,bridge=a;b"}, "net0"),
        ({"vmid": "99"}, "vmid"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(appliance: Appliance, api: Any, form: dict[str, str], wrong: str) -> None:
    with pytest.raises(ResourceException) as caught:
        appliance.node(api).qemu.post(**{"vmid": "801", **form})
    assert caught.value.status_code == 400
    assert wrong in caught.value.errors
    assert "801" not in [str(row["vmid"]) for row in appliance.node(api).qemu.get()]


def test_a_missing_bridge_is_named_and_leaves_the_guest_stopped(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=802, memory=32, net0="virtio,bridge=nobridge"))
    with pytest.raises(TaskFailed, match="nobridge"):
        appliance.finish(api, node.qemu(802).status.start.post())
    assert node.qemu(802).status.current.get()["status"] == "stopped"
    appliance.finish(api, node.qemu(802).delete())
