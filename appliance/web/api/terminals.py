"""Console tickets and the websockets they open: termproxy (text), vncproxy (RFB), vncwebsocket (either).

A ticket is bound to one guest and one of its consoles, lives for seconds, and works for the one who asked for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from appliance.errors import InvalidParameter, NotAuthenticated, Unsupported
from appliance.model.guest import GuestId, GuestKind
from appliance.services.identity import Identity
from appliance.web import keys, middleware
from appliance.web.registry import ANYONE, Allow, Call, GuestParams, PveBool, PveList, Resource
from appliance.web.ws import console

if TYPE_CHECKING:
    from appliance.services.tasks import TaskHandle

api = Resource()

MAY_OPEN = Allow("/vms/{vmid}", "VM.Console")
PORT = 5900
"""PVE's clients hand this number from the ticket to the websocket; here all consoles share the one HTTPS port."""
DISPLAY = "vnc"
CT_CONSOLE = "console"
SERIALS = ("serial0", "serial1", "serial2", "serial3")


class Ticket(msgspec.Struct, kw_only=True):
    """What opens a console. `upid` names the task that records who asked."""

    user: str
    ticket: str
    port: int
    upid: str
    password: str | None = None


class TermParams(GuestParams, kw_only=True):
    """Which console."""

    serial: Annotated[Literal["serial0", "serial1", "serial2", "serial3"], Meta(description="the serial port")] = (
        "serial0"
    )


class VncParams(GuestParams, kw_only=True):
    """How the display is reached."""

    websocket: Annotated[PveBool, Meta(description="the only way here")] = True
    generate_password: bool = msgspec.field(name="generate-password", default=False)


class SocketParams(GuestParams, kw_only=True):
    """What the ticket's reply said."""

    port: Annotated[int, Meta(ge=5900, le=5999)] = PORT
    vncticket: Annotated[str, Meta(max_length=512, description="the ticket")]


class VerifyParams(msgspec.Struct, kw_only=True):
    """A ticket and what it should allow."""

    authid: Annotated[str, Meta(max_length=130)]
    path: Annotated[str, Meta(max_length=64)]
    privs: PveList
    vncticket: Annotated[str, Meta(max_length=512)]
    port: int | None = None


@api.post(
    "/nodes/{node}/qemu/{vmid}/termproxy", summary="A ticket for a serial console", allow=MAY_OPEN, returns=Ticket
)
async def open_vm_terminal(call: Call, params: TermParams) -> Ticket:
    """For `vncwebsocket`, which then speaks the terminal's packet protocol."""
    return await _ticket(call, GuestKind.QEMU, params.vmid, params.serial)


@api.post("/nodes/{node}/lxc/{vmid}/termproxy", summary="A ticket for a container's console", allow=MAY_OPEN,
          returns=Ticket)  # fmt: skip
async def open_ct_terminal(call: Call, params: GuestParams) -> Ticket:
    """For `vncwebsocket`, which then speaks the terminal's packet protocol."""
    return await _ticket(call, GuestKind.LXC, params.vmid, CT_CONSOLE)


@api.post("/nodes/{node}/qemu/{vmid}/vncproxy", summary="A ticket for a VM's display", allow=MAY_OPEN, returns=Ticket)
async def open_vm_display(call: Call, params: VncParams) -> Ticket:
    """For `vncwebsocket`, which then carries RFB without a password of its own: the ticket is the key."""
    ticket = await _ticket(call, GuestKind.QEMU, params.vmid, DISPLAY)
    if params.generate_password:
        ticket.password = ticket.ticket[-8:]
    return ticket


@api.post("/nodes/{node}/lxc/{vmid}/vncproxy", summary="Containers have no display", allow=MAY_OPEN)
async def open_ct_display(call: Call, params: VncParams) -> None:
    """Always refused."""
    raise Unsupported(f"ct {params.vmid}: containers have no display, use termproxy")


@api.get("/nodes/{node}/qemu/{vmid}/vncwebsocket", summary="A VM's console or display (websocket)", allow=MAY_OPEN,
         timeout_s=None)  # fmt: skip
async def vm_websocket(call: Call, params: SocketParams) -> web.StreamResponse:
    """Which protocol is spoken follows from the ticket."""
    call.services.guests.get(GuestId(params.vmid), GuestKind.QEMU)
    name, ticket_of = _judge(call, params.vmid, params.vncticket, (*SERIALS, DISPLAY))
    if name == DISPLAY:
        return await _display(call, GuestId(params.vmid))
    return await _terminal(call, GuestId(params.vmid), name, ticket_of)


@api.get("/nodes/{node}/lxc/{vmid}/vncwebsocket", summary="A container's console (websocket)", allow=MAY_OPEN,
         timeout_s=None)  # fmt: skip
async def ct_websocket(call: Call, params: SocketParams) -> web.StreamResponse:
    """Speaks the terminal's packet protocol."""
    call.services.guests.get(GuestId(params.vmid), GuestKind.LXC)
    name, ticket_of = _judge(call, params.vmid, params.vncticket, (CT_CONSOLE,))
    return await _terminal(call, GuestId(params.vmid), name, ticket_of)


@api.post("/access/vncticket", summary="Verify a console ticket", allow=ANYONE)
async def verify_ticket(call: Call, params: VerifyParams) -> None:
    """Refused unless the ticket is valid, belongs to `authid` for the ACL path, and `authid` has `privs` there."""
    access = call.services.access
    identity = _owner(call, params.path, params.vncticket, (*SERIALS, DISPLAY, CT_CONSOLE))[1]
    if identity.auth_id != params.authid:
        raise NotAuthenticated("invalid console ticket")
    access.check(identity, params.path, *params.privs)


async def _ticket(call: Call, kind: GuestKind, vmid: int, name: str) -> Ticket:
    guest = call.services.guests.get(GuestId(vmid), kind)
    job = "vncproxy" if name == DISPLAY else "termproxy"

    async def work(task: TaskHandle) -> None:
        task.log(f"{guest.kind.prefix} {vmid}: ticket for {name} given to {call.user} at {call.remote}")

    upid = await call.services.tasks.run(job, object_id=str(guest.guest_id), user=call.user, work=work)
    ticket = call.services.access.console_ticket(call.identity, f"/vms/{vmid}/{name}")
    return Ticket(user=call.user, ticket=ticket, port=PORT, upid=upid)


def _owner(call: Call, path: str, ticket: str, names: tuple[str, ...]) -> tuple[str, Identity]:
    """The console a ticket is for, and whose it is. Raises `NotAuthenticated`."""
    for name in names:
        with contextlib.suppress(NotAuthenticated):
            return name, call.services.access.verify_console_ticket(ticket, f"{path}/{name}")
    raise NotAuthenticated("invalid console ticket")


def _judge(call: Call, vmid: int, ticket: str, names: tuple[str, ...]) -> tuple[str, Identity]:
    middleware.check_origin(call.request, call.request[keys.CALLER])
    if not console.new_socket().can_prepare(call.request):
        raise InvalidParameter({"upgrade": "a websocket is expected"})
    name, owner = _owner(call, f"/vms/{vmid}", ticket, names)
    if owner.user != call.identity.user:
        raise NotAuthenticated("invalid console ticket")
    return name, owner


async def _terminal(call: Call, guest_id: GuestId, name: str, owner: Identity) -> web.StreamResponse:
    def accept(user: str, ticket: str) -> bool:
        try:
            verified = call.services.access.verify_console_ticket(ticket, f"/vms/{guest_id}/{name}")
        except NotAuthenticated:
            return False
        return verified == owner and user in (owner.user, owner.auth_id)

    client = await call.services.guests.attach_console(guest_id, name)
    try:
        async with _opened(call) as socket:
            await console.relay_terminal(socket, client, accept_greeting=accept)
    finally:
        client.close()
    return socket


async def _display(call: Call, guest_id: GuestId) -> web.StreamResponse:
    reader, writer = await call.services.guests.open_display(guest_id)
    try:
        async with _opened(call) as socket:
            await console.relay_display(socket, reader, writer)
    finally:
        writer.close()
    return socket


@contextlib.asynccontextmanager
async def _opened(call: Call) -> AsyncIterator[web.WebSocketResponse]:
    """An upgraded connection, counted, and closed at the end whatever happens."""
    socket = console.new_socket()
    with call.request.app[keys.SOCKETS].register(socket, call.remote):
        await socket.prepare(call.request)
        call.request[keys.UPGRADED] = socket
        try:
            yield socket
        finally:
            await socket.close()
