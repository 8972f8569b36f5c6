"""Records of volumes, while several threads make, list and remove them: as many guests are removed at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from appliance.storage.records import Records, VolumeRecord


def test_records_are_listed_while_others_come_and_go(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.prepare()
    records.put("99/vm-99-disk-0.raw", VolumeRecord(parent="98/base-98-disk-0.raw"))

    def life(guest: int) -> int:
        for _ in range(25):
            records.put(f"{guest}/vm-{guest}-disk-0.raw", VolumeRecord())
            assert records.children("98/base-98-disk-0.raw") == ["99/vm-99-disk-0.raw"]
            assert "99/vm-99-disk-0.raw" in list(records.names())
            records.remove(f"{guest}/vm-{guest}-disk-0.raw")
        return guest

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(life, range(100, 104))) == [100, 101, 102, 103]
    assert list(records.names()) == ["99/vm-99-disk-0.raw"]


def test_what_an_interrupted_write_left_is_removed_when_nobody_writes(tmp_path: Path) -> None:
    records = Records(tmp_path)
    records.prepare()
    records.put("99/vm-99-disk-0.raw", VolumeRecord())
    (written,) = (path for path in tmp_path.rglob("*.json"))
    remain = written.with_name(f".{written.name}.1.tmp")
    remain.touch()
    assert list(records.names()) == ["99/vm-99-disk-0.raw"]
    assert remain.exists()
    assert list(records.names(tidy=True)) == ["99/vm-99-disk-0.raw"]
    assert not remain.exists()
