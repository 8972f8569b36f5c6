"""POST /forms/check: a form judged by the schema its API call will be held to, before it is sent. Nothing is done.

The fields are the call's parameters, with `_method` and `_path` for the call itself. The answer is {"errors": {parameter:
what is wrong}}. Passwords are not sent here, and not judged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from aiohttp import web

from appliance.errors import ApplianceError, InvalidParameter, NotFound
from appliance.model.guest import GuestId, GuestKind
from appliance.services import guest_config
from appliance.web import keys
from appliance.web.pages.visit import Visit, visited
from appliance.web.parameters import fields_of, parse

FIELDS_LIMIT = 400
UNJUDGED = frozenset({"cipassword", "password"})
_GUESTS = re.compile(r"/nodes/[^/]+/(qemu|lxc)(?:/(\d{1,9})/config)?")


@visited
async def check(visit: Visit) -> web.StreamResponse:
    """See the module's docstring. Raises `NotFound` for a call that does not exist."""
    form = await visit.request.post()
    if len(form) > FIELDS_LIMIT:
        raise InvalidParameter({"form": f"more than {FIELDS_LIMIT} fields"})
    raw = {name: str(value) for name, value in form.items() if name not in UNJUDGED}
    verb, path = raw.pop("_method", ""), raw.pop("_path", "")
    return web.json_response({"errors": judge(visit, verb, path, raw)})


def judge(visit: Visit, verb: str, path: str, raw: Mapping[str, str]) -> Mapping[str, str]:
    """What is wrong with each parameter of a call; empty when nothing is known to be."""
    match = visit.request.app[keys.TABLE].match(verb, path)
    errors: dict[str, str] = {}
    try:
        parse(match.method.params, {**raw, **match.parts})
    except InvalidParameter as error:
        errors |= error.errors
    where = _GUESTS.fullmatch(path)
    if where and any(field.kind == "rest" for field in fields_of(match.method.params).values()):
        declared = fields_of(match.method.params)
        rest = {name: text for name, text in raw.items() if name not in declared}
        errors |= _judge_guest(visit, GuestKind(where[1]), where[2], rest)
    if verb == "POST" and where and where[2] is None and "vmid" not in errors:
        errors |= _judge_id(visit, raw.get("vmid", ""))
    return errors


def _judge_guest(visit: Visit, kind: GuestKind, guest_id: str | None, raw: Mapping[str, str]) -> Mapping[str, str]:
    old: Mapping[str, str] = {}
    try:
        if guest_id is not None:
            old, _ = visit.viewer.services.guests.config(visit.viewer.guest(int(guest_id)).guest_id, kind)
        put = guest_config.parse(kind, raw)
        guest_config.plan_update(kind, old, put)
    except InvalidParameter as error:
        return error.errors
    except NotFound:
        return {}
    return {}


def _judge_id(visit: Visit, text: str) -> Mapping[str, str]:
    if not text.isdecimal():
        return {}
    try:
        visit.viewer.services.guests.get(GuestId(int(text)))
    except ApplianceError:
        return {}
    return {"vmid": f"{text} is taken"}
