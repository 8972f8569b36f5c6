"""Stores, clients and registries."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.storage.oci.credentials import RegistryAccess, Transport
from appliance.storage.oci.registry import Limits, RegistryClient
from appliance.storage.oci.store import ImageStore
from appliance.storage.oci.transfer import Progress
from tests.oci import registries
from tests.oci.registries import FakeRegistry

LIMITS = Limits(connect_s=2, read_s=1, answer_s=1, window_s=0.3, slowest_bytes_s=10_000, redirects=3)


@pytest.fixture
def store(tmp_path: Path) -> ImageStore:
    made = ImageStore(tmp_path / "storage")
    made.prepare()
    return made


@pytest.fixture
async def fake() -> AsyncIterator[FakeRegistry]:
    """A registry that can be told to misbehave."""
    registry = FakeRegistry()
    runner = await registries.serve(registry)
    yield registry
    await runner.cleanup()


@pytest.fixture(scope="session")
def debian_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's docker-registry, ended at the end."""
    if not registries.installed():
        pytest.skip("docker-registry is not installed")
    with registries.docker_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


def client(host: str, *, username: str = "", password: str = "") -> RegistryClient:
    access = RegistryAccess(registry=host, transport=Transport.PLAIN, username=username, password=password)
    return RegistryClient(access, host, limits=LIMITS)


def progress() -> Progress:
    return Progress(log=lambda line: None, tell=lambda share: None)
