"""A raw image on this machine's file system."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from appliance.errors import Conflict, HostError
from appliance.vmm.block import raw
from appliance.vmm.block.backend import CACHE_MODES
from appliance.vmm.block.raw import RawImage

MODES = pytest.mark.parametrize("mode", CACHE_MODES)
MIB = 1 << 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "disk.raw"
    made.write_bytes(bytes(MIB))
    return made


def aligned(data: bytes) -> Iterator[memoryview]:
    """Memory that O_DIRECT takes."""
    with mmap.mmap(-1, len(data)) as memory, memoryview(memory) as view:
        view[:] = data
        yield view


def put(image: RawImage, data: bytes, offset: int, *, durable: bool = False) -> None:
    for view in aligned(data):
        image.write([view], offset, durable=durable)


def get(image: RawImage, length: int, offset: int) -> bytes:
    for view in aligned(bytes(length)):
        image.read([view], offset)
        return bytes(view)
    raise AssertionError


@MODES
def test_every_cache_mode_stores_and_flushes(path: Path, mode: str) -> None:
    with closing(RawImage(path, CACHE_MODES[mode], discard=True)) as image:
        assert image.size_bytes == MIB
        put(image, b"a" * 4096, 8192)
        put(image, b"b" * 512, 12288, durable=True)
        image.flush()
        assert get(image, 8192, 4096) == bytes(4096) + b"a" * 4096
        flags = fcntl.fcntl(image._fd, fcntl.F_GETFL)
        assert bool(flags & os.O_DIRECT) == image.direct
        assert not image.direct or CACHE_MODES[mode].direct
    assert path.read_bytes()[8192:12800] == b"a" * 4096 + b"b" * 512


def test_discard_gives_space_back_where_it_is_wanted_only(path: Path) -> None:
    path.write_bytes(os.urandom(MIB))
    content = path.read_bytes()
    for discard in (False, True):
        with closing(RawImage(path, CACHE_MODES["writeback"], discard=discard)) as image:
            image.discard(4096, 65536)
            image.flush()
    assert path.read_bytes() == content[:4096] + bytes(65536) + content[4096 + 65536 :]
    assert path.stat().st_blocks * 512 <= MIB - 65536 + 8192


@MODES
@pytest.mark.parametrize("able", [True, False])
def test_zeroes_are_written_where_the_file_system_cannot_make_them(
    path: Path, mode: str, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "fallocate")

    path.write_bytes(b"x" * 3 * MIB)
    if not able:
        monkeypatch.setattr(raw, "zero_range", cannot)
        monkeypatch.setattr(raw, "punch_hole", cannot)
    with closing(RawImage(path, CACHE_MODES[mode], discard=True)) as image:
        image.write_zeroes(512, 2 * MIB, unmap=False)
        image.write_zeroes(5 * MIB // 2, 4096, unmap=True)
        image.write_zeroes(512, 0, unmap=False)
    wanted = bytearray(b"x" * 3 * MIB)
    wanted[512 : 512 + 2 * MIB] = bytes(2 * MIB)
    wanted[5 * MIB // 2 : 5 * MIB // 2 + 4096] = bytes(4096)
    assert path.read_bytes() == bytes(wanted)


def test_a_file_that_is_not_whole_sectors_ends_with_zeros(path: Path) -> None:
    path.write_bytes(b"x" * 700)
    with closing(RawImage(path, CACHE_MODES["writeback"])) as image:
        assert image.size_bytes == 1024
        with memoryview(bytearray(b"?" * 600)) as one, memoryview(bytearray(b"?" * 424)) as two:
            image.read([one, two], 0)
            assert bytes(one) + bytes(two) == b"x" * 700 + bytes(324)
        put(image, b"y" * 512, 512)
    assert path.read_bytes() == b"x" * 512 + b"y" * 512


def test_an_image_has_one_writer_or_many_readers(path: Path) -> None:
    cache = CACHE_MODES["writeback"]
    with closing(RawImage(path, cache)):
        for read_only in (False, True):
            with pytest.raises(Conflict, match=r"disk\.raw: is in use"):
                RawImage(path, cache, read_only=read_only)
    with (
        closing(RawImage(path, cache, read_only=True)),
        closing(RawImage(path, cache, read_only=True)),
        pytest.raises(Conflict),
    ):
        RawImage(path, cache)
    RawImage(path, cache).close()


@pytest.mark.host
def test_qemu_and_we_respect_each_others_locks(path: Path) -> None:
    with closing(RawImage(path, CACHE_MODES["writeback"])):
        refused = subprocess.run(["qemu-io", "-f", "raw", "-c", "write 0 512", path], capture_output=True, text=True)
        assert 'Failed to get "write" lock' in refused.stdout + refused.stderr
        subprocess.run(["qemu-img", "info", "-U", "-f", "raw", path], check=True, capture_output=True)
    with subprocess.Popen(["qemu-io", "-f", "raw", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin
        assert qemu.stdout
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        qemu.stdout.read(1)
        with pytest.raises(Conflict):
            RawImage(path, CACHE_MODES["writeback"])


def test_growing_makes_the_file_longer_and_shrinking_is_refused(path: Path) -> None:
    with closing(RawImage(path, CACHE_MODES["none"])) as image:
        image.resize(2 * MIB)
        assert image.size_bytes == path.stat().st_size == 2 * MIB
        with pytest.raises(ValueError, match="cannot become"):
            image.resize(MIB)


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"open .*/none\.raw: No such file"):
        RawImage(tmp_path / "none.raw", CACHE_MODES["none"])


def test_a_full_disk_fails_the_write_that_has_no_room(path: Path) -> None:
    """RLIMIT_FSIZE stands in for it: a write is cut short there, and the next one fails."""
    path.write_bytes(b"")
    with closing(RawImage(path, CACHE_MODES["writeback"])) as image:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
        try:
            with pytest.raises(OSError) as caught:
                put(image, b"x" * 8192, 0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert caught.value.errno == errno.EFBIG
    assert path.read_bytes() == b"x" * 4096


class Looked(list[memoryview]):
    """Buffers that tell when a system call is about to take them."""

    def __init__(self, buffers: list[memoryview], tell: Callable[[], None]) -> None:
        super().__init__(buffers)
        self._tell = tell

    def __getitem__(self, place: object) -> Any:
        self._tell()
        return super().__getitem__(place)  # type: ignore[call-overload]


def test_an_image_closed_under_a_request_is_closed_when_that_is_over(path: Path) -> None:
    """A guest ejects a disk that it writes to: the descriptor's number must not be another file's by the time the write
    begins."""
    image = RawImage(path, CACHE_MODES["writeback"])
    fd = image._fd

    def close() -> None:
        image.close()
        other = os.open(os.devnull, os.O_RDONLY)
        os.close(other)
        assert other != fd

    image.write(Looked([memoryview(b"x" * 512)], close), 0, durable=False)
    assert path.read_bytes()[:512] == b"x" * 512
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for call in (lambda: put(image, b"y" * 512, 0), lambda: get(image, 512, 0), image.flush):
        with pytest.raises(OSError, match="Bad file descriptor"):
            call()
    image.close()
