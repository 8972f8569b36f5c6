"""What a dirty log may hold besides what the guest wrote."""

from __future__ import annotations

import platform
from collections.abc import Collection
from pathlib import Path

from appliance.kernel.virtualization import hardware_problem


def is_exact() -> bool:
    """A processor that runs guests itself sets accessed and dirty bits in descriptors and page tables: these pages are in
    the log as well. Where instructions are emulated there is nothing of the kind."""
    return bool(hardware_problem(Path("/proc/cpuinfo").read_text(), platform.machine()))


def assert_logged(found: Collection[int], expected: Collection[int]) -> None:
    """The log has every page of `expected`, and no other where it is exact."""
    missing, more = set(expected) - set(found), set(found) - set(expected)
    assert not missing, f"pages {missing} were written and are not in the log"
    assert not (more and is_exact()), f"pages {more} were not written"
