"""What of the host matters to containers, and where theirs are on it. Blocking where it reads; no state changes."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.ct import confinement, oci
from appliance.kernel.cgroups import Cgroup, CgroupLayout, ParentGroup, parent_name
from appliance.model.guest import GuestId

LXCFS = Path("/var/lib/lxcfs")
RESOLVER = Path("/etc/resolv.conf")
LOCALTIME = Path("/etc/localtime")
ZONES = Path("/usr/share/zoneinfo")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Places:
    """Names of everything a container has on this host, by its id. One value for each run directory."""

    run_dir: Path
    layout: CgroupLayout

    @property
    def directory(self) -> Path:
        """Holds one bundle directory a container."""
        return self.run_dir / "ct"

    @property
    def runtime_state(self) -> Path:
        return self.directory / "runtime"

    @property
    def cgroup_parent(self) -> ParentGroup:
        return ParentGroup.named(parent_name(self.run_dir))

    def bundle(self, guest_id: GuestId) -> Path:
        return self.directory / str(guest_id)

    def cgroup(self, guest_id: GuestId) -> Cgroup:
        return Cgroup(self.layout, self.cgroup_parent.name, f"ct-{guest_id}")

    def known_ids(self) -> list[GuestId]:
        """Every container that has a bundle, alive or not."""
        if not self.directory.is_dir():
            return []
        return sorted(GuestId(int(entry.name)) for entry in self.directory.iterdir() if entry.name.isdigit())


def make_directories(places: Places) -> None:
    """Make the run directory passable: a container's root, a stranger to the host, must reach its own mounts."""
    places.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    for directory in (places.run_dir, places.directory):
        directory.chmod(directory.stat().st_mode | 0o011)


def facts(layout: CgroupLayout, *, pids_limit: int) -> oci.HostFacts:
    """Look at the host now."""
    status = Path("/proc/self/status").read_text()
    mask = next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm:"))
    return oci.HostFacts(
        cgroup2=layout.pure_v2,
        swap_limit=layout.limits_swap,
        lxcfs_files=_lxcfs_files(),
        permitted_capabilities=confinement.parse_capability_mask(mask),
        pids_limit=pids_limit,
    )


def architecture() -> str:
    """The host's, in Debian's word."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of the host a container is told: its resolv.conf, and the name of its time zone ("" where it has none)."""

    resolver: str = ""
    time_zone: str = ""


def surroundings() -> Surroundings:
    """Look now."""
    return Surroundings(_read(RESOLVER), _time_zone())


def zone_file(name: str) -> bytes:
    """A file of the host's time zone database (tzfile(5)); empty when there is none of this name."""
    try:
        data = (ZONES / name).read_bytes()
    except OSError:
        return b""
    return data if data.startswith(b"TZif") else b""


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _time_zone() -> str:
    """As localtime(5) tells it; in the words of Debian's /etc/timezone where the link is a file."""
    try:
        return str(LOCALTIME.readlink()).partition("zoneinfo/")[2]
    except OSError:
        return _read(LOCALTIME.with_name("timezone")).strip()


def _lxcfs_files() -> dict[str, Path]:
    if not LXCFS.is_mount():
        return {}
    files: Sequence[tuple[str, Path]] = [(name, LXCFS / "proc" / name) for name in oci.LXCFS_FILES]
    return {name: path for name, path in files if path.exists()}
