"""What this host does not have: the guest stays stopped, and the error names what is missing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.bad_input.client import Client
from tests.e2e.bad_input.conftest import proxmoxer_of
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VLAN_FILTERING = Path("/sys/class/net")


def stays_stopped(appliance: Appliance, api: Any, words: str, **config: str) -> str:
    """Create and start a VM; the error, which must have `words`. The VM is gone afterwards."""
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=100, memory=32, **config))
    try:
        with pytest.raises(TaskFailed, match=words) as caught:
            appliance.finish(api, node.qemu(100).status.start.post())
        assert node.qemu(100).status.current.get()["status"] == "stopped"
        assert appliance.lasting_traces("qemu-system") == []
    finally:
        appliance.finish(api, node.qemu(100).delete())
    return str(caught.value)


def test_a_missing_bridge_is_named_for_vms_and_containers(
    appliance: Appliance, api: Any, busybox_template: Path
) -> None:
    links = set(os.listdir("/sys/class/net"))
    stays_stopped(appliance, api, "nobridge", net0="virtio,bridge=nobridge", net1=f"virtio,bridge={appliance.bridge}")
    assert set(os.listdir("/sys/class/net")) >= links - {"nobridge"}
    (appliance.data_dir / "storage/local/template/cache/b.tar.gz").write_bytes(busybox_template.read_bytes())
    node = appliance.node(api)
    net = {
        f"net{number}": f"name=eth{number},bridge={name},ip=manual"
        for number, name in enumerate((appliance.bridge, "nobridge"))
    }
    upid = node.lxc.post(vmid=100, ostemplate="local:vztmpl/b.tar.gz", rootfs="local:0.05", memory=32, **net)
    appliance.finish(api, upid)
    with pytest.raises(TaskFailed, match="nobridge"):
        appliance.finish(api, node.lxc(100).status.start.post())
    assert node.lxc(100).status.current.get()["status"] == "stopped"
    assert appliance.lasting_traces("mount: ", "loop device: ") == []
    appliance.finish(api, node.lxc(100).delete())
    (appliance.data_dir / "storage/local/template/cache/b.tar.gz").unlink()


def test_a_link_that_is_no_bridge_is_refused(appliance: Appliance, api: Any) -> None:
    assert "lo" in stays_stopped(appliance, api, "lo", net0="virtio,bridge=lo")


def test_a_vlan_without_the_kernels_feature_says_so(appliance: Appliance, api: Any) -> None:
    bridge = VLAN_FILTERING / appliance.bridge / "bridge"
    if (bridge / "vlan_filtering").exists():
        pytest.skip("this kernel can filter VLANs")
    words = stays_stopped(appliance, api, "(?i)vlan", net0=f"virtio,bridge={appliance.bridge},tag=5")
    assert "filtering" in words
    assert appliance.bridge in words


def test_a_volume_that_has_vanished_is_named(appliance: Appliance, api: Any) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.qemu.post(vmid=100, memory=32, scsi0="local:0.001"))
    volume = node.qemu(100).config.get()["scsi0"].split(",")[0]
    (disk,) = (appliance.data_dir / "storage/local/images/100").iterdir()
    disk.unlink()
    with pytest.raises(TaskFailed, match=volume.removeprefix("local:")):
        appliance.finish(api, node.qemu(100).status.start.post())
    assert node.qemu(100).status.current.get()["status"] == "stopped"
    appliance.finish(api, node.qemu(100).delete())


@pytest.fixture
def bare_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with everything but QEMU's systems and the OCI runtimes."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for folder in os.environ["PATH"].split(":"):
        for program in Path(folder).glob("*") if Path(folder).is_dir() else ():
            if not program.name.startswith(("qemu-system", "runc", "crun", "kvm")):
                (directory / program.name).unlink(missing_ok=True)
                (directory / program.name).symlink_to(program)
    monkeypatch.setenv("PATH", str(directory))
    return directory


def test_without_its_engines_the_appliance_runs_and_says_what_is_missing(
    bare_path: Path, busybox_template: Path
) -> None:
    with Appliance() as appliance:
        api, client = proxmoxer_of(appliance), Client(appliance)
        assert "cannot start guests" in appliance.log_tail(20_000)
        stays_stopped(appliance, api, "qemu-system-x86_64")
        (appliance.data_dir / "storage/local/template/cache/b.tar.gz").write_bytes(busybox_template.read_bytes())
        node = appliance.node(api)
        upid = node.lxc.post(vmid=101, ostemplate="local:vztmpl/b.tar.gz", rootfs="local:0.05", memory=32)
        appliance.finish(api, upid)
        with pytest.raises(TaskFailed, match=r"runc|crun"):
            appliance.finish(api, node.lxc(101).status.start.post())
        appliance.finish(api, node.lxc(101).delete())
        assert client.call("GET", "/nodes/{node}/status").status == 200
        assert "Traceback" not in appliance.log_path.read_text()
        api._store["session"].close()
    assert appliance.lasting_traces() == []
