"""Blocking work that must be over before its caller goes on, cancelled or not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import ParamSpec, TypeVar

from appliance.tasks import to_its_end

P = ParamSpec("P")
T = TypeVar("T")
U = TypeVar("U")


async def to_the_end(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread`, but a cancellation is raised only when `work` has returned (its result is lost then).

    Otherwise what the caller does next, closing a descriptor or removing what was begun, would race with the thread
    that still uses or makes it. Not for work that may hang for ever on a stuck storage.
    """
    future = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
    return await to_its_end(future, name=getattr(work, "__qualname__", "thread"))


async def both_to_the_end(one: Awaitable[T], other: Awaitable[U]) -> tuple[T, U]:
    """Two pieces of work at once, of the kind of `to_the_end`; what one raises is raised when both are over."""
    first, second = asyncio.ensure_future(one), asyncio.ensure_future(other)
    await to_its_end(asyncio.gather(first, second, return_exceptions=True), name="two at once")
    return first.result(), second.result()
