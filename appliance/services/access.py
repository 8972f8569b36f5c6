"""Access control as the rest of the product sees it: who is calling, and may they.

    login ──► realms (password) ──► totp (second factor) ──► tickets
    a request's ticket or token ──► Identity ──► check(identity, path, privilege) on the in-memory snapshot

Nouns have their own services, attributes of `AccessService`: `users`, `groups`, `tokens`, `roles`, `acl`, `pools`,
`tfa`, `realms`. Everything synchronous here answers from memory and never waits. No user name is special anywhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import NotAuthenticated, ServiceStopping
from appliance.events import EventBus
from appliance.model.guest import GuestId
from appliance.services import first_start
from appliance.services.acl import AclService, RoleService
from appliance.services.audit import AuditLog
from appliance.services.directory import Directory
from appliance.services.directory_store import DirectoryStore
from appliance.services.groups import GroupService
from appliance.services.guard import Guard, require_administrator
from appliance.services.identity import Identity
from appliance.services.login import Login, LoginService
from appliance.services.passwords import Argon2Cost, Passwords, generate_password
from appliance.services.pools import PoolService, without_guest
from appliance.services.realms import Realms
from appliance.services.second_factor import SecondFactorService
from appliance.services.sessions import Sessions
from appliance.services.tickets import Signer
from appliance.services.tokens import TokenService
from appliance.services.users import UserService
from appliance.state.store import Store

__all__ = ["AccessService", "Identity", "Login"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Running:
    """What exists once the ticket key is known."""

    sessions: Sessions
    login: LoginService


class AccessService:
    """See the module's docstring. `start` before, `close` after; loop thread only."""

    def __init__(
        self,
        store: Store,
        events: EventBus,
        clock: Clock,
        *,
        data_dir: Path,
        audit: AuditLog,
        admin_password_file: Path | None = None,
        password_cost: Argon2Cost | None = None,
    ) -> None:
        self._kv = store
        self._clock = clock
        self._data_dir = data_dir
        self._audit = audit
        self._admin_password_file = admin_password_file
        self._started: _Running | None = None
        self._store = DirectoryStore(store, events, rule=self._keep_an_administrator)
        self._guard = Guard(self._store)
        self._passwords = Passwords(password_cost)
        self.realms = Realms(self._store, self._passwords, clock)
        self.users = UserService(self._store, self._guard, self._passwords, self.realms)
        self.groups = GroupService(self._store, self._guard)
        self.tokens = TokenService(self._store, self._guard, clock)
        self.roles = RoleService(self._store, self._guard)
        self.acl = AclService(self._store, self._guard)
        self.pools = PoolService(self._store, self._guard)
        self.tfa = SecondFactorService(self._store, self._guard, self.users, clock)

    async def start(self) -> None:
        """Load everything; at the first start make the first administrators.

        Raises `HostError` or `InvalidParameter` naming the password file that cannot be used.
        """
        await self._store.start()
        signer = Signer(await first_start.ticket_key(self._kv))
        sessions = Sessions(self._store, signer, self.tokens, self._clock)
        login = LoginService(self._store, sessions, self.realms, self.acl, self._audit, self._clock)
        self._started = _Running(sessions, login)
        if not self._store.directory.users:
            await self._make_administrators()

    async def close(self) -> None:
        """Stop following the store and give up the threads; idempotent."""
        await self._store.close()
        self._passwords.close()

    async def _make_administrators(self) -> None:
        if self._admin_password_file is not None:
            password = await asyncio.to_thread(first_start.read_password_file, self._admin_password_file)
        else:
            password = generate_password()
            path = await asyncio.to_thread(first_start.write_password_file, self._data_dir, password)
            log.info("access: the password of %s is in %s", first_start.ADMIN, path)
        stored = await self._passwords.hash(password)
        await self._store.edit(lambda directory: first_start.first_directory(directory, stored))

    def _keep_an_administrator(self, old: Directory, new: Directory) -> None:
        require_administrator(old, new, self._clock.now())

    # permissions

    def privileges(self, identity: Identity, path: str) -> frozenset[str]:
        """The names of the privileges held on an ACL path ("/vms/100"); empty for what is no path."""
        return self._guard.permissions.names(identity, path)

    def has(self, identity: Identity, path: str, privilege: str) -> bool:
        """Whether the privilege is held on the path."""
        return self._guard.has(identity, path, privilege)

    def check(self, identity: Identity, path: str, *privileges: str, require_all: bool = True) -> None:
        """Raises `PermissionDenied` unless all the privileges (one, without `require_all`) are held on the path."""
        self._guard.check(identity, path, *privileges, require_all=require_all)

    def check_modifies_acl(self, identity: Identity, path: str) -> None:
        """Raises `PermissionDenied` unless the identity may change permissions on the path."""
        self._guard.check_modifies_acl(identity, path)

    def pool_of(self, guest_id: GuestId) -> str | None:
        """The pool the guest is in."""
        return self.pools.pool_of(guest_id)

    async def set_pool(self, guest_id: GuestId, pool: str | None) -> None:
        """Put the guest into a pool; None takes it out. The caller has checked permissions. Raises `NotFound`."""
        await self.pools.set_pool(guest_id, pool)

    async def forget_guest(self, guest_id: GuestId) -> None:
        """The guest is deleted: out of its pool, and its ACL entries with it; a new guest of this id inherits nothing."""

        def edit(directory: Directory) -> Directory:
            return without_guest(directory, guest_id).without_path(f"/vms/{guest_id}")

        await self._store.edit(edit)

    # login

    async def login(
        self, username: str, password: str, *, otp: str | None = None, challenge: str | None = None, remote: str
    ) -> Login:
        """See `LoginService.login`. Raises `NotAuthenticated`, `TooManyRequests`."""
        return await self._running.login.login(username, password, otp=otp, challenge=challenge, remote=remote)

    async def verify_credentials(
        self,
        username: str,
        password: str,
        *,
        path: str,
        privileges: Sequence[str],
        otp: str | None = None,
        remote: str,
    ) -> Login:
        """A login that must also hold the privileges on the path. Raises `NotAuthenticated` when it does not."""
        login = await self.login(username, password, otp=otp, remote=remote)
        held = self.privileges(Identity(username), path)
        if login.need_tfa or not privileges or not held.issuperset(privileges):
            raise NotAuthenticated("authentication failure")
        return login

    # what requests carry

    def verify_ticket(self, ticket: str) -> Identity:
        """The user of a login ticket. Raises `NotAuthenticated`: forged, too old, revoked, the user disabled or gone."""
        return self._running.sessions.verify_ticket(ticket)

    def still_holds(self, identity: Identity, ticket: str) -> bool:
        """Whether an open connection of `identity`, by this ticket ("" for none), may go on; see `Sessions`."""
        return self._running.sessions.still_holds(identity, ticket)

    def csrf_token(self, ticket: str) -> str:
        """The token that must accompany writes made with this (verified) ticket."""
        return self._running.sessions.csrf_token(ticket)

    def verify_csrf(self, ticket: str, token: str) -> None:
        """Raises `NotAuthenticated` unless `token` belongs to the (verified) ticket."""
        self._running.sessions.verify_csrf(ticket, token)

    async def verify_token(self, header_value: str) -> Identity:
        """The API token an `Authorization` header names. Raises `NotAuthenticated`."""
        return self.tokens.verify(header_value)

    async def logout(self, ticket: str) -> None:
        """End this ticket's validity on every node; not an error when it has none. Other sessions of the user go on."""
        await self._running.sessions.logout(ticket)

    def console_ticket(self, identity: Identity, path: str) -> str:
        """A ticket for one console, good for 40 s and for the ACL path only (`/vms/100`, `/nodes/NODE`)."""
        return self._running.sessions.console_ticket(identity, path)

    def verify_console_ticket(self, ticket: str, path: str) -> Identity:
        """Who may open the console of `path`. Raises `NotAuthenticated`; what they may do there is still to be checked."""
        return self._running.sessions.verify_console_ticket(ticket, path)

    def verify_console(self, auth_id: str, ticket: str, *, path: str, privileges: Sequence[str]) -> None:
        """A console ticket made for `auth_id`, who must hold the privileges (at least one) on its path.

        Raises `NotAuthenticated`.
        """
        identity = self.verify_console_ticket(ticket, path)
        if identity.auth_id != auth_id or not privileges or not self.privileges(identity, path).issuperset(privileges):
            raise NotAuthenticated("authentication failure")

    async def change_password(
        self, caller: Identity, user_id: str, password: str, *, confirmation: str | None = None
    ) -> None:
        """See `UserService.set_password`; the file with the first administrator's generated password goes with it."""
        await self.users.set_password(caller, user_id, password, confirmation=confirmation)
        if user_id == first_start.ADMIN:
            await asyncio.to_thread(first_start.remove_password_file, self._data_dir)

    @property
    def _running(self) -> _Running:
        if self._started is None:
            raise ServiceStopping("access control has not started")
        return self._started
