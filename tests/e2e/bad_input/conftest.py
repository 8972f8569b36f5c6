"""One appliance for each module, and the proof that the module left nothing on the host."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from proxmoxer import ProxmoxAPI

from tests.e2e.bad_input.client import Client
from tests.harness import Appliance


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    """Runs for the module; it must not have crashed, nor logged an error it does not understand, nor left anything."""
    with Appliance() as running:
        yield running
        assert running.process is not None
        assert running.process.poll() is None, f"the appliance has ended:\n{running.log_tail()}"
        log = running.log_path.read_text(errors="replace")
        assert "Traceback" not in log, log[log.index("Traceback") - 500 :][:4000]
        remains = files_of(running)
        assert remains == [], "files that nothing lists"
    assert running.lasting_traces() == []


@pytest.fixture(scope="module")
def proxmoxer(appliance: Appliance) -> Any:
    """proxmoxer, logged in as the administrator, over verified TLS."""
    return proxmoxer_of(appliance)


@pytest.fixture
def api(proxmoxer: Any) -> Iterator[Any]:
    """`proxmoxer`, whose connections end with the test."""
    yield proxmoxer
    proxmoxer._store["session"].close()


@pytest.fixture(scope="module")
def client(appliance: Appliance) -> Client:
    """See `client.py`."""
    return Client(appliance)


def proxmoxer_of(appliance: Appliance) -> Any:
    """See `proxmoxer`."""
    ca = str(appliance.data_dir / "pki" / "ca.pem")
    return ProxmoxAPI(
        "127.0.0.1", port=appliance.port, user="admin@pve", password=appliance.password, verify_ssl=ca, timeout=60
    )


def files_of(appliance: Appliance) -> list[str]:
    """Temporary files of the appliance's data and storage."""
    return [str(path) for path in appliance.data_dir.rglob("*") if path.name.startswith((".tmp-", ".new-"))]
