"""The pure parts of a network device: headers, filters, features."""

from __future__ import annotations

import struct

import pytest

from appliance.errors import Unsupported
from appliance.kernel.tuntap import TapOffload
from appliance.vmm.netdev import features as f
from appliance.vmm.netdev import header as h
from appliance.vmm.netdev.filter import MAX_TABLE, ReceiveFilter, RxCommand
from appliance.vmm.netdev.state import NetState
from appliance.vmm.virtio.consts import bits
from tests.fakes.cable import ALL

MAC, OTHER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
GROUP, BROADCAST = bytes.fromhex("01005e000001"), b"\xff" * 6
HOST_ALL = h.SegmentTypes(bits(f.F_CSUM, f.F_HOST_TSO4, f.F_HOST_TSO6, f.F_HOST_ECN, f.F_HOST_UFO, f.F_HOST_USO))


def packed(flags: int = 0, gso: int = 0, hdr: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr, size, start, offset, 7)


GOOD = [
    (packed(), 60, packed()),
    (packed(h.NEEDS_CSUM, start=34, offset=16), 60, packed(h.NEEDS_CSUM, start=34, offset=16)),
    (packed(1, h.GSO_TCPV4, 54, 1448, 34, 16), 65000, packed(1, h.GSO_TCPV4, 54, 1448, 34, 16)),
    (packed(1, h.GSO_TCPV6 | h.GSO_ECN, 74, 1428, 54, 16), 65589, packed(1, h.GSO_TCPV6 | 0x80, 74, 1428, 54, 16)),
    (packed(1, h.GSO_UDP_L4, 0xFFFF, 1200, 34, 6), 3000, packed(1, h.GSO_UDP_L4, 3000, 1200, 34, 6)),
    (packed(0xFE, start=34, offset=16), 60, packed()),  # bits that are not the driver's
]


@pytest.mark.parametrize(("given", "length", "sent"), GOOD)
def test_a_header_is_rebuilt_from_what_was_understood(given: bytes, length: int, sent: bytes) -> None:
    assert h.checked(given, length, HOST_ALL) == sent[:10] + b"\0\0"


BAD = [
    (packed(), 13),
    (packed(), h.MAX_FRAME + 1),
    (packed()[:11], 60),
    (packed(1, start=50, offset=9), 60),
    (packed(1, start=0xFFFF, offset=0xFFFF), 60),
    (packed(0, h.GSO_TCPV4, 54, 1448), 3000),  # to be cut up, its checksums whole
    (packed(1, h.GSO_TCPV4, 54, 0, 34, 16), 3000),
    (packed(1, 2, 54, 1448, 34, 16), 3000),
    (packed(1, h.GSO_UDP_L4 | h.GSO_ECN, 54, 1448, 34, 6), 3000),
    (packed(1, 0x7F, 54, 1448, 34, 16), 3000),
]


@pytest.mark.parametrize(("given", "length"), BAD)
def test_a_header_that_makes_no_sense_is_refused(given: bytes, length: int) -> None:
    assert h.checked(given, length, HOST_ALL) is None


def test_an_offload_that_was_not_negotiated_is_refused() -> None:
    nothing = h.SegmentTypes(0)
    assert h.checked(packed(1, start=34, offset=16), 60, nothing) is None
    assert h.checked(packed(1, h.GSO_TCPV4, 54, 1448, 34, 16), 3000, h.SegmentTypes(bits(f.F_CSUM))) is None
    only = h.SegmentTypes(bits(f.F_CSUM, f.F_HOST_TSO4))
    assert h.checked(packed(1, h.GSO_TCPV4 | h.GSO_ECN, 54, 1448, 34, 16), 3000, only) is None


def frame(destination: bytes, *, vlan: int | None = None) -> memoryview:
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, 0xE000 | vlan)
    return memoryview(destination + OTHER + tag + b"\x08\x00" + bytes(46))


def test_without_a_word_from_the_driver_everything_passes() -> None:
    known = ReceiveFilter(MAC)
    assert all(known.accepts(frame(each)) for each in (MAC, OTHER, GROUP, BROADCAST))
    assert known.accepts(frame(MAC, vlan=5))


def test_a_guest_gets_its_address_and_broadcasts_and_what_it_asked_for() -> None:
    known = ReceiveFilter(MAC).with_mode(RxCommand.PROMISC, b"\0")
    assert known is not None
    assert [known.accepts(frame(each)) for each in (MAC, OTHER, GROUP, BROADCAST)] == [True, False, False, True]
    table = struct.pack("<I", 1) + OTHER + struct.pack("<I", 1) + GROUP
    listed = known.with_table(table)
    assert listed is not None
    assert all(listed.accepts(frame(each)) for each in (MAC, OTHER, GROUP, BROADCAST))


MODES = [
    (RxCommand.ALLMULTI, (True, False, True, True)),
    (RxCommand.ALLUNI, (True, True, False, True)),
    (RxCommand.NOBCAST, (True, False, False, False)),
    (RxCommand.NOUNI, (False, False, False, True)),
    (RxCommand.PROMISC, (True, True, True, True)),
]


@pytest.mark.parametrize(("mode", "passes"), MODES)
def test_modes_widen_and_narrow(mode: RxCommand, passes: tuple[bool, ...]) -> None:
    known = ReceiveFilter(MAC, modes=frozenset({mode}))
    assert tuple(known.accepts(frame(each)) for each in (MAC, OTHER, GROUP, BROADCAST)) == passes


def test_suppression_goes_before_permission() -> None:
    known = ReceiveFilter(
        MAC, modes=frozenset({RxCommand.ALLMULTI, RxCommand.NOMULTI, RxCommand.NOUNI, RxCommand.ALLUNI})
    )
    assert [known.accepts(frame(each)) for each in (MAC, GROUP, BROADCAST)] == [False, False, True]


def test_a_table_too_long_to_keep_lets_all_of_its_kind_pass() -> None:
    known = ReceiveFilter(MAC, modes=frozenset())
    many = struct.pack("<I", MAX_TABLE + 1) + OTHER * (MAX_TABLE + 1) + struct.pack("<I", 0)
    wide = known.with_table(many)
    assert wide is not None
    assert wide.unicast is None
    assert wide.accepts(frame(OTHER))
    assert not wide.accepts(frame(GROUP))
    narrow = wide.with_table(bytes(8))
    assert narrow is not None
    assert not narrow.accepts(frame(OTHER))


@pytest.mark.parametrize(
    "data",
    [b"", bytes(7), struct.pack("<I", 2) + OTHER, b"\xff" * 8, bytes(9), struct.pack("<I", 0xFFFF_FFFF) + bytes(4)],
)
def test_a_table_of_wrong_length_is_refused(data: bytes) -> None:
    assert ReceiveFilter(MAC).with_table(data) is None


def test_tags_pass_that_are_in_the_table_once_there_is_one() -> None:
    known = ReceiveFilter(MAC, vlans=frozenset())
    assert known.accepts(frame(MAC))
    assert not known.accepts(frame(MAC, vlan=5))
    wider = known.with_vlan((5).to_bytes(2, "little"), added=True)
    assert wider is not None
    assert wider.accepts(frame(MAC, vlan=5))
    assert not wider.accepts(frame(MAC, vlan=6))
    assert wider.with_vlan((5).to_bytes(2, "little"), added=False) == known
    assert known.with_vlan((4096).to_bytes(2, "little"), added=True) is None
    assert ReceiveFilter(MAC).with_vlan(bytes(2), added=True) is None


@pytest.mark.parametrize("address", [GROUP, bytes(6), MAC[:5], BROADCAST])
def test_an_address_that_is_no_hosts_is_refused(address: bytes) -> None:
    assert ReceiveFilter(MAC).with_mac(address) is None


def test_what_is_offered_follows_the_cable() -> None:
    everything = f.offered(ALL, pairs=2, mtu=1500)
    assert all(everything >> bit & 1 for bit in (f.F_HOST_USO, f.F_GUEST_UFO, f.F_MQ, f.F_MTU, f.F_GUEST_ECN))
    little = f.offered(TapOffload.CSUM, pairs=1, mtu=None)
    absent = (f.F_GUEST_TSO4, f.F_HOST_TSO4, f.F_HOST_USO, f.F_MQ, f.F_MTU, f.F_HOST_ECN)
    assert little >> f.F_CSUM & 1
    assert not any(little >> bit & 1 for bit in absent)


def test_a_choice_of_features_that_lacks_what_they_need_is_refused() -> None:
    assert f.consistent(f.offered(ALL, pairs=2, mtu=1500))
    assert f.consistent(0)
    for wrong in (bits(f.F_GUEST_TSO4), bits(f.F_MQ), bits(f.F_HOST_ECN, f.F_CSUM), bits(f.F_CTRL_MAC_ADDR)):
        assert not f.consistent(wrong)


def test_the_tap_is_told_what_the_guest_takes() -> None:
    guest = bits(f.F_GUEST_CSUM, f.F_GUEST_TSO4, f.F_GUEST_USO4)
    assert f.tap_offload(guest) == TapOffload.CSUM | TapOffload.TSO4
    both = f.tap_offload(guest | bits(f.F_GUEST_USO6))
    assert both & (TapOffload.USO4 | TapOffload.USO6) == TapOffload.USO4 | TapOffload.USO6
    assert f.tap_offload(bits(f.F_GUEST_TSO4)) == TapOffload(0)


def test_a_saved_filter_comes_back() -> None:
    known = ReceiveFilter(MAC, frozenset({RxCommand.ALLMULTI}), frozenset({OTHER}), None, frozenset({5}))
    saved = NetState.of(known, pairs=1, offloads=0, announce=False)
    assert saved.filter("vm 101: net0") == known
    saved.mac = b"short"
    with pytest.raises(Unsupported, match="vm 101: net0"):
        saved.filter("vm 101: net0")
