"""Waiting on the loop for a descriptor."""

from __future__ import annotations

import asyncio


async def readable(fd: int) -> None:
    """Return once `fd` is readable: a pidfd is when its process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)
