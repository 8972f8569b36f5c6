"""The Debian template as a system container: systemd comes up whole, unprivileged, and goes down orderly."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from appliance.ct import provision
from appliance.model.guest import CtCredentials, NicSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from tests.ct.conftest import SPEC, Host

pytestmark = [pytest.mark.host, pytest.mark.images]
READY = "until [ -S /run/dbus/system_bus_socket ]; do sleep 0.05; done; systemctl is-system-running --wait"
SHOWN = 'for n in $(seq 50); do ip -4 -o addr show eth1 | grep -F "$0" && exit 0; sleep 0.1; done; exit 1'
NIC = NicSpec(slot="net0", model="veth", mac="02:00:00:00:00:01", bridge="vmbr0", name="eth0", ip="192.0.2.5/24")
SYSTEM = replace(SPEC, command=(), memory_mib=512, nics=(NIC,))


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory, images: tuple[Path, Path]) -> Iterator[OpenedVolume]:
    """The template, unpacked once; each container then starts on what the one before left, as one always does."""
    root = tmp_path_factory.mktemp("debian")
    root.chmod(0o755)
    volume = OpenedVolume(volume_id=None, path=root, format=VolumeFormat.SUBVOL, size_bytes=0)
    secret = CtCredentials(password_hash="$6$salt$hash")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(provision.populate(volume, images[1], credentials=secret, log=lambda line: None))
    yield volume
    shutil.rmtree(root)


@pytest.mark.parametrize("features", [frozenset[str](), frozenset({"nesting", "keyctl"})], ids=["plain", "nesting"])
async def test_systemd_comes_up_without_a_failed_unit_and_goes_down_when_asked(
    host: Host, debian: OpenedVolume, features: frozenset[str]
) -> None:
    guest = await host.start(replace(SYSTEM, features=features), rootfs=debian)
    assert (await guest.execute(["/bin/sh", "-c", READY], timeout_s=60)).text == "running"
    assert (await guest.execute(["/bin/systemctl", "--failed", "--no-legend"], timeout_s=10)).text == ""
    assert (await guest.execute(["/bin/hostname"], timeout_s=10)).text == "web"
    assert len((debian.path / "etc/machine-id").read_text().strip()) == 32
    await guest.shutdown()
    async with asyncio.timeout(60):
        reason = await guest.wait()
    assert (reason.kind, reason.detail) == ("shutdown", "powered off")


async def test_a_restart_asked_for_inside_is_told_as_a_reset(host: Host, debian: OpenedVolume) -> None:
    guest = await host.start(SYSTEM, rootfs=debian)
    await guest.execute(["/bin/sh", "-c", READY], timeout_s=60)
    await guest.execute(["/bin/systemctl", "reboot"], timeout_s=10)
    async with asyncio.timeout(60):
        assert (await guest.wait()).kind == "reset"


async def test_an_interface_that_comes_later_gets_its_address_and_a_time_zone_and_locale_hold(
    host: Host, debian: OpenedVolume
) -> None:
    guest = await host.start(replace(SYSTEM, time_zone="Asia/Tokyo", locale="C.UTF-8"), rootfs=debian)
    await guest.execute(["/bin/sh", "-c", READY], timeout_s=60)
    zone = await guest.execute(["/bin/sh", "-c", "date +%Z; . /etc/default/locale; echo $LANG"], timeout_s=10)
    assert zone.text.split() == ["JST", "C.UTF-8"]
    later = NicSpec(slot="net1", model="veth", mac="02:00:00:00:00:02", bridge="vmbr0", name="eth1", ip="192.0.2.9/24")
    made = await guest.execute(
        ["/sbin/ip", "link", "add", "eth1", "type", "veth", "peer", "name", "far1"], timeout_s=10
    )
    assert made.returncode == 0, made.stderr
    await guest.execute(["/sbin/ip", "link", "set", "far1", "up"], timeout_s=10)
    for address in ("192.0.2.9/24", "192.0.2.10/24"):
        said = await guest.renew_network(replace(SYSTEM, nics=(NIC, replace(later, ip=address))), {"eth1"})
        shown = await guest.execute(["/bin/sh", "-c", SHOWN, address], timeout_s=30)
        assert shown.returncode == 0, said
    await guest.stop()
