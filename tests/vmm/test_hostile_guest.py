"""A guest that does anything, on a machine with every device: `tests.fuzz.vmm` says what must hold."""

from __future__ import annotations

import pytest

from tests.fuzz.vmm import run


@pytest.mark.parametrize("seed", range(4))
def test_random_accesses_and_rings_do_nothing_but_what_devices_do(seed: int) -> None:
    findings = run(operations=5000, seed=seed)
    assert len(findings.used) >= 10, "the drivers got nothing done, so that little was tried"
    assert len(findings.broken) >= 3
