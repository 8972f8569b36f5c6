"""Control groups of guests: where they are, who owns them, what they may use. Files only; call it in a thread.

Three layouts (cgroups(7)): *pure v2*, one tree at /sys/fs/cgroup; *v1*, a tree for each controller; *hybrid*, v1 plus a
v2 tree at /sys/fs/cgroup/unified. A guest's group is PARENT/ct-ID or PARENT/vm-ID. A container's is made by the OCI
runtime, which sets its limits; ours are handing the one tree systemd manages (`name=systemd`, and v2) to its root, and
freezing it. A VM's is made here (`make`, `attach`). Killing, figures (`cgroup_figures`) and removal are the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from appliance.errors import HostError, TimedOut
from appliance.kernel.cgroup_figures import figures_v1, figures_v2, keyed, read
from appliance.kernel.cgroup_limits import Limits
from appliance.kernel.cgroup_update import MemoryLimit, set_files, set_io, set_memory
from appliance.kernel.mount import Mount, mount_table
from appliance.kernel.walk import subdirectories, walk
from appliance.model.guest import GuestStats, IoLimit

FREEZE_LIMIT_S = 5.0
REMOVE_LIMIT_S = 5.0
_RUN = Path("/run")
_POLL_S = 0.005
_TRIES_BEFORE_THAW = 10
_SYSTEMD = "name=systemd"
_DELEGATED_V1 = ("", "tasks", "cgroup.procs")
_DELEGATED_V2 = ("", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control")


def parent_name(run_dir: Path) -> str:
    """`appliance`, or a name of its own for another run directory, so that two appliances never meet."""
    if run_dir.parent == _RUN and run_dir.name.startswith("appliance"):
        return run_dir.name  # unique on this host by itself, and the mark of this instance
    return f"appliance-{hashlib.sha256(bytes(run_dir)).hexdigest()[:8]}"


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

    def tree_of(self, controller: str) -> Path | None:
        """The tree in which `controller` can be used; None where this host has it not."""
        if controller in self.v1:
            return self.v1[controller]
        offered = read(self.v2 / "cgroup.controllers").split() if self.v2 is not None else []
        return self.v2 if controller in offered else None

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


class ParentGroup:
    """The group above the guests of one run directory. The engines share it, and the last to leave removes it.

    One object for each name (`ParentGroup.named`): it is the lock between making a group below and removing this one.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = threading.Lock()
        self._held = 0

    @staticmethod
    @cache
    def named(name: str) -> ParentGroup:
        """The one of this name in this process."""
        return ParentGroup(name)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Nobody begins to remove it meanwhile: for whoever lets a helper program make a group below. Never waits; call
        it from the loop only, then `settle`."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1

    def settle(self) -> None:
        """Wait until a removal that had begun before `hold` is over."""
        with self.lock:
            pass

    def remove(self, layout: CgroupLayout) -> None:
        """Remove it where it is empty and nobody holds it."""
        with self.lock:
            if self._held == 0:
                for root in layout.roots:
                    with contextlib.suppress(OSError):
                        (root / self.name).rmdir()


class Cgroup:
    """One guest's group, `parent/leaf` in every tree. Blocking, safe to call when it is gone."""

    def __init__(self, layout: CgroupLayout, parent: str, leaf: str) -> None:
        self._layout = layout
        self._parent = parent
        self._leaf = leaf

    @property
    def path(self) -> str:
        """As OCI's cgroupsPath: absolute from each tree's root."""
        return f"/{self._parent}/{self._leaf}"

    @property
    def limits_swap(self) -> bool:
        """Whether swap can be limited here."""
        return self._layout.limits_swap

    def make(self, limits: Limits) -> None:
        """Make it, where it is not there yet, with exactly these limits. Raises `HostError` naming the file, and leaves
        nothing; one where this host has no controller for the processor."""
        if self._layout.tree_of("cpu") is None:
            raise HostError(f"cgroup {self.path}: this host has no cpu controller")
        try:
            for controller in ("cpu", "pids"):
                if (root := self._layout.tree_of(controller)) is not None:
                    self._make_in(root, controller, limits)
        except OSError as error:
            self.remove()
            raise HostError.from_os_error(error, f"cgroup {error.filename or self.path}") from error

    def attach(self, pid: int) -> None:
        """Move a process with all its threads into the group `make` made; nothing happens when it has ended. Raises
        `HostError`."""
        for root in {self._layout.tree_of(controller) for controller in ("cpu", "pids")} - {None}:
            assert root is not None
            file = self._in(root) / "cgroup.procs"
            try:
                file.write_text(str(pid))
            except ProcessLookupError:
                return
            except OSError as error:
                raise HostError.from_os_error(error, f"write {pid} to {file}") from error

    def limit(self, limits: Limits) -> None:
        """Change the processor and process limits of the group as it runs. Raises `HostError` naming the file."""
        for controller in ("cpu", "pids"):
            with self._changing(controller) as (group, v2):
                if group is not None:
                    set_files(group, controller, limits, v2=v2)

    def limit_memory(self, limit: MemoryLimit) -> None:
        """Change the memory limit. Raises `DoesNotFit`, `HostError`."""
        with self._changing("memory") as (group, v2):
            if group is not None:
                set_memory(group, limit, v2=v2)

    def limit_io(self, disks: Collection[str], limit: IoLimit) -> None:
        """Change the limit of traffic with each of these disks ("8:0"). Raises `HostError`."""
        with self._changing("io" if self._layout.pure_v2 else "blkio") as (group, v2):
            if group is not None:
                set_io(group, disks, limit, v2=v2)

    @contextlib.contextmanager
    def _changing(self, controller: str) -> Iterator[tuple[Path | None, bool]]:
        """The group in the controller's tree (None where this host has it not), and whether that is v2."""
        root = self._layout.tree_of(controller)
        try:
            yield (None if root is None else self._in(root)), root == self._layout.v2
        except OSError as error:
            raise HostError.from_os_error(error, f"cgroup {error.filename or self.path}") from error

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
            try:
                walk(group, subdirectories, _remove_group)
                _remove_group(None, group)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise HostError.from_os_error(error, f"rmdir {group}") from error

    def remove_parent(self) -> None:
        """Remove the parent where it is empty and not held."""
        ParentGroup.named(self._parent).remove(self._layout)

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
            return read(self._in(root) / "freezer.state").strip() == "FROZEN"
        if self._layout.v2 is not None:
            return "frozen 1" in read(self._in(self._layout.v2) / "cgroup.events").splitlines()
        return False

    def out_of_memory_kills(self) -> int:
        """How many processes the kernel killed because the memory limit was reached."""
        if (root := self._layout.v1.get("memory")) is not None:
            return keyed(self._in(root) / "memory.oom_control").get("oom_kill", 0)
        if self._layout.v2 is not None:
            return keyed(self._in(self._layout.v2) / "memory.events").get("oom_kill", 0)
        return 0

    def stats(self) -> GuestStats:
        """Processor, memory, disk and process figures; zeros for controllers this host lacks."""
        if self._layout.pure_v2:
            assert self._layout.v2 is not None
            return figures_v2(self._in(self._layout.v2))
        return figures_v1({name: self._in(root) for name, root in self._layout.v1.items()})

    def _in(self, root: Path) -> Path:
        return root / self._parent / self._leaf

    def _make_in(self, root: Path, controller: str, limits: Limits) -> None:
        """Raises `OSError`."""
        v2, group = root == self._layout.v2, self._in(root)
        with ParentGroup.named(self._parent).lock:
            group.parent.mkdir(exist_ok=True)
            if v2:
                for above in (root, group.parent):
                    _enable(controller, above)
            group.mkdir(exist_ok=True)
        for name, text in limits.files(controller, v2=v2).items():
            (group / name).write_text(text)

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

        def note(fd: int) -> list[str]:
            found.update(int(pid) for pid in _read_at(fd, "cgroup.procs").split())
            return subdirectories(fd)

        for root in self._layout.roots:
            with contextlib.suppress(OSError):  # it goes, or has gone
                walk(self._in(root), note)
        return found - {0}


def _enable(controller: str, group: Path) -> None:
    """Let the groups directly below use it (cgroup-v2, "Controlling Controllers"). Raises `OSError`."""
    file = group / "cgroup.subtree_control"
    if controller not in file.read_text().split():
        file.write_text(f"+{controller}")


def _read_at(directory: int, name: str) -> bytes:
    """A file's content; nothing where it cannot be read (a threaded group's processes are told by the one above)."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
        with os.fdopen(fd, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _remove_group(above: int | None, name: str | Path) -> None:
    """Raises `OSError`."""
    deadline = time.monotonic() + REMOVE_LIMIT_S
    while True:
        try:
            os.rmdir(name, dir_fd=above)
        except FileNotFoundError:
            return
        except OSError:  # EBUSY for a moment after the last process has died
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)
        else:
            return
