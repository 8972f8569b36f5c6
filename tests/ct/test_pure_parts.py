"""Small pure rules of the container engine: the shim's log, exit codes, records, cgroup files."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.ct import logfile, remains
from appliance.ct.host import Places
from appliance.ct.records import CtRecord, VolumeRecord, save
from appliance.ct.running import exit_reason, halt_signal, network_bytes, program_of
from appliance.errors import HostError
from appliance.kernel.cgroups import Cgroup, CgroupLayout
from appliance.kernel.pidfd import ProcessIdentity, identify
from appliance.model.guest import GuestId

# --- the shim's log ---------------------------------------------------------------------------------------------------

LOG = (
    b"2026-11-22T10:00:00.000000000+00:00 stdout P par\n"
    b"2026-11-22T10:00:00.000000000+00:00 stdout F tial\r\n"
    b"2026-11-22T10:00:00.000000000+00:00 stdout P \x1b[0m no newline\n"
)


def test_the_log_decodes_to_the_terminals_bytes() -> None:
    assert logfile.decode(LOG) == b"partial\r\n\x1b[0m no newline"


def test_only_the_newest_bytes_of_the_log_are_history() -> None:
    assert logfile.decode(LOG, limit=10) == b"no newline"
    line = b"2026-11-22T10:00:00.0+00:00 stdout F " + b"x" * 99 + b"\n"
    assert logfile.decode(line * 2000) == ((b"x" * 99 + b"\n") * 2000)[-logfile.HISTORY_BYTES :]


def test_a_cut_or_foreign_line_of_the_log_is_skipped() -> None:
    assert logfile.decode(b"00:00 stdout P cut in the front\n2026 std") == b"cut in the front"
    assert logfile.decode(b"\0\0\0garbage\n") == b""


def test_a_missing_log_is_an_empty_history(tmp_path: Path) -> None:
    assert logfile.read_history(tmp_path / "none") == b""


@pytest.mark.parametrize(
    ("history", "live", "left"),
    [
        (b"abcdef", b"def", b"abc"),
        (b"before, and logged twice", b"and logged twice, then more", b"before, "),
        (b"ends in a newline\n", b"\nbegins with one, by chance", b"ends in a newline\n"),
        (b"abcdef", b"xyz", b"abcdef"),
        (b"abcdef", b"", b"abcdef"),
        (b"", b"abc", b""),
        (b"same", b"same", b""),
    ],
)
def test_what_was_logged_while_attached_is_told_once(history: bytes, live: bytes, left: bytes) -> None:
    assert logfile.without_overlap(history, live) == left


def test_what_came_before_the_log_was_read_is_never_history_though_the_guest_repeats_itself() -> None:
    assert logfile.without_overlap(b"xxxx", b"x", at_least=1) == b"xxx"
    assert logfile.without_overlap(b"xxxx", b"", at_least=0) == b"xxxx"
    assert logfile.without_overlap(b"begun anew", b"more than that", at_least=14) == b""
    assert logfile.without_overlap(b"ab" * 32_000 + b"c", b"ab" * 32_000 + b"d", at_least=1) == b"ab" * 32_000


def test_a_repeating_console_does_not_cost_time() -> None:
    assert logfile.without_overlap(b"ab" * 32_000 + b"c", b"ab" * 32_000 + b"d") == b"ab" * 32_000 + b"c"


# --- how a container ended --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "asked", "lost_shim", "out_of_memory", "kind"),
    [
        (0, None, False, False, "shutdown"),
        (130, None, False, False, "shutdown"),  # reboot(RB_POWER_OFF) inside
        (129, None, False, False, "reset"),  # reboot(RB_AUTOBOOT) inside
        (129, "shutdown", False, False, "shutdown"),
        (1, "shutdown", False, False, "shutdown"),
        (137, "stopped", False, False, "stopped"),
        (137, None, False, True, "crashed"),
        (3, None, False, False, "crashed"),
        (None, None, False, False, "crashed"),
        (None, None, True, False, "crashed"),
    ],
)
def test_an_exit_code_tells_why_it_ended(
    code: int | None, asked: str | None, lost_shim: bool, out_of_memory: bool, kind: str
) -> None:
    assert exit_reason(code, asked=asked, lost_shim=lost_shim, out_of_memory=out_of_memory).kind == kind


def test_each_init_is_asked_in_its_own_way_and_a_program_that_is_none_by_sigterm() -> None:
    assert halt_signal("systemd") == signal.SIGRTMIN + 3
    assert halt_signal("busybox") == signal.SIGUSR2
    assert halt_signal("python3") == halt_signal("") == signal.SIGTERM
    assert program_of(os.getpid()).startswith("python")
    assert program_of(2**22 + 1) == ""


def test_network_figures_of_a_process_that_is_gone_are_zero() -> None:
    assert network_bytes(2**22 + 1) == (0, 0)


# --- records ----------------------------------------------------------------------------------------------------------


def record(init: ProcessIdentity) -> CtRecord:
    return CtRecord(
        guest_id=101,
        runtime="/usr/sbin/runc",
        started_at=1.5,
        init=init,
        shim=init,
        id_base=100_000,
        id_count=65_536,
        volumes={"rootfs": VolumeRecord(path="/x", device="/dev/loop7")},
    )


def ourselves() -> ProcessIdentity:
    found = identify(os.getpid())
    assert found is not None
    return found


def test_a_record_survives_the_round_trip() -> None:
    assert CtRecord.decode(record(ourselves()).encode()) == record(ourselves())


def test_a_record_of_another_boot_or_damaged_is_none() -> None:
    encoded = record(ourselves()).encode()
    assert CtRecord.decode(encoded.replace(b'"boot": "', b'"boot": "0')) is None
    assert CtRecord.decode(encoded[:-5]) is None
    assert CtRecord.decode(b"[]") is None


def test_the_same_pid_with_another_start_time_is_another_process(tmp_path: Path) -> None:
    save(tmp_path, "record.json", record(ourselves()).encode())
    assert remains.is_alive(tmp_path)
    save(tmp_path, "record.json", record(replace(ourselves(), start_ticks=1)).encode())
    assert not remains.is_alive(tmp_path)


def test_removal_never_descends_into_a_mount_point_with_data(tmp_path: Path) -> None:
    bundle = tmp_path / "101"
    (bundle / "rootfs/precious").mkdir(parents=True)
    with pytest.raises(HostError, match="remove"):
        remains.clear(bundle, Cgroup(CgroupLayout({}, None), "appliance", "ct-101"))
    assert (bundle / "rootfs/precious").is_dir()


def test_places_know_only_numbered_directories(tmp_path: Path) -> None:
    for name in ("ct/101", "ct/runtime", "ct/.self-test"):
        (tmp_path / name).mkdir(parents=True)
    assert Places(tmp_path, CgroupLayout({}, None)).known_ids() == [GuestId(101)]
