"""Rules of the small process-wide wrappers: the service manager's socket, the lock file."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from appliance.errors import Conflict
from appliance.kernel.lockfile import LockFile
from appliance.kernel.sd_notify import ServiceManager


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
