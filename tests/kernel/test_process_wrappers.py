"""Rules of the small process-wide wrappers: the service manager's socket, the lock file."""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from appliance.errors import Conflict
from appliance.kernel.lockfile import LockFile
from appliance.kernel.pidfd import send_signal_if, shares_pid_namespace
from appliance.kernel.sd_notify import ServiceManager
from appliance.kernel.spawn import inheritable, posix_spawn, watch_child


def test_the_service_manager_is_told_and_helpers_do_not_inherit_its_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        ServiceManager.take().notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    assert "NOTIFY_SOCKET" not in os.environ


def test_without_a_service_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    ServiceManager.take().notify("READY=1")


def test_a_locked_file_names_its_holder_and_is_free_again_after_close(tmp_path: Path) -> None:
    lock = LockFile(tmp_path / "lock", purpose="data directory")
    with pytest.raises(Conflict, match=rf"data directory is in use by process {os.getpid()}"):
        LockFile(tmp_path / "lock", purpose="data directory")
    lock.close()
    LockFile(tmp_path / "lock", purpose="data directory").close()


def test_a_full_disk_does_not_keep_anyone_from_taking_the_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").symlink_to("/dev/full")
    LockFile(tmp_path / "lock", purpose="data directory").close()


def test_a_spawned_child_has_no_descriptor_but_those_passed_to_it() -> None:
    inherited, passed, answer = (
        os.open("/dev/zero", os.O_RDONLY),
        os.open("/dev/zero", os.O_RDONLY),
        os.memfd_create("a"),
    )
    os.set_inheritable(inherited, True)
    try:
        descriptors = {0: passed, 1: answer, 2: answer, 9: passed}
        pid = posix_spawn(["ls", "/proc/self/fd"], os.environ, descriptors, unwanted=inheritable())
        os.waitpid(pid, 0)
        present = {int(name) for name in os.pread(answer, 1000, 0).split()}
    finally:
        for fd in (inherited, passed, answer):
            os.close(fd)
    assert present - {3} == {0, 1, 2, 9}, "3 is the listing itself"


def test_a_child_that_cannot_be_watched_is_killed_and_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor_is_free(pid: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", no_descriptor_is_free)
    pid = posix_spawn(["sleep", "60"], os.environ, {})
    with pytest.raises(OSError, match="pidfd_open"):
        watch_child(pid)
    assert not Path(f"/proc/{pid}").exists()


def test_a_signal_is_sent_only_to_the_process_that_is_meant() -> None:
    pid = posix_spawn(["sleep", "60"], os.environ, {})
    try:
        send_signal_if(pid, signal.SIGKILL, lambda: False)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        send_signal_if(pid, signal.SIGKILL, lambda: shares_pid_namespace(pid))
    finally:
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    send_signal_if(pid, signal.SIGKILL, lambda: True)  # has ended: nothing happens
    assert not shares_pid_namespace(pid)


def test_a_process_in_another_pid_namespace_is_told_apart() -> None:
    pid = posix_spawn(["unshare", "--pid", "--fork", "--kill-child", "sleep", "60"], os.environ, {})
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        while not (text := children.read_text()):
            time.sleep(0.01)
        assert shares_pid_namespace(pid)
        assert not shares_pid_namespace(int(text))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
