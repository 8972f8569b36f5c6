"""Control groups of VMs: each QEMU has one of its own, PARENT/vm-ID, which limits its processor time.

Memory is not limited there: a VM's own is allocated to it, and QEMU's overhead must not kill it. Everything blocks
briefly: call it in a thread.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError
from appliance.kernel.cgroup_limits import Limits
from appliance.kernel.cgroups import Cgroup, CgroupLayout, ParentGroup, parent_name
from appliance.model.guest import GuestId, VmSpec

PROCESSES_MAX = 16_384
"""Threads of one QEMU: a vCPU each, and a pool of block workers; it starts no programs."""
_LEAF = "vm-"
_PROBE = "vm-probe"

log = logging.getLogger(__name__)


def limits_of(spec: VmSpec) -> Limits:
    """What `spec` asks for."""
    return Limits(cpus=spec.cpu_limit, cpu_units=spec.cpu_units, processes=PROCESSES_MAX)


class VmGroups:
    """The groups of one engine's VMs. Before `probe`, and where that found a problem, there are none."""

    def __init__(self, run_dir: Path) -> None:
        self._parent = ParentGroup.named(parent_name(run_dir))
        self._layout = CgroupLayout({}, None)

    def probe(self) -> str:
        """Try: make a group with limits and remove it, and what ended VMs left. Why there are none; empty when it works."""
        layout = CgroupLayout.detect()
        group = Cgroup(layout, self._parent.name, _PROBE)
        try:
            group.make(Limits(cpus=1, processes=1))
            group.remove()
        except HostError as error:
            return str(error)
        finally:
            self._remove_empty(layout)
        self._layout = layout
        return ""

    def of(self, guest_id: GuestId) -> VmGroup:
        """The group of a VM, whether it is there or not."""
        return VmGroup(
            guest_id, Cgroup(self._layout, self._parent.name, f"{_LEAF}{guest_id}"), bool(self._layout.roots)
        )

    def _remove_empty(self, layout: CgroupLayout) -> None:
        """One that holds a process cannot be removed, which is as it should be."""
        for root in layout.roots:
            for group in (root / self._parent.name).glob(f"{_LEAF}*"):
                with contextlib.suppress(OSError):
                    group.rmdir()
        self._parent.remove(layout)


@dataclass(frozen=True, slots=True)
class VmGroup:
    """One VM's group; where the host has none, nothing happens."""

    guest_id: GuestId
    _cgroup: Cgroup
    _usable: bool

    def make(self, limits: Limits) -> None:
        """Before the launch. Raises `HostError`."""
        if self._usable:
            self._cgroup.make(limits)

    def attach(self, pid: int) -> None:
        """Between the launch and the guest's first instruction. Raises `HostError`."""
        if self._usable:
            self._cgroup.attach(pid)

    def clear(self) -> None:
        """After QEMU's end: end what it may have left in the group, and remove it. Failures are told, never raised."""
        if self._usable:
            try:
                self._cgroup.kill()
            except HostError as error:
                log.error("vm %s: %s", self.guest_id, error)
            self.remove()

    def remove(self) -> None:
        """Remove it where nothing runs in it. Failures are told, never raised."""
        if self._usable:
            try:
                self._cgroup.remove()
            except HostError as error:
                log.error("vm %s: %s", self.guest_id, error)
            self._cgroup.remove_parent()
