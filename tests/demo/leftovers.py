"""What a host holds that an appliance may leave behind: processes, mounts, namespaces, cgroups, links, nft tables."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class HostState:
    """Names of everything of these kinds on the host, at one moment."""

    processes: frozenset[str]
    mounts: frozenset[str]
    namespaces: frozenset[str]
    cgroups: frozenset[str]
    links: frozenset[str]
    tables: frozenset[str]
    loops: frozenset[str]

    @staticmethod
    def take() -> HostState:
        """Look now."""
        return HostState(
            processes=frozenset(_processes()),
            mounts=frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
            namespaces=frozenset(_namespaces()),
            cgroups=frozenset(_cgroups()),
            links=frozenset(os.listdir("/sys/class/net")),
            tables=frozenset(_tables()),
            loops=frozenset(
                str(path.parent.parent.name) for path in Path("/sys/block").glob("loop*/loop/backing_file")
            ),
        )

    def new_since(self, before: HostState) -> list[str]:
        """One line for each thing that is here and was not in `before`."""
        return [
            f"{kind}: {name}"
            for kind in ("processes", "mounts", "namespaces", "cgroups", "links", "tables", "loops")
            for name in sorted(getattr(self, kind) - getattr(before, kind))
        ]


_OURS = ("qemu-system", "conmon", "dnsmasq", "runc", "crun", "appliance")


def _processes() -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            except OSError:
                continue
            program = command.split(" ")[0].rsplit("/", 1)[-1]
            if program.startswith(_OURS) or " -m appliance " in f"{command} " or program in ("init", "systemd"):
                found.append(f"{entry.name} {command[:100]}")
    return found


def _namespaces() -> list[str]:
    """Namespaces that a process of ours keeps, as /proc names them, and named network namespaces."""
    named = os.listdir("/run/netns") if Path("/run/netns").is_dir() else []
    kept = set()
    for pid in (line.split(" ")[0] for line in _processes()):
        for kind in ("net", "mnt", "pid", "user"):
            try:
                kept.add(os.readlink(f"/proc/{pid}/ns/{kind}"))
            except OSError:
                continue
    return [f"netns {name}" for name in named] + sorted(kept)


def _cgroups() -> list[str]:
    root = Path("/sys/fs/cgroup")
    return [
        str(path.relative_to(root))
        for path in root.rglob("*")
        if path.is_dir() and "appl" in str(path.relative_to(root))
    ]


def _tables() -> list[str]:
    done = subprocess.run(["nft", "-j", "list", "tables"], capture_output=True, text=True, timeout=10, check=False)
    rows = json.loads(done.stdout or "{}").get("nftables", [])
    return [f"{row['table']['family']} {row['table']['name']}" for row in rows if "table" in row]
