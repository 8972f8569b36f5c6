"""Expected errors of owned tasks, as values."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from appliance.errors import ApplianceError

T = TypeVar("T")


async def outcome(work: Callable[[], Coroutine[Any, Any, T]]) -> T | ApplianceError:
    """An expected error as a value: the caller raises it, the task scope has nothing to report."""
    try:
        return await work()
    except ApplianceError as error:
        return error
