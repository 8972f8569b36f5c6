"""Which backups are kept, what they are called and what their notes say."""

from __future__ import annotations

import time

import pytest

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from appliance.model.volume import ContentType, VolumeId, VolumeInfo
from appliance.services import backup_names
from appliance.services.guest_config import conf_text

DAY = 86_400
NOON = time.mktime((2026, 3, 2, 12, 0, 0, 0, 0, -1))  # a Monday


def backup(when: float, guest_id: int = 101, *, protected: bool = False) -> VolumeInfo:
    name = backup_names.file_name(GuestKind.LXC, guest_id, when, "zstd")
    return VolumeInfo(
        volume_id=VolumeId("local", f"backup/{name}"), content=ContentType.BACKUP, format="tzst", size_bytes=1,
        used_bytes=1, created_at=when, guest_id=guest_id, protected=protected,
    )  # fmt: skip


def kept(backups: list[VolumeInfo], **keep: int) -> list[float]:
    """Days before NOON of those that stay."""
    rules = {f"keep-{word}": number for word, number in keep.items()}
    named = {str(info.volume_id): info for info in backups}
    return sorted(
        (NOON - named[str(info.volume_id)].created_at) / DAY
        for info, mark in backup_names.marks(backups, rules)
        if mark != "remove"
    )


def test_a_name_tells_guest_and_time() -> None:
    name = backup_names.file_name(GuestKind.QEMU, 100, NOON, "gzip")
    assert name == "vzdump-qemu-100-2026_03_02-12_00_00.tar.gz"
    parsed = backup_names.parse(f"backup/{name}")
    assert parsed is not None
    assert (parsed.kind, parsed.guest_id, parsed.made_at) == (GuestKind.QEMU, 100, NOON)
    for other in ("backup/x.tar", "backup/vzdump-lxc-101-2026_13_99-12_00_00.tar", "iso/vzdump-lxc-101.iso"):
        assert backup_names.parse(other) is None


def test_without_a_rule_everything_stays() -> None:
    assert len(kept([backup(NOON - n * DAY) for n in range(5)])) == 5


def test_the_newest_stay() -> None:
    assert kept([backup(NOON - n * DAY) for n in range(5)], last=2) == [0, 1]


def test_a_span_keeps_its_newest_and_counts_only_where_nothing_is_kept() -> None:
    twice_a_day = [backup(NOON - n * DAY / 2) for n in range(10)]
    assert kept(twice_a_day, daily=3) == [0, 1, 2]  # of each day the one at noon, not the one at midnight before
    assert kept(twice_a_day, last=1, daily=2) == [0, 1, 2]
    assert kept([backup(NOON - n * DAY) for n in range(30)], weekly=2) == [0, 1]  # Monday, and the Sunday before
    assert kept([backup(NOON - n * DAY) for n in range(90)], monthly=2, yearly=1) == [0, 2, 61]


def test_each_guest_counts_alone_and_protected_ones_not_at_all() -> None:
    many = [backup(NOON), backup(NOON - DAY), backup(NOON, 102), backup(NOON - 2 * DAY, protected=True)]
    assert kept(many, last=1) == [0, 0, 2]


@pytest.mark.parametrize("bad", ["keep-last", "keep-often=1", "keep-last=-1", "keep-last=x", "keep-all=1,keep-last=1"])
def test_rules_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(InvalidParameter):
        backup_names.parse_keep(bad)


def test_keeping_all_is_no_rule() -> None:
    assert backup_names.parse_keep("keep-all=1") == {}
    assert backup_names.parse_keep("keep-last=3, keep-daily=0") == {"keep-last": 3}


def test_notes_are_filled_in_once() -> None:
    text = backup_names.notes("{{guestname}} ({{vmid}}) on {{node}}\\n{{never}}", guest_id=7, name="{{node}}", node="n")
    assert text == "{{node}} (7) on n\n{{never}}"


def test_a_configuration_goes_through_its_text() -> None:
    config = {
        "hostname": "web", "description": "two\nlines: with # and ümläut %41", "env": "A=1\0B=2",
        "net0": "name=eth0,bridge=vmbr0", "tags": "a;b",
    }  # fmt: skip
    assert conf_text.from_text(conf_text.to_text(config)) == config


def test_what_pve_writes_is_understood() -> None:
    text = "#first%20line\n#qmdump#map:scsi0:x\narch: amd64\nrootfs: local:8,size=8G\n\n[before]\narch: i386\n"
    assert conf_text.from_text(text) == {"description": "first line", "arch": "amd64", "rootfs": "local:8,size=8G"}
    for bad in ("no colon", "x" * (2 << 20)):
        with pytest.raises(InvalidParameter):
            conf_text.from_text(bad)
