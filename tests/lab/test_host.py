"""A lab host is what it claims to be, and the appliance runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.e2e.busybox import write_template
from tests.lab.appliance import LabAppliance
from tests.lab.guest_console import Answer, GuestConsole
from tests.lab.guest_paths import GuestFiles
from tests.lab.host import LabHost

pytestmark = [pytest.mark.lab, pytest.mark.timeout(600)]


async def test_kvm_with_svm_and_the_vhost_devices_are_there(lab_host: LabHost) -> None:
    flags = await lab_host.shell("grep -m1 ^flags /proc/cpuinfo", timeout_s=60)
    assert "svm" in flags.split()
    for device in ("kvm", "vhost-net", "vhost-vsock", "net/tun"):
        await lab_host.run(["test", "-c", f"/dev/{device}"], timeout_s=60)
    assert await lab_host.shell("cat /sys/module/kvm_amd/parameters/vgif", timeout_s=60) in ("0", "N")
    assert await lab_host.shell("cat /sys/module/kvm_amd/parameters/npt", timeout_s=60) in ("1", "Y")


async def test_it_is_a_whole_debian_host(lab_host: LabHost) -> None:
    failed = await lab_host.shell("systemctl is-system-running --wait || systemctl --failed", timeout_s=120)
    assert failed == "running"
    assert await lab_host.shell("stat -fc %T /sys/fs/cgroup", timeout_s=60) == "cgroup2fs"
    modules = "overlay bridge nf_tables softdog 8021q dm_mod"
    await lab_host.shell(f"for m in {modules}; do modprobe $m; done; modprobe -r softdog", timeout_s=120)


async def test_nothing_outside_is_reached_from_it(lab_host: LabHost) -> None:
    assert await lab_host.shell("ip route show default", timeout_s=60) == ""


async def test_files_go_in_and_come_out_unchanged(lab_host: LabHost, tmp_path: Path) -> None:
    content = bytes(range(256)) * 4096
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a file").write_bytes(content)
    await lab_host.put(tmp_path / "in", "/root/copied")
    await lab_host.get("/root/copied/a file", tmp_path)
    assert (tmp_path / "a file").read_bytes() == content


async def test_a_paused_host_goes_on_where_it_was(lab_host: LabHost) -> None:
    await lab_host.pause()
    await lab_host.cont()
    assert await lab_host.shell("echo here", timeout_s=60) == "here"


async def test_a_nested_guest_boots_to_the_initial_ram_disk(lab_host: LabHost, guest_files: GuestFiles) -> None:
    qemu = [
        "qemu-system-x86_64", "-machine", "microvm,acpi=off,rtc=on", "-accel", "kvm", "-cpu", "host", "-m", "256",
        "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot",
        "-kernel", guest_files.vmlinux, "-initrd", guest_files.initramfs, "-append", "console=ttyS0 quiet panic=-1",
    ]  # fmt: skip
    async with lab_host.dialogue(qemu, limit_s=200) as streams:
        guest = GuestConsole(*streams)
        release = await guest.ready()
        assert (await guest.run("uname -r; false")) == Answer(1, release)


async def test_a_guest_with_every_driver_finds_its_devices(lab_host: LabHost, guest_files_drivers: GuestFiles) -> None:
    qemu = [
        "qemu-system-x86_64", "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "512", "-nodefaults",
        "-display", "none", "-no-reboot", "-chardev", "stdio,id=c", "-device", "virtio-serial-pci",
        "-device", "virtconsole,chardev=c", "-device", "i6300esb", "-device", "virtio-balloon-pci",
        "-device", "vhost-vsock-pci,guest-cid=7", "-device", "virtio-rng-pci", "-device", "pvpanic-pci",
        "-nic", "user,model=virtio-net-pci,restrict=on",
        "-drive", f"file={guest_files_drivers.disk},format=qcow2,if=virtio,snapshot=on",
        "-kernel", guest_files_drivers.bzimage, "-initrd", guest_files_drivers.initramfs,
        "-append", "console=ttyS0 console=hvc0 quiet panic=-1",
        "-serial", "file:/dev/console",  # what the kernel has to say goes to the host's console, and so into the evidence
    ]  # fmt: skip
    async with lab_host.dialogue(qemu, limit_s=300) as streams:
        guest = GuestConsole(*streams)
        await guest.ready(timeout_s=240)
        assert (await guest.run("test -c /dev/watchdog0 && test -b /dev/vda3 && test -c /dev/hwrng")).status == 0
        loaded = (await guest.run("cut -d' ' -f1 /proc/modules")).text.split()
        expected = {
            "i6300esb",
            "virtio_net",
            "virtio_blk",
            "virtio_balloon",
            "vmw_vsock_virtio_transport",
            "qemu_fw_cfg",
        }
        assert expected <= set(loaded), sorted(loaded)
        assert (await guest.run("mount -t ext4 -o ro /dev/vda3 /mnt && cat /mnt/etc/debian_version")).text.startswith(
            "12"
        )


@pytest.fixture(scope="module")
def api(lab_appliance: LabAppliance) -> Any:
    return lab_appliance.api()


def test_the_appliance_answers_through_the_forwarded_port(lab_appliance: LabAppliance, api: Any) -> None:
    assert [row["node"] for row in api.nodes.get()] == [lab_appliance.host.name]
    assert int(api.version.get()["version"].split(".")[0]) >= 8


def test_a_container_is_created_and_started_through_the_api(
    lab_appliance: LabAppliance, api: Any, tmp_path: Path
) -> None:
    template = write_template(tmp_path / "busybox_1_amd64.tar.gz")
    node = api.nodes(lab_appliance.host.name)
    with template.open("rb") as file:
        lab_appliance.finish(api, node.storage("local").upload.post(content="vztmpl", filename=file))
    upid = node.lxc.post(
        vmid=101, hostname="first", ostemplate=f"local:vztmpl/{template.name}", rootfs="local:0.1", memory=64,
        net0="name=eth0,bridge=vmbr0,ip=manual",
    )  # fmt: skip
    lab_appliance.finish(api, upid)
    container = node.lxc(101)
    lab_appliance.finish(api, container.status.start.post())
    assert container.status.current.get()["status"] == "running"
    lab_appliance.finish(api, container.status.stop.post())
    lab_appliance.finish(api, container.delete())
