"""One request for a page: who looks, and how errors read to people. Handlers of pages take a `Visit`."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from urllib.parse import quote

from aiohttp import web

from appliance.errors import ApplianceError, InvalidParameter, NotFound
from appliance.web import keys, proxy
from appliance.web.pages import areas, contexts
from appliance.web.pages.render import Voice, voice
from appliance.web.pages.viewer import KEPT, Viewer

LOGIN = "/login"


@dataclass(frozen=True, slots=True)
class Visit:
    """A logged-in browser asking for a page."""

    request: web.Request
    viewer: Viewer
    renderer: Voice
    ticket: str

    @property
    def is_part(self) -> bool:
        """Whether htmx asks for a part of a page."""
        return "HX-Request" in self.request.headers

    def number(self, name: str) -> int:
        """A number in the path. Raises `NotFound`."""
        text = self.request.match_info[name]
        if not text.isdecimal() or len(text) > 9:
            raise NotFound(f"guest '{text[:40]}'")
        return int(text)

    async def page(
        self, template: str, *, active: str, title: str, topics: str = "", **context: object
    ) -> web.Response:
        """A whole page: the frame with tree, breadcrumbs, drawer and topics, around `template`.

        `active` is the id of the page's area; `crumbs` in the context (`areas.trail`) are
        the way to it; without, it is just below "Datacenter".
        """
        known = areas.areas(self.viewer)
        frame = {
            "active": active,
            "title": title,
            "topics": f"tasks notices {topics}".strip(),
            "crumbs": areas.trail(here=title),
            "areas": known,
            "places": areas.places(self.viewer, known),
            "user": self.viewer.identity.user,
            "csrf": self.viewer.services.access.csrf_token(self.ticket),
            "node": self.viewer.node,
            "sees_node": self.viewer.sees_node,
            "sees_storage": bool(self.viewer.storages()),
            "tag_colors": await contexts.tag_colors(self.viewer),
            **await contexts.notice_list(self.viewer),
            **await contexts.tasks(self.viewer),
        }
        return _html(await self.renderer.page(f"pages/{template}.html", frame | context))

    async def part(self, template: str, context: Mapping[str, object]) -> web.Response:
        """A dialog or another part of a page."""
        return _html(await self.renderer.page(template, context))


Handler = Callable[[Visit], Awaitable[web.StreamResponse]]
Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


def visited(handler: Handler) -> Route:
    """The aiohttp handler: sends strangers to the login page, and shows errors as pages."""

    @functools.wraps(handler)
    async def serve(request: web.Request) -> web.StreamResponse:
        caller = request[keys.CALLER]
        if caller.identity is None or not caller.ticket:
            return _to_login(request)
        viewer = Viewer(request.app[keys.SERVICES], caller.identity, request.app[KEPT])
        visit = Visit(request, viewer, voice(request), caller.ticket)
        try:
            return await handler(visit)
        except ApplianceError as error:
            return await _problem(visit, error)

    return serve


def _to_login(request: web.Request) -> web.Response:
    login = proxy.prefix(request) + LOGIN
    if "HX-Request" in request.headers:
        return web.Response(headers={"HX-Redirect": login})
    target = request.rel_url.raw_path_qs
    suffix = f"?next={quote(target, safe='')}" if target != "/" else ""
    return web.Response(status=303, headers={"Location": login + suffix})


def words(error: ApplianceError) -> str:
    """What went wrong, for people: of wrong parameters what is wrong with each."""
    return "; ".join(error.errors.values()) if isinstance(error, InvalidParameter) else error.message


def sentence(text: str) -> str:
    """A message of the API as a sentence: a capital letter before it, a full stop after it."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


async def _problem(visit: Visit, error: ApplianceError) -> web.Response:
    status = int(error.status)
    if visit.is_part:
        response = await visit.part("dialogs/problem.html", {"message": sentence(words(error))})
        response.headers["HX-Retarget"] = "#dialog"
        return response
    response = await visit.page("problem", active="", title="Problem", message=sentence(words(error)), status=status)
    response.set_status(status)
    return response


def _html(text: str) -> web.Response:
    return web.Response(text=text, content_type="text/html", charset="utf-8")
