"""Sessions: issuing, verifying and ending the signed tickets of `tickets.py` for the users of the directory.

Every verification looks at the user as they are now: a ticket of somebody disabled, deleted or with a new password is
void at once, on every node.
"""

from __future__ import annotations

import msgspec

from appliance.clock import Clock
from appliance.errors import InvalidParameter, NotAuthenticated
from appliance.services import tickets, totp
from appliance.services.directory import Directory, Revoked, User
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import is_active
from appliance.services.identity import Identity, parse_auth_id
from appliance.services.permissions import normalize_path
from appliance.services.tickets import Kind, Signer
from appliance.services.tokens import TokenService

REVOKED_LIMIT = 64
_INVALID_TICKET = "permission denied - invalid PVE ticket"


class Sessions:
    """Tickets of users. `verify_…` raise `NotAuthenticated`, never saying why."""

    def __init__(self, store: DirectoryStore, signer: Signer, tokens: TokenService, clock: Clock) -> None:
        self._store = store
        self._sign = signer
        self._tokens = tokens
        self._clock = clock

    def active_user(self, username: str) -> User:
        """Raises `NotAuthenticated` for a user who does not exist, is disabled or has expired."""
        user = self._store.directory.users.get(username)
        if user is None or not is_active(user, self._clock.now()):
            raise NotAuthenticated("no such user, or disabled")
        return user

    def login_ticket(self, username: str) -> str:
        """A fresh login ticket for an active user."""
        bound_to = _session(username, self.active_user(username))
        return self._sign.sign(Kind.LOGIN, username, now=self._clock.now(), bound_to=bound_to)

    def challenge_ticket(self, username: str) -> str:
        """Half a login: the password was right, the second factor is still owed."""
        user = self.active_user(username)
        bound_to = _session(username, user)
        return self._sign.sign(Kind.CHALLENGE, totp.challenge(user), now=self._clock.now(), bound_to=bound_to)

    def verify_challenge(self, username: str, challenge: str) -> None:
        """The challenge must have been made for this user, lately."""
        bound_to, parsed = _session(username, self.active_user(username)), tickets.parse(challenge)
        life_s = tickets.CHALLENGE_LIFE_S
        if parsed is None or not self._sign.verify(
            Kind.CHALLENGE, parsed, now=self._clock.now(), life_s=life_s, bound_to=bound_to
        ):
            raise NotAuthenticated(_INVALID_TICKET)

    def verify_ticket(self, ticket: str) -> Identity:
        """The user of a login ticket. Raises `NotAuthenticated`: forged, too old, revoked, the user disabled or gone."""
        parsed = tickets.parse(ticket)
        if parsed is None:
            raise NotAuthenticated(_INVALID_TICKET)
        user = self._store.directory.users.get(parsed.data)
        now = self._clock.now()
        bound_to = _session(parsed.data, user or User())
        signed = self._sign.verify(Kind.LOGIN, parsed, now=now, life_s=tickets.LOGIN_LIFE_S, bound_to=bound_to)
        if not signed or user is None or not is_active(user, now):
            raise NotAuthenticated(_INVALID_TICKET)
        if any(revoked.digest == parsed.digest for revoked in user.revoked):
            raise NotAuthenticated(_INVALID_TICKET)
        return Identity(parsed.data)

    def still_holds(self, identity: Identity, ticket: str) -> bool:
        """Whether a connection opened by `identity` with this ticket ("" for none) may go on.

        Not when it was revoked, or user or token disabled, deleted or expired. The ticket's age was judged when the
        connection was opened, and does not count.
        """
        if not self._tokens.is_usable(identity):
            return False
        parsed = tickets.parse(ticket)
        if parsed is None:
            return True
        user = self.active_user(identity.user)
        bound_to, now = _session(identity.user, user), float(parsed.issued)
        genuine = self._sign.verify(Kind.LOGIN, parsed, now=now, life_s=tickets.LOGIN_LIFE_S, bound_to=bound_to)
        return genuine and all(revoked.digest != parsed.digest for revoked in user.revoked)

    def csrf_token(self, ticket: str) -> str:
        """The token that must accompany writes made with this (verified) ticket."""
        return self._sign.csrf_token(ticket)

    def verify_csrf(self, ticket: str, token: str) -> None:
        """Raises `NotAuthenticated` unless `token` belongs to the (verified) ticket."""
        self._sign.verify_csrf(ticket, token)

    async def logout(self, ticket: str) -> None:
        """End this ticket's validity on every node; not an error when it has none. Other sessions of the user go on."""
        try:
            identity = self.verify_ticket(ticket)
        except NotAuthenticated:
            return
        parsed = tickets.parse(ticket)
        assert parsed is not None  # it has just been verified
        now = int(self._clock.now())
        mine = Revoked(digest=parsed.digest, until=parsed.issued + tickets.LOGIN_LIFE_S)

        def edit(directory: Directory) -> Directory:
            user = directory.user(identity.user)
            revoked = (*(entry for entry in user.revoked if entry.until >= now), mine)
            if len(revoked) > REVOKED_LIMIT:  # too many to keep apart: end them all
                return directory.with_user(
                    identity.user, msgspec.structs.replace(user, revoked=(), session_epoch=user.session_epoch + 1)
                )
            return directory.with_user(identity.user, msgspec.structs.replace(user, revoked=revoked))

        await self._store.edit(edit)

    def console_ticket(self, identity: Identity, path: str) -> str:
        """A ticket for one console, good for 40 s and for the ACL path only (`/vms/100`, `/nodes/NODE`)."""
        user = self.active_user(identity.user)
        bound_to = f"{_place(path)} {_session(identity.user, user)}"
        return self._sign.sign(Kind.CONSOLE, identity.auth_id, now=self._clock.now(), bound_to=bound_to)

    def verify_console_ticket(self, ticket: str, path: str) -> Identity:
        """Who may open the console of `path`. Raises `NotAuthenticated`; what they may do there is still to be checked."""
        parsed = tickets.parse(ticket)
        try:
            identity = parse_auth_id(parsed.data if parsed is not None else "")
        except InvalidParameter as error:
            raise NotAuthenticated(_INVALID_TICKET) from error
        user = self._store.directory.users.get(identity.user)
        bound_to = f"{_place(path)} {_session(identity.user, user or User())}"
        now = self._clock.now()
        if parsed is None or not self._sign.verify(
            Kind.CONSOLE, parsed, now=now, life_s=tickets.CONSOLE_LIFE_S, bound_to=bound_to
        ):
            raise NotAuthenticated(_INVALID_TICKET)
        if not self._tokens.is_usable(identity):
            raise NotAuthenticated(_INVALID_TICKET)
        return identity


def _session(user_id: str, user: User) -> str:
    """What a user's tickets are bound to: raising the epoch ends them all."""
    return f"{user_id} {user.session_epoch}"


def _place(path: str) -> str:
    """What a console ticket is bound to: the normalized path, or the very text where it is not a plain ACL path."""
    return normalize_path(path) or path
