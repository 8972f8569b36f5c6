"""Who serves a socket device: UNIX sockets at a path, or vhost-vsock, here a driver that keeps a diary."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import HostError, Unsupported
from appliance.vmm.vhost.backend import DataPlane
from appliance.vmm.virtio.vsock import VirtioVsock, VsockOptions
from tests.fakes.machine import FakeMachine
from tests.fakes.vhost import FEATURES, FakeDriver
from tests.fakes.virtio_driver import attach

CID = 42


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.sock"


@pytest.mark.parametrize("cid", [0, 2, 0xFFFF_FFFF, 1 << 32])
def test_a_reserved_cid_is_refused(machine: FakeMachine, path: Path, cid: int) -> None:
    with pytest.raises(ValueError, match="CID"):
        VirtioVsock("vsock0", machine.context, options=VsockOptions(guest_cid=cid, socket_path=path))


def test_a_path_that_cannot_be_listened_on_is_named(machine: FakeMachine, tmp_path: Path) -> None:
    wrong = tmp_path / "missing" / "v.sock"
    with pytest.raises(HostError, match=str(wrong)):
        VirtioVsock("vsock0", machine.context, options=VsockOptions(guest_cid=CID, socket_path=wrong))


def test_without_a_path_the_kernel_serves(machine: FakeMachine) -> None:
    driver = FakeDriver(features=FEATURES | 2)
    device = VirtioVsock("vsock0", machine.context, options=VsockOptions(guest_cid=CID), open_vhost=driver.open)
    assert device.data_plane == DataPlane.OFFLOAD
    driver.opened.clear()
    try:
        attach(device)
        (vhost,) = driver.alive
        ring = [
            "set_vring_num",
            "set_vring_base",
            "set_vring_addr",
            "set_vring_kick",
            "set_vring_call",
            "set_vring_err",
        ]
        start = ["set_owner", "get_features", "set_guest_cid", "set_features", "set_mem_table"]
        assert vhost.names() == start + ring * 2 + ["set_running"]
        assert ("set_guest_cid", CID) in vhost.diary
        assert vhost.features & 2
        device.pause()
        assert vhost.closed
        assert vhost.names()[-3:] == ["set_running", "get_vring_base", "get_vring_base"]
        device.resume()
        assert len(driver.alive) == 1
    finally:
        device.close()
    assert driver.alive == []
    assert machine.bridge.watched == {}


def test_a_cid_in_use_is_told(machine: FakeMachine) -> None:
    driver = FakeDriver()
    device = VirtioVsock("vsock0", machine.context, options=VsockOptions(guest_cid=CID), open_vhost=driver.open)
    driver.refuse = {"set_guest_cid"}
    try:
        with pytest.raises(HostError, match="vm 101: vsock0"):
            attach(device)
        assert driver.alive == []
    finally:
        device.close()


def test_neither_a_path_nor_vhost_is_refused(machine: FakeMachine, path: Path) -> None:
    driver = FakeDriver()
    driver.missing = True
    with pytest.raises(Unsupported, match="vhost-vsock"):
        VirtioVsock("vsock0", machine.context, options=VsockOptions(guest_cid=CID), open_vhost=driver.open)
    options = VsockOptions(guest_cid=CID, socket_path=path, data_plane=DataPlane.OFFLOAD)
    with pytest.raises(ValueError, match="offload"):
        VirtioVsock("vsock0", machine.context, options=options)
