"""What the server shows to TLS clients, and the memory of its last examination. Blocking; imports no X.509 library.

Examining the files of `pki.py` takes a tenth of a second and a large library, at every start. `server.json` beside them
says what was found and of which bytes: while the files are those bytes and nothing is about to end, that still holds.
The memory decides nothing about trust: whoever can write it can write the keys.
"""

from __future__ import annotations

import datetime
import hashlib
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from appliance.errors import HostError
from appliance.files import write_atomic

_NAME = "server.json"
_FILES = ("ca.key", "ca.pem", "server.pem")
_FILE_LIMIT_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ServerIdentity:
    """What the server shows. `fingerprint` is SHA-256 of its certificate as AA:BB:…"""

    server_file: Path
    ca_file: Path
    fingerprint: str
    not_after: datetime.datetime
    names: tuple[str, ...]

    def context(self) -> ssl.SSLContext:
        """A server context, TLS 1.2 or newer. Reads files. Raises `HostError` naming the file."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        try:
            context.load_cert_chain(self.server_file)
        except (OSError, ssl.SSLError) as error:
            raise HostError(f"{self.server_file}: cannot be used as server certificate: {error}") from error
        return context


class _Examined(msgspec.Struct, frozen=True, kw_only=True):
    version: int = 1
    digest: str
    """SHA-256 over the files' bytes."""
    asked: tuple[str, ...]
    """The names the certificate was examined for."""
    examine_after: datetime.datetime
    fingerprint: str
    not_after: datetime.datetime
    names: tuple[str, ...]


def recall(directory: Path, asked: Sequence[str], now: datetime.datetime) -> ServerIdentity | None:
    """The identity found by the last examination for the same names and files; None when it is to be examined."""
    try:
        known = msgspec.json.decode((directory / _NAME).read_bytes(), type=_Examined)
        if known.version != 1 or known.digest != _digest(directory) or known.asked != tuple(asked):
            return None
    except (OSError, msgspec.MsgspecError):
        return None
    if now >= known.examine_after:
        return None
    return ServerIdentity(
        directory / "server.pem", directory / "ca.pem", known.fingerprint, known.not_after, known.names
    )


def remember(
    directory: Path, asked: Sequence[str], identity: ServerIdentity, *, examine_after: datetime.datetime
) -> None:
    """Note what was found. Without room it is simply examined again."""
    examined = _Examined(
        digest=_digest(directory),
        asked=tuple(asked),
        examine_after=examine_after,
        fingerprint=identity.fingerprint,
        not_after=identity.not_after,
        names=identity.names,
    )
    try:
        write_atomic(directory / _NAME, msgspec.json.encode(examined), mode=0o600)
    except HostError:
        return


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for name in _FILES:
        with (directory / name).open("rb") as file:
            data = file.read(_FILE_LIMIT_BYTES)
        digest.update(f"{name} {len(data)} ".encode() + data)
    return digest.hexdigest()
