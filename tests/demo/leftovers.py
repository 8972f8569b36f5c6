"""What one appliance has on a host: processes, mounts, namespaces, cgroups, links, nft tables, loop devices.

Everything an appliance makes carries its mark (the tag in its run directory's name, its data directory, its bridge), so
that several appliances on one machine, and their tests, can each be asked what they left.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def traces_of(*marks: str) -> list[str]:
    """One line for each thing on this host that carries one of `marks`."""
    return [
        f"{kind}: {name}"
        for kind, names in (
            ("process", _processes(marks)),
            ("mount", _mounts()),
            ("network namespace", _named_namespaces()),
            ("cgroup", _cgroups()),
            ("link", _links()),
            ("nft table", _tables()),
            ("loop device", _loops()),
        )
        for name in names
        if kind == "process" or any(mark in name for mark in marks)
    ]


def _processes(marks: tuple[str, ...]) -> Iterator[str]:
    """By command line, or by the cgroup they are in: a container's init says nothing in its command line."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            cgroup = (entry / "cgroup").read_text()
        except OSError:
            continue
        if command and any(mark in command or mark in cgroup for mark in marks):  # else a zombie, init's to bury
            yield f"{entry.name} {command[:120]}"


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield " ".join(line.split()[3:5])


def _named_namespaces() -> list[str]:
    return os.listdir("/run/netns") if Path("/run/netns").is_dir() else []


def _cgroups() -> Iterator[str]:
    for path, _, _ in os.walk(CGROUPS):  # unlike rglob it passes over groups that vanish meanwhile
        yield os.path.relpath(path, CGROUPS)


def _links() -> Iterator[str]:
    for path in Path("/sys/class/net").iterdir():
        try:
            yield f"{path.name} {(path / 'ifalias').read_text().strip()}"
        except OSError:
            continue


def _tables() -> Iterator[str]:
    done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, timeout=10, check=False)
    for row in json.loads(done.stdout or "{}").get("nftables", []):
        if "table" in row:
            yield f"{row['table']['family']} {row['table']['name']}"


def _loops() -> Iterator[str]:
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            yield f"{path.parts[3]} {path.read_text().strip()}"
        except OSError:
            continue
