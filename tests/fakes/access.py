"""A running AccessService for tests: in-memory store, standing clock, passwords that cost nothing to hash."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import argon2

from appliance.events import EventBus
from appliance.services.access import AccessService, Identity
from appliance.services.audit import AuditLog
from appliance.services.users import UserChange
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore

ADMIN = Identity("admin@pve")
ADMIN_PASSWORD = "correct horse battery"
CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@dataclass
class Realm:
    """Everything a test of access control touches."""

    access: AccessService
    audit: AuditLog
    clock: FakeClock
    store: FakeStore
    events: EventBus
    data_dir: Path

    async def add_user(
        self, user_id: str, *, password: str | None = "a good password", groups: tuple[str, ...] = ()
    ) -> Identity:
        """A user made by the administrator."""
        await self.access.users.create(ADMIN, user_id, UserChange(), password=password, groups=groups)
        return Identity(user_id)

    async def log_in(self, user_id: str = "admin@pve", password: str = ADMIN_PASSWORD) -> str:
        """A login ticket."""
        return (await self.access.login(user_id, password, remote="192.0.2.1")).ticket


@contextlib.asynccontextmanager
async def open_realm(data_dir: Path, store: FakeStore | None = None) -> AsyncIterator[Realm]:
    """Started services on a store that is fresh, or the caller's to restart on; `ADMIN_PASSWORD` is the admin's."""
    clock, events = FakeClock(), EventBus()
    password_file = data_dir / "given-password"
    password_file.write_text(ADMIN_PASSWORD + "\n")
    used = store or FakeStore()
    audit = AuditLog(data_dir / "audit.log", clock, used)
    access = AccessService(
        used, events, clock, data_dir=data_dir, audit=audit, admin_password_file=password_file, password_cost=CHEAP
    )
    await audit.start()
    try:
        await access.start()
        yield Realm(access, audit, clock, used, events, data_dir)
    finally:
        await access.close()
        await audit.close()
        if store is None:
            await used.close()
