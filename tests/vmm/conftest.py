"""Devices are tested on a machine without KVM; what needs the real one is in tests/kvm and marked `host`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fakes.machine import FakeMachine


@pytest.fixture
def machine() -> Iterator[FakeMachine]:
    made = FakeMachine()
    yield made
    made.close()
