"""A lab and a backend in it, with nothing left behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.network.backend import NetworkBackend
from appliance.tasks import TaskScope
from tests.network.lab import Lab


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A host of its own."""
    with Lab() as lab:
        yield lab


@pytest.fixture
async def backend(lab: Lab, tmp_path: Path) -> AsyncIterator[NetworkBackend]:
    """A backend that has not been started; everything it made is removed afterwards."""
    scope = TaskScope("network-test")
    backend = NetworkBackend(tmp_path, scope, SystemClock(), instance="t1", netns=lab.name)
    yield backend
    await backend.teardown()
    await backend.close()
    await scope.close()
