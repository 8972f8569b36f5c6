"""A house whose people and guests' configurations are real: access control and `guest_config` as in life, engines none.

`open_office(directory)` is for tests of pages that edit: what is saved is checked, kept, and pushed to open pages.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from appliance.clock import SystemClock
from appliance.model.guest import GuestKind, GuestState
from appliance.services.access import AccessService
from appliance.services.acl import AclChange
from appliance.services.audit import AuditLog
from appliance.services.guests import GuestService
from appliance.services.users import UserChange
from appliance.web.services import Services
from tests.fakes.access import ADMIN, ADMIN_PASSWORD, CHEAP
from tests.fakes.backups import FakeReplacements, FakeRestores
from tests.fakes.guests import FakeGuestService, FakeMoves
from tests.fakes.house import HOSTILE, furnished, settle_in
from tests.fakes.services import World
from tests.fakes.store import FakeStore

NOTES = """# Shop
Runs the **web shop**. Ask *before* you restart it.

| what | where |
|---|---|
| logs | `/var/log/shop` |

- <script>alert(1)</script>
- [manual](https://example.org/shop) and [not](javascript:alert(1))
![picture](https://tracker.example/x.png)
"""


@dataclass(slots=True)
class Office:
    """Everything a test of these pages touches. `tickets` are of who has logged in, by user id."""

    services: Services
    world: World
    guests: FakeGuestService
    access: AccessService
    tickets: dict[str, str] = field(default_factory=dict)

    async def log_in(self, user: str, password: str) -> str:
        """A ticket, which `FakeSite.page(user=…)` finds."""
        self.tickets[user] = (await self.access.login(user, password, remote="192.0.2.1")).ticket
        return self.tickets[user]


@contextlib.asynccontextmanager
async def open_office(directory: Path) -> AsyncIterator[Office]:
    """An office with an administrator logged in, some people, guests and their devices."""
    services, world = furnished(directory)
    settle_in(world)
    store, clock = FakeStore(), SystemClock()
    (directory / "pki").mkdir()
    password_file = directory / "given-password"
    password_file.write_text(ADMIN_PASSWORD + "\n")
    audit = AuditLog(directory / "audit.log", clock, store)
    access = AccessService(
        store, services.events, clock, data_dir=directory, audit=audit, admin_password_file=password_file,
        password_cost=CHEAP,
    )  # fmt: skip
    guests = FakeGuestService(world.tasks, services.events)
    guests.moves = FakeMoves(guests)
    backups = world.extras.backups
    guests.backups, guests.backup_files, guests.restores = backups, backups, FakeRestores(backups)
    guests.replacements = FakeReplacements(backups)
    await audit.start()
    try:
        await access.start()
        changes: dict[str, Any] = {"access": access, "audit": audit, "guests": cast(GuestService, guests)}
        office = Office(dataclasses.replace(services, **changes), world, guests, access)
        cast(Any, world).access = SimpleNamespace(ticket=office.tickets.__getitem__)
        await office.log_in(ADMIN.user, ADMIN_PASSWORD)
        await _hire(access)
        _define(guests)
        yield office
    finally:
        await access.close()
        await audit.close()
        await store.close()


async def _hire(access: AccessService) -> None:
    await access.groups.create(ADMIN, "operators", comment="Run the machines")
    await access.users.create(
        ADMIN, "eve@pve", UserChange(firstname="Eve", lastname="Adams", email="eve@example.org", comment=HOSTILE),
        password="a good password", groups=("operators",),
    )  # fmt: skip
    await access.users.create(ADMIN, "bob@pve", UserChange(enable=False), password="a good password", groups=())
    await access.pools.create(ADMIN, "office", comment="Everything the office needs")
    await access.roles.create(ADMIN, "Night", ["VM.Audit", "VM.PowerMgmt"])
    for change in (
        AclChange(path="/vms", roles=["PVEVMUser"], groups=["operators"]),
        AclChange(path="/vms/100", roles=["Night"], users=["bob@pve"], propagate=False),
    ):
        await access.acl.change(ADMIN, change)
    await access.tokens.create(ADMIN, "admin@pve", "terraform", comment="Automation", expire=0)


def _define(guests: FakeGuestService) -> None:
    shop = guests.add(
        100, name="shop", cores=2, memory=2048, description=NOTES, tags="web;production", onboot=1, ostype="l26",
        scsihw="virtio-scsi-pci", scsi0="local:100/vm-100-disk-0.qcow2,size=32G,ssd=1", machine="q35", boot="order=scsi0",
        net0="virtio=BC:24:11:00:00:01,bridge=vmbr0,tag=5", serial0="socket", agent=1, rng0="source=/dev/urandom",
        ide2="local:100/vm-100-cloudinit.qcow2,media=cdrom", ide0="none,media=cdrom", ciuser="admin",
        unused0="local:100/vm-100-disk-1.qcow2", ipconfig0="ip=dhcp",
    )  # fmt: skip
    shop.state = GuestState.RUNNING
    shop.started = {**shop.config, "cores": "1", "rng0": "source=/dev/random"}
    del shop.started["ide0"]
    shop.kept = {"before-upgrade": {}, "clean": {}}
    dns = guests.add(
        101, GuestKind.LXC, hostname="dns", memory=512, swap=256, cores=1, description="Resolver of the office.",
        rootfs="local:101/vm-101-disk-0.raw,size=4G", net0="name=eth0,hwaddr=BC:24:11:00:00:02,bridge=vmbr0,ip=dhcp",
        mp0="local:101/vm-101-disk-1.raw,mp=/srv,size=8G", features="nesting=1", onboot=1,
    )  # fmt: skip
    dns.state = GuestState.RUNNING
    guests.add(
        103, GuestKind.LXC, hostname="staging-database", tags="staging", rootfs="local:103/vm-103-disk-0.raw,size=4G"
    )
    guests.add(104, name="debian-12-base", template=1, scsi0="local:104/base-104-disk-0.qcow2,size=2G")
