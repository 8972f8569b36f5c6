"""The guided set-up after installing: four short steps, left out or taken up again at any time. Pure but for the store.

A step is done when the host shows it (a password of one's own, a template) or when somebody went on from it. What was
decided is one document, `setup`, so that another browser, or the one after a restart, goes on where this one was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from appliance.errors import Conflict, NotFound
from appliance.state.store import Absent, Put, RevisionIs, Store

KEY: Final = "setup"
STEPS: Final = ("password", "storage", "network", "template")
ATTEMPTS: Final = 5


class SetupState(msgspec.Struct, frozen=True, kw_only=True):
    """What was decided. `dismissed`: the guide offers itself no more."""

    done: tuple[str, ...] = ()
    dismissed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """What the host shows by itself."""

    password_is_own: bool
    has_template: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One step, and whether it is done."""

    name: str
    is_done: bool


def steps(state: SetupState, host: HostState) -> Sequence[Step]:
    """All steps in their order."""
    shown = {"password": host.password_is_own, "template": host.has_template}
    return [Step(name, name in state.done or shown.get(name, False)) for name in STEPS]


def is_offered(state: SetupState, host: HostState) -> bool:
    """Whether the guide should be offered: something is left, and nobody said no."""
    return not state.dismissed and not all(step.is_done for step in steps(state, host))


def next_step(state: SetupState, host: HostState) -> str | None:
    """The first one that is not done."""
    return next((step.name for step in steps(state, host) if not step.is_done), None)


async def read(store: Store) -> tuple[SetupState, int]:
    """What was decided, and the document's revision (0: there is none). Raises `StoreError`."""
    document = await store.get(KEY)
    if document is None:
        return SetupState(), 0
    return msgspec.json.decode(document.value, type=SetupState), document.mod_revision


async def finish_step(store: Store, name: str) -> None:
    """Somebody went on from a step. Raises `NotFound`, `Conflict`, `StoreError`."""
    if name not in STEPS:
        raise NotFound(f"step '{name[:40]}' of the set-up")
    await _change(store, lambda state: msgspec.structs.replace(state, done=tuple(sorted({*state.done, name}))))


async def dismiss(store: Store, *, dismissed: bool) -> None:
    """Offer the guide no more, or again. Raises `Conflict`, `StoreError`."""
    await _change(store, lambda state: msgspec.structs.replace(state, dismissed=dismissed))


async def _change(store: Store, change: Callable[[SetupState], SetupState]) -> None:
    for _ in range(ATTEMPTS):
        state, revision = await read(store)
        new = change(state)
        if new == state and revision:
            return
        condition = RevisionIs(KEY, revision) if revision else Absent(KEY)
        if (await store.txn([condition], [Put(KEY, msgspec.json.encode(new))])).succeeded:
            return
    raise Conflict("the set-up was changed by others at the same time, try again")
