"""Signed tickets in Proxmox VE's shape: `PREFIX:DATA:HEXTIME::SIGNATURE`. Pure: a key and the time come in as values.

    login      PVE:user@realm:HEXTIME::SIG                   bound to the user's session epoch
    challenge  PVE:!tfa!PERCENT-ENCODED-JSON:HEXTIME::SIG    bound to the user's name; half a login
    console    PVEVNC:AUTHID:HEXTIME::SIG                    bound to an ACL path
    CSRF       HEXTIME:SIG                                   derived from a login ticket, lives and dies with it

SIG is base64 of HMAC-SHA256 over the kind, the visible part and what it is bound to, each with its length, so that no
two meanings share one signed text. Everything a client sends is compared in constant time.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from enum import StrEnum

from appliance.errors import NotAuthenticated

KEY_BYTES = 32
TICKET_LIMIT = 4096
LOGIN_LIFE_S = 7200
CHALLENGE_LIFE_S = 300
CONSOLE_LIFE_S = 40
CLOCK_SKEW_S = 300
"""Tickets from this far in the future are accepted: another node's clock may be ahead."""

_TICKET = re.compile(r"(PVE|PVEVNC):([^:\s]{1,3500}):([0-9A-F]{8,10})::([A-Za-z0-9+/=]{1,64})")


class Kind(StrEnum):
    """What a signature is for."""

    LOGIN = "login"
    CHALLENGE = "challenge"
    CONSOLE = "console"
    CSRF = "csrf"


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket taken apart; nothing about it has been verified yet."""

    prefix: str
    data: str
    issued: int
    signature: str

    @property
    def signed_text(self) -> str:
        """The visible part the signature covers."""
        return f"{self.prefix}:{self.data}:{self.issued:08X}"

    @property
    def digest(self) -> str:
        """A name for this ticket that does not give it away."""
        return hashlib.sha256(f"{self.signed_text}::{self.signature}".encode()).hexdigest()[:32]


def parse(text: str) -> Ticket | None:
    """Take a ticket apart; None when it does not have a ticket's shape."""
    match = _TICKET.fullmatch(text) if len(text) <= TICKET_LIMIT else None
    if match is None:
        return None
    return Ticket(match[1], match[2], int(match[3], 16), match[4])


class Signer:
    """Makes and verifies signatures with one secret key."""

    def __init__(self, key: bytes) -> None:
        if len(key) < KEY_BYTES:
            raise ValueError(f"ticket key: {len(key)} bytes are too few")
        self._key = key

    def sign(self, kind: Kind, data: str, *, now: float, bound_to: str) -> str:
        """A ticket of `kind` for `data`, valid only together with `bound_to`."""
        prefix = "PVEVNC" if kind is Kind.CONSOLE else "PVE"
        visible = f"{prefix}:{data}:{int(now):08X}"
        return f"{visible}::{self._mac(kind, visible, bound_to)}"

    def verify(self, kind: Kind, ticket: Ticket, *, now: float, life_s: int, bound_to: str) -> bool:
        """Whether `ticket` is ours, of this kind, bound to this, and within its life."""
        expected = self._mac(kind, ticket.signed_text, bound_to)
        ours = hmac.compare_digest(expected, ticket.signature)
        return ours and -CLOCK_SKEW_S <= now - ticket.issued <= life_s

    def csrf_token(self, ticket: str) -> str:
        """The token that proves a write with this login ticket came from our own pages or an API client."""
        parsed = parse(ticket)
        issued = parsed.issued if parsed is not None else 0
        return f"{issued:08X}:{self._mac(Kind.CSRF, f'{issued:08X}', ticket)}"

    def verify_csrf(self, ticket: str, token: str) -> None:
        """Raises `NotAuthenticated` unless `token` belongs to `ticket` (which the caller has verified)."""
        if not hmac.compare_digest(self.csrf_token(ticket).encode(), token[:TICKET_LIMIT].encode(errors="replace")):
            raise NotAuthenticated("permission denied - invalid csrf token")

    def _mac(self, kind: Kind, visible: str, bound_to: str) -> str:
        parts = (kind.value, visible, bound_to)
        text = b"".join(b"%d:%s" % (len(raw), raw) for raw in (part.encode(errors="replace") for part in parts))
        return base64.b64encode(hmac.digest(self._key, text, "sha256")).decode()
