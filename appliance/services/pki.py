"""The appliance's own certificate authority and its server certificate. Blocking: call from a thread or before the loop.

    DATA_DIR/pki/ca.key      the CA's ECDSA P-256 key, PEM, 0600
    DATA_DIR/pki/ca.pem      its certificate, 10 years: what clients import to trust this appliance
    DATA_DIR/pki/server.pem  key and certificate of the server followed by the CA's, one file so that renewal is atomic, 0600

What is missing is made; a server certificate that ends soon, or lacks a name it now needs, is made anew. A file that is
damaged, does not fit the others, or comes from elsewhere is an error naming it and is never replaced.
A CA is made key first: a key without certificate is an interrupted first start and is completed.
RFC 5280; key usage as TLS servers and clients (node to node) need it.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from appliance.errors import HostError
from appliance.files import write_atomic
from appliance.services import server_identity
from appliance.services.server_identity import ServerIdentity

CA_LIFE = datetime.timedelta(days=3652)
SERVER_LIFE = datetime.timedelta(days=730)
RENEW_BEFORE = datetime.timedelta(days=30)
BACKDATE = datetime.timedelta(hours=1)
"""Certificates begin a little earlier than now: clients' clocks may be behind."""
FILE_LIMIT_BYTES = 64 << 10
COMMON_NAME_LIMIT = 64
ALWAYS_NAMES = ("localhost", "127.0.0.1", "::1")


def ensure_server_identity(directory: Path, names: Sequence[str], now: datetime.datetime) -> ServerIdentity:
    """Load or make CA and server certificate for `names` (host names and addresses) beside `ALWAYS_NAMES`.

    `now` is aware, UTC. Raises `HostError` naming the file that is damaged or does not fit.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise HostError.from_os_error(error, f"create {directory}") from error
    ca_key, ca = _ensure_ca(directory / "ca.key", directory / "ca.pem", now)
    wanted = tuple(dict.fromkeys(_clean(name) for name in (*names, *ALWAYS_NAMES) if _is_certifiable(name)))
    path = directory / "server.pem"
    certificate = _load_server(path, ca) if path.exists() else None
    if certificate is None or not _is_good_for(certificate, wanted, now):
        certificate = _issue_server(path, ca_key, ca, wanted, now)
    identity = ServerIdentity(
        path, directory / "ca.pem", fingerprint(certificate), certificate.not_valid_after_utc, _names_of(certificate)
    )
    ends = min(certificate.not_valid_after_utc - RENEW_BEFORE, ca.not_valid_after_utc)
    server_identity.remember(directory, names, identity, examine_after=ends)
    return identity


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 as AA:BB:…, the form clients show and ask for."""
    return certificate.fingerprint(hashes.SHA256()).hex(":").upper()


# the authority


def _ensure_ca(
    key_path: Path, certificate_path: Path, now: datetime.datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    if not certificate_path.exists():
        key = _load_key(key_path) if key_path.exists() else ec.generate_private_key(ec.SECP256R1())
        write_atomic(key_path, _key_pem(key), mode=0o600)
        write_atomic(certificate_path, _pem(_make_ca(key, now)))
    elif not key_path.exists():
        raise HostError(
            f"{key_path} is missing although {certificate_path} exists: restore it, or remove both to begin anew"
        )
    key, certificate = _load_key(key_path), _load_certificate(certificate_path)
    if certificate.public_key() != key.public_key():
        raise HostError(f"{certificate_path} does not belong to {key_path}")
    if certificate.not_valid_after_utc <= now:
        raise HostError(f"{certificate_path} has expired on {certificate.not_valid_after_utc:%Y-%m-%d}")
    return key, certificate


def _make_ca(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> x509.Certificate:
    serial = x509.random_serial_number()
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Appliance"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"Appliance CA {serial:x}"[:COMMON_NAME_LIMIT]),
        ]
    )
    usage = _key_usage(signs_certificates=True)
    return (
        x509.CertificateBuilder(name, name, key.public_key(), serial, now - BACKDATE, now + CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )


# the server


def _issue_server(
    path: Path,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: Sequence[str],
    now: datetime.datetime,
) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:COMMON_NAME_LIMIT])])
    end = min(now + SERVER_LIFE, ca.not_valid_after_utc)
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder(ca.subject, subject, key.public_key(), x509.random_serial_number(), now - BACKDATE, end)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    write_atomic(path, _key_pem(key) + _pem(certificate) + _pem(ca), mode=0o600)
    return certificate


def _load_server(path: Path, ca: x509.Certificate) -> x509.Certificate:
    certificate, key = _load_certificate(path), _load_key(path)
    if certificate.public_key() != key.public_key():
        raise HostError(f"{path}: its key does not belong to its certificate")
    try:
        certificate.verify_directly_issued_by(ca)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise HostError(
            f"{path} was not issued by the authority beside it (ca.pem); remove it to have a new one made"
        ) from error
    return certificate


def _is_good_for(certificate: x509.Certificate, names: Sequence[str], now: datetime.datetime) -> bool:
    return certificate.not_valid_after_utc - now > RENEW_BEFORE and set(names) <= set(_names_of(certificate))


def _names_of(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(name.value) for name in names)


def _is_certifiable(name: str) -> bool:
    """Wildcard addresses name nobody, and what is no DNS name cannot stand in a certificate."""
    if not name or len(name) > 253 or not name.isascii():
        return False
    try:
        return not ipaddress.ip_address(_clean(name)).is_unspecified
    except ValueError:
        return all(part and part.replace("-", "a").isalnum() for part in name.split("."))


def _clean(name: str) -> str:
    return name.strip("[]").split("%")[0].lower()


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


# files


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(FILE_LIMIT_BYTES)
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(_read(path))
    except ValueError as error:
        raise HostError(f"{path} is damaged: no certificate can be read from it") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(_read(path), password=None)
    except (ValueError, TypeError) as error:
        raise HostError(f"{path} is damaged: no private key can be read from it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise HostError(f"{path} does not hold an elliptic-curve key")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
