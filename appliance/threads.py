"""Blocking work that must be over before its caller goes on, cancelled or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from appliance.tasks import to_its_end

P = ParamSpec("P")
T = TypeVar("T")


async def to_the_end(work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.to_thread`, but a cancellation is raised only when `work` has returned (its result is lost then).

    Otherwise what the caller does next, closing a descriptor or removing what was begun, would race with the thread
    that still uses or makes it. Not for work that may hang for ever on a stuck storage.
    """
    future = asyncio.get_running_loop().run_in_executor(None, partial(work, *args, **kwargs))
    return await to_its_end(future, name=getattr(work, "__qualname__", "thread"))
