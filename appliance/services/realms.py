"""Realms: where users' passwords live. Two are built in; a further kind is one more branch of `authenticate`.

pve   kept by the appliance itself, argon2
pam   accounts of the host, checked by its PAM; the user must exist in the directory too
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.clock import Clock
from appliance.errors import NotAuthenticated, NotFound
from appliance.services.directory_store import DirectoryStore
from appliance.services.guard import is_active
from appliance.services.identity import split_user_id
from appliance.services.passwords import Passwords
from appliance.services.ratelimit import FailureLimiter

PVE = "pve"
PAM = "pam"
CONFIRM_BURST = 10
CONFIRM_REFILL_S = 30.0


@dataclass(frozen=True, slots=True)
class Realm:
    """One realm, as the login page lists it."""

    realm: str
    type: str
    comment: str
    default: bool = False


BUILTIN = (
    Realm(PAM, PAM, "Linux PAM standard authentication"),
    Realm(PVE, PVE, "Built-in authentication server", default=True),
)


class Realms:
    """Checks passwords by the realm of the user."""

    def __init__(self, store: DirectoryStore, passwords: Passwords, clock: Clock) -> None:
        self._store = store
        self._passwords = passwords
        self._clock = clock
        self._confirmations = FailureLimiter(burst=CONFIRM_BURST, refill_s=CONFIRM_REFILL_S)

    def check_exists(self, realm: str) -> Realm:
        """Raises `NotFound`."""
        for known in BUILTIN:
            if known.realm == realm:
                return known
        raise NotFound(f"realm '{realm}'")

    async def authenticate(self, user_id: str, password: str) -> bool:
        """Whether an active user of this name has this password. Takes as long for users who do not exist.

        Raises `TooManyRequests`, `TimedOut` when the check cannot be made now.
        """
        name, realm = split_user_id(user_id)
        user = self._store.directory.users.get(user_id)
        active = user is not None and is_active(user, self._clock.now())
        if realm == PAM and active:
            return await self._passwords.pam_accepts(name, password)
        stored = user.password if user is not None and active and realm == PVE else None
        return await self._passwords.matches(stored, password)

    async def confirm(self, user_id: str, password: str) -> None:
        """Raises `NotAuthenticated` unless it is the user's password; guessing by a stolen session is slowed down."""
        now = self._clock.monotonic()
        self._confirmations.check(user_id, now, "password confirmation")
        self._confirmations.failed(user_id, now)
        if not await self.authenticate(user_id, password):
            raise NotAuthenticated("authentication failure")
        self._confirmations.succeeded(user_id)
