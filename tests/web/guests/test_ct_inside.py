"""/nodes/{node}/lxc/{vmid}/file: what a container says of its files is told as text that JSON can say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

from appliance.model.guest import GuestId, GuestKind, GuestState
from appliance.model.inside import FileInfo
from tests.web.guests.guest_site import GuestSite, define


async def test_a_name_that_is_no_utf_8_does_not_hide_the_others(site: GuestSite) -> None:
    entries = tuple({"name": name, "type": "file", "size": 1, "mode": 0o644} for name in ("a\udcff", "motd"))

    @asynccontextmanager
    async def read(path: str, **part: int) -> AsyncIterator[tuple[FileInfo, None]]:
        yield FileInfo(type="directory", entries=entries, target="b\udcff"), None

    path = define(site, GuestKind.LXC)
    files, state = SimpleNamespace(read=read), GuestState.RUNNING
    site.guests.guests[101].running = SimpleNamespace(guest_id=GuestId(101), state=state, executions=None, files=files)
    found = await site.get(f"{path}/file/stat?path=/etc")
    assert [entry["name"] for entry in found["entries"]] == ["a\N{REPLACEMENT CHARACTER}", "motd"]
    assert found["target"] == "b\N{REPLACEMENT CHARACTER}"
