"""A web application over fake services, and a client to it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2
import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.web.application import build_application
from appliance.web.services import Services
from appliance.web.static import StaticFiles
from tests.fakes.house import furnished, settle_in
from tests.fakes.services import World, fake_services

Headers = dict[str, str]


@dataclass(slots=True)
class Site:
    """The application under test."""

    client: TestClient  # type: ignore[type-arg]  # generic over request and application, which no test cares for
    services: Services
    world: World

    def as_user(self, user: str = "admin@pve") -> Headers:
        """Headers of a browser in which `user` has logged in."""
        return {"Cookie": f"PVEAuthCookie={self.world.access.ticket(user)}",
                "CSRFPreventionToken": self.world.access.csrf(user)}  # fmt: skip

    @property
    def origin(self) -> str:
        """The Origin header of our own pages."""
        return f"http://{self.client.host}:{self.client.port}"


class CompiledTemplates(jinja2.BytecodeCache):
    """What each template, as it was translated, was compiled to."""

    def __init__(self) -> None:
        self._code: dict[tuple[str, str], bytes] = {}

    def load_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        if (code := self._code.get((bucket.key, bucket.checksum))) is not None:
            bucket.bytecode_from_string(code)

    def dump_bytecode(self, bucket: jinja2.bccache.Bucket) -> None:
        self._code[bucket.key, bucket.checksum] = bucket.bytecode_to_string()


@pytest.fixture(scope="session", autouse=True)
def templates_are_compiled_once() -> Iterator[None]:
    """Each application compiles every template for itself, which takes a second: those of these tests share the result."""
    with pytest.MonkeyPatch.context() as patch:
        shared = functools.partial(jinja2.Environment, bytecode_cache=CompiledTemplates())
        patch.setattr(jinja2, "Environment", shared)
        yield


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    services, world = fake_services(tmp_path)
    async with TestClient(TestServer(build_application(services))) as client:
        yield Site(client, services, world)


@pytest.fixture
async def house(tmp_path: Path, repository: Path) -> AsyncIterator[Site]:
    """The application over a furnished world, with the files its pages name."""
    services, world = furnished(tmp_path)
    settle_in(world)
    static = await asyncio.to_thread(StaticFiles.scan, repository / "static")
    async with TestClient(TestServer(build_application(services, static=static))) as client:
        yield Site(client, services, world)
