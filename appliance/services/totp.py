"""The second factor, as pure functions on a `User`: time-based codes (RFC 6238) and one-time recovery keys.

Verifying returns the user as it must be stored: a code's time step is used up, a recovery key's place emptied, a
failure counted. Whoever stores that with a conditional write has made each code good for one login only.
After `FAILURE_LIMIT` wrong codes in a row the codes are locked until a recovery key or an administrator unlocks them.
"""

from __future__ import annotations

import binascii
import hashlib
import hmac
import json
import re
import secrets
from typing import TYPE_CHECKING
from urllib.parse import quote

import msgspec

from appliance.errors import InvalidParameter
from appliance.lazy import LazyModule
from appliance.services.directory import Recovery, Totp, User

if TYPE_CHECKING:
    import pyotp
else:
    pyotp = LazyModule("pyotp")

FAILURE_LIMIT = 8
WINDOW_STEPS = 1
"""Codes of the step before and after count too: clocks differ."""
TOTP_LIMIT = 16
RECOVERY_KEYS = 10
RECOVERY_ID = "recovery"
URI_LIMIT = 2048
SECRET_BYTES_MIN = 10

_DIGESTS = {"SHA1": hashlib.sha1, "SHA256": hashlib.sha256, "SHA512": hashlib.sha512}
_CODE = re.compile(r"[0-9]{6,8}")


def required(user: User) -> bool:
    """Whether a login of `user` needs a second factor: any generator that is enabled makes it so."""
    return any(entry.enable for entry in user.totp.values())


def challenge(user: User) -> str:
    """The data of a challenge ticket: `!tfa!` and what can answer it, percent-encoded JSON."""
    recovery = user.recovery if user.recovery is not None and user.recovery.enable else None
    left = [index for index, digest in enumerate(recovery.digests) if digest] if recovery is not None else []
    answers = {"totp": required(user), "recovery": left}
    return "!tfa!" + quote(json.dumps(answers, separators=(",", ":")), safe="")


def locked(user: User) -> bool:
    """Whether codes are refused after too many wrong ones."""
    return user.totp_failures >= FAILURE_LIMIT


def answer(user: User, response: str, now: float) -> tuple[bool, User]:
    """Check `totp:CODE`, `recovery:KEY` or a bare code. Returns (right, the user to store)."""
    kind, separator, value = response.partition(":")
    if not separator:
        kind, value = "totp", response
    changed: User | None = None
    match kind:
        case "totp" | "oath" if not locked(user):
            changed = _use_code(user, value.strip(), now)
        case "recovery":
            changed = _use_recovery_key(user, value.strip())
    if changed is None:
        return False, msgspec.structs.replace(user, totp_failures=min(user.totp_failures + 1, FAILURE_LIMIT))
    return True, msgspec.structs.replace(changed, totp_failures=0)


def _use_code(user: User, code: str, now: float) -> User | None:
    for entry_id, entry in user.totp.items():
        if entry.enable and (counter := matching_counter(entry, code, now)) is not None:
            used = msgspec.structs.replace(entry, last_counter=counter)
            return msgspec.structs.replace(user, totp={**user.totp, entry_id: used})
    return None


def matching_counter(entry: Totp, code: str, now: float) -> int | None:
    """The time step whose code is `code` and which is not used up, else None."""
    if _CODE.fullmatch(code) is None:
        return None
    generator = pyotp.HOTP(entry.secret, digits=entry.digits, digest=_DIGESTS[entry.algorithm])
    present = int(now) // entry.period_s
    found = None
    for counter in range(max(0, present - WINDOW_STEPS), present + WINDOW_STEPS + 1):
        if hmac.compare_digest(generator.at(counter), code) and counter > entry.last_counter:
            found = counter
    return found


def _use_recovery_key(user: User, key: str) -> User | None:
    recovery = user.recovery
    if recovery is None or not recovery.enable or len(key) > 64:
        return None
    digest = _digest(recovery.salt, key)
    hits = [index for index, known in enumerate(recovery.digests) if known and hmac.compare_digest(known, digest)]
    if not hits:
        return None
    digests = tuple("" if index == hits[0] else known for index, known in enumerate(recovery.digests))
    return msgspec.structs.replace(user, recovery=msgspec.structs.replace(recovery, digests=digests))


def parse_uri(uri: str, *, description: str, now: float) -> Totp:
    """The generator an `otpauth://totp/…` URI describes. Raises `InvalidParameter`."""
    try:
        if len(uri) > URI_LIMIT:
            raise ValueError(f"longer than {URI_LIMIT} characters")
        parsed = pyotp.parse_uri(uri)
        if not isinstance(parsed, pyotp.TOTP):
            raise ValueError("not a time-based generator")
        secret = parsed.byte_secret()
    except (ValueError, binascii.Error) as error:
        raise InvalidParameter({"totp": f"not a usable otpauth URI: {str(error)[:200]}"}) from error
    algorithm = next((name for name, digest in _DIGESTS.items() if digest is parsed.digest), "")
    if (
        len(secret) < SECRET_BYTES_MIN
        or not algorithm
        or not 6 <= parsed.digits <= 8
        or not 10 <= parsed.interval <= 120
    ):
        raise InvalidParameter(
            {
                "totp": "needs a secret of 80 bits or more, 6 to 8 digits, a period of 10 to 120 s, SHA1, SHA256 or SHA512"
            }
        )
    return Totp(
        secret=parsed.secret,
        digits=parsed.digits,
        period_s=parsed.interval,
        algorithm=algorithm,
        description=description,
        created=int(now),
    )


def new_recovery(now: float) -> tuple[Recovery, list[str]]:
    """A fresh set of recovery keys: what is stored, and the keys themselves, shown once."""
    salt = secrets.token_hex(16)
    keys = ["-".join(secrets.token_hex(2) for _ in range(4)) for _ in range(RECOVERY_KEYS)]
    digests = tuple(_digest(salt, key) for key in keys)
    return Recovery(salt=salt, digests=digests, created=int(now)), keys


def _digest(salt: str, key: str) -> str:
    return hashlib.sha256(f"{salt}:{key.lower()}".encode(errors="replace")).hexdigest()
