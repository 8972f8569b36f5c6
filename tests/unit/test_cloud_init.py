"""The cloud-init drive: what it says, that nothing in it can break out of its place, and that it is a real ISO."""

from __future__ import annotations

import asyncio
import io
import json
from dataclasses import replace
from pathlib import Path

import pycdlib
import pytest

from appliance.cloud_init import make_iso, network_config, render, user_data, write_drive
from appliance.errors import HostError
from appliance.model.guest import CloudInitSpec, NicSpec
from appliance.model.volume import OpenedVolume, VolumeFormat

SPEC = CloudInitSpec(
    user="debian",
    password_hash="$5$x$y",
    ssh_keys=("ssh-ed25519 AAAA me",),
    ip_configs={0: "ip=192.0.2.10/24,gw=192.0.2.1,ip6=auto", 1: "ip=dhcp,ip6=2001:db8::2/64,gw6=2001:db8::1"},
    nameserver="192.0.2.53 2001:db8::53",
    search_domain="example.org",
)
NICS = tuple(NicSpec(slot=f"net{n}", model="virtio", mac=f"BC:24:11:00:00:0{n}", bridge="vmbr0") for n in range(3))


def test_the_user_is_named_and_the_password_never_expires() -> None:
    assert user_data(SPEC, hostname="web") == {
        "hostname": "web",
        "manage_etc_hosts": True,
        "fqdn": "web.example.org",
        "user": "debian",
        "password": "$5$x$y",
        "ssh_authorized_keys": ["ssh-ed25519 AAAA me"],
        "chpasswd": {"expire": False},
        "users": ["default"],
        "package_upgrade": True,
    }
    assert user_data(CloudInitSpec(user="root"), hostname="web")["disable_root"] is False


def test_each_interface_with_an_address_is_found_by_its_mac() -> None:
    config = network_config(SPEC, NICS)
    assert config["version"] == 2
    assert list(config["ethernets"]) == ["eth0", "eth1"]
    names = {"addresses": ["192.0.2.53", "2001:db8::53"], "search": ["example.org"]}
    assert config["ethernets"]["eth0"] == {
        "match": {"macaddress": "bc:24:11:00:00:00"},
        "set-name": "eth0",
        "accept-ra": True,
        "addresses": ["192.0.2.10/24"],
        "routes": [{"to": "0.0.0.0/0", "via": "192.0.2.1"}],
        "nameservers": names,
    }
    assert config["ethernets"]["eth1"]["dhcp4"] is True
    assert config["ethernets"]["eth1"]["routes"] == [{"to": "::/0", "via": "2001:db8::1"}]


def test_a_value_cannot_end_its_own_string_and_a_change_makes_a_new_instance() -> None:
    evil = replace(SPEC, user='x"\nruncmd: [reboot]')
    files = render(evil, hostname="web", nics=NICS)
    first, _, rest = files["user-data"].partition(b"\n")
    assert first == b"#cloud-config"
    assert json.loads(rest)["user"] == evil.user
    instances = {
        json.loads(render(s, hostname="web", nics=NICS)["meta-data"])["instance-id"] for s in (SPEC, SPEC, evil)
    }
    assert len(instances) == 2


def test_the_iso_has_the_label_and_the_names_cloud_init_looks_for() -> None:
    files = render(SPEC, hostname="web", nics=NICS)
    iso = pycdlib.PyCdlib()
    iso.open_fp(io.BytesIO(make_iso(files)))
    assert iso.pvd.volume_identifier.strip() == b"cidata"
    for key in ("rr_path", "joliet_path"):
        for name, content in files.items():
            out = io.BytesIO()
            iso.get_file_from_iso_fp(out, **{key: f"/{name}"})
            assert out.getvalue() == content
    iso.close()


async def test_the_drive_is_written_in_place_and_never_beyond_its_end(tmp_path: Path) -> None:
    files = render(SPEC, hostname="web", nics=NICS)
    path = tmp_path / "cloudinit.raw"
    await asyncio.to_thread(path.write_bytes, b"\xff" * (4 << 20))
    volume = OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=4 << 20)
    await write_drive(volume, files)
    assert path.stat().st_size == 4 << 20
    with pytest.raises(HostError, match="do not fit"):
        await write_drive(replace(volume, size_bytes=4096), files)
    with pytest.raises(HostError, match="missing"):
        await write_drive(replace(volume, path=tmp_path / "missing"), files)


@pytest.mark.host
async def test_a_qcow2_drive_is_written_too(tmp_path: Path) -> None:
    path = tmp_path / "cloudinit.qcow2"
    create = ("qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M")
    assert await (await asyncio.create_subprocess_exec(*create)).wait() == 0
    files = render(SPEC, hostname="web", nics=NICS)
    await write_drive(OpenedVolume(volume_id=None, path=path, format=VolumeFormat.QCOW2, size_bytes=4 << 20), files)
    raw = tmp_path / "raw"
    convert = ("qemu-img", "convert", "-O", "raw", str(path), str(raw))
    assert await (await asyncio.create_subprocess_exec(*convert)).wait() == 0
    image = make_iso(files)
    content = await asyncio.to_thread(raw.read_bytes)
    assert content[: 16 * 2048] == image[: 16 * 2048]
    assert b"#cloud-config" in content
