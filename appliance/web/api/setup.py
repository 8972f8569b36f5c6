"""/appliance/setup: how far the guided set-up is. Our extension; the pages of the guide use it."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.errors import ApplianceError
from appliance.model.volume import ContentType
from appliance.services import setup_guide
from appliance.services.first_start import PASSWORD_FILE_NAME
from appliance.services.setup_guide import HostState
from appliance.web.registry import Allow, Call, PveBool, Resource
from appliance.web.services import Services

api = Resource()

MAY_SET_UP = Allow("/", "Sys.Modify")


class StepRow(msgspec.Struct, kw_only=True):
    """One step."""

    name: str
    done: bool


class Progress(msgspec.Struct, kw_only=True):
    """`offered`: the pages show the guide."""

    offered: bool
    steps: list[StepRow]


class StepParams(msgspec.Struct, kw_only=True):
    """Which step."""

    step: Annotated[str, Meta(max_length=40)]


class GuideParams(msgspec.Struct, kw_only=True):
    """Whether to offer the guide."""

    offered: Annotated[PveBool, Meta(description="0: skip it; 1: take it up again")]


async def host_state(services: Services) -> HostState:
    """What the host shows by itself."""
    generated = services.config.data_dir / PASSWORD_FILE_NAME
    return HostState(
        password_is_own=not await asyncio.to_thread(generated.exists), has_template=await _has_template(services)
    )


async def _has_template(services: Services) -> bool:
    for config in services.storage.storages():
        for content in (ContentType.VZTMPL, ContentType.IMPORT):
            if not config.active or content not in config.content_types:
                continue
            try:
                if await services.storage.content(config.storage_id, content):
                    return True
            except ApplianceError:  # one storage that fails says nothing about the others
                continue
    return False


@api.get("/appliance/setup", summary="How far the guided set-up is", allow=MAY_SET_UP, returns=Progress)
async def read_progress(call: Call) -> Progress:
    """The steps in their order."""
    state, _ = await setup_guide.read(call.services.store)
    host = await host_state(call.services)
    rows = [StepRow(name=step.name, done=step.is_done) for step in setup_guide.steps(state, host)]
    return Progress(offered=setup_guide.is_offered(state, host), steps=rows)


@api.put("/appliance/setup", summary="Skip the guided set-up, or take it up again", allow=MAY_SET_UP)
async def offer(call: Call, params: GuideParams) -> None:
    """It stays where it was."""
    await setup_guide.dismiss(call.services.store, dismissed=not params.offered)


@api.put("/appliance/setup/{step}", summary="Go on from a step of the guided set-up", allow=MAY_SET_UP)
async def finish_step(call: Call, params: StepParams) -> None:
    """The step counts as done, whatever was done in it."""
    await setup_guide.finish_step(call.services.store, params.step)
