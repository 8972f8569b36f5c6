"""A container's specification: PVE's defaults but for one, and the rules between keys."""

from __future__ import annotations

import pytest

from appliance.errors import InvalidParameter
from appliance.model.guest import CtSpec, GuestKind
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
        ({"rootfs": "local:0"}, "rootfs"),
        ({"entrypoint": "'unclosed"}, "entrypoint"),
    ],
)
def test_rules_between_keys_name_the_key(raw: dict[str, object], key: str) -> None:
    assert list(refused(**raw)) == [key]


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
