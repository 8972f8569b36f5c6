"""Whatever ends the process, at whichever step: the old state or the new one, and nothing else in the directory."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from tests.storage import crash_driver

pytestmark = pytest.mark.timeout(300)  # a process for each effect of each operation
DISK, TREE, LAYERED = (str(each) for each in (crash_driver.DISK, crash_driver.TREE, crash_driver.LAYERED))
CONTENT = ["content", "2"]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("crash")
    run = subprocess.run(
        [sys.executable, "-m", "tests.storage.crash_driver", str(directory)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def test_every_operation_was_ended_before_each_of_its_effects(cases: list[dict[str, Any]]) -> None:
    for name, group in groupby(cases, key=lambda case: case["operation"]):
        ends = [case["died"] for case in group]
        assert len(ends) >= 2, name
        assert ends == [True] * (len(ends) - 1) + [False], name
    assert {case["operation"] for case in cases} == set(crash_driver.OPERATIONS)


def test_an_interrupted_operation_leaves_the_old_state_or_the_new_one(cases: list[dict[str, Any]]) -> None:
    old = {
        "local:100/vm-100-disk-0.qcow2": 8 << 20,
        "local:101/subvol-101-disk-1.subvol": 16 << 20,
        "local:101/vm-101-disk-0.raw": 16 << 20,
        "local:102/subvol-102-disk-0.subvol": 0,
        "local:vztmpl/x.tar": 10,
    }
    snapshots = {DISK: ["old"], TREE: ["old"], LAYERED: ["old"]}
    for case in cases:
        new = next(c for c in cases if c["operation"] == case["operation"] and not c["died"])
        where = f"{case['operation']} before {case['before']!r}"
        assert case["volumes"] in (old, new["volumes"]), where
        kept = {volume: names for volume, names in snapshots.items() if volume in case["volumes"]}
        assert case["snapshots"] in (kept, new["snapshots"]), where
        assert case["content"] in (CONTENT, new["content"]), where
        assert case["again"] == [], where
        changed = (new["volumes"], new["snapshots"], new["content"]) != (old, snapshots, CONTENT)
        assert changed or case["operation"] in ("return of a disk", "return of layers"), where


def test_nothing_is_left_but_volumes_and_their_records(cases: list[dict[str, Any]]) -> None:
    for case in cases:
        names = {volume.removeprefix("local:") for volume in case["volumes"]}
        records = {f".appliance/records/{name}.json" for name in names}
        strangers = [
            file
            for file in case["files"]
            if file not in records
            and not (file.startswith(".appliance/snapshots/101/subvol-") and file.endswith(("/old/file", "/new/file")))
            and not file.startswith(
                (
                    "images/100/vm-",
                    "images/101/",
                    "images/102/",
                    "images/200/",
                    "template/",
                    "dump/vzdump",
                    ".appliance/layers/",
                )
            )
        ]
        assert strangers == [], f"{case['operation']} before {case['before']!r}"
        assert not any(".tmp" in file for file in case["files"])
