"""Every writing method of the API can be reached by clicking, or the table here says why not; and no link is dead.

The office is walked from its overview, over every link, dialog and part of a page, as a reader may. What a form or a button
says it calls (`data-api`) is looked up in the API's own table of routes: nothing is believed that is not rendered and routed.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest
from aiohttp.test_utils import TestClient, TestServer
from yarl import URL

from appliance.model.guest import GuestKind, GuestState
from appliance.services import guest_agent, users
from appliance.services.storage_config import StorageDocument
from appliance.storage.oci.credentials import RegistryAccess
from appliance.web.application import RESOURCES, build_application
from appliance.web.static import StaticFiles
from appliance.web.table import ApiTable
from tests.fakes.access import ADMIN, ADMIN_PASSWORD
from tests.fakes.office import Office, open_office

BY_ITSELF = "the log-in page and the menu of the user do it by a form of their own"
CLIENTS = "another spelling for clients of Proxmox VE; the browser uses"
REFUSED = "always refused:"
NOT_IN_THE_BROWSER: Final[Mapping[str, str]] = {
    "POST /access/ticket": BY_ITSELF,
    "DELETE /access/ticket": BY_ITSELF,
    "POST /access/vncticket": "servers in front of a console ask it",
    "POST /access/domains": f"{REFUSED} there are PVE's and PAM's realm",
    "PUT /access/domains/{realm}": f"{REFUSED} the settings of the two realms are fixed",
    "DELETE /access/domains/{realm}": f"{REFUSED} the two realms stay",
    "POST /access/domains/{realm}/sync": f"{REFUSED} neither realm is a directory",
    "POST /nodes/{node}/lxc/{vmid}/vncproxy": f"{REFUSED} containers have no display",
    "POST /nodes/{node}/network": f"{REFUSED} interfaces are the host's",
    "DELETE /nodes/{node}/network/{iface}": f"{REFUSED} interfaces are the host's",
    "POST /nodes/{node}/qemu/{vmid}/agent": f"{CLIENTS} the commands' own addresses",
    "POST /nodes/{node}/qemu/{vmid}/agent/fsfreeze-status": "whether they are frozen is on the guest's tab Inside",
    "POST /nodes/{node}/qemu/{vmid}/agent/ping": "whether the agent answers is on the guest's summary",
    "POST /nodes/{node}/qemu/{vmid}/agent/shutdown": f"{REFUSED} the guest's own button does it",
    "POST /nodes/{node}/qemu/{vmid}/agent/suspend-disk": f"{REFUSED} nothing would wake the guest",
    "POST /nodes/{node}/qemu/{vmid}/agent/suspend-hybrid": f"{REFUSED} nothing would wake the guest",
    "POST /nodes/{node}/qemu/{vmid}/agent/suspend-ram": f"{REFUSED} nothing would wake the guest",
    "POST /nodes/{node}/qemu/{vmid}/config": f"{CLIENTS} PUT",
    "PUT /nodes/{node}/qemu/{vmid}/unlink": f"{CLIENTS} PUT …/config with delete",
    "POST /nodes/{node}/status": f"{REFUSED} the host is rebooted on the host",
    "POST /nodes/{node}/storage/{storage}/content": "disks are made with the guest whose they are",
    "POST /nodes/{node}/vncproxy": f"{REFUSED} the host has no display",
    "PUT /pools": f"{CLIENTS} /pools/{{poolid}}",
    "DELETE /pools": f"{CLIENTS} /pools/{{poolid}}",
}
SCRIPTS: Final[Sequence[tuple[str, str, Mapping[str, str]]]] = (
    (r'data-console="([^"]+)"', "terminal_view.js", {"termproxy": 'call("POST", `${path}/termproxy`'}),
    (r'data-display="([^"]+)"', "display_view.js", {"vncproxy": 'call("POST", `${path}/vncproxy`'}),
    (r'data-inside="lxc"[^>]* data-base="([^"]+)"', "inside_api.js", {
        "exec": "await post(`${this.base}/exec`", "file": 'open("POST", at(`/api2/json${this.base}/file`))'}),
    (r'data-inside="qemu"[^>]* data-base="([^"]+)"', "inside_api.js", {
        "agent/exec": "await post(`${this.base}/exec`", "agent/file-write": 'call("POST", `${this.base}/file-write`'}),
)  # fmt: skip
"""What scripts POST by themselves: where the markup names the object, the script, its methods and the words it calls each by."""
LINK = re.compile(r'(?:href|hx-get|data-dialog|data-href)="(/[^"#]*)')
CALL = re.compile(r'data-api="([A-Z]+ /[^"]+)"')
UPLOAD = re.compile(r'data-upload="([^"]+)"')
NO_PAGES = ("/api", "/static/")
WITHOUT_FORM = frozenset({"/parts/prune"})
"""Parts that are asked for with a form's fields."""
MANY = "/access/effective"
"""A page with a link for every user and path to itself: once is enough."""


@dataclass(slots=True)
class Walk:
    """Where a walk came, and what can be called there: "PUT /storage/local" → the page that offers it."""

    client: TestClient  # type: ignore[type-arg]  # generic over request and application, which no test cares for
    headers: Mapping[str, str]
    calls: dict[str, str] = field(default_factory=dict)
    dead: list[str] = field(default_factory=list)

    async def go(self, start: str) -> None:
        """Read `start` and everything that can be reached from it."""
        seen, waiting = {start}, [start]
        while waiting:
            at = waiting.pop()
            for link in await self._read(at):
                known = MANY if link.startswith(MANY) else link
                if known not in seen and not link.startswith(NO_PAGES) and link not in WITHOUT_FORM:
                    seen.add(known)
                    waiting.append(link)

    async def _read(self, at: str) -> list[str]:
        """The links of a page; what it calls is noted."""
        url = URL(at, encoded=True)
        async with self.client.get(url, headers=self.headers, allow_redirects=False) as reply:
            if reply.status >= 400:
                self.dead.append(f"{at}: {reply.status}")
            text = await reply.text()
            self.note(text, at)
            return [reply.headers.get("Location", at), *(html.unescape(link[1]) for link in LINK.finditer(text))]

    def note(self, text: str, at: str) -> None:
        """What can be called where this text is shown."""
        for call in _calls(text):
            self.calls.setdefault(call, at)


def _calls(text: str) -> Iterator[str]:
    yield from (re.sub(r"\{\w+\}", "x", html.unescape(call[1])) for call in CALL.finditer(text))
    yield from (f"POST {upload[1]}" for upload in UPLOAD.finditer(text))
    for markup, _, methods in SCRIPTS:
        yield from (f"POST {path}/{method}" for path in re.findall(markup, text) for method in methods)


async def furnish(office: Office, patch: pytest.MonkeyPatch) -> str:
    """One of everything something can be done with, guests in each state; returns a task that runs."""
    guests, extras = office.guests, office.world.extras
    guests.add(105, name="night", scsi0="local:105/vm-105-disk-0.qcow2,size=4G")
    for guest in (
        guests.add(106, name="asleep"),
        guests.add(107, GuestKind.LXC, hostname="nap", rootfs="local:107/vm-107-disk-0.raw,size=4G"),
    ):
        guest.state = GuestState.PAUSED
    guests.find(101, None).kept = {"clean": {}}
    guests.find(100, None).running = SimpleNamespace()

    async def answer(running: object, command: str) -> object:
        return [{"name": "eth0"}]

    patch.setattr(guest_agent, "ask", answer)
    patch.setattr(users, "FAILURE_LIMIT", 0)  # nobody's codes are accepted any more
    extras.storage.documents["vault"] = StorageDocument(path="/srv/vault")
    await extras.mappings.create("media", description="", paths={"testnode": "/srv/media"})
    await asyncio.to_thread(extras.images.registries.put, RegistryAccess(registry="registry.example.org"))
    await office.access.tfa.add(ADMIN, "admin@pve", "recovery", password=ADMIN_PASSWORD)
    return office.world.tasks.begin("download", object_id="debian-13.qcow2")


@pytest.fixture
async def walk(tmp_path: Path, repository: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Walk]:
    async with open_office(tmp_path) as office:
        task = await furnish(office, monkeypatch)
        static = await asyncio.to_thread(StaticFiles.scan, repository / "static")
        async with TestClient(TestServer(build_application(office.services, static=static))) as client:
            headers = {"Cookie": f"PVEAuthCookie={office.tickets[ADMIN.user]}", "Accept": "text/html"}
            found = Walk(client, headers)
            await found.go("/overview")
            origin = {"Origin": f"http://{client.host}:{client.port}"}
            async with client.ws_connect("/ws/page", headers={**headers, **origin}) as socket:
                await socket.send_json({"topics": [f"log:{task}"]})
                found.note("\n".join(await socket.receive_json()), "the tasks' drawer")
            yield found


async def test_every_writing_method_is_reached_by_clicking_or_the_table_says_why_not(walk: Walk) -> None:
    table = ApiTable(RESOURCES)
    reached = {table.match(*call.split(" ", 1)).method for call in walk.calls}  # raises for what the API does not have
    left = {f"{each.verb} {each.path}" for each in table.methods() if each.verb != "GET" and each not in reached}
    assert left == set(NOT_IN_THE_BROWSER)


async def test_no_link_is_dead(walk: Walk) -> None:
    assert not walk.dead


def test_scripts_call_what_they_are_said_to_call(repository: Path) -> None:
    for _, script, methods in SCRIPTS:
        text = (repository / "static" / "js" / script).read_text()
        assert [words for words in methods.values() if words not in text] == []
