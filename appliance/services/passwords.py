"""Proving who somebody is by password: argon2 for realm `pve`, the host's PAM for realm `pam`. All in threads, bounded.

Both are slow on purpose, and PAM may hang in a module (LDAP, a dead mount): each has a fixed number of places, a wait
for a place is short, and a place is given back only when its thread has really ended.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol, TypeVar

from appliance.errors import InvalidParameter, ServiceStopping, TimedOut, TooManyRequests
from appliance.lazy import LazyModule

if TYPE_CHECKING:
    import argon2
    import argon2.exceptions
else:
    argon2 = LazyModule("argon2")

PASSWORD_MIN = 8
PASSWORD_MAX = 64
ATTEMPT_LIMIT = 1024
"""Longest password looked at; longer ones are wrong without a look."""

HASH_PLACES = 2
PAM_PLACES = 4
PLACE_TIMEOUT_S = 10.0
HASH_TIMEOUT_S = 30.0
PAM_TIMEOUT_S = 20.0
PAM_SERVICE = "appliance"
"""Debian falls back to /etc/pam.d/other (common-auth, common-account) where there is no file of this name."""

T = TypeVar("T")


class Argon2Cost(Protocol):
    """The part of `argon2.PasswordHasher` used here; tests pass a cheap one."""

    def hash(self, password: str) -> str: ...

    def verify(self, hash: str, password: str) -> bool: ...


def default_cost() -> argon2.PasswordHasher:
    """argon2id, 32 MiB, 3 passes, 1 lane: about 0.1 s of one core."""
    return argon2.PasswordHasher(time_cost=3, memory_cost=32 << 10, parallelism=1)


class _Places:
    """A few threads of our own; a call that outlives its time-out keeps its place until it ends."""

    def __init__(self, name: str, places: int) -> None:
        self._name = name
        self._executor = ThreadPoolExecutor(places, thread_name_prefix=f"asyncio_{name}")
        self._free = asyncio.Semaphore(places)

    async def run(self, call: Callable[[], T], *, timeout_s: float) -> T:
        """Run `call` in a thread. Raises `TooManyRequests` when no place gets free, `TimedOut` when it takes too long."""
        try:
            async with asyncio.timeout(PLACE_TIMEOUT_S):
                await self._free.acquire()
        except TimeoutError as error:
            raise TooManyRequests(f"{self._name}: too many logins at once", retry_after_s=PLACE_TIMEOUT_S) from error
        try:
            future = asyncio.get_running_loop().run_in_executor(self._executor, call)
        except RuntimeError as error:
            raise ServiceStopping(f"{self._name}: the appliance is stopping") from error
        future.add_done_callback(self._ended)
        done, _ = await asyncio.wait({future}, timeout=timeout_s)
        if not done:
            raise TimedOut(self._name, timeout_s)
        return future.result()

    def _ended(self, future: asyncio.Future[T]) -> None:
        self._free.release()
        if not future.cancelled():
            future.exception()  # looked at, so that a failure after the time-out is not reported as forgotten

    def close(self) -> None:
        """Let running calls end by themselves."""
        self._executor.shutdown(wait=False, cancel_futures=True)


class Passwords:
    """Hashing and checking. One instance a process; `close` it."""

    def __init__(self, cost: Argon2Cost | None = None) -> None:
        self._cost: Argon2Cost = cost if cost is not None else default_cost()
        self._hashing = _Places("password check", HASH_PLACES)
        self._pam = _Places("PAM", PAM_PLACES)
        self._nobody: str | None = None

    def close(self) -> None:
        """Give up the threads."""
        self._hashing.close()
        self._pam.close()

    async def hash(self, password: str) -> str:
        """The argon2id hash to store."""
        return await self._hashing.run(lambda: self._cost.hash(password), timeout_s=HASH_TIMEOUT_S)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether `password` is the one of the hash; without a hash False, after the same work."""
        if len(password) > ATTEMPT_LIMIT:
            return False
        if stored is None and self._nobody is None:
            self._nobody = await self.hash(secrets.token_urlsafe(32))
        against = stored or self._nobody or ""
        matching = await self._hashing.run(lambda: self._verify(against, password), timeout_s=HASH_TIMEOUT_S)
        return matching and stored is not None

    def _verify(self, stored: str, password: str) -> bool:
        try:
            return self._cost.verify(stored, password)
        except (argon2.exceptions.VerificationError, argon2.exceptions.InvalidHashError, UnicodeEncodeError):
            return False

    async def pam_accepts(self, name: str, password: str) -> bool:
        """Whether the host's PAM lets `name` in with `password`, account management included."""
        if not password or len(password) > ATTEMPT_LIMIT or "\0" in name + password:
            return False
        return await self._pam.run(lambda: _ask_pam(name, password), timeout_s=PAM_TIMEOUT_S)


def _ask_pam(name: str, password: str) -> bool:
    import pamela  # here because finding libpam starts helper programs: not at import, not on the loop

    try:
        pamela.authenticate(name, password, service=PAM_SERVICE, resetcred=0)
    except (pamela.PAMError, UnicodeEncodeError):
        return False
    return True


def check_new_password(password: str, *, parameter: str = "password") -> str:
    """Return `password` if it may be set. Raises `InvalidParameter`."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise InvalidParameter({parameter: f"must have {PASSWORD_MIN} to {PASSWORD_MAX} characters"})
    if not password.isprintable():
        raise InvalidParameter({parameter: "must not have control characters"})
    return password


def generate_password() -> str:
    """A password nobody chose: 120 random bits, easy to type."""
    return secrets.token_hex(4) + "-" + "-".join(secrets.token_hex(3) for _ in range(4))
