"""A passed self-test is remembered for as long as program, host and boot are the same."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance.ct import oci, proof

FACTS = oci.HostFacts(
    cgroup2=False, swap_limit=True, lxcfs_files={}, permitted_capabilities=("CAP_CHOWN",), pids_limit=100
)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "runc"
    path.write_bytes(b"one")
    return path


def test_what_passed_is_recalled_with_its_version(tmp_path: Path, program: Path) -> None:
    assert proof.recall(tmp_path, program, FACTS) is None
    proof.remember(tmp_path, program, FACTS, said="runc 1", takes_pipe=True)
    known = proof.recall(tmp_path, program, FACTS)
    assert known is not None
    assert (known.said, known.takes_pipe) == ("runc 1", True)


def test_an_upgraded_program_is_tested_again(tmp_path: Path, program: Path) -> None:
    proof.remember(tmp_path, program, FACTS, said="runc 1")
    program.write_bytes(b"two!")
    assert proof.recall(tmp_path, program, FACTS) is None


def test_a_replaced_program_of_the_same_size_is_tested_again(tmp_path: Path, program: Path) -> None:
    proof.remember(tmp_path, program, FACTS, said="runc 1")
    os.utime(program, ns=(1, 1))
    assert proof.recall(tmp_path, program, FACTS) is None


def test_another_host_is_tested_again(tmp_path: Path, program: Path) -> None:
    proof.remember(tmp_path, program, FACTS, said="runc 1")
    assert proof.recall(tmp_path, program, replace(FACTS, cgroup2=True)) is None


@pytest.mark.parametrize("damage", [b"", b"{", b'{"version": 2}', b"\xff"])
def test_a_damaged_memory_is_no_proof(tmp_path: Path, program: Path, damage: bytes) -> None:
    proof.remember(tmp_path, program, FACTS, said="runc 1")
    (tmp_path / "runtime.json").write_bytes(damage)
    assert proof.recall(tmp_path, program, FACTS) is None
