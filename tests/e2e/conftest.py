"""A running appliance, and small guests for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance.storage.recipes.builder import build
from tests.e2e.busybox import write_template
from tests.harness import ROOT, Appliance

IMAGES = ROOT / ".build" / "images"


@pytest.fixture(scope="session")
def images() -> tuple[Path, Path]:
    """The two images of `debian-12`, (VM disk, container root), built once: the builder locks, also between processes."""
    return asyncio.run(_build_both())


async def _build_both() -> tuple[Path, Path]:
    return await build("debian-12", "vm", IMAGES, print), await build("debian-12", "ct", IMAGES, print)


@pytest.fixture(scope="session")
def busybox_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """See `busybox.py`."""
    return write_template(tmp_path_factory.mktemp("template") / "busybox_1_amd64.tar.gz")


@pytest.fixture(scope="module")
def appliance() -> Iterator[Appliance]:
    """One appliance for the tests of a module."""
    with Appliance() as running:
        yield running
