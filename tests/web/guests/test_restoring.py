"""A creation with a backup: as a new guest, or over one that is there."""

from __future__ import annotations

from typing import cast

import pytest

from appliance.model.guest import GuestKind
from tests.fakes.backups import FakeBackups, FakeReplacements, FakeRestores
from tests.fakes.house import HouseStorage
from tests.web.guests.guest_site import GuestSite, define

BACKUP = "local:backup/vzdump-qemu-100-2026_01_01-00_00_00.tar.zst"


@pytest.fixture
def backups(site: GuestSite) -> FakeBackups:
    """Backups of which nothing but the calls is looked at."""
    made = FakeBackups(cast(HouseStorage, None), site.world.tasks)
    site.guests.restores, site.guests.replacements = FakeRestores(made), FakeReplacements(made)
    return made


async def test_a_backup_goes_over_a_guest_only_when_told_to(site: GuestSite, backups: FakeBackups) -> None:
    define(site, GuestKind.QEMU)
    await site.do("POST", "qemu", vmid=100, archive=BACKUP, force=1, start=1, memory=700, storage="fast")
    assert backups.calls == [
        ("plan", {"volume": BACKUP, "memory": "700", "storage": "fast", "unique": False}),
        ("restore over", {"vmid": 100, "start": True}),
    ]
    define(site, GuestKind.LXC)
    archive = BACKUP.replace("qemu", "lxc")
    await site.do("POST", "lxc", vmid=101, ostemplate=archive, restore=1, force=1)
    await site.do("POST", "qemu", vmid=100, archive=BACKUP)  # the id is taken: creation refuses it
    assert [asked for asked, _ in backups.calls] == ["plan", "restore over"] * 2 + ["plan", "restore"]


async def test_force_on_a_free_id_restores_as_always(site: GuestSite, backups: FakeBackups) -> None:
    define(site, GuestKind.LXC)
    await site.do("POST", "qemu", vmid=100, archive=BACKUP, force=1)
    assert backups.calls[-1] == ("restore", {"vmid": 100, "pool": None, "start": False})
    await site.do("POST", "qemu", vmid=101, archive=BACKUP, force=1)  # a container has it: creation refuses the id
    assert backups.calls[-1][0] == "restore"


async def test_who_may_back_a_guest_up_may_restore_it_and_nobody_else(site: GuestSite, backups: FakeBackups) -> None:
    define(site, GuestKind.QEMU)
    order = {"vmid": 100, "archive": BACKUP, "force": 1}
    site.grant("/storage/local", "Datastore.Allocate")
    site.grant("/vms/100", "VM.Audit", "VM.Config.Memory")
    assert (await site.call("POST", "qemu", order, user="eve@pve")).status == 403
    site.grant("/vms/100", "VM.Backup")
    assert (await site.call("POST", "qemu", order, user="eve@pve")).status == 200
    assert (await site.call("POST", "qemu", order | {"memory": 700}, user="eve@pve")).status == 403
    answer = await site.call("POST", "qemu", order | {"pool": "dev"})
    assert list(answer.errors) == ["pool"]
    assert [asked for asked, _ in backups.calls].count("restore over") == 1
