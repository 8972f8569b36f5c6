"""What is written inside a container: rendered from the specification, never outside of its root."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.ct import host, interior
from appliance.ct.host import Surroundings
from appliance.ct.tree import NAMES_LIMIT, READ_LIMIT_BYTES, RootTree
from appliance.errors import GuestFault, InvalidParameter
from appliance.model.guest import CtMount, CtSpec, GuestId, NicSpec

HOST = Surroundings("nameserver 192.0.2.1\n", "Europe/Berlin")
NIC = NicSpec(slot="net0", model="veth", mac="02:00:00:00:00:01", bridge="vmbr0", name="eth0", ip="dhcp")
FIXED = replace(NIC, ip="10.0.3.5/24", gateway="10.0.3.1", ip6="fd00::5/64", gateway6="fe80::1")
SPEC = CtSpec(
    guest_id=GuestId(101), hostname="web", root=CtMount(slot="rootfs", volume="local:x", path="/"), nics=(FIXED,)
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    return root


@pytest.fixture
def tree(root: Path) -> Iterator[RootTree]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield RootTree(fd, "ct 101")
    os.close(fd)


def test_a_fixed_address_becomes_static_stanzas() -> None:
    assert interior.interfaces("", [FIXED]) == (
        "auto lo\niface lo inet loopback\n\n"
        "auto eth0\niface eth0 inet static\n\taddress 10.0.3.5\n\tnetmask 255.255.255.0\n\tgateway 10.0.3.1\n"
        "iface eth0 inet6 static\n\taddress fd00::5\n\tnetmask 64\n"
        "\tpost-up ip -6 route add fe80::1 dev eth0\n\tpost-up ip -6 route add default via fe80::1 dev eth0\n"
    )


def test_interfaces_of_others_are_kept_and_ours_replaced() -> None:
    present = "auto eth0\niface eth0 inet dhcp\n\nauto tun0\niface tun0 inet manual\n\tup true\n"
    made = interior.interfaces(present, [FIXED])
    assert "iface tun0 inet manual\n\tup true" in made
    assert made.count("iface eth0 inet ") == 1
    assert interior.interfaces(made, [FIXED]) == made


def test_networkd_gets_dhcp_addresses_and_gateways() -> None:
    assert "DHCP=ipv4" in interior.network_unit(NIC)
    assert "DHCP=yes" in interior.network_unit(replace(NIC, ip6="dhcp"))
    assert "IPv6AcceptRA=yes" in interior.network_unit(replace(NIC, ip6="auto"))
    unit = interior.network_unit(FIXED)
    assert "Address=10.0.3.5/24" in unit
    assert "Gateway=10.0.3.1\n" in unit
    assert "Gateway=fe80::1\nGatewayOnLink=yes" in unit
    assert "DHCP=no" in unit


def test_the_name_servers_are_the_guests_else_the_hosts_but_never_the_hosts_loopback() -> None:
    host = "search x\nnameserver 127.0.0.53\nnameserver 192.0.2.1\nnameserver bogus\n"
    assert "nameserver 192.0.2.1" in interior.resolv_conf(SPEC, host)
    assert "127.0.0.53" not in interior.resolv_conf(SPEC, host)
    own = interior.resolv_conf(replace(SPEC, nameserver="198.51.100.1 198.51.100.2", search_domain="lan"), host)
    assert own.splitlines()[1:4] == ["search lan", "nameserver 198.51.100.1", "nameserver 198.51.100.2"]
    assert interior.resolv_conf(SPEC, "nameserver 127.0.0.1\n") == ""


def test_a_hosts_file_full_of_beginnings_without_an_end_costs_no_time() -> None:
    hostile = f"{interior.BEGIN}\n" * (READ_LIMIT_BYTES // len(interior.BEGIN))
    began = time.process_time()
    assert interior.replace_block(hostile, ["127.0.1.1 web"]).endswith(f"127.0.1.1 web\n{interior.END}\n")
    assert time.process_time() - began < 2  # one pass takes 10 ms, a pass for each beginning minutes


def test_a_directory_with_too_many_names_is_not_read_to_its_end(root: Path, tree: RootTree) -> None:
    for number in range(NAMES_LIMIT + 5):
        (root / str(number)).touch()
    assert len(tree.names("/")) == NAMES_LIMIT


def test_only_the_marked_block_of_hosts_changes() -> None:
    first = interior.replace_block("127.0.0.1 localhost\n", ["127.0.1.1 web"])
    second = interior.replace_block(first + "192.0.2.9 mine\n", ["127.0.1.1 shop"])
    assert "192.0.2.9 mine" in second
    assert "shop" in second
    assert "web" not in second


def test_a_networkd_root_is_configured_and_networkd_enabled(root: Path, tree: RootTree) -> None:
    unit = root / "lib/systemd/system/systemd-networkd.service"
    unit.parent.mkdir(parents=True)
    unit.touch()
    stale = root / "etc/systemd/network/10-appliance-eth9.network"
    stale.parent.mkdir(parents=True)
    stale.touch()
    interior.write(tree, SPEC, HOST)
    assert (root / "etc/hostname").read_text() == "web\n"
    assert "10.0.3.5 web" in (root / "etc/hosts").read_text()
    assert "Name=eth0" in (root / "etc/systemd/network/10-appliance-eth0.network").read_text()
    assert (root / "etc/systemd/system/multi-user.target.wants/systemd-networkd.service").is_symlink()
    assert not stale.exists()


def test_an_ifupdown_root_gets_interfaces(root: Path, tree: RootTree) -> None:
    (root / "sbin").mkdir()
    (root / "sbin/ifup").touch()
    interior.write(tree, SPEC, Surroundings())
    assert "iface eth0 inet static" in (root / "etc/network/interfaces").read_text()


def test_resolved_with_dhcp_keeps_its_link_unless_servers_are_named(root: Path, tree: RootTree) -> None:
    link = root / "etc/resolv.conf"
    link.symlink_to("../run/systemd/resolve/stub-resolv.conf")
    interior.write(tree, replace(SPEC, nics=(NIC,)), HOST)
    assert link.is_symlink()
    interior.write(tree, replace(SPEC, nics=(NIC,), nameserver="192.0.2.7"), Surroundings())
    assert not link.is_symlink()
    assert "192.0.2.7" in link.read_text()


def test_an_unmanaged_root_is_left_alone(root: Path, tree: RootTree) -> None:
    interior.write(tree, replace(SPEC, os_type="unmanaged"), HOST)
    assert list((root / "etc").iterdir()) == []


@pytest.mark.parametrize("target", ["{outside}", "../../../../../../../../../../../..{outside}"])
def test_a_root_whose_etc_is_a_link_out_writes_nothing_outside(tmp_path: Path, root: Path, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "hosts").write_text("the host's own\n")
    (root / "etc").rmdir()
    (root / "etc").symlink_to(target.format(outside=outside))
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        interior.write(RootTree(fd, "ct 101"), SPEC, HOST)
    finally:
        os.close(fd)
    assert {each.name: each.read_text() for each in outside.iterdir()} == {"hosts": "the host's own\n"}


def test_a_file_that_is_a_link_out_is_replaced_not_followed(tmp_path: Path, root: Path, tree: RootTree) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    for name in ("hostname", "hosts", "resolv.conf"):
        (root / "etc" / name).symlink_to(victim)
    interior.write(tree, SPEC, HOST)
    assert victim.read_text() == "untouched"
    assert (root / "etc/hostname").read_text() == "web\n"


def test_a_fifo_in_place_of_a_file_does_not_stop_us(root: Path, tree: RootTree) -> None:
    os.mkfifo(root / "etc/hosts")
    interior.write(tree, SPEC, Surroundings())
    assert "web" in (root / "etc/hosts").read_text()


def test_a_directory_in_place_of_a_file_is_the_guests_fault(root: Path, tree: RootTree) -> None:
    (root / "etc/hostname").mkdir()
    with pytest.raises(GuestFault, match="ct 101: write /etc/hostname"):
        interior.write(tree, SPEC, Surroundings())


def test_a_huge_file_is_not_read_into_memory(root: Path, tree: RootTree) -> None:
    with (root / "etc/hosts").open("wb") as file:
        file.truncate(READ_LIMIT_BYTES + 1)
    with pytest.raises(GuestFault, match="/etc/hosts is over"):
        interior.write(tree, SPEC, Surroundings())


def test_a_link_that_leads_nowhere_in_place_of_a_directory_is_the_guests_fault(root: Path, tree: RootTree) -> None:
    (root / "etc/systemd").symlink_to("/nowhere")
    with pytest.raises(GuestFault, match="mkdir"):
        tree.write("/etc/systemd/network/x", b"")


def test_an_unchanged_file_is_not_written_again(root: Path, tree: RootTree) -> None:
    tree.write("/etc/x", b"same")
    before = (root / "etc/x").stat().st_ino
    tree.write("/etc/x", b"same")
    assert (root / "etc/x").stat().st_ino == before


def test_a_time_zone_is_a_link_into_the_containers_own_database(root: Path, tree: RootTree) -> None:
    zone = root / "usr/share/zoneinfo/Asia/Tokyo"
    zone.parent.mkdir(parents=True)
    zone.touch()
    (root / "etc/timezone").write_text("Etc/UTC\n")
    (root / "etc/localtime").write_text("a file, not a link")
    interior.write(tree, replace(SPEC, time_zone="Asia/Tokyo"), HOST)
    assert (root / "etc/localtime").readlink() == Path("../usr/share/zoneinfo/Asia/Tokyo")
    assert (root / "etc/timezone").read_text() == "Asia/Tokyo\n"


def test_the_hosts_time_zone_is_copied_where_the_container_has_no_database(
    root: Path, tree: RootTree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "ZONES", tmp_path)
    (tmp_path / "Europe").mkdir()
    (tmp_path / "Europe/Berlin").write_bytes(b"TZif2 and so on")
    interior.write(tree, replace(SPEC, time_zone="host"), HOST)
    assert (root / "etc/localtime").read_bytes() == b"TZif2 and so on"
    with pytest.raises(InvalidParameter, match="timezone"):
        interior.write(tree, replace(SPEC, time_zone="Europe/Nowhere"), HOST)


def test_a_locale_is_told_to_systemd_and_to_pam(root: Path, tree: RootTree) -> None:
    interior.write(tree, replace(SPEC, locale="de_DE.UTF-8"), HOST)
    assert (root / "etc/locale.conf").read_text() == (root / "etc/default/locale").read_text() == "LANG=de_DE.UTF-8\n"
