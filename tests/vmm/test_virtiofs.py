"""The shared directory behind the real virtiofsd: a FUSE session spoken by hand."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.errors import HostError, Unsupported
from appliance.kernel import virtiofsd
from appliance.kernel.virtiofsd import RUST, C, ShareOptions, arguments, problem
from appliance.vmm.device import close_wholly
from appliance.vmm.virtio.fs import VirtioFs, open_shared, tag_bytes
from tests.fakes.machine import FakeMachine
from tests.fakes.virtio_driver import DriverQueue, attach
from tests.fakes.waiting_driver import run_until, wait_for_answers

FUSE_LOOKUP, FUSE_INIT = 1, 26
ROOT = 1


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    made = tmp_path / "shared"
    made.mkdir()
    (made / "file").write_text("twelve bytes")
    return made


@pytest.fixture
def device(machine: FakeMachine, tmp_path: Path, directory: Path) -> Iterator[VirtioFs]:
    if virtiofsd.find_program() is None:
        pytest.skip("virtiofsd is not installed")
    made = open_shared("fs0", machine.context, tag="home", directory=directory, socket_path=tmp_path / "fs0.sock")
    yield made
    close_wholly(made)


def fuse(queue: DriverQueue, opcode: int, node: int, body: bytes, room: int = 256) -> bytes:
    """One request (linux/fuse.h); the answer's body. Fails when its error is not 0."""
    head = struct.pack("<IIQQIIII", 40 + len(body), opcode, 7, node, 0, 0, 0, 0)
    answer = queue.request([head, body], [16, room])
    length, error, unique = struct.unpack_from("<IiQ", answer)
    assert (error, unique) == (0, 7)
    return answer[16:length]


def init(queue: DriverQueue) -> None:
    major, minor = struct.unpack_from("<II", fuse(queue, FUSE_INIT, 0, struct.pack("<IIII", 7, 31, 0, 0)))
    assert major == 7
    assert minor >= 31


@pytest.mark.host
def test_a_file_of_the_host_is_found_and_a_new_driver_gets_a_new_session(device: VirtioFs) -> None:
    for _ in range(2):
        queue = wait_for_answers(attach(device)[1])
        init(queue)
        entry = fuse(queue, FUSE_LOOKUP, ROOT, b"file\0")
        assert struct.unpack_from("<Q", entry, 40 + 8)[0] == len("twelve bytes")


@pytest.mark.host
def test_a_session_lasts_over_a_pause_but_cannot_be_saved(device: VirtioFs) -> None:
    queue = wait_for_answers(attach(device)[1])
    init(queue)
    device.pause()
    with pytest.raises(Unsupported, match="cannot be saved"):
        device.save()
    device.resume()
    fuse(queue, FUSE_LOOKUP, ROOT, b"file\0")


@pytest.mark.host
def test_it_cannot_be_moved_as_it_does_not_log_what_it_writes(machine: FakeMachine, device: VirtioFs) -> None:
    with pytest.raises(HostError, match="cannot tell what it writes"):
        machine.memory.start_dirty_log()
    machine.memory.stop_dirty_log()


@pytest.mark.host
def test_the_tag_is_in_the_configuration(device: VirtioFs) -> None:
    packed = b"".join(device.read_config(offset, 4).to_bytes(4, "little") for offset in range(0, 40, 4))
    assert packed == b"home".ljust(36, b"\0") + b"\x01\0\0\0"


@pytest.mark.host
def test_a_daemon_that_dies_breaks_the_device_until_the_next_driver(device: VirtioFs) -> None:
    queue = wait_for_answers(attach(device)[1])
    init(queue)
    process = device._helper.process
    assert process
    os.kill(process.pid, 9)
    run_until(device, lambda: device._helper.process is not process)
    queue = wait_for_answers(attach(device)[1])
    init(queue)


def test_a_tag_has_one_to_36_bytes() -> None:
    assert tag_bytes("x" * 36) == b"x" * 36
    for wrong in ("", "x" * 37, "a\0b"):
        with pytest.raises(ValueError, match="no tag"):
            tag_bytes(wrong)


def test_either_virtiofsd_is_told_in_its_own_words() -> None:
    everything = ShareOptions(cache="never", direct_io=True, acl=True)
    plain = arguments(RUST, Path("/srv"), ShareOptions(), listener_fd=3)
    assert plain == [
        RUST, "--fd=3", "--shared-dir", "/srv", "--sandbox", "namespace", "--cache", "auto", "--announce-submounts",
    ]  # fmt: skip
    wished = arguments(RUST, Path("/srv"), everything, listener_fd=3)
    assert wished[-4:] == ["--announce-submounts", "--xattr", "--posix-acl", "--allow-direct-io"]
    words = arguments(C, Path("/srv"), everything, listener_fd=3)
    assert {"source=/srv", "cache=none", "xattr", "posix_acl", "allow_direct_io"} <= set(words)
    assert "no_xattr" in arguments(C, Path("/srv"), ShareOptions(), listener_fd=3)


def test_what_the_older_virtiofsd_cannot_is_refused_by_name() -> None:
    assert problem(None, ShareOptions()) == "virtiofsd is not installed"
    assert "metadata" in problem(C, ShareOptions(cache="metadata"))
    assert not problem(RUST, ShareOptions(cache="metadata"))
    assert not problem(C, ShareOptions(cache="never", acl=True))
