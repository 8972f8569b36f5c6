"""What a container's directory occupies is counted, for its file system does not tell."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from appliance.model.volume import VolumeId
from appliance.services.guest_usage import RootUsage
from tests.fakes.guest_host import GuestHost, open_world


async def test_the_size_of_a_root_in_a_directory_is_counted(tmp_path: Path) -> None:
    host = GuestHost(tmp_path)
    async with open_world(host) as world:
        run = await world.make_ct(start=True, rootfs="local:0")
        assert run is not None
        volume = VolumeId.parse("local:101/vm-101-disk-0.subvol")
        world.host.volumes.infos[volume] = replace(world.host.volumes.infos[volume], used_bytes=4096)
        guest = world.guests._inventory.get(101)
        usage = RootUsage(lambda: [guest], storage=world.guests._storage, clock=world.host.clock)
        await usage.count(guest)
        await world.guests._sampler.round()
        stats = world.guests.get(101).stats
        assert stats is not None
        assert stats.disk_used_bytes == 4096
    await host.store.close()
