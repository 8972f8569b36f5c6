"""A data directory is never read by an appliance older than the one that wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import Conflict, HostError, NoSpace
from appliance.state import data_format
from appliance.state.sqlite_file import SCHEMA_VERSION
from appliance.version import DATA_FORMAT

OF_SCHEMA = {1: 1}
"""Schema of the store: the data format it came with. A new schema means a new row and a higher format."""


def test_a_new_directory_says_its_format_and_who_wrote_it(tmp_path: Path) -> None:
    data_format.claim(tmp_path, 3, version="0.9")
    assert (tmp_path / "format").read_text() == "3\nappliance 0.9\n"


def test_a_newer_directory_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    data_format.claim(tmp_path, 3, version="0.9")
    with pytest.raises(Conflict, match=r"written by appliance 0\.9 \(format 3\).*0\.8.*up to 2"):
        data_format.claim(tmp_path, 2, version="0.8")
    assert (tmp_path / "format").read_text() == "3\nappliance 0.9\n"


def test_an_older_directory_is_taken_over(tmp_path: Path) -> None:
    data_format.claim(tmp_path, 1, version="0.1")
    data_format.claim(tmp_path, 2, version="0.2")
    assert (tmp_path / "format").read_text().startswith("2\n")


def test_a_later_version_of_the_same_format_writes_nothing(tmp_path: Path) -> None:
    data_format.claim(tmp_path, 1, version="0.1")
    before = (tmp_path / "format").stat()
    data_format.claim(tmp_path, 1, version="0.2")
    assert (tmp_path / "format").stat() == before


@pytest.mark.parametrize("content", ["", "one\n", "-1\n", "\u0663\n", "\0" * 64])
def test_a_damaged_file_is_named_and_not_guessed_at(tmp_path: Path, content: str) -> None:
    (tmp_path / "format").write_text(content)
    with pytest.raises(HostError, match=f"{tmp_path}/format: its first line"):
        data_format.claim(tmp_path, 1, version="0.1")


def test_a_full_disk_refuses_a_new_format_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, data: bytes, *, mode: int) -> None:
        raise NoSpace(f"write {path}: No space left on device")

    monkeypatch.setattr(data_format, "write_atomic", full)
    data_format.claim(tmp_path, data_format.FIRST, version="0.1")
    with pytest.raises(NoSpace):
        data_format.claim(tmp_path, data_format.FIRST + 1, version="0.2")


def test_a_new_schema_of_the_store_is_a_new_format() -> None:
    assert OF_SCHEMA[SCHEMA_VERSION] <= DATA_FORMAT
