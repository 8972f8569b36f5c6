"""A runtime's self-test, which a start of the appliance that fails cancels at any moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.clock import SystemClock
from appliance.ct import runtime
from appliance.ct.engine import CtEngine
from appliance.ct.runtime import OciRuntime
from appliance.tasks import TaskScope
from tests.ct.conftest import leftovers, real_self_test

pytestmark = pytest.mark.host


async def test_a_self_test_that_is_cancelled_again_and_again_leaves_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "self_test", real_self_test)
    delete, deleting = OciRuntime.delete, asyncio.Event()

    async def announced(program: OciRuntime, container: str) -> None:
        deleting.set()
        await delete(program, container)

    monkeypatch.setattr(OciRuntime, "delete", announced)
    scope = TaskScope("test")
    engine = CtEngine(run_dir, run_dir, scope, SystemClock())
    probing = asyncio.ensure_future(engine.probe())
    await deleting.wait()
    while not probing.done():
        probing.cancel()
        await asyncio.sleep(0.001)
    assert probing.cancelled()
    assert await leftovers(run_dir) == []
    await engine.close()
    await scope.close()
