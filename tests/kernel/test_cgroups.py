"""Control groups as files: layouts, limits in both versions' words, figures, and the parent nobody removes too early."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.kernel.cgroup_limits import Limits
from appliance.kernel.cgroups import Cgroup, CgroupLayout, ParentGroup, parent_name
from appliance.kernel.mount import mount_table

HYBRID = """\
30 27 0:26 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct
31 27 0:27 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
32 27 0:28 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
33 27 0:29 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
"""
PURE = "33 27 0:29 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


def test_layouts_are_read_from_the_mount_table() -> None:
    hybrid, pure = CgroupLayout.detect(mount_table(HYBRID)), CgroupLayout.detect(mount_table(PURE))
    assert set(hybrid.v1) == {"cpu", "cpuacct", "memory", "name=systemd"}
    assert hybrid.v2 == Path("/sys/fs/cgroup/unified")
    assert not hybrid.pure_v2
    assert len(hybrid.roots) == 4
    assert pure.pure_v2


def v2_group(root: Path, files: dict[str, str]) -> Cgroup:
    group = root / "appliance/ct-101"
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name).write_text(text)
    return Cgroup(CgroupLayout({}, root), "appliance", "ct-101")


def test_figures_of_a_cgroup2(tmp_path: Path) -> None:
    files = {
        "cpu.stat": "usage_usec 2500000\nuser_usec 1\n",
        "memory.current": "5000\n",
        "memory.stat": "anon 1\ninactive_file 1000\n",
        "memory.max": "max\n",
        "pids.current": "3\n",
        "io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2 rios=1\n",
    }
    stats = v2_group(tmp_path, files).stats()
    assert (stats.cpu_seconds, stats.memory_bytes, stats.memory_max_bytes, stats.processes) == (2.5, 4000, 0, 3)
    assert (stats.disk_read_bytes, stats.disk_write_bytes) == (11, 22)


def test_figures_of_a_group_that_is_gone_are_zero(tmp_path: Path) -> None:
    stats = Cgroup(CgroupLayout({"memory": tmp_path}, None), "appliance", "ct-1").stats()
    assert stats.memory_bytes == 0
    assert stats.processes == 0


def test_a_frozen_cgroup2_says_so_in_its_events(tmp_path: Path) -> None:
    assert v2_group(tmp_path / "a", {"cgroup.events": "populated 1\nfrozen 1\n"}).frozen()
    assert not v2_group(tmp_path / "b", {"cgroup.events": "populated 1\nfrozen 0\n"}).frozen()


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    assert v2_group(tmp_path, {"memory.events": "oom 2\noom_kill 1\n"}).out_of_memory_kills() == 1


def test_two_run_directories_never_share_a_parent() -> None:
    names = {parent_name(Path(text)) for text in ("/run/appliance", "/run/a", "/run/b")}
    assert len(names) == 3
    assert "appliance" in names


@pytest.mark.parametrize(
    ("limits", "v1", "v2"),
    [
        (Limits(), {"cpu.cfs_quota_us": "-1", "cpu.shares": "1024"}, {"cpu.max": "max 100000", "cpu.weight": "100"}),
        (Limits(cpus=0.2, cpu_units=50), {"cpu.cfs_quota_us": "20000", "cpu.shares": "512"},
         {"cpu.max": "20000 100000", "cpu.weight": "50"}),
        (Limits(cpus=0.001, cpu_units=262_144), {"cpu.cfs_quota_us": "1000", "cpu.shares": "262144"},
         {"cpu.max": "1000 100000", "cpu.weight": "10000"}),
    ],
)  # fmt: skip
def test_limits_are_written_in_the_words_of_each_version(
    limits: Limits, v1: dict[str, str], v2: dict[str, str]
) -> None:
    assert limits.files("cpu", v2=False) == {"cpu.cfs_period_us": "100000"} | v1
    assert limits.files("cpu", v2=True) == v2
    assert limits.files("pids", v2=True) == {"pids.max": "max"}
    assert Limits(processes=7).files("pids", v2=False) == {"pids.max": "7"}


def test_a_controller_is_used_in_the_tree_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").write_text("cpu io pids\n")
    v1 = Path("/v1/cpu")
    assert CgroupLayout({"cpu": v1}, tmp_path).tree_of("cpu") == v1
    assert CgroupLayout({"cpu": v1}, tmp_path).tree_of("pids") == tmp_path
    assert CgroupLayout({}, tmp_path).tree_of("hugetlb") is None


def test_controllers_are_passed_down_to_the_group_on_cgroup2(tmp_path: Path) -> None:
    parent = tmp_path / "appliance"
    parent.mkdir()
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    (tmp_path / "cgroup.subtree_control").write_text("cpu\n")
    (parent / "cgroup.subtree_control").write_text("\n")
    group = Cgroup(CgroupLayout({}, tmp_path), "appliance", "vm-100")
    group.make(Limits(cpus=1.5, processes=9))
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+pids"
    assert (parent / "vm-100/cpu.max").read_text() == "150000 100000"
    assert (parent / "vm-100/pids.max").read_text() == "9"
    group.attach(42)
    assert (parent / "vm-100/cgroup.procs").read_text() == "42"


def test_a_group_that_cannot_be_made_is_an_error_naming_the_file(tmp_path: Path) -> None:
    nowhere = tmp_path / "missing"
    with pytest.raises(HostError, match=f"cgroup {nowhere}/appliance"):
        Cgroup(CgroupLayout({"cpu": nowhere}, None), "appliance", "vm-100").make(Limits())
    with pytest.raises(HostError, match="no cpu controller"):
        Cgroup(CgroupLayout({}, None), "appliance", "vm-100").make(Limits())


def test_a_parent_that_is_held_or_not_empty_stays(tmp_path: Path) -> None:
    layout, parent = CgroupLayout({"cpu": tmp_path}, None), ParentGroup.named("appliance-test")
    directory = tmp_path / parent.name
    (directory / "vm-100").mkdir(parents=True)
    parent.remove(layout)
    assert directory.exists()
    (directory / "vm-100").rmdir()
    with parent.hold():
        parent.settle()
        parent.remove(layout)
        assert directory.exists()
    parent.remove(layout)
    assert not directory.exists()


def test_a_container_cannot_nest_groups_too_deep_for_their_removal(tmp_path: Path) -> None:
    group = tmp_path / "appliance/ct-101"
    group.mkdir(parents=True)
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(3000):  # over Python's recursion limit, and a path too long to name
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    cgroup = Cgroup(CgroupLayout({}, tmp_path), "appliance", "ct-101")
    cgroup.kill()
    cgroup.remove()
    assert not group.exists()
