from __future__ import annotations

import datetime
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from appliance.errors import HostError
from appliance.services import server_identity
from appliance.services.pki import RENEW_BEFORE, SERVER_LIFE, ensure_server_identity, fingerprint
from appliance.services.server_identity import ServerIdentity

NOW = datetime.datetime.now(datetime.UTC)
DAY = datetime.timedelta(days=1)


def make(directory: Path, *names: str, now: datetime.datetime = NOW) -> ServerIdentity:
    return ensure_server_identity(directory, names or ("node1",), now)


def certificate_of(identity: ServerIdentity) -> x509.Certificate:
    return x509.load_pem_x509_certificate(identity.server_file.read_bytes())


def test_secrets_are_for_root_only_and_the_certificate_is_as_asked(tmp_path: Path) -> None:
    identity = make(tmp_path / "pki", "Node1", "192.0.2.5", "0.0.0.0", "[2001:db8::5]")
    for name in ("ca.key", "server.pem"):
        assert stat.S_IMODE((tmp_path / "pki" / name).stat().st_mode) == 0o600
    assert set(identity.names) == {"node1", "192.0.2.5", "2001:db8::5", "localhost", "127.0.0.1", "::1"}
    certificate = certificate_of(identity)
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert {use.dotted_string for use in uses} == {"1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"}
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc <= datetime.timedelta(days=731)
    assert identity.fingerprint == fingerprint(certificate)
    assert len(identity.fingerprint.split(":")) == 32


def test_a_second_start_changes_nothing(tmp_path: Path) -> None:
    assert make(tmp_path).fingerprint == make(tmp_path).fingerprint


def test_the_certificate_is_renewed_before_it_ends_under_the_same_authority(tmp_path: Path) -> None:
    first, authority = make(tmp_path), (tmp_path / "ca.pem").read_bytes()
    assert make(tmp_path, now=NOW + SERVER_LIFE - RENEW_BEFORE - DAY).fingerprint == first.fingerprint
    renewed = make(tmp_path, now=NOW + SERVER_LIFE - RENEW_BEFORE + DAY)
    assert renewed.fingerprint != first.fingerprint
    assert renewed.not_after > first.not_after
    assert (tmp_path / "ca.pem").read_bytes() == authority


def test_a_new_name_gets_a_new_certificate(tmp_path: Path) -> None:
    first = make(tmp_path, "node1")
    assert make(tmp_path, "node1", "node2").fingerprint != first.fingerprint


def test_an_interrupted_first_start_is_completed(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "server.pem").unlink()
    (tmp_path / "ca.pem").unlink()
    key = (tmp_path / "ca.key").read_bytes()
    make(tmp_path)
    assert (tmp_path / "ca.key").read_bytes() == key


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "server.pem"])
@pytest.mark.parametrize(
    "content", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_damaged_file_is_an_error_naming_it_and_stays(tmp_path: Path, name: str, content: bytes) -> None:
    make(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HostError, match=name):
        make(tmp_path)
    assert (tmp_path / name).read_bytes() == content


@pytest.mark.parametrize("name", ["ca.key", "ca.pem", "server.pem"])
def test_a_file_from_elsewhere_is_an_error_naming_it_and_stays(tmp_path: Path, name: str) -> None:
    make(tmp_path / "a")
    make(tmp_path / "b")
    foreign = (tmp_path / "b" / name).read_bytes()
    (tmp_path / "a" / name).write_bytes(foreign)
    with pytest.raises(HostError, match=name):
        make(tmp_path / "a")
    assert (tmp_path / "a" / name).read_bytes() == foreign


def test_a_missing_key_is_an_error_naming_it(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(HostError, match=r"ca\.key is missing"):
        make(tmp_path)


def test_an_expired_authority_is_an_error(tmp_path: Path) -> None:
    make(tmp_path)
    with pytest.raises(HostError, match="expired"):
        make(tmp_path, now=NOW + datetime.timedelta(days=3700))


def handshake(identity: ServerIdentity, client: ssl.SSLContext, name: str) -> str | None:
    """The TLS version a client that trusts only `ca.pem` agrees on with us."""
    server_end, client_end = socket.socketpair()
    context = identity.context()

    def serve() -> None:
        try:
            with context.wrap_socket(server_end, server_side=True) as tls:
                tls.recv(1)
        except (ssl.SSLError, OSError):
            server_end.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(client_end, server_hostname=name) as tls:
            return tls.version()
    finally:
        client_end.close()
        thread.join(10)
        server_end.close()


@pytest.mark.parametrize("name", ["node1", "localhost", "127.0.0.1", "::1"])
def test_a_client_that_trusts_the_authority_connects_by_every_name(tmp_path: Path, name: str) -> None:
    identity = make(tmp_path)
    client = ssl.create_default_context(cafile=str(identity.ca_file))
    assert handshake(identity, client, name) == "TLSv1.3"


def test_other_names_strangers_and_old_tls_are_refused(tmp_path: Path) -> None:
    identity = make(tmp_path)
    client = ssl.create_default_context(cafile=str(identity.ca_file))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(identity, client, "elsewhere")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(identity, ssl.create_default_context(), "node1")
    assert identity.context().minimum_version is ssl.TLSVersion.TLSv1_2


def test_an_examined_identity_is_recalled_until_files_names_or_time_change(tmp_path: Path) -> None:
    made = make(tmp_path / "pki")
    directory = tmp_path / "pki"
    assert server_identity.recall(directory, ("node1",), NOW) == made
    assert server_identity.recall(directory, ("node2",), NOW) is None
    assert server_identity.recall(directory, ("node1",), made.not_after - RENEW_BEFORE) is None
    key = (directory / "ca.key").read_bytes()
    (directory / "ca.key").write_bytes(key[:-1])
    assert server_identity.recall(directory, ("node1",), NOW) is None
    (directory / "ca.key").unlink()
    assert server_identity.recall(directory, ("node1",), NOW) is None
    (directory / "ca.key").write_bytes(key)
    (directory / "server.json").write_bytes(b"{")
    assert server_identity.recall(directory, ("node1",), NOW) is None
