"""A running appliance, and small guests for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.busybox import write_template
from tests.harness import Appliance


@pytest.fixture(scope="session")
def busybox_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `busybox.py`."""
    return write_template(tmp_path_factory.mktemp("template") / "busybox_1_amd64.tar.gz")


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    """One appliance for the tests of a module."""
    with Appliance() as running:
        yield running
