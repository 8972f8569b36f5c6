"""Control groups of containers: where they are, who owns them, what they count. Files only; call it in a thread.

Three layouts (cgroups(7)): *pure v2*, one tree at /sys/fs/cgroup; *v1*, a tree for each controller; *hybrid*, v1 plus a
v2 tree at /sys/fs/cgroup/unified. The runtime makes a container's groups and sets its limits. Ours are: handing the
one tree systemd manages (`name=systemd`, and v2) to the container's root, freezing, figures, killing, removing.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError, TimedOut
from appliance.kernel.mount import Mount, mount_table
from appliance.model.guest import GuestStats

FREEZE_LIMIT_S = 5.0
REMOVE_LIMIT_S = 5.0
_POLL_S = 0.005
_TRIES_BEFORE_THAW = 10
_SYSTEMD = "name=systemd"
_DELEGATED_V1 = ("", "tasks", "cgroup.procs")
_DELEGATED_V2 = ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


@dataclass(frozen=True, slots=True)
class CgroupLayout:
    """The host's trees: `v1` maps a controller ("memory", "name=systemd") to its root; `v2` is the unified tree."""

    v1: Mapping[str, Path]
    v2: Path | None

    @property
    def pure_v2(self) -> bool:
        return not self.v1 and self.v2 is not None

    @property
    def roots(self) -> list[Path]:
        """Every tree once (cpu and cpuacct are often one)."""
        return list(dict.fromkeys([*self.v1.values(), *([self.v2] if self.v2 else [])]))

    @property
    def limits_swap(self) -> bool:
        """Whether swap can be limited here."""
        if self.pure_v2:
            return True
        memory = self.v1.get("memory")
        return memory is not None and (memory / "memory.memsw.limit_in_bytes").exists()

    @staticmethod
    def detect(table: list[Mount] | None = None) -> CgroupLayout:
        """Read the mount table. Where a tree is mounted twice the first mount counts."""
        v1: dict[str, Path] = {}
        v2: Path | None = None
        for mount in mount_table() if table is None else table:
            if mount.fs_type == "cgroup2" and v2 is None:
                v2 = mount.target
            elif mount.fs_type == "cgroup":
                flags = mount.super_options - {"rw", "ro", "xattr", "clone_children", "noprefix"}
                for controller in flags:
                    v1.setdefault(controller.split(",")[0], mount.target)
        return CgroupLayout(v1, v2)


class Cgroup:
    """One container's group, `parent/leaf` in every tree. Blocking, safe to call when it is gone."""

    def __init__(self, layout: CgroupLayout, parent: str, leaf: str) -> None:
        self._layout = layout
        self._parent = parent
        self._leaf = leaf

    @property
    def path(self) -> str:
        """As OCI's cgroupsPath: absolute from each tree's root."""
        return f"/{self._parent}/{self._leaf}"

    def delegate(self, owner: int) -> None:
        """Give the group systemd manages to `owner`; controllers stay root's, so limits still bind. Raises `HostError`.

        On pure v2 the runtime does this itself (runtime-spec, "Cgroup ownership").
        """
        if self._layout.pure_v2:
            return
        trees = [(self._layout.v1.get(_SYSTEMD), _DELEGATED_V1), (self._layout.v2, _DELEGATED_V2)]
        for root, names in trees:
            if root is not None:
                group = self._in(root)
                try:
                    group.mkdir(parents=True, exist_ok=True)
                    for name in names:
                        os.chown(group / name, owner, owner)
                except OSError as error:
                    raise HostError.from_os_error(error, f"delegate {group}") from error

    def kill(self) -> None:
        """SIGKILL every process in it, and wait until none is left. Raises `TimedOut`."""
        deadline = time.monotonic() + REMOVE_LIMIT_S
        while pids := self._pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._set_frozen(False)
            if time.monotonic() > deadline:
                raise TimedOut(f"cgroup {self.path}: processes {sorted(pids)} to die", REMOVE_LIMIT_S)
            time.sleep(_POLL_S)

    def remove(self) -> None:
        """Remove the group and those below it in every tree. Raises `HostError` naming the group that stays."""
        for root in self._layout.roots:
            group = self._in(root)
            for directory in [*reversed(list(_groups_below(group))), group]:
                _remove_group(directory)

    def remove_parent(self) -> None:
        """Remove the parent where it is empty."""
        for root in self._layout.roots:
            with contextlib.suppress(OSError):
                (root / self._parent).rmdir()

    def freeze(self, *, frozen: bool) -> None:
        """Stop or continue every process; returns once it is so. Raises `HostError`, `TimedOut`."""
        deadline = time.monotonic() + FREEZE_LIMIT_S
        if not self._set_frozen(frozen):
            raise HostError(f"cgroup {self.path}: this host has no freezer")
        attempts = 0
        while self.frozen() is not frozen:
            if time.monotonic() > deadline:
                self._set_frozen(False)
                raise TimedOut(f"cgroup {self.path}: {'freeze' if frozen else 'thaw'}", FREEZE_LIMIT_S)
            attempts += 1
            if frozen and attempts % _TRIES_BEFORE_THAW == 0:
                # v1 never gets there when it caught an execve half-way: the thread that waits for its siblings to die
                # cannot freeze, and frozen siblings do not die (seen right after a start). Let them go on for a moment.
                self._set_frozen(False)
                time.sleep(_POLL_S)
            time.sleep(_POLL_S)
            self._set_frozen(frozen)

    def frozen(self) -> bool:
        """Whether it is frozen now."""
        if (root := self._layout.v1.get("freezer")) is not None:
            return _read(self._in(root) / "freezer.state").strip() == "FROZEN"
        if self._layout.v2 is not None:
            return "frozen 1" in _read(self._in(self._layout.v2) / "cgroup.events").splitlines()
        return False

    def out_of_memory_kills(self) -> int:
        """How many processes the kernel killed because the memory limit was reached."""
        if (root := self._layout.v1.get("memory")) is not None:
            return _keyed(self._in(root) / "memory.oom_control").get("oom_kill", 0)
        if self._layout.v2 is not None:
            return _keyed(self._in(self._layout.v2) / "memory.events").get("oom_kill", 0)
        return 0

    def stats(self) -> GuestStats:
        """Processor, memory, disk and process figures; zeros for controllers this host lacks."""
        if self._layout.pure_v2:
            assert self._layout.v2 is not None
            return _stats_v2(self._in(self._layout.v2))
        return _stats_v1({name: self._in(root) for name, root in self._layout.v1.items()})

    def _in(self, root: Path) -> Path:
        return root / self._parent / self._leaf

    def _set_frozen(self, frozen: bool) -> bool:
        if (root := self._layout.v1.get("freezer")) is not None:
            file, text = self._in(root) / "freezer.state", "FROZEN" if frozen else "THAWED"
        elif self._layout.v2 is not None:
            file, text = self._in(self._layout.v2) / "cgroup.freeze", "1" if frozen else "0"
        else:
            return False
        with contextlib.suppress(OSError):
            file.write_text(text)
            return True
        return False

    def _pids(self) -> set[int]:
        found: set[int] = set()
        for root in self._layout.roots:
            group = self._in(root)
            for directory in [group, *_groups_below(group)]:
                found.update(int(pid) for pid in _read(directory / "cgroup.procs").split())
        return found - {0}


def _groups_below(group: Path) -> Iterator[Path]:
    """All groups under `group`, parents before their children."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(group):
            if entry.is_dir(follow_symlinks=False):
                yield Path(entry.path)
                yield from _groups_below(Path(entry.path))


def _remove_group(directory: Path) -> None:
    deadline = time.monotonic() + REMOVE_LIMIT_S
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return
        except OSError as error:  # EBUSY for a moment after the last process has died
            if time.monotonic() > deadline:
                raise HostError.from_os_error(error, f"rmdir {directory}") from error
            time.sleep(_POLL_S)
        else:
            return


def _stats_v1(groups: Mapping[str, Path]) -> GuestStats:
    nowhere = Path("/nonexistent")
    memory, cpu = groups.get("memory", nowhere), groups.get("cpuacct", nowhere)
    inactive = _keyed(memory / "memory.stat").get("total_inactive_file", 0)
    transferred = _read(groups.get("blkio", nowhere) / "blkio.throttle.io_service_bytes_recursive")
    read_bytes, written_bytes = _io_v1(transferred)
    return GuestStats(
        cpu_seconds=_number(cpu / "cpuacct.usage") / 1e9,
        memory_bytes=max(_number(memory / "memory.usage_in_bytes") - inactive, 0),
        memory_max_bytes=_limit(memory / "memory.limit_in_bytes"),
        disk_read_bytes=read_bytes,
        disk_write_bytes=written_bytes,
        processes=_number(groups.get("pids", nowhere) / "pids.current"),
    )


def _stats_v2(group: Path) -> GuestStats:
    read_bytes, written_bytes = _io_v2(_read(group / "io.stat"))
    inactive = _keyed(group / "memory.stat").get("inactive_file", 0)
    return GuestStats(
        cpu_seconds=_keyed(group / "cpu.stat").get("usage_usec", 0) / 1e6,
        memory_bytes=max(_number(group / "memory.current") - inactive, 0),
        memory_max_bytes=_limit(group / "memory.max"),
        disk_read_bytes=read_bytes,
        disk_write_bytes=written_bytes,
        processes=_number(group / "pids.current"),
    )


def _io_v1(text: str) -> tuple[int, int]:
    """Lines "MAJOR:MINOR Read|Write|… BYTES" (blkio-controller)."""
    rows = [line.split() for line in text.splitlines()]
    totals = {word: sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == word) for word in ("Read", "Write")}
    return totals["Read"], totals["Write"]


def _io_v2(text: str) -> tuple[int, int]:
    """Lines "MAJOR:MINOR rbytes=… wbytes=… …" (cgroup-v2, IO)."""
    pairs = [item.split("=") for line in text.splitlines() for item in line.split()[1:]]
    totals = {word: sum(int(pair[1]) for pair in pairs if pair[0] == word) for word in ("rbytes", "wbytes")}
    return totals["rbytes"], totals["wbytes"]


def _limit(path: Path) -> int:
    """A limit file; "no limit" ("max", or v1's huge number) is 0."""
    value = _number(path)
    return value if value < 1 << 60 else 0


def _number(path: Path) -> int:
    text = _read(path).strip()
    return int(text) if text.isdigit() else 0


def _keyed(path: Path) -> dict[str, int]:
    rows = (line.split() for line in _read(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def _read(path: Path) -> str:
    """A small file; empty when it or its group is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
