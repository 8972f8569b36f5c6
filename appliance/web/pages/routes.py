"""Every page of the UI, on one screen. `application.py` adds these beside the API's routes."""

from __future__ import annotations

from aiohttp import web

from appliance.web.pages import (
    access_dialogs,
    access_pages,
    checks,
    console_pages,
    creation,
    datacenter,
    dialogs,
    guest_dialogs,
    guest_inside,
    guests,
    places,
    session,
)
from appliance.web.ws import page


def routes() -> list[web.RouteDef]:
    """The route table."""
    return [
        web.get("/login", session.show_login),
        web.post("/login", session.log_in),
        web.post("/logout", session.log_out),
        web.post("/session/renew", session.renew),
        web.get("/", guests.show_list),
        web.get("/overview", datacenter.show_overview),
        web.get("/guests/{vmid}", guests.show_guest),
        web.get("/guests/{vmid}/{tab}", guests.show_guest),
        web.get("/parts/guest/{vmid}/inside", guest_inside.show),
        web.get("/node", places.show_node),
        web.get("/storage", places.show_storage),
        web.get("/storage/{storage}", places.show_storage),
        web.get("/dialogs/create-vm", creation.create_vm),
        web.get("/dialogs/create-ct", creation.create_ct),
        web.get("/dialogs/guest/{vmid}/delete", dialogs.delete_guest),
        web.get("/dialogs/guest/{vmid}/confirm/{action}", dialogs.confirm),
        web.get("/dialogs/guest/{vmid}/resize/{slot}", dialogs.resize_disk),
        web.get("/dialogs/guest/{vmid}/edit/{form}", guest_dialogs.edit),
        web.get("/dialogs/guest/{vmid}/add/{device}", guest_dialogs.add),
        web.get("/dialogs/guest/{vmid}/remove/{key}", guest_dialogs.remove),
        web.get("/dialogs/guest/{vmid}/notes", guest_dialogs.edit_notes),
        web.get("/dialogs/guest/{vmid}/snapshot", guest_dialogs.snapshot),
        web.get("/dialogs/guest/{vmid}/snapshot/{name}/{action}", guest_dialogs.on_snapshot),
        web.get("/dialogs/guest/{vmid}/clone", guest_dialogs.clone),
        web.get("/dialogs/guest/{vmid}/template", guest_dialogs.make_template),
        web.get("/dialogs/storage/{storage}/upload", dialogs.upload),
        web.get("/dialogs/storage/{storage}/download", dialogs.download),
        web.get("/dialogs/storage/{storage}/build", dialogs.build_template),
        web.get("/dialogs/storage/{storage}/delete", dialogs.delete_volume),
        web.get("/access", access_pages.show),
        web.get("/access/{tab}", access_pages.show),
        web.get("/console/{vmid}", console_pages.pop_out),
        web.get("/consoles", console_pages.tiles),
        web.get("/account", access_pages.show_account),
        web.get("/dialogs/access/user", access_dialogs.user),
        web.get("/dialogs/access/password", access_dialogs.password),
        web.get("/dialogs/access/group", access_dialogs.group),
        web.get("/dialogs/access/role", access_dialogs.role),
        web.get("/dialogs/access/grant", access_dialogs.grant),
        web.get("/dialogs/access/pool", access_dialogs.pool),
        web.get("/dialogs/access/token", access_dialogs.token),
        web.get("/dialogs/access/tokens", access_dialogs.tokens),
        web.get("/dialogs/access/totp", access_dialogs.totp),
        web.get("/dialogs/access/recovery", access_dialogs.recovery),
        web.get("/dialogs/access/delete/{kind}", access_dialogs.delete),
        web.post("/forms/check", checks.check),
        web.get("/ws/page", page.serve),
    ]
