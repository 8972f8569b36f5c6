"""What a control group may use, in the words of cgroup v1 and v2. Pure."""

from __future__ import annotations

from dataclasses import dataclass

CPU_PERIOD_US = 100_000
_CPU_QUOTA_MIN_US = 1000  # the kernel's own (sched-bwc)
_V1_SHARES_PER_UNIT = 1024 / 100  # our cpuunits are cgroup2 weights (default 100); cgroup v1's default share is 1024


def cpu_quota_us(cpus: float) -> int:
    """The processor time of `cpus` processors in each `CPU_PERIOD_US`."""
    return max(round(cpus * CPU_PERIOD_US), _CPU_QUOTA_MIN_US)


def cpu_shares(units: int) -> int:
    """cgroup v1's cpu.shares of PVE's cpuunits."""
    return min(max(round(units * _V1_SHARES_PER_UNIT), 2), 262_144)


def cpu_weight(units: int) -> int:
    """cgroup v2's cpu.weight of PVE's cpuunits."""
    return min(max(units, 1), 10_000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a group may use. `cpus` and `processes` 0: no limit; `cpu_units` against other groups, 100 is usual."""

    cpus: float = 0.0
    cpu_units: int = 100
    processes: int = 0

    def files(self, controller: str, *, v2: bool) -> dict[str, str]:
        """File to content, in the order to write them (cgroup-v1/sched-bwc, cgroup-v2 "CPU", "PID")."""
        quota = cpu_quota_us(self.cpus) if self.cpus else None
        match controller:
            case "cpu" if v2:
                return {
                    "cpu.max": f"{'max' if quota is None else quota} {CPU_PERIOD_US}",
                    "cpu.weight": str(cpu_weight(self.cpu_units)),
                }
            case "cpu":
                return {
                    "cpu.cfs_period_us": str(CPU_PERIOD_US),
                    "cpu.cfs_quota_us": str(-1 if quota is None else quota),
                    "cpu.shares": str(cpu_shares(self.cpu_units)),
                }
            case _:
                return {"pids.max": str(self.processes or "max")}
