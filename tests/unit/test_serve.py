"""The process's arguments: a wrong one is named before anything is made."""

from __future__ import annotations

import asyncio
import threading

import pytest

from appliance import serve
from appliance.errors import InvalidParameter


@pytest.mark.parametrize(
    ("option", "value"),
    [("listen", "here"), ("listen", "127.0.0.1:99999"), ("listen", "[::1:80"), ("node-name", "Ä"), ("bridge", "a;b"),
     ("bridge", ""), ("bridge", "x" * 16), ("bridge", "../x")],
)  # fmt: skip
def test_a_wrong_value_is_named(option: str, value: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        serve.parse([f"--{option}", value])
    assert list(caught.value.errors) == [option]


async def test_calls_that_hang_on_a_stuck_storage_keep_nobody_waiting() -> None:
    """A file server that has gone holds the calls of thirty guests; the thirty-first guest's disk answers."""
    back = threading.Event()
    pool = serve.executor()
    loop = asyncio.get_running_loop()
    stuck = [loop.run_in_executor(pool, back.wait, 60) for _ in range(30)]
    try:
        assert await asyncio.wait_for(loop.run_in_executor(pool, threading.get_ident), timeout=10) != 0
        assert not any(call.done() for call in stuck)
    finally:
        back.set()
        await asyncio.gather(*stuck)
        pool.shutdown()
