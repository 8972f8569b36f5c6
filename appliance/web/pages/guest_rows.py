"""The rows of the list of guests as HTML, made once for all who are shown the same: for whole pages and for pushes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from markupsafe import Markup

from appliance.web.pages import contexts
from appliance.web.pages.render import Voice
from appliance.web.pages.viewer import Viewer

if TYPE_CHECKING:
    from appliance.services.guest_view import GuestView

AT_ONCE: Final = 20
TEMPLATE: Final = "fragments/guest_row.html"


async def row(viewer: Viewer, voice: Voice, guest: GuestView) -> str:
    """One row as it is pushed, below the reader's prefix."""
    right = viewer.rights(guest.guest_id)
    return await voice.shared(TEMPLATE, contexts.guest_row(viewer, guest, right), contexts.guest_row_key(guest, right))


async def of_page(viewer: Viewer, voice: Voice, guests: Iterable[GuestView]) -> Sequence[Markup]:
    """Rows for a page that is rendered around them, which puts the prefix before every address. Others have their turns."""
    found: list[Markup] = []
    for number, guest in enumerate(guests):
        if number % AT_ONCE == AT_ONCE - 1:
            await asyncio.sleep(0)
        html = await row(viewer, voice.at_root, guest)
        found.append(Markup(html))  # noqa: S704  our own template's output, escaped there
    return found
