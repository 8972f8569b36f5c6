"""The network device in Python's hands, on a cable whose other end the test holds."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import Unsupported
from appliance.kernel.tuntap import TapOffload
from appliance.vmm.netdev import features as f
from appliance.vmm.netdev.receive import MOST_PIECES
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio import consts
from appliance.vmm.virtio.consts import bits
from appliance.vmm.virtio.net import NetOptions, VirtioNet
from appliance.vmm.virtio.queue import Segment, VirtQueue
from tests.fakes.cable import PLAIN, FakeCable
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach, settle, transport_of

MAC, PEER = bytes.fromhex("525400000001"), bytes.fromhex("525400000002")
FRAME = MAC + PEER + b"\x08\x00" + bytes(range(50))
Made = Callable[..., VirtioNet]


@pytest.fixture
def make(machine: FakeMachine) -> Iterator[Made]:
    made: list[VirtioNet] = []

    def build(*, pairs: int = 1, mtu: int | None = None, link_up: bool = True) -> VirtioNet:
        options = NetOptions(mac=MAC, mtu=mtu, link_up=link_up, data_plane=DataPlane.PYTHON)
        device = VirtioNet(f"net{len(made)}", machine.context, cable=FakeCable(pairs=pairs), options=options)
        made.append(device)
        return device

    yield build
    for device in made:
        device.close()


def cable_of(device: VirtioNet) -> FakeCable:
    assert isinstance(device._cable, FakeCable)
    return device._cable


def ask(control: DriverQueue, kind: int, command: int, data: bytes) -> int:
    """A control request; its ack."""
    return control.request([bytes([kind, command]), *([data] if data else [])], [1])[0]


def without(device: VirtioNet, *absent: int) -> int:
    return device.features & ~bits(*absent)


def without_mergeable(device: VirtioNet) -> int:
    return without(device, f.F_MRG_RXBUF)


# Transmit


def test_a_frame_reaches_the_cable_with_the_header_checked(make: Made) -> None:
    device = make()
    tx = attach(device)[1]
    head = tx.add([PLAIN[:5], PLAIN[5:] + FRAME[:20], FRAME[20:]])
    tx.kick()
    assert tx.used() == [(head, 0)]
    assert cable_of(device).sent == [(0, PLAIN + FRAME)]
    assert (device.statistics.tx_packets, device.statistics.tx_bytes) == (1, len(FRAME))


def test_frames_that_make_no_sense_are_used_up_and_counted(make: Made) -> None:
    device = make()
    tx = attach(device)[1]
    for wrong in ([PLAIN], [b"\0"], [PLAIN + FRAME[:13]], [struct.pack("<BBHHHHH", 0, 1, 0, 0, 0, 0, 0) + FRAME]):
        tx.add(wrong)
    tx.add([], [64])
    tx.kick()
    assert len(tx.used()) == 5
    assert cable_of(device).sent == []
    assert device.statistics.tx_refused == 5
    assert device.live


def test_what_the_host_will_not_take_is_counted_and_the_guest_goes_on(make: Made) -> None:
    device = make()
    tx = attach(device)[1]
    cable_of(device).failure = OSError(errno.EIO, "tap is down")
    tx.add([PLAIN + FRAME])
    tx.kick()
    cable_of(device).failure = None
    tx.add([PLAIN + FRAME])
    tx.kick()
    assert len(tx.used()) == 2
    assert (device.statistics.tx_errors, device.statistics.tx_packets) == (1, 1)


def test_a_storm_of_frames_is_served_a_batch_at_a_time(make: Made, machine: FakeMachine) -> None:
    device = make()
    tx = attach(device)[1]
    for _ in range(200):
        tx.add([PLAIN + FRAME])
    device.doorbell(1).signal()
    machine.bridge.ready(device.doorbell(1).fileno())
    assert len(cable_of(device).sent) == 64
    settle(machine.bridge)
    assert len(cable_of(device).sent) == 200


def test_a_frame_in_more_pieces_than_one_call_takes(make: Made) -> None:
    device = make()
    tx = attach(device, indirect=True)[1]
    data = bytes(1020)
    tx.add([PLAIN, *(data[at : at + 1] for at in range(1020))])
    tx.kick()
    assert cable_of(device).sent == [(0, PLAIN + data)]


# Receive


def test_a_frame_comes_in_one_buffer(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx = attach(device)[0]
    head = rx.add([], [1526])
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    assert rx.used() == [(head, 12 + len(FRAME))]
    assert rx.read_back(head) == PLAIN[:10] + b"\x01\x00" + FRAME
    assert transport_of(device).interrupts.count(0) == 1


def test_a_large_frame_is_merged_over_buffers_that_are_used_together(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx = attach(device)[0]
    heads = [rx.add([], [1000]) for _ in range(70)]
    big = MAC + PEER + b"\x08\x00" + bytes(64000)
    stores: list[int] = []
    memory, whole = machine.memory, machine.memory.store_u16

    def store_u16(address: int, value: int) -> None:
        if address == rx.used_ring + 2:
            stores.append(value)
        whole(address, value)

    memory.store_u16 = store_u16  # type: ignore[method-assign]
    cable_of(device).arrive(big, header=struct.pack("<BBHHHHH", 1, 1, 54, 1448, 34, 16, 0))
    settle(machine.bridge)
    assert stores == [65]
    used = rx.used()
    assert [head for head, _ in used] == heads[:65]
    assert [written for _, written in used] == [1000] * 64 + [12 + len(big) - 64000]
    whole_frame = b"".join(rx.read_back(head) for head, _ in used)
    assert whole_frame[10:12] == (65).to_bytes(2, "little")
    assert whole_frame[12:] == big


def test_without_buffers_the_cable_is_left_alone_until_the_driver_kicks(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx = attach(device)[0]
    cable = cable_of(device)
    for _ in range(3):
        cable.arrive(FRAME)
    settle(machine.bridge)
    assert cable.waiting()
    assert cable.fileno(0) not in machine.bridge.watched
    assert rx.kick_wanted() or not rx.avail_idx
    heads = [rx.add([], [1526]) for _ in range(2)]
    assert rx.kick_wanted()
    rx.kick()
    assert [head for head, _ in rx.used()] == heads
    rx.add([], [1526])
    assert rx.kick_wanted()
    rx.kick()
    assert len(rx.used()) == 1
    assert cable.fileno(0) in machine.bridge.watched
    assert device.statistics.rx_packets == 3


def test_a_frame_with_too_few_buffers_waits_for_the_rest(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx = attach(device)[0]
    heads = [rx.add([], [100]), rx.add([], [100])]
    big = MAC + PEER + b"\x08\x00" + bytes(range(256))
    cable_of(device).arrive(big)
    settle(machine.bridge)
    assert rx.used() == []
    heads.append(rx.add([], [100]))
    assert rx.kick_wanted()
    rx.kick()
    assert [head for head, _ in rx.used()] == heads
    assert b"".join(rx.read_back(head) for head in heads)[12:] == big


def test_a_frame_that_cannot_ever_fit_is_dropped(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx = attach(device, features=without_mergeable(device))[0]
    head = rx.add([], [64])
    cable_of(device).arrive(MAC + PEER + bytes(100))
    cable_of(device).arrive(MAC + PEER + bytes(20))
    settle(machine.bridge)
    assert rx.used() == [(head, 12 + 32)]
    assert (device.statistics.rx_dropped, device.statistics.rx_packets) == (1, 1)
    whole = make()
    small = attach(whole, size=4, base=0x80_0000)[0]
    for _ in range(4):
        small.add([], [20])
    cable_of(whole).arrive(MAC + PEER + bytes(100))
    settle(machine.bridge)
    assert small.used() == []
    assert whole.statistics.rx_dropped == 1


@pytest.mark.parametrize("buffer", [11, 1])
def test_a_buffer_too_small_for_the_header_breaks_the_device(make: Made, machine: FakeMachine, buffer: int) -> None:
    device = make()
    rx = attach(device)[0]
    rx.add([], [buffer])
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    assert device.status & consts.STATUS_NEEDS_RESET
    assert machine.bridge.watched == {}
    assert machine.faults == []


def test_a_buffer_that_cannot_be_written_breaks_the_device(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx = attach(device)[0]
    rx.add([b"readable"])
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    assert device.status & consts.STATUS_NEEDS_RESET
    attach(device)[0].add([], [1526])
    settle(machine.bridge)
    assert device.live


def test_a_buffer_with_something_to_read_breaks_the_device(make: Made, machine: FakeMachine) -> None:
    """As vhost-net has it (drivers/vhost/net.c, get_rx_bufs): a thousand readable bytes before one to write are work."""
    device = make()
    attach(device)[0].add([b"readable"], [1526])
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    assert device.status & consts.STATUS_NEEDS_RESET


def test_a_frame_is_not_spread_over_thousands_of_crumbs(
    make: Made, machine: FakeMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ring of buffers, each a table of single bytes: the frame is dropped, and the loop is anybody's again."""
    device = make()
    rx = attach(device, indirect=True)[0]
    table = 0x80_0000
    rx.write_chain(table, range(32), [(0x90_0000, 1)] * 32, [consts.DESC_F_WRITE] * 32)
    for number in range(rx.size):
        rx.describe(number, table, 16 * 32, consts.DESC_F_INDIRECT)
        rx.make_available(number)
    walked = 0
    walk = VirtQueue._walk

    def counted(queue: VirtQueue, head: int) -> tuple[list[Segment], list[Segment]]:
        nonlocal walked
        found = walk(queue, head)
        walked += len(found[1])
        return found

    monkeypatch.setattr(VirtQueue, "_walk", counted)
    for _ in range(4):
        cable_of(device).arrive(MAC + PEER + bytes(20_000))
    machine.bridge.ready(cable_of(device).fileno(0))
    assert (device.statistics.rx_dropped, device.statistics.rx_packets) == (1, 0)
    assert walked <= MOST_PIECES
    settle(machine.bridge)
    assert device.statistics.rx_dropped == 4
    assert device.live


def test_a_cable_that_has_gone_is_left_alone(make: Made, machine: FakeMachine) -> None:
    device = make()
    tx = attach(device)[1]
    cable_of(device).failure = OSError(errno.EBADFD, "the tap was deleted")
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    assert machine.notes == ["net0: the cable has gone"]
    tx.add([PLAIN + FRAME])
    tx.kick()
    assert len(tx.used()) == 1
    assert device.live


def test_a_driver_without_checksums_gets_no_flags(make: Made, machine: FakeMachine) -> None:
    device = make()
    absent = (
        f.F_GUEST_CSUM,
        f.F_GUEST_TSO4,
        f.F_GUEST_TSO6,
        f.F_GUEST_ECN,
        f.F_GUEST_UFO,
        f.F_GUEST_USO4,
        f.F_GUEST_USO6,
    )
    rx = attach(device, features=without(device, *absent))[0]
    assert cable_of(device).offload == TapOffload(0)
    head = rx.add([], [1526])
    cable_of(device).arrive(FRAME, header=b"\x02" + PLAIN[1:])
    settle(machine.bridge)
    rx.used()
    assert rx.read_back(head)[0] == 0


def test_a_frame_beyond_the_mtu_is_dropped_unless_it_is_to_be_cut_up(make: Made, machine: FakeMachine) -> None:
    device = make(mtu=1500)
    rx = attach(device)[0]
    for _ in range(8):
        rx.add([], [2048])
    cable = cable_of(device)
    cable.arrive(MAC + PEER + b"\x08\x00" + bytes(1501))
    cable.arrive(MAC + PEER + b"\x08\x00" + bytes(1500))
    cable.arrive(MAC + PEER + b"\x08\x00" + bytes(1600), header=struct.pack("<BBHHHHH", 1, 1, 54, 1448, 34, 16, 0))
    settle(machine.bridge)
    assert [written for _, written in rx.used()] == [12 + 1514, 12 + 1614]
    assert device.statistics.rx_dropped == 1
    assert device.read_config(10, 2) == 1500


# Configuration, link, control queue


def test_the_configuration_is_as_the_standard_lays_it_out(make: Made) -> None:
    device = make(pairs=2)
    assert device.read_config(0, 4).to_bytes(4, "little") + device.read_config(4, 2).to_bytes(2, "little") == MAC
    assert (device.read_config(6, 2), device.read_config(8, 2), device.read_config(60, 4)) == (1, 2, 0)


def test_a_pulled_cable_is_told_and_drops_both_ways(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx, tx, _ = attach(device)
    rx.add([], [1526])
    device.set_link(up=False)
    device.set_link(up=False)
    assert transport_of(device).config_interrupts == 1
    assert device.read_config(6, 2) == 0
    cable_of(device).arrive(FRAME)
    tx.add([PLAIN + FRAME])
    tx.kick()
    assert (device.statistics.rx_dropped, device.statistics.tx_dropped) == (1, 1)
    device.set_link(up=True)
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    assert len(rx.used()) == 1
    assert transport_of(device).config_interrupts == 2


def test_the_driver_says_which_frames_it_wants(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx, _, control = attach(device)
    for _ in range(8):
        rx.add([], [1526])
    stranger = PEER + MAC + bytes(50)
    assert ask(control, 0, 0, b"\0") == 0
    cable_of(device).arrive(stranger)
    settle(machine.bridge)
    assert (rx.used(), device.statistics.rx_filtered) == ([], 1)
    assert ask(control, 1, 1, PEER) == 0
    cable_of(device).arrive(stranger)
    settle(machine.bridge)
    assert len(rx.used()) == 1
    assert device.read_config(0, 1) == PEER[0]
    assert device.read_config(5, 1) == PEER[5]
    tagged = PEER + MAC + b"\x81\x00\x00\x05\x08\x00" + bytes(50)
    cable_of(device).arrive(tagged)
    settle(machine.bridge)
    assert device.statistics.rx_filtered == 2
    assert ask(control, 2, 0, b"\x05\x00") == 0
    cable_of(device).arrive(tagged)
    settle(machine.bridge)
    assert len(rx.used()) == 1


WRONG = [
    (0, 0, b""), (0, 9, b"\0"), (0, 0, b"\2"), (1, 0, bytes(3)), (1, 1, b"\xff" * 6), (2, 0, b"\0"), (3, 1, b""),
    (4, 0, b"\0\0"), (4, 0, b"\2\0"), (5, 0, bytes(7)), (5, 0, b"\xff" * 8), (77, 0, bytes(60)), (0, 0, bytes(70000)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "command", "data"), WRONG)
def test_a_control_request_that_makes_no_sense_is_an_error_and_no_more(
    make: Made, kind: int, command: int, data: bytes
) -> None:
    device = make()
    control = attach(device)[2]
    assert ask(control, kind, command, data) == 1
    assert device.live


def test_a_control_request_without_room_for_its_answer_is_used_up(make: Made) -> None:
    control = attach(make())[2]
    control.add([b"\0"])
    control.add([], [1])
    control.kick()
    assert [written for _, written in control.used()] == [0, 1]


def test_what_was_not_negotiated_is_refused(make: Made) -> None:
    device = make()
    absent = (
        f.F_CTRL_RX,
        f.F_CTRL_VLAN,
        f.F_CTRL_MAC_ADDR,
        f.F_GUEST_ANNOUNCE,
        f.F_CTRL_GUEST_OFFLOADS,
        f.F_CTRL_RX_EXTRA,
    )
    control = attach(device, features=without(device, *absent))[2]
    for kind, data in ((0, b"\0"), (2, b"\0\0"), (3, b""), (4, b"\1\0"), (5, bytes(8))):
        assert ask(control, kind, 0, data) == 1


def test_the_guest_changes_its_offloads(make: Made) -> None:
    device = make()
    control = attach(device)[2]
    before = cable_of(device).offload
    assert before is not None
    assert TapOffload.TSO4 in before
    assert ask(control, 5, 0, bits(f.F_GUEST_CSUM).to_bytes(8, "little")) == 0
    assert cable_of(device).offload == TapOffload.CSUM


def test_an_announcement_is_asked_for_and_acknowledged(make: Made) -> None:
    device = make()
    device.announce()
    control = attach(device)[2]
    device.announce()
    assert device.read_config(6, 2) == 3
    assert transport_of(device).config_interrupts == 1
    assert ask(control, 3, 0, b"") == 0
    assert device.read_config(6, 2) == 1


# Queue pairs


def test_pairs_are_used_once_the_driver_asks(make: Made, machine: FakeMachine) -> None:
    device = make(pairs=2)
    queues = attach(device)
    assert cable_of(device).used_pairs == 1
    assert cable_of(device).fileno(1) not in machine.bridge.watched
    assert ask(queues[4], 4, 0, b"\2\0") == 0
    assert cable_of(device).used_pairs == 2
    queues[2].add([], [1526])
    cable_of(device).arrive(FRAME, pair=1)
    queues[3].add([PLAIN + FRAME])
    queues[3].kick()
    assert len(queues[2].used()) == 1
    assert cable_of(device).sent == [(1, PLAIN + FRAME)]
    assert ask(queues[4], 4, 0, b"\1\0") == 0
    assert cable_of(device).fileno(1) not in machine.bridge.watched


def test_without_multiqueue_the_control_queue_is_the_third(make: Made) -> None:
    device = make(pairs=2)
    queues = attach(device, features=without(device, f.F_MQ))
    assert ask(queues[2], 0, 0, b"\0") == 0


# Life


def test_a_reset_forgets_what_the_driver_said(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx, _, control = attach(device)
    ask(control, 1, 1, PEER)
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    rx.add([], [1526])
    device.reset()
    assert machine.bridge.watched == {}
    assert device.read_config(5, 1) == MAC[5]
    rx = attach(device)[0]
    rx.add([], [1526])
    settle(machine.bridge)
    assert rx.used() == []  # the frame held before the reset is not for this driver


def test_a_paused_device_touches_nothing(make: Made, machine: FakeMachine) -> None:
    device = make()
    rx, tx, _ = attach(device)
    device.pause()
    assert machine.bridge.watched == {}
    rx.add([], [1526])
    tx.add([PLAIN + FRAME])
    device.doorbell(1).signal()
    cable_of(device).arrive(FRAME)
    settle(machine.bridge)
    device.resume()
    settle(machine.bridge)
    assert len(rx.used()) == 1
    assert len(tx.used()) == 1


def test_a_saved_device_goes_on_elsewhere(make: Made, machine: FakeMachine) -> None:
    first, second = make(pairs=2), make(pairs=2)
    queues = attach(first)
    rx, control = queues[0], queues[4]
    ask(control, 4, 0, b"\2\0")
    ask(control, 1, 1, PEER)
    rx.add([], [20])  # too small alone: held
    cable_of(first).arrive(FRAME)
    settle(machine.bridge)
    first.pause()
    state = first.save()
    assert state is not None
    first.transport, second.transport = second.transport, first.transport
    second.pause()
    second.restore(state)
    second.resume()
    rx.device = queues[3].device = second
    assert cable_of(second).used_pairs == 2
    assert cable_of(second).offload == cable_of(first).offload
    assert second.read_config(5, 1) == PEER[5]
    rx.add([], [1526])
    cable_of(second).arrive(FRAME)
    settle(machine.bridge)
    assert [written for _, written in rx.used()] == [20, 12 + len(FRAME) - 20]
    queues[3].add([PLAIN + FRAME])
    queues[3].kick()
    assert cable_of(second).sent == [(1, PLAIN + FRAME)]


def test_a_state_of_more_pairs_is_refused(make: Made) -> None:
    first, second = make(), make()
    attach(first)
    first.pause()
    saved = first.save_device()
    saved.pairs = 2  # type: ignore[attr-defined]
    with pytest.raises(Unsupported, match="2 pairs"):
        second.restore_device(saved)


@pytest.mark.parametrize("options", [{"mac": b"\xff" * 6}, {"mac": MAC, "mtu": 67}, {"mac": MAC[:5]}])
def test_options_that_cannot_be(machine: FakeMachine, options: dict[str, bytes]) -> None:
    cable = FakeCable()
    with pytest.raises(ValueError, match="net0"):
        VirtioNet("net0", machine.context, cable=cable, options=NetOptions(**options))  # type: ignore[arg-type]
    cable.close()
