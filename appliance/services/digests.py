"""What tells one state of a stored document from another. Clients send it back, so that of two who change one thing the
second is told. Guests' configurations have PVE's own (`guest_config.digest`)."""

from __future__ import annotations

import hashlib

import msgspec


def digest(document: object) -> str:
    """SHA-1 (hex) of what msgspec can encode; the same whatever the order of its keys."""
    return hashlib.sha1(msgspec.json.encode(document, order="sorted"), usedforsecurity=False).hexdigest()
