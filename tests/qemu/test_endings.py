"""Why a VM ended, what it used, what QEMU and the processor said: the pure judgements."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.kernel.virtualization import kvm_problem
from appliance.model.guest import GuestId
from appliance.qemu.capabilities import HostFacts, parse_answers
from appliance.qemu.ending import LastWords, exit_reason
from appliance.qemu.process import ProcessStat
from appliance.qemu.run_dir import RunDir
from appliance.qemu.stats import balloon_used_bytes, block_bytes, figures


@pytest.mark.parametrize(
    ("words", "status", "kind", "detail"),
    [
        (LastWords(shutdown_reason="guest-shutdown"), 0, "shutdown", "powered off"),
        (LastWords(shutdown_reason="guest-shutdown", stop_asked=True), 0, "shutdown", "powered off"),
        (LastWords(shutdown_reason="guest-reset"), 0, "reset", "restart"),
        (LastWords(shutdown_reason="guest-panic"), 0, "crashed", "panicked"),
        (LastWords(shutdown_reason="host-error"), 0, "crashed", "the last line"),
        (LastWords(shutdown_reason="host-qmp-quit", stop_asked=True), 0, "stopped", "stopped"),
        (LastWords(shutdown_reason="host-signal"), 0, "stopped", "from outside"),
        (LastWords(stop_asked=True), -9, "stopped", "stopped"),
        (LastWords(panicked=True), 0, "crashed", "panicked"),
        (LastWords(), -11, "crashed", "SIGSEGV"),
        (LastWords(), -60, "crashed", "signal 60"),
        (LastWords(), 1, "crashed", "status 1: the last line"),
        (LastWords(heard=True), None, "crashed", "without a word"),
        (LastWords(), None, "stopped", "nobody listened"),
    ],
)
def test_the_reason_follows_what_was_seen(words: LastWords, status: int | None, kind: str, detail: str) -> None:
    reason = exit_reason(words, status, ["first", "the last line"])
    assert reason.kind == kind
    assert detail in reason.detail


@pytest.mark.parametrize(
    ("open_error", "cpuinfo", "arch", "problem"),
    [
        ("", "flags\t\t: fpu vmx sse2\n", "x86_64", ""),
        ("", "flags : svm\n", "x86_64", ""),
        ("", "flags : fpu svm_lock\nmodel name : vmx\n", "x86_64", "neither vmx nor svm"),
        ("/dev/kvm: Permission denied", "flags : vmx\n", "x86_64", "Permission denied"),
        ("", "Features : fp asimd\n", "aarch64", ""),
    ],
)
def test_kvm_needs_the_device_and_the_processor(open_error: str, cpuinfo: str, arch: str, problem: str) -> None:
    found = kvm_problem(open_error=open_error, cpuinfo=cpuinfo, host_arch=arch)
    assert problem in found
    assert bool(found) == bool(problem)


def test_qemus_answers_become_an_emulator_and_nonsense_an_error() -> None:
    answers: list[object] = [
        {"QMP": {"version": {"qemu": {"major": 10, "minor": 0, "micro": 2}}}},
        {"return": {}},
        {"return": [{"name": "pc-q35-10.0", "alias": "q35"}]},
        {"return": [{"name": "VGA"}]},
        {"return": [{"option": "sandbox"}]},
        {"return": {}},
    ]
    text = "\n".join(json.dumps(answer) for answer in answers)
    emulator = parse_answers("x86_64", "/q", text)
    assert emulator.version == (10, 0, 2)
    assert emulator.machines == {"pc-q35-10.0", "q35"}
    assert emulator.sandbox
    for cut in ("", text[:60], text.replace("return", "error")):
        with pytest.raises(HostError, match="/q"):
            parse_answers("x86_64", "/q", cut)


def test_a_host_without_qemu_cannot_start_and_says_what_to_install() -> None:
    summary = HostFacts(
        missing={"arch:x86_64": "qemu-system-x86_64 is not installed (package qemu-system-x86)"}
    ).summary()
    assert not summary.usable
    assert "qemu-system-x86" in summary.missing["start"]


def test_the_guests_word_on_its_memory_is_believed_only_within_bounds() -> None:
    def told(**stats: int) -> dict[str, object]:
        return {"last-update": 1, "stats": {f"stat-{key}-memory": value for key, value in stats.items()}}

    assert balloon_used_bytes(told(total=1000, available=600, free=100), limit=2000) == 400
    assert balloon_used_bytes(told(total=1000, available=-1, free=100), limit=2000) == 900
    assert balloon_used_bytes(told(total=5000, available=600), limit=2000) is None
    assert balloon_used_bytes(told(total=-1, available=2**64 - 1, free=-1), limit=2000) is None
    assert balloon_used_bytes({"last-update": 0, "stats": {}}, limit=2000) is None
    assert balloon_used_bytes(None, limit=2000) is None


def test_figures_count_the_guests_drives_and_not_its_firmware() -> None:
    blocks = [
        {"node-name": "pflash1", "stats": {"rd_bytes": 9999, "wr_bytes": 9999}},
        {"node-name": "drive-scsi0", "stats": {"rd_bytes": 10, "wr_bytes": 20}},
        {"node-name": "drive-scsi1", "stats": {"rd_bytes": 1, "wr_bytes": 2}},
    ]
    assert block_bytes(blocks) == (11, 22)
    process = ProcessStat(state="S", cpu_seconds=1.5, start_ticks=1, resident_bytes=5 << 20)
    found = figures(process, blocks, None, memory_mib=4)
    assert (found.cpu_seconds, found.memory_bytes, found.memory_max_bytes) == (1.5, 4 << 20, 4 << 20)


def test_complaints_come_without_time_and_program_and_warnings_only_alone(tmp_path: Path) -> None:
    paths = RunDir(tmp_path, GuestId(100))
    assert paths.complaints() == []
    stamp = "2026-11-22T09:42:00.000000Z qemu-system-x86_64: "
    paths.log.write_text(f"{stamp}warning: slow\n")
    assert paths.complaints() == ["warning: slow"]
    paths.log.write_text(f"{stamp}warning: slow\n{stamp}-device x: no\n")
    assert paths.complaints() == ["-device x: no"]


def test_a_record_that_is_not_ours_is_none(tmp_path: Path) -> None:
    paths = RunDir(tmp_path, GuestId(100))
    assert paths.read_record() is None
    for text in ("", "[]", '{"version":2}', '{"version":1,"guest_id":"x"}'):
        paths.record.write_text(text)
        assert paths.read_record() is None
    # version 1 as it was first written: members may be added, none renamed
    paths.record.write_text('{"version":1,"guest_id":100,"uuid":"u","started_at":1.5,"memory_mib":32}')
    record = paths.read_record()
    assert record is not None
    assert (record.pid, record.serials, record.agent) == (0, (), False)
