"""How each registry is reached and as whom: one JSON file of mode 0600. Blocking: call it in a thread.

Passwords leave it only towards the registry they belong to: `repr` and the API show that there is one, nothing logs it.
"""

from __future__ import annotations

import ssl
import threading
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.files import write_atomic
from appliance.storage.oci.reference import DEFAULT_REGISTRY, check_registry

_FILE_LIMIT_BYTES: Final = 4 << 20
REGISTRIES_LIMIT: Final = 1000


class Transport(StrEnum):
    """How a registry is spoken to."""

    VERIFIED = "verified"  # https, its certificate checked
    UNVERIFIED = "unverified"  # https, whoever answers
    PLAIN = "plain"  # http


class RegistryAccess(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One registry. `ca` is PEM text of the authorities that may sign for it, "" for the system's."""

    registry: str
    transport: Transport = Transport.VERIFIED
    username: str = ""
    password: str = ""
    ca: str = ""

    def __repr__(self) -> str:
        return f"RegistryAccess({self.registry!r}, {self.transport.value}, user {self.username!r})"

    def check(self) -> None:
        """Raises `InvalidParameter` for what cannot work."""
        try:
            check_registry(self.registry)
        except ValueError as error:
            raise InvalidParameter({"registry": str(error)}) from error
        if bool(self.username) != bool(self.password):
            raise InvalidParameter({"password": "username and password go together"})
        if any(character in self.username for character in ":\r\n\0") or any(c in self.password for c in "\r\n\0"):
            raise InvalidParameter({"username": "control characters, and a colon in a name, are refused"})
        if self.password and self.transport is Transport.PLAIN and not is_loopback(self.registry):
            raise InvalidParameter({"transport": "a password is not sent over plain http to another host"})
        if self.ca:
            try:
                ssl.create_default_context(cadata=self.ca)
            except (ssl.SSLError, ValueError) as error:
                raise InvalidParameter({"ca": f"not PEM certificates: {error}"}) from error


class _File(msgspec.Struct, kw_only=True):
    format: int = 1
    registries: dict[str, RegistryAccess] = {}


class RegistryBook:
    """The file at `path`. Any thread may enter."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def all(self) -> list[RegistryAccess]:
        """Every registry with settings, by name. Raises `HostError` for a damaged file."""
        with self._lock:
            return sorted(self._read().registries.values(), key=lambda each: each.registry)

    def get(self, registry: str) -> RegistryAccess:
        """How to reach `registry`: as set, else verified and anonymous."""
        with self._lock:
            return self._read().registries.get(_key(registry)) or RegistryAccess(registry=_key(registry))

    def put(self, access: RegistryAccess) -> None:
        """Set or replace. Raises `InvalidParameter`, `HostError`."""
        access.check()
        with self._lock:
            book = self._read()
            if len(book.registries) >= REGISTRIES_LIMIT and _key(access.registry) not in book.registries:
                raise InvalidParameter({"registry": f"more than {REGISTRIES_LIMIT} registries"})
            book.registries[_key(access.registry)] = access
            self._write(book)

    def remove(self, registry: str) -> None:
        """Forget one. Raises `NotFound`."""
        with self._lock:
            book = self._read()
            if book.registries.pop(_key(registry), None) is None:
                raise NotFound(f"registry '{registry}'")
            self._write(book)

    def _read(self) -> _File:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_FILE_LIMIT_BYTES), type=_File)
        except FileNotFoundError:
            return _File(registries={})
        except (OSError, msgspec.DecodeError) as error:
            raise HostError(f"{self._path}: cannot be read: {type(error).__name__}") from error

    def _write(self, book: _File) -> None:
        write_atomic(self._path, msgspec.json.encode(book), mode=0o600)


def is_loopback(registry: str) -> bool:
    """Whether the registry is on this host by its name."""
    host = registry.rpartition(":")[0] or registry
    return host == "localhost" or host.startswith("127.")


def _key(registry: str) -> str:
    return DEFAULT_REGISTRY if registry in ("index.docker.io", "registry-1.docker.io") else registry
