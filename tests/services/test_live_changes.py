"""A running container is given what it can take of a change; the rest is pending, and told as such."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from tests.fakes.engines import FakeRunningGuest
from tests.fakes.guest_host import ADMIN, GuestHost, GuestWorld, open_world

CT, VM = GuestKind.LXC, GuestKind.QEMU


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[GuestWorld]:
    async with open_world(GuestHost(tmp_path)) as opened:
        yield opened


async def running(world: GuestWorld) -> FakeRunningGuest:
    guest = await world.make_ct(start=True, memory="512")
    assert guest is not None
    return guest


async def put(world: GuestWorld, *, delete: tuple[str, ...] = (), revert: tuple[str, ...] = (), **keys: str) -> None:
    back, gone = world.guests.configuration.reverting(CT, 101, revert)
    await world.guests.configuration.update(
        CT, 101, put={**back, **keys}, delete=[*delete, *gone], digest=None, user=ADMIN
    )


def waiting(world: GuestWorld, kind: GuestKind = CT, guest_id: int = 101) -> dict[str, tuple[str | None, str | None]]:
    """Key to (in force, to come) of what is pending."""
    return {row.key: (row.running, row.configured) for row in world.guests.configuration.pending(kind, guest_id)}


async def test_limits_are_in_force_at_once(world: GuestWorld) -> None:
    guest = await running(world)
    await put(world, memory="1024", cpulimit="1.5", description="notes")
    assert guest.asked == ["cpulimit", "memory"]
    assert waiting(world) == {}


async def test_what_cannot_be_changed_stays_pending_and_comes_with_the_next_start(world: GuestWorld) -> None:
    guest = await running(world)
    guest.cannot_change["memory"] = "in use"
    with pytest.raises(InvalidParameter, match="memory: in use"):
        await put(world, memory="64", hostname="other", features="nesting=1")
    assert waiting(world) == {
        "memory": ("512", "64"), "hostname": ("CT101", "other"), "features": (None, "nesting=1"),
    }  # fmt: skip
    assert world.guests.config(101)[0]["hostname"] == "other"
    await world.succeed(await world.guests.power.reboot(CT, 101, user=ADMIN))
    assert waiting(world) == {}


async def test_a_change_taken_back_is_not_pending_and_one_can_be_dropped(world: GuestWorld) -> None:
    await running(world)
    await put(world, hostname="other", nameserver="192.0.2.1")
    await put(world, hostname="CT101")
    assert waiting(world) == {"nameserver": (None, "192.0.2.1")}
    await put(world, revert=("nameserver", "hostname"))
    assert waiting(world) == {}
    assert "nameserver" not in world.guests.config(101)[0]


async def test_nothing_is_pending_of_a_guest_that_does_not_run(world: GuestWorld) -> None:
    await world.make_ct()
    await put(world, hostname="other")
    assert waiting(world) == {}


async def test_a_vm_s_hardware_is_pending(world: GuestWorld) -> None:
    await world.make_vm(start=True)
    await world.guests.configuration.update(VM, 100, put={"memory": "1024"}, delete=(), digest=None, user=ADMIN)
    assert waiting(world, VM, 100) == {"memory": (None, "1024")}


async def test_an_interface_is_plugged_changed_and_unplugged(world: GuestWorld) -> None:
    guest = await running(world)
    net1 = "name=eth1,bridge=vmbr0,hwaddr=BC:24:11:AA:00:01"
    await put(world, net1=net1 + ",ip=10.0.0.2/24")
    assert (101, "net1") in world.host.ports.plugged
    assert guest.asked == ["network eth1"]
    await put(world, net1=net1 + ",ip=10.0.0.3/24")
    assert guest.asked == ["network eth1", "network eth1"]
    await put(world, net1=net1 + ",ip=10.0.0.3/24,link_down=1")
    assert world.host.ports.links == {(101, "net1"): False}
    await put(world, delete=("net1",))
    assert (101, "net1") not in world.host.ports.plugged
    assert waiting(world) == {}


async def test_addresses_that_the_host_sets_are_set_by_the_host(world: GuestWorld) -> None:
    guest = await running(world)
    net1 = "name=eth1,bridge=vmbr0,hwaddr=BC:24:11:AA:00:01,host-managed=1"
    await put(world, net1=net1 + ",ip=10.0.0.2/24")
    await put(world, net1=net1 + ",ip=10.0.0.2/24,ip6=2001:db8::2/64")
    assert world.host.ports.nics[101, "net1"].ip6 == "2001:db8::2/64"
    assert guest.asked == []
    assert waiting(world) == {}


async def test_an_interface_that_cannot_be_plugged_stays_pending(world: GuestWorld) -> None:
    await running(world)
    world.host.ports.missing.add("nobridge")
    with pytest.raises(InvalidParameter, match="nobridge"):
        await put(world, net1="name=eth1,bridge=nobridge,hwaddr=BC:24:11:AA:00:01")
    assert list(waiting(world)) == ["net1"]
