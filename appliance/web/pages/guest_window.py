"""Which guests the list shows: found, sorted and cut to a window, by a query that is also the page's address.

    /?q=web+shop&state=running&sort=-cpu&limit=200        websocket topic   guests:q=web+shop&state=running&…

Everything unknown in a query is ignored: it comes from an address that somebody typed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, urlencode

from appliance.model.guest import GuestKind, GuestState

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

WINDOW: Final = 50
LIMIT: Final = 1000
QUERY_LIMIT: Final = 200
STATES: Final = {
    "running": (GuestState.RUNNING, GuestState.STARTING, GuestState.STOPPING),
    "stopped": (GuestState.STOPPED,),
    "paused": (GuestState.PAUSED,),
}
KINDS: Final = {"qemu": GuestKind.QEMU, "lxc": GuestKind.LXC}


def _memory(guest: GuestView) -> float:
    return guest.stats.memory_bytes if guest.stats else 0


SORTS: Final[Mapping[str, Callable[[GuestView], object]]] = {
    "id": lambda guest: guest.guest_id,
    "name": lambda guest: (guest.name.lower(), guest.guest_id),
    "state": lambda guest: (guest.state.value, guest.guest_id),
    "cpu": lambda guest: (guest.cpu_ratio, -guest.guest_id),
    "memory": lambda guest: (_memory(guest), -guest.guest_id),
    "uptime": lambda guest: (guest.uptime_s, -guest.guest_id),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A query, understood."""

    text: str = ""
    state: str = ""
    kind: str = ""
    tag: str = ""
    pool: str = ""
    node: str = ""
    sort: str = "id"
    descending: bool = False
    limit: int = WINDOW

    @staticmethod
    def parse(query: str) -> Wanted:
        """From the part of an address after "?"."""
        values = dict(parse_qsl(query[:2048], max_num_fields=20)) if query else {}
        return Wanted.of(values)

    @staticmethod
    def of(values: Mapping[str, str]) -> Wanted:
        """From parameters."""
        sort = values.get("sort", "")
        limit = values.get("limit", "")
        return Wanted(
            text=values.get("q", "")[:QUERY_LIMIT],
            state=values["state"] if values.get("state") in STATES else "",
            kind=values["kind"] if values.get("kind") in KINDS else "",
            tag=values.get("tag", "")[:QUERY_LIMIT],
            pool=values.get("pool", "")[:QUERY_LIMIT],
            node=values.get("node", "")[:QUERY_LIMIT],
            sort=sort.removeprefix("-") if sort.removeprefix("-") in SORTS else "id",
            descending=sort.startswith("-"),
            limit=min(LIMIT, max(1, int(limit))) if limit.isdecimal() and len(limit) < 6 else WINDOW,
        )

    @property
    def query(self) -> str:
        """Back to an address; what is as it would be anyway is left out."""
        sort = ("-" if self.descending else "") + self.sort
        values = {
            "q": self.text,
            "state": self.state,
            "kind": self.kind,
            "tag": self.tag,
            "pool": self.pool,
            "node": self.node,
            "sort": "" if sort == "id" else sort,
            "limit": "" if self.limit == WINDOW else str(self.limit),
        }
        return urlencode({name: value for name, value in values.items() if value})

    def matches(self, guest: GuestView) -> bool:
        """Whether the list shows it, if there is room."""
        if self.state and guest.state not in STATES[self.state]:
            return False
        if self.kind and guest.kind is not KINDS[self.kind]:
            return False
        if (self.tag and self.tag not in guest.tags) or (self.pool and self.pool != guest.pool):
            return False
        if self.node and self.node != guest.node:
            return False
        words = self.text.lower().split()
        return not words or all(word in text for text in (find_text(guest),) for word in words)


@dataclass(frozen=True, slots=True)
class Window:
    """The chosen guests; `matching` counts those beyond the window's end too, `total` all the viewer may see."""

    guests: Sequence[GuestView]
    matching: int
    total: int


def choose(guests: Iterable[GuestView], wanted: Wanted) -> Window:
    """Find, sort, cut."""
    everything = list(guests)
    found = [guest for guest in everything if wanted.matches(guest)]
    found.sort(key=SORTS[wanted.sort], reverse=wanted.descending)  # type: ignore[arg-type]  # each column's keys compare
    return Window(found[: wanted.limit], len(found), len(everything))


def find_text(guest: GuestView) -> str:
    """What words are looked for in."""
    kind = "vm qemu" if guest.kind is GuestKind.QEMU else "ct container lxc"
    parts = (str(guest.guest_id), guest.name, *guest.tags, *guest.addresses, guest.state.value, kind, guest.pool or "")
    return " ".join(parts).lower()
