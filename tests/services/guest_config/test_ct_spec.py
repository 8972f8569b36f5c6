"""A container's specification: PVE's defaults but for one, and the rules between keys."""

from __future__ import annotations

import pytest

from appliance.errors import InvalidParameter
from appliance.model.guest import CtDevice, CtSpec, GuestKind, MountKind
from appliance.services import guest_config

CT = GuestKind.LXC


def spec_of(**raw: object) -> CtSpec:
    return guest_config.to_ct_spec(
        101, guest_config.parse(CT, {"rootfs": "local:4", **raw}), id_base=165_536, id_count=65_536
    )


def refused(**raw: object) -> dict[str, str]:
    with pytest.raises(InvalidParameter) as caught:
        spec_of(**raw)
    return caught.value.errors


def test_the_defaults_are_those_of_pve_but_unprivileged() -> None:
    spec = spec_of()
    assert (spec.hostname, spec.memory_mib, spec.swap_mib, spec.cores, spec.tty_count) == ("CT101", 512, 512, None, 2)
    assert (spec.arch, spec.id_base, spec.id_count) == ("amd64", 165_536, 65_536)
    assert (spec.command, dict(spec.environment), spec.features) == ((), {}, frozenset())
    assert spec.root.path == "/"


def test_a_privileged_container_has_no_id_map() -> None:
    assert spec_of(unprivileged="0").id_base == 0


def test_mounts_are_ordered_so_that_outer_paths_come_first() -> None:
    spec = spec_of(mp0="local:1,mp=/a/b/c", mp1="local:101/vm-101-disk-1.raw,mp=/a,ro=1,size=2G")
    assert [(mount.slot, mount.path, mount.read_only) for mount in spec.mounts] == [
        ("mp1", "/a", True), ("mp0", "/a/b/c", False),
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["/", "a", "/a/../b", "/./x", "//", "/a\nb", "/a;b"])
def test_a_mount_path_cannot_leave_the_container_or_hide_its_root(path: str) -> None:
    assert list(refused(mp0=f"local:1,mp={path}")) == ["mp0"]


@pytest.mark.parametrize(
    ("raw", "key"),
    [
        ({"mp0": "local:1,mp=/a", "mp1": "local:1,mp=/a/"}, "mp1"),
        ({"net0": "name=eth0,bridge=vmbr0", "net1": "name=eth0,bridge=vmbr0"}, "net0"),
        ({"net0": "name=lo,bridge=vmbr0"}, "net0"),
        ({"net0": "name=eth0"}, "net0"),
        ({"rootfs": "none"}, "rootfs"),
        ({"entrypoint": "'unclosed"}, "entrypoint"),
    ],
)
def test_rules_between_keys_name_the_key(raw: dict[str, object], key: str) -> None:
    assert list(refused(**raw)) == [key]


def test_size_zero_asks_for_a_directory() -> None:
    assert spec_of(rootfs="local:0").root.size_bytes == 0
    with pytest.raises(InvalidParameter):
        guest_config.parse_disk(GuestKind.QEMU, "scsi0", "local:0")


def test_a_container_needs_a_root_file_system() -> None:
    with pytest.raises(InvalidParameter) as caught:
        guest_config.to_ct_spec(101, {}, id_base=1, id_count=1)
    assert list(caught.value.errors) == ["rootfs"]


def test_nics_features_command_and_environment_are_typed() -> None:
    spec = spec_of(
        net0="name=eth0,bridge=vmbr0,hwaddr=BC:24:11:00:00:01,ip=10.0.0.2/24,gw=10.0.0.1,ip6=auto,tag=3,type=veth",
        features="nesting=1,keyctl=1,fuse=0", entrypoint="/usr/bin/app --flag 'a b'", env="A=1\0B=x=y",
    )  # fmt: skip
    (nic,) = spec.nics
    assert (nic.name, nic.bridge, nic.mac, nic.ip, nic.gateway) == (
        "eth0", "vmbr0", "BC:24:11:00:00:01", "10.0.0.2/24", "10.0.0.1",
    )  # fmt: skip
    assert (nic.ip6, nic.vlan, nic.model) == ("auto", 3, "veth")
    assert spec.features == {"nesting", "keyctl"}
    assert spec.command == ("/usr/bin/app", "--flag", "a b")
    assert dict(spec.environment) == {"A": "1", "B": "x=y"}


def test_a_mount_point_may_be_a_path_of_the_host_or_memory() -> None:
    spec = spec_of(mp0="/srv/share/,mp=/a,ro=1,idmap=1,mountoptions=noexec;noatime", mp1="tmpfs,mp=/b,size=16M")
    shared, memory = spec.mounts
    assert (shared.kind, shared.volume, shared.read_only, shared.map_ids) == (
        MountKind.HOST_PATH, "/srv/share", True, True,
    )  # fmt: skip
    assert shared.options == {"noexec", "noatime"}
    assert (memory.kind, memory.size_bytes) == (MountKind.MEMORY, 16 << 20)


@pytest.mark.parametrize(
    "text",
    ["/,mp=/a", "/proc/1,mp=/a", "/dev,mp=/a", "/srv/../etc,mp=/a", "/srv,mp=/a,backup=1", "local:1,mp=/a,idmap=1",
     "/srv,mp=/a,mountoptions=suid", "/srv,mp=/a,quota=1"],
)  # fmt: skip
def test_a_path_of_the_host_is_no_kernel_tree_and_no_volume(text: str) -> None:
    assert list(refused(mp0=text)) == ["mp0"]


def test_the_root_is_never_a_path_of_the_host() -> None:
    assert list(refused(rootfs="/srv")) == ["rootfs"]
    assert list(refused(rootfs="tmpfs")) == ["rootfs"]


def test_devices_limits_and_confinement_are_typed() -> None:
    spec = spec_of(
        dev0="/dev/net/tun,mode=0666", dev2="path=/dev/kvm,gid=104,deny-write=1", pids="100",
        security="seccomp=strict,drop=net_raw;CAP_MKNOD", timezone="Europe/Berlin",
    )  # fmt: skip
    assert spec.devices == (
        CtDevice(slot="dev0", path="/dev/net/tun", mode=0o666),
        CtDevice(slot="dev2", path="/dev/kvm", gid=104, read_only=True),
    )
    assert spec.pids == 100
    assert spec.security.seccomp == "strict"
    assert spec.security.dropped == {"NET_RAW", "MKNOD"}
    assert spec.time_zone == "Europe/Berlin"


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev", "/dev/../etc/passwd", "dev/kvm"])
def test_only_what_is_below_dev_can_be_a_device(path: str) -> None:
    assert list(refused(dev0=path)) == ["dev0"]


@pytest.mark.parametrize("feature", ["mknod=1", "mount=nfs"])
def test_what_the_kernel_refuses_in_a_user_namespace_is_refused_when_it_is_asked_for(feature: str) -> None:
    assert "kernel" in refused(features=feature)["features"]
    assert spec_of(features=feature, unprivileged="0")
