"""Facts of the host the API shows and does not change: time zone, resolver, certificates. All functions block."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from appliance.errors import HostError
from appliance.lazy import LazyModule

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, rsa
else:
    x509 = LazyModule("cryptography.x509")
    hashes = LazyModule("cryptography.hazmat.primitives.hashes")
    serialization = LazyModule("cryptography.hazmat.primitives.serialization")
    ec = LazyModule("cryptography.hazmat.primitives.asymmetric.ec")
    rsa = LazyModule("cryptography.hazmat.primitives.asymmetric.rsa")

RESOLV_CONF = Path("/etc/resolv.conf")
LOCALTIME, TIMEZONE = Path("/etc/localtime"), Path("/etc/timezone")
RESOLVER_LIMIT = 3
FILE_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """What /etc/resolv.conf says: at most three name servers, the search list as one string."""

    servers: tuple[str, ...]
    search: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A certificate for people and for clients that pin it. `fingerprint` is SHA-256 as AA:BB:…"""

    filename: str
    fingerprint: str
    subject: str
    issuer: str
    not_before: int
    not_after: int
    names: tuple[str, ...]
    key_type: str
    key_bits: int
    pem: str


def parse_resolver(text: str) -> Resolver:
    """resolv.conf(5). The last `search` or `domain` line counts. Pure."""
    servers: list[str] = []
    search = ""
    for line in text.splitlines():
        match line.split():
            case ["nameserver", server, *_]:
                servers.append(server)
            case ["search" | "domain", *domains]:
                search = " ".join(domains)
    return Resolver(servers=tuple(servers[:RESOLVER_LIMIT]), search=search)


def read_resolver(path: Path = RESOLV_CONF) -> Resolver:
    """The host's resolver; empty when it has none. Raises `HostError`."""
    try:
        return parse_resolver(path.read_text(errors="replace"))
    except FileNotFoundError:
        return Resolver(servers=(), search="")
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error


def read_timezone() -> str:
    """The zone's name, "Europe/Vienna": from /etc/localtime's target, else /etc/timezone, else "UTC"."""
    try:
        target = str(LOCALTIME.readlink())
        _, found, zone = target.partition("/zoneinfo/")
        if found:
            return zone
    except OSError:
        pass  # a plain file, or none: the other place may know
    try:
        return TIMEZONE.read_text().strip() or "UTC"
    except OSError:
        return "UTC"


def utc_offset_s(now: float) -> int:
    """Seconds the host's local time is ahead of UTC at `now`."""
    offset = datetime.datetime.fromtimestamp(now, tz=datetime.UTC).astimezone().utcoffset()
    return int(offset.total_seconds()) if offset is not None else 0


def read_certificates(directory: Path) -> Sequence[Certificate]:
    """The CA's and the server's certificate (`services/pki.py` wrote them) under the names Proxmox VE gives its own.

    A file that is not there is left out. Raises `HostError` naming one that cannot be read.
    """
    found: list[Certificate] = []
    for filename, path in (("pve-root-ca.pem", directory / "ca.pem"), ("pve-ssl.pem", directory / "server.pem")):
        try:
            data = path.read_bytes()[:FILE_LIMIT_BYTES]
            found.append(describe(filename, x509.load_pem_x509_certificates(data)[0]))
        except FileNotFoundError:
            continue
        except OSError as error:
            raise HostError.from_os_error(error, f"read {path}") from error
        except ValueError as error:
            raise HostError(f"{path}: is no certificate: {error}") from error
    return found


def describe(filename: str, certificate: x509.Certificate) -> Certificate:
    """A certificate as values. Pure."""
    key = certificate.public_key()
    match key:
        case ec.EllipticCurvePublicKey():
            key_type, key_bits = "id-ecPublicKey", key.key_size
        case rsa.RSAPublicKey():
            key_type, key_bits = "rsaEncryption", key.key_size
        case _:
            key_type, key_bits = type(key).__name__, 0
    return Certificate(
        filename=filename,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        not_before=int(certificate.not_valid_before_utc.timestamp()),
        not_after=int(certificate.not_valid_after_utc.timestamp()),
        names=_names_of(certificate),
        key_type=key_type,
        key_bits=key_bits,
        pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
    )


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return (*names.get_values_for_type(x509.DNSName), *addresses)
