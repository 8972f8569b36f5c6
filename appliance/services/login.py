"""Logging in: password, second factor, ticket; limited in rate, written to the audit log.

password ──wrong──► failure              renewal: a valid ticket as password
   │ right                                  │
   ▼                                        ▼
second factor owed? ──no──────────────► login ticket
   │ yes                                    ▲
   ▼                                        │ right, and the code is used up
challenge ticket ──second call──► code ─────┘
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance.clock import Clock
from appliance.errors import ApplianceError, InvalidParameter, NotAuthenticated
from appliance.services import tickets, totp
from appliance.services.acl import AclService
from appliance.services.audit import AuditLog
from appliance.services.directory import Directory
from appliance.services.directory_store import DirectoryStore
from appliance.services.identity import USER_ID_LIMIT, Identity, split_user_id
from appliance.services.ratelimit import Acquaintances, FailureLimiter, remote_key
from appliance.services.realms import Realms
from appliance.services.sessions import Sessions

REMOTE_BURST, REMOTE_REFILL_S = 20, 6.0
USER_BURST, USER_REFILL_S = 20, 10.0
CREDENTIAL_LIMIT = 4096

_FAILURE = "authentication failure"


@dataclass(frozen=True, slots=True)
class Login:
    """A login's outcome. With `need_tfa` the ticket is only good as the challenge of a second call."""

    username: str
    ticket: str
    csrf: str
    capabilities: Mapping[str, Mapping[str, bool]] = field(default_factory=dict)
    need_tfa: bool = False


class LoginService:
    """Turns credentials into tickets."""

    def __init__(
        self,
        store: DirectoryStore,
        sessions: Sessions,
        realms: Realms,
        acl: AclService,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._store = store
        self._sessions = sessions
        self._realms = realms
        self._acl = acl
        self._audit = audit
        self._clock = clock
        self._by_remote = FailureLimiter(burst=REMOTE_BURST, refill_s=REMOTE_REFILL_S)
        self._by_user = FailureLimiter(burst=USER_BURST, refill_s=USER_REFILL_S)
        self._acquaintances = Acquaintances()

    async def login(
        self, username: str, password: str, *, otp: str | None = None, challenge: str | None = None, remote: str
    ) -> Login:
        """Authenticate by password, by a ticket still valid (renewal), or by answering a challenge ticket.

        Without `otp` a user with a second factor gets a challenge (`need_tfa`); the second call passes it as `challenge`
        and the answer (`totp:CODE`, `recovery:KEY`) as password. Every attempt but a renewal is written to the audit
        log. Raises `NotAuthenticated` (always the same text), `TooManyRequests`.
        """
        if (renewed := self._renew(username, password)) is not None and challenge is None:
            return renewed
        now, place = self._clock.monotonic(), remote_key(remote)
        who = username[: 2 * USER_ID_LIMIT]
        self._by_remote.check(place, now, f"login from {remote}")
        if not self._acquaintances.known(username, place):
            self._by_user.check(who, now, "login")
        # Counted as a failure until proved otherwise, so that parallel attempts do not slip under the limit.
        self._by_remote.failed(place, now)
        self._by_user.failed(who, now)
        reason = "wrong user, password or code, or the user is disabled"
        try:
            login = await self._authenticate(username, password, otp, challenge)
        except NotAuthenticated as error:
            await self._record(who, remote, "failed", reason)
            raise NotAuthenticated(_FAILURE) from error
        except ApplianceError as error:
            await self._record(who, remote, "error", str(error))
            raise
        self._by_remote.refund(place)
        if not login.need_tfa:
            self._by_user.succeeded(username)
            self._acquaintances.met(username, place)
        await self._record(who, remote, "challenged" if login.need_tfa else "ok", "")
        return login

    async def _record(self, who: str, remote: str, outcome: str, detail: str) -> None:
        await self._audit.record(
            who=who, remote=remote, action="login", target="/access/ticket", outcome=outcome, detail=detail
        )

    async def _authenticate(self, username: str, password: str, otp: str | None, challenge: str | None) -> Login:
        if max(len(username), len(password), len(otp or ""), len(challenge or "")) > CREDENTIAL_LIMIT:
            raise NotAuthenticated("too long")
        try:
            split_user_id(username)
        except InvalidParameter as error:
            raise NotAuthenticated("no user id") from error
        if challenge is not None:
            self._sessions.verify_challenge(username, challenge)
            return await self._answer(username, password)
        if tickets.parse(password) is not None:  # a ticket not valid for this user: nothing for PAM's modules to see
            raise NotAuthenticated("bad ticket")
        if not await self._realms.authenticate(username, password):
            raise NotAuthenticated("wrong password")
        user = self._sessions.active_user(username)
        if not totp.required(user):
            return self._logged_in(username)
        if otp is not None:
            return await self._answer(username, otp)
        ticket = self._sessions.challenge_ticket(username)
        return Login(username, ticket, self._sessions.csrf_token(ticket), need_tfa=True)

    async def _answer(self, username: str, response: str) -> Login:
        """Use up the code, durably: of two logins with one code the store lets only the first through."""
        right = False

        def edit(directory: Directory) -> Directory:
            nonlocal right
            right, changed = totp.answer(directory.user(username), response, self._clock.now())
            return directory.with_user(username, changed)

        await self._store.edit(edit)
        if not right:
            raise NotAuthenticated("wrong code")
        return self._logged_in(username)

    def _renew(self, username: str, password: str) -> Login | None:
        try:
            identity = self._sessions.verify_ticket(password)
        except NotAuthenticated:
            return None
        return self._logged_in(username) if identity == Identity(username) else None

    def _logged_in(self, username: str) -> Login:
        ticket = self._sessions.login_ticket(username)
        return Login(username, ticket, self._sessions.csrf_token(ticket), self._acl.capabilities(Identity(username)))
