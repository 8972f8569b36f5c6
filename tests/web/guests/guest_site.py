"""The web application with the resources of guests over a fake guest service, and short ways to call it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient

from appliance.model.guest import GuestKind
from appliance.services.guests import GuestService
from appliance.web.api import lxc, qemu
from appliance.web.registry import Resource
from appliance.web.services import Services
from tests.fakes.guests import FakeGuestService
from tests.fakes.services import NODE, World, fake_services

RESOURCES: tuple[Resource, ...] = (qemu.api, lxc.api)
DISK = "local:100/vm-100-disk-0.qcow2"
ROOT = "local:101/vm-101-disk-0.raw,size=4G"
KINDS = pytest.mark.parametrize("kind", list(GuestKind))


@dataclass(slots=True)
class Answer:
    """A reply: `reason` is the status line's text, `errors` what is wrong with each parameter."""

    status: int
    reason: str
    data: Any
    errors: Mapping[str, str]


@dataclass(slots=True)
class GuestSite:
    """The application under test. Paths begin below /nodes/NODE."""

    client: TestClient  # type: ignore[type-arg]  # generic over request and application, which no test cares for
    world: World
    guests: FakeGuestService

    async def call(
        self,
        verb: str,
        path: str,
        data: Mapping[str, object] | None = None,
        *,
        user: str = "admin@pve",
        node: str = NODE,
    ) -> Answer:
        """One request as a form, or as a query for GET and DELETE."""
        texts = {key: str(value) for key, value in (data or {}).items()}
        options: dict[str, Any] = {"params": texts} if verb in ("GET", "DELETE") else {"data": texts}
        access = self.world.access
        headers = {"Cookie": f"PVEAuthCookie={access.ticket(user)}", "CSRFPreventionToken": access.csrf(user)}
        url = f"/api2/json/nodes/{node}/{path}"
        async with self.client.request(verb, url, headers=headers, **options) as reply:
            body = await reply.json()
            return Answer(reply.status, reply.reason or "", body["data"], body.get("errors", {}))

    async def get(self, path: str, **query: object) -> Any:
        """The data of a GET that succeeds."""
        answer = await self.call("GET", path, query)
        assert answer.status == 200, answer.reason
        return answer.data

    async def do(self, verb: str, path: str, **data: object) -> Any:
        """The data of a write that succeeds."""
        answer = await self.call(verb, path, {key.replace("__", "-"): value for key, value in data.items()})
        assert answer.status == 200, (answer.reason, answer.errors)
        return answer.data

    def grant(self, path: str, *privileges: str, user: str = "eve@pve") -> None:
        """Give `user` exactly these privileges on an ACL path."""
        self.world.access.grant(user, path, *privileges)


def guest_services(directory: Path) -> tuple[Services, World, FakeGuestService]:
    """Fake services in which guests are a `FakeGuestService`."""
    services, world = fake_services(directory)
    guests = FakeGuestService(world.tasks)
    # the fake fulfils what the resources use of the class, hence the cast
    return dataclasses.replace(services, guests=cast(GuestService, guests)), world, guests


def define(site: GuestSite, kind: GuestKind, **config: object) -> str:
    """A guest with a disk; returns its path."""
    if kind is GuestKind.QEMU:
        site.guests.add(100, kind, **({"scsi0": f"{DISK},size=8G"} | config))
        return "qemu/100"
    site.guests.add(101, kind, **({"rootfs": ROOT} | config))
    return "lxc/101"
