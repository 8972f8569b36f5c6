"""The disk in Python (virtio 1.2 §5.2): requests and their answers, on a disk in memory."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator

import pytest

from appliance.errors import Unsupported
from appliance.vmm.block import layout as b
from appliance.vmm.block.layout import RequestType, Status
from appliance.vmm.virtio.blk import RETRY_S, BlkOptions, FullDisk, VirtioBlk
from appliance.vmm.virtio.consts import F_VERSION_1, STATUS_NEEDS_RESET, bits
from tests.fakes.block import BlockDriver, FakeBackend, block_range, header
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import attach, settle, transport_of

Make = Callable[..., VirtioBlk]
OK, IOERR, UNSUPP = Status.OK, Status.IOERR, Status.UNSUPP
SECTOR = bytes(range(256)) * 2


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def make(machine: FakeMachine, backend: FakeBackend) -> Iterator[Make]:
    made: list[VirtioBlk] = []

    def build(on: FakeBackend | None = None, **options: object) -> VirtioBlk:
        made.append(VirtioBlk("virtio0", machine.context, backend=on or backend, options=BlkOptions(**options)))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for device in made:
        device.close()


def driver_of(device: VirtioBlk, **options: int) -> BlockDriver:
    return BlockDriver(attach(device, **options)[0])  # type: ignore[arg-type]


def config(device: VirtioBlk) -> bytes:
    return b"".join(device.config_as_read(offset, 1).to_bytes(1, "little") for offset in range(60))


def test_what_is_written_can_be_read_however_the_buffers_are_cut(make: Make, backend: FakeBackend) -> None:
    driver = driver_of(make())
    assert driver.write(3, SECTOR[:100], SECTOR[100:] + SECTOR) == OK
    assert backend.data[3 * 512 : 5 * 512] == SECTOR * 2
    assert driver.read(3, 1, 511, 512) == (OK, SECTOR * 2)
    queue = driver.queue
    assert queue.request([header(RequestType.OUT, 9) + SECTOR], [1]) == bytes([OK])
    assert queue.request([header(RequestType.IN, 9)[:7], header(RequestType.IN, 9)[7:]], [513]) == SECTOR + bytes([OK])


def test_the_used_length_is_what_was_written(make: Make) -> None:
    queue = driver_of(make()).queue
    heads = [queue.add([header(kind)], [512, 1]) for kind in (RequestType.IN, RequestType.FLUSH, 99)]
    queue.kick()
    assert queue.used() == [(heads[0], 513), (heads[1], 1), (heads[2], 1)]


def test_the_configuration_is_laid_out_as_the_standard_has_it(make: Make) -> None:
    device = make(queues=4)
    attach(device)
    packed = config(device)
    assert struct.unpack_from("<QII", packed) == (2048, 0, 254)
    assert struct.unpack_from("<IBBHI", packed, 20) == (512, 3, 0, 8, 0)
    assert (packed[32], packed[34:36]) == (1, b"\x04\x00")
    assert struct.unpack_from("<IIIIIB", packed, 36) == (b.DISCARD_SECTORS, 32, 8, b.ZEROES_SECTORS, 32, 1)


@pytest.mark.parametrize(
    ("sector", "length", "status"),
    [(2047, 512, OK), (2048, 512, IOERR), (2047, 1024, IOERR), (1 << 63, 512, IOERR), (0, 511, IOERR), (0, 0, IOERR)],
)
def test_a_transfer_beyond_the_disk_or_of_odd_length_fails(make: Make, sector: int, length: int, status: int) -> None:
    driver = driver_of(make())
    lengths = [length] if length else []
    assert driver.read(sector, *lengths)[0] == status
    assert driver.write(sector, *[bytes(each) for each in lengths]) == status


def test_a_request_that_cannot_be_answered_breaks_the_device_until_it_is_reset(
    machine: FakeMachine, make: Make
) -> None:
    device = make()
    for readable, writable in (([header(0)[:15]], [1]), ([header(0)], [])):
        (queue,) = attach(device)
        queue.add(readable, writable)
        queue.kick()
        assert device.status & STATUS_NEEDS_RESET
    assert driver_of(device).flush() == OK
    assert not machine.faults


def test_a_read_only_disk_says_so_and_takes_no_writes(make: Make) -> None:
    device = make(FakeBackend(read_only=True))
    driver = driver_of(device)
    assert [device.has(bit) for bit in (b.F_RO, b.F_DISCARD, b.F_WRITE_ZEROES)] == [True, False, False]
    assert driver.write(0, SECTOR) == IOERR
    assert driver.read(0, 512) == (OK, bytes(512))
    assert driver.discard(block_range(0, 8)) == driver.write_zeroes(block_range(0, 8)) == UNSUPP


def test_the_serial_is_cut_or_filled_to_twenty_bytes(make: Make) -> None:
    assert driver_of(make(serial="DISK-7")).identity() == b"DISK-7".ljust(20, b"\0")
    driver = driver_of(make(serial="0123456789abcdefghijKLM"))
    assert driver.identity() == b"0123456789abcdefghij"
    assert driver.identity(4) == b"0123"


def test_discard_and_write_zeroes_take_ranges_and_check_all_of_them_first(make: Make, backend: FakeBackend) -> None:
    driver = driver_of(make())
    backend.data[:] = b"x" * len(backend.data)
    assert driver.discard(block_range(0, 8), block_range(16, 8)) == OK
    assert driver.write_zeroes(block_range(8, 8), block_range(24, 8, b.FLAG_UNMAP)) == OK
    assert backend.diary == [
        ("discard", 0, 4096),
        ("discard", 8192, 4096),
        ("write_zeroes", 4096, 4096, False),
        ("write_zeroes", 12288, 4096, True),
    ]
    backend.diary.clear()
    assert driver.discard(block_range(0, 8), block_range(2047, 2)) == IOERR
    assert driver.discard(block_range(0, 8, b.FLAG_UNMAP)) == UNSUPP
    assert driver.write_zeroes(block_range(0, 8, 2)) == UNSUPP
    assert driver.write_zeroes(block_range(0, b.ZEROES_SECTORS + 1)) == IOERR
    assert driver.discard(block_range(0, 8)[:15]) == IOERR
    assert driver.queue.request([header(RequestType.DISCARD)], [1]) == bytes([IOERR])
    assert driver.discard(*[block_range(0, 8)] * (b.RANGES + 1)) == UNSUPP
    assert backend.diary == []


def test_what_was_not_negotiated_is_unsupported(make: Make) -> None:
    driver = driver_of(make(), features=bits(F_VERSION_1))
    assert driver.discard(block_range(0, 8)) == driver.write_zeroes(block_range(0, 8)) == UNSUPP
    assert driver.queue.request([header(2)], [1]) == bytes([UNSUPP])


def test_neighbouring_requests_are_one_transfer_and_one_interrupt(make: Make, backend: FakeBackend) -> None:
    device = make()
    queue = driver_of(device).queue
    heads = [queue.add([header(RequestType.OUT, sector), SECTOR], [1]) for sector in (4, 5, 6, 9)]
    heads += [queue.add([header(RequestType.IN, 10)], [512, 1])]
    interrupts = len(transport_of(device).interrupts)
    queue.kick()
    assert [head for head, _ in queue.used()] == heads
    assert backend.diary == [("write", 2048, 1536, False), ("write", 4608, 512, False), ("read", 5120, 512)]
    assert len(transport_of(device).interrupts) == interrupts + 1


def test_of_neighbouring_requests_that_fail_each_is_tried_alone(make: Make, backend: FakeBackend) -> None:
    queue = driver_of(make()).queue
    heads = [queue.add([header(RequestType.IN, sector)], [512, 1]) for sector in (0, 1)]
    backend.failing["read"] = errno.EIO
    queue.kick()
    assert queue.used() == [(head, 513) for head in heads]
    assert [queue.read_back(head)[-1] for head in heads] == [IOERR, IOERR]
    assert backend.diary == [("read", 0, 1024), ("read", 0, 512), ("read", 512, 512)]


@pytest.mark.parametrize(
    ("writeback", "features", "durable"),
    [
        (True, None, False),
        (False, None, True),
        (True, bits(F_VERSION_1, b.F_FLUSH), False),
        (True, bits(F_VERSION_1), True),  # who cannot flush trusts each write
    ],
)
def test_a_write_is_durable_unless_the_guest_flushes_a_cache(
    make: Make, backend: FakeBackend, writeback: bool, features: int | None, durable: bool
) -> None:
    device = make(writeback=writeback)
    driver = BlockDriver(attach(device, features=features)[0])
    driver.write(0, SECTOR)
    assert backend.diary == [("write", 0, 512, durable)]
    assert config(device)[32] == (writeback and not durable)


def test_the_guest_chooses_its_cache_and_a_reset_forgets_it(make: Make, backend: FakeBackend) -> None:
    device = make()
    driver = driver_of(device)
    device.write_config(b.WRITEBACK_AT, 1, 0)
    driver.write(0, SECTOR)
    driver = driver_of(device)
    driver.write(0, SECTOR)
    assert [each[-1] for each in backend.diary] == [True, False]


def test_an_error_of_the_host_is_the_guests_and_is_told_once(
    machine: FakeMachine, make: Make, backend: FakeBackend, caplog: pytest.LogCaptureFixture
) -> None:
    device = make()
    driver = driver_of(device)
    backend.failing = {"read": errno.EIO, "flush": errno.EIO}
    assert driver.read(0, 512)[0] == driver.flush() == driver.read(0, 512)[0] == IOERR
    assert device.statistics.errors == 3
    (note,), (message,) = machine.notes, caplog.messages
    assert message.startswith("vm 101: virtio0: ")
    assert "Input/output error" in message
    assert "Input/output error" in note


def test_a_write_to_a_full_disk_waits_for_space(machine: FakeMachine, make: Make, backend: FakeBackend) -> None:
    driver = driver_of(make())
    backend.fill_up()
    head = driver.queue.add([header(RequestType.OUT, 0), SECTOR], [1])
    driver.queue.kick()
    machine.bridge.advance(RETRY_S)
    settle(machine.bridge)
    assert driver.queue.used() == []
    assert driver.read(0, 512) == (OK, bytes(512))
    backend.failing.clear()
    machine.bridge.advance(RETRY_S)
    settle(machine.bridge)
    assert driver.queue.used() == [(head, 1)]
    assert driver.queue.read_back(head) == bytes([OK])
    assert backend.data[:512] == SECTOR


def test_a_full_disk_is_an_error_where_that_is_wanted(make: Make, backend: FakeBackend) -> None:
    driver = driver_of(make(when_full=FullDisk.REPORT))
    backend.fill_up()
    assert driver.write(0, SECTOR) == IOERR


def test_what_waits_for_space_is_forgotten_by_a_reset_and_kept_by_a_pause(
    machine: FakeMachine, make: Make, backend: FakeBackend
) -> None:
    device = make()
    driver = driver_of(device)
    backend.fill_up()
    driver.queue.add([header(RequestType.OUT, 0), SECTOR], [1])
    driver.queue.kick()
    driver = driver_of(device)
    assert not any(not each.cancelled for each in machine.bridge.timers)
    head = driver.queue.add([header(RequestType.OUT, 1), SECTOR], [1])
    driver.queue.kick()
    device.pause()
    backend.failing.clear()
    machine.bridge.advance(RETRY_S)
    assert driver.queue.used() == []
    device.resume()
    settle(machine.bridge)
    assert driver.queue.used() == [(head, 1)]
    assert bytes(backend.data[:1024]) == bytes(512) + SECTOR


def test_a_saved_disk_takes_up_what_was_unanswered_and_the_guests_cache(
    machine: FakeMachine, make: Make, backend: FakeBackend
) -> None:
    device = make()
    queue = driver_of(device).queue
    device.write_config(b.WRITEBACK_AT, 1, 0)
    backend.fill_up()
    heads = [queue.add([header(RequestType.OUT, 0), SECTOR], [1])]
    queue.kick()
    device.pause()
    heads.append(queue.add([header(RequestType.OUT, 1), SECTOR], [1]))
    saved = device.save()
    assert saved is not None
    backend.failing.clear()
    other = make()
    other.restore(saved)
    queue.device = other
    other.resume()
    settle(machine.bridge)
    assert queue.used() == [(head, 1) for head in heads]
    assert bytes(backend.data[:1024]) == SECTOR * 2
    assert backend.diary[-1][-1] is True


def test_growing_tells_the_guest_and_the_new_end_can_be_used(make: Make, backend: FakeBackend) -> None:
    device = make()
    driver = driver_of(device)
    before, generation = len(backend.data) // 512, device.config_generation
    device.resize(2 << 20)
    assert transport_of(device).config_interrupts == 1
    assert device.config_as_read(0, 8) == 4096
    assert device.config_generation != generation
    assert driver.write(before, SECTOR) == OK
    with pytest.raises(Unsupported):
        device.resize(1 << 20)


def test_every_queue_is_served(make: Make) -> None:
    queues = attach(make(queues=4))
    heads = [queue.add([header(RequestType.IN)], [512, 1]) for queue in queues]
    for queue in queues:
        queue.kick()
    assert [queue.used() for queue in queues] == [[(head, 513)] for head in heads]


def test_more_requests_than_one_batch_are_all_answered(make: Make, backend: FakeBackend) -> None:
    queue = BlockDriver(attach(make(), indirect=True)[0]).queue
    heads = {queue.add([header(RequestType.IN, 2 * number)], [512, 1]) for number in range(200)}
    queue.kick()
    assert {head for head, _ in queue.used()} == heads


def test_unaligned_buffers_go_through_memory_of_our_own(make: Make, backend: FakeBackend) -> None:
    backend.memory_alignment = 512
    driver = driver_of(make())
    assert driver.write(0, SECTOR[:16], SECTOR[16:] + SECTOR) == OK
    assert driver.read(0, 500, 524) == (OK, SECTOR * 2)


def test_what_is_read_into_memory_is_in_the_dirty_log(machine: FakeMachine, make: Make) -> None:
    driver = driver_of(make())
    head = driver.queue.add([header(RequestType.IN)], [8192, 1])
    machine.memory.start_dirty_log()
    driver.queue.kick()
    ((_, writable),) = [each for key, each in driver.queue._chains.items() if key == head]
    dirty = machine.memory.take_dirty()
    for address, length in writable:
        for page in range(address >> 12, (address + length - 1 >> 12) + 1):
            assert dirty[page >> 3] >> (page & 7) & 1
