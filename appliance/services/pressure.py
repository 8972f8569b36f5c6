"""Pressure stall information (PSI, kernel Documentation/accounting/psi.rst): how much work waits for CPU, memory, I/O.

Of the host from /proc/pressure, of a guest from the control group its process is in. Values are percent of time, the
mean over the last ten seconds. `read_*` block for well under a millisecond and belong into a thread; what cannot be
read (no PSI in this kernel, the guest has just ended) is left out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
RESOURCES: Final = ("cpu", "io", "memory")
SIZE_LIMIT = 4096


def parse(text: str) -> dict[str, float]:
    """The avg10 values of one file: {"some": 1.5, "full": 0.2}."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        kind, _, rest = line.partition(" ")
        for part in rest.split():
            name, _, value = part.partition("=")
            if name == "avg10" and kind in ("some", "full"):
                try:
                    found[kind] = float(value)
                except ValueError:
                    continue
    return found


def read_host() -> Mapping[str, float]:
    """The host's, named as `rrddata` names them: "pressurecpusome" …"""
    return _read({resource: PROC / "pressure" / resource for resource in RESOURCES})


def read_pressure_of(pid: int) -> Mapping[str, float]:
    """Those of the control group a guest's process is in; none when that is the appliance's own, or the root."""
    try:
        group = _group_of(pid)
        if group == _group_of(os.getpid()) or group in ("", "/"):
            return {}
    except OSError:
        return {}
    directory = CGROUPS / group.lstrip("/")
    return _read({resource: directory / f"{resource}.pressure" for resource in RESOURCES})


def _group_of(pid: int) -> str:
    """The path below the cgroup v2 mount (cgroups(7): the line of hierarchy 0)."""
    for line in (PROC / str(pid) / "cgroup").read_text().splitlines():
        number, _, path = line.partition("::")
        if number == "0":
            return path
    return ""


def _read(files: Mapping[str, Path]) -> dict[str, float]:
    found: dict[str, float] = {}
    for resource, path in files.items():
        try:
            with path.open() as file:
                values = parse(file.read(SIZE_LIMIT))
        except OSError:
            continue
        found |= {f"pressure{resource}{kind}": value for kind, value in values.items()}
    return found
