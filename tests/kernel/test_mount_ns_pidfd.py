"""Kernel wrappers do what their system call says, and their errors name the call and the object."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.kernel import loop, mount, ns, openat2, pidfd, spawn


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "target"
    path.mkdir()
    yield path
    for each in mount.mounts_under(path):
        mount.umount(each)


@pytest.mark.host
def test_an_idmapped_mount_shows_shifted_owners_and_stores_the_plain_ones(tmp_path: Path, target: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "file").touch()
    userns, tree = ns.user_namespace(100_000, 65_536), mount.open_tree(source)
    try:
        mount.mount_setattr(tree, about=source, set_=mount.MOUNT_ATTR_NODEV, userns_fd=userns)
        mount.move_mount(tree, target)
    finally:
        os.close(userns)
        os.close(tree)
    assert (target / "file").stat().st_uid == 100_000
    assert (source / "file").stat().st_uid == 0
    assert mount.mounts_under(tmp_path) == [target]
    assert "nodev" in next(each for each in mount.mount_table() if each.target == target).options


@pytest.mark.host
def test_a_detached_mount_that_is_closed_leaves_nothing(tmp_path: Path) -> None:
    tree = mount.open_tree(tmp_path)
    os.close(tree)
    assert mount.mounts_under(tmp_path) == []


@pytest.mark.host
def test_a_loop_device_lasts_as_long_as_its_mount(tmp_path: Path, target: Path) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(8 << 20)
    subprocess.run(["mkfs.ext4", "-qF", image], check=True)
    block_fd, device = loop.attach_file(image)
    tree = mount.new_mount("ext4", str(device), {"errors": "remount-ro"})
    os.close(block_fd)
    mount.move_mount(tree, target)
    os.close(tree)
    backing = Path("/sys/block") / device.name / "loop/backing_file"
    assert backing.read_text().strip() == str(image)
    mount.umount(target)
    assert not backing.exists() or backing.read_text().strip() != str(image)


@pytest.mark.host
def test_a_file_that_is_no_file_system_is_refused_with_the_kernels_reason(tmp_path: Path) -> None:
    image = tmp_path / "garbage"
    image.write_bytes(b"\0" * (1 << 20))
    block_fd, device = loop.attach_file(image)
    try:
        with pytest.raises(OSError, match=f"fsconfig ext4 {device}") as caught:
            mount.new_mount("ext4", str(device), {})
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(block_fd)


def test_errors_name_call_and_object(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"open_tree .*/none: No such file"):
        mount.open_tree(tmp_path / "none")
    with pytest.raises(OSError, match=r"umount2 .*/none"):
        mount.umount(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="posix_spawn no-such-program"):
        spawn.posix_spawn(["no-such-program"], {}, {})


def test_the_mount_table_unescapes_names() -> None:
    line = r"36 35 98:0 / /mnt/a\040b\134c rw,noatime shared:1 master:2 - ext3 /dev/root rw,errors=continue"
    parsed = mount.mount_table(line)[0]
    assert parsed.target == Path("/mnt/a b\\c")
    assert (parsed.fs_type, parsed.source) == ("ext3", "/dev/root")
    assert parsed.super_options == {"rw", "errors=continue"}


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../../etc/passwd", "out/passwd", "up/etc/passwd", "/out/../out/passwd"]
)
def test_no_path_leaves_the_root(tmp_path: Path, path: str) -> None:
    (tmp_path / "out").symlink_to("/etc")
    (tmp_path / "up").symlink_to("../../../../../../../..")
    root = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileNotFoundError, match="openat2"):
            openat2.open_in_root(root, path, os.O_RDONLY)
    finally:
        os.close(root)


def test_a_magic_link_is_refused(tmp_path: Path) -> None:
    proc = os.open("/proc/self", os.O_RDONLY)
    try:
        with pytest.raises(OSError) as caught:
            openat2.open_in_root(proc, "root/etc/passwd", os.O_RDONLY)
        assert caught.value.errno in (errno.ELOOP, errno.EXDEV)
    finally:
        os.close(proc)


def test_a_process_is_known_by_pid_and_start_time() -> None:
    child = subprocess.Popen(["sleep", "60"])
    known = pidfd.identify(child.pid)
    assert known is not None
    fd = pidfd.pidfd_open(known)
    assert fd is not None
    pidfd.pidfd_send_signal(fd, 9)
    assert child.wait() == -9
    pidfd.pidfd_send_signal(fd, 9)
    os.close(fd)
    assert pidfd.pidfd_open(known) is None
    assert pidfd.identify(child.pid) is None
    myself = pidfd.identify(os.getpid())
    assert myself is not None
    assert pidfd.pidfd_open(pidfd.ProcessIdentity(os.getpid(), myself.start_ticks + 1)) is None


def test_a_spawned_child_has_the_descriptors_it_was_given_and_none_of_ours(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    ours = os.open(tmp_path, os.O_RDONLY)
    pid = spawn.posix_spawn(["sh", "-c", "ls -l /proc/$$/fd >&7"], dict(os.environ), {7: write_end})
    os.close(write_end)
    assert os.waitpid(pid, 0)[1] == 0
    seen = os.read(read_end, 1 << 16).decode()
    os.close(read_end)
    os.close(ours)
    assert " 7 -> pipe:" in seen
    assert str(tmp_path) not in seen
