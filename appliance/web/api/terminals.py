"""Console tickets and the websockets they open: termproxy (text), vncproxy (RFB), vncwebsocket (either).

A ticket is bound to one guest, lives for seconds, and works for the one who asked for it. Which of the guest's consoles
it was asked for travels as the port number that PVE's clients hand on: everything here shares the one HTTPS port.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Collection
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from aiohttp import web
from msgspec import Meta

from appliance.errors import InvalidParameter, NotAuthenticated, Unsupported
from appliance.model.guest import GuestId, GuestKind
from appliance.services import host_facts
from appliance.services.ct_inside import SHELL
from appliance.services.host_shell import HostShell
from appliance.services.identity import Identity
from appliance.tasks import TaskScope
from appliance.web import keys, middleware
from appliance.web.api.inside_params import UNRESTRICTED
from appliance.web.registry import Allow, Call, GuestParams, NodeParams, PveBool, Resource
from appliance.web.ws import console, events
from appliance.web.ws.viewers import VIEWERS

if TYPE_CHECKING:
    from appliance.events import Subscription
    from appliance.services.tasks import TaskHandle

log = logging.getLogger(__name__)

api = Resource()

MAY_OPEN = Allow("/vms/{vmid}", "VM.Console")
MAY_OPEN_HOST = Allow("/nodes/{node}", "Sys.Console")
DISPLAY = "vnc"
CT_CONSOLE = "console"
SERIALS = ("serial0", "serial1", "serial2", "serial3")
CT_SHELL = SHELL
HOST_SHELL = "host"
PORTS = {
    DISPLAY: 5900,
    **{name: 5901 + i for i, name in enumerate(SERIALS)},
    CT_CONSOLE: 5910,
    HOST_SHELL: 5911,
    CT_SHELL: 5912,
}
EVENTS_LIMIT = 256
Needed = tuple[str, str]
"""An ACL path and the privilege that must be held on it."""
NAMES = {port: name for name, port in PORTS.items()}


class Ticket(msgspec.Struct, kw_only=True):
    """What opens a console. `upid` names the task that records who asked."""

    user: str
    ticket: str
    port: int
    upid: str
    password: str | None = None
    cert: str | None = None
    """The CA's certificate in PEM, for viewers that check whom they talk to."""


class TermParams(GuestParams, kw_only=True):
    """Which console."""

    serial: Annotated[Literal["serial0", "serial1", "serial2", "serial3"], Meta(description="the serial port")] = (
        "serial0"
    )


class CtTermParams(GuestParams, kw_only=True):
    """Which console."""

    cmd: Annotated[
        Literal["login", "shell"],
        Meta(description="the login console, or a shell of root, which needs VM.GuestAgent.Unrestricted, too"),
    ] = "login"


class VncParams(GuestParams, kw_only=True):
    """How the display is reached."""

    websocket: Annotated[PveBool, Meta(description="the only way here")] = True
    generate_password: bool = msgspec.field(name="generate-password", default=False)


class HostTermParams(NodeParams, kw_only=True):
    """What runs."""

    cmd: Annotated[Literal["login"], Meta(description="the only command there is")] = "login"


class HostVncParams(NodeParams, kw_only=True):
    """Accepted, to be refused with the right words."""

    websocket: PveBool = True


class HostSocketParams(NodeParams, kw_only=True):
    """What the ticket's reply said."""

    port: Annotated[int, Meta(ge=5900, le=5999, description="what the ticket's reply said")]
    vncticket: Annotated[str, Meta(max_length=512, description="the ticket")]


class SocketParams(GuestParams, kw_only=True):
    """What the ticket's reply said."""

    port: Annotated[int, Meta(ge=5900, le=5999, description="what the ticket's reply said")]
    vncticket: Annotated[str, Meta(max_length=512, description="the ticket")]


@api.post(
    "/nodes/{node}/qemu/{vmid}/termproxy", summary="A ticket for a serial console", allow=MAY_OPEN, returns=Ticket
)
async def open_vm_terminal(call: Call, params: TermParams) -> Ticket:
    """For `vncwebsocket`, which then speaks the terminal's packet protocol."""
    return await _ticket(call, GuestKind.QEMU, params.vmid, params.serial)


@api.post("/nodes/{node}/lxc/{vmid}/termproxy", summary="A ticket for a container's console", allow=MAY_OPEN,
          returns=Ticket)  # fmt: skip
async def open_ct_terminal(call: Call, params: CtTermParams) -> Ticket:
    """For `vncwebsocket`, which then speaks the terminal's packet protocol."""
    cmode = _cmode(call, params.vmid)
    if params.cmd == "shell" and cmode != "shell":
        call.check(f"/vms/{params.vmid}", UNRESTRICTED)
    wants_shell = "shell" in (params.cmd, cmode)
    return await _ticket(call, GuestKind.LXC, params.vmid, CT_SHELL if wants_shell else CT_CONSOLE)


@api.post("/nodes/{node}/qemu/{vmid}/vncproxy", summary="A ticket for a VM's display", allow=MAY_OPEN, returns=Ticket)
async def open_vm_display(call: Call, params: VncParams) -> Ticket:
    """For `vncwebsocket`, which then carries RFB without a password of its own: the ticket is the key."""
    ticket = await _ticket(call, GuestKind.QEMU, params.vmid, DISPLAY)
    if params.generate_password:
        ticket.password = ticket.ticket[-8:]
    certificates = await asyncio.to_thread(host_facts.read_certificates, call.services.config.data_dir / "pki")
    ticket.cert = next((each.pem for each in certificates if each.filename == "pve-root-ca.pem"), "")
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
    name = _name_of(params.port, (DISPLAY, *SERIALS))
    owner = _owner_of(call, params.vncticket, f"/vms/{params.vmid}")
    if name == DISPLAY:
        return await _display(call, GuestId(params.vmid))
    return await _terminal(call, GuestId(params.vmid), name, owner)


@api.get("/nodes/{node}/lxc/{vmid}/vncwebsocket", summary="A container's console (websocket)", allow=MAY_OPEN,
         timeout_s=None)  # fmt: skip
async def ct_websocket(call: Call, params: SocketParams) -> web.StreamResponse:
    """Speaks the terminal's packet protocol."""
    call.services.guests.get(GuestId(params.vmid), GuestKind.LXC)
    name = _name_of(params.port, (CT_CONSOLE, CT_SHELL))
    needed = UNRESTRICTED if name == CT_SHELL and _cmode(call, params.vmid) != "shell" else "VM.Console"
    call.check(f"/vms/{params.vmid}", needed)
    owner = _owner_of(call, params.vncticket, f"/vms/{params.vmid}")
    return await _terminal(call, GuestId(params.vmid), name, owner, needed)


@api.post("/nodes/{node}/termproxy", summary="A ticket for the host's login prompt", allow=MAY_OPEN_HOST,
          returns=Ticket)  # fmt: skip
async def open_host_terminal(call: Call, params: HostTermParams) -> Ticket:
    """The host asks for a name and a password of its own: nobody gets a shell by their rights here alone."""
    return await _give_ticket(call, f"/nodes/{call.node}", HOST_SHELL, object_id="")


@api.post("/nodes/{node}/vncproxy", summary="The host has no display", allow=MAY_OPEN_HOST)
async def open_host_display(call: Call, params: HostVncParams) -> None:
    """Always refused."""
    raise Unsupported(f"node {call.node}: no display is offered, use termproxy")


@api.get("/nodes/{node}/vncwebsocket", summary="The host's login prompt (websocket)", allow=MAY_OPEN_HOST,
         timeout_s=None)  # fmt: skip
async def host_websocket(call: Call, params: HostSocketParams) -> web.StreamResponse:
    """Speaks the terminal's packet protocol."""
    _name_of(params.port, (HOST_SHELL,))
    path = f"/nodes/{call.node}"
    owner = _owner_of(call, params.vncticket, path)
    shell = await HostShell.open()
    try:
        return await _relay_terminal(call, shell, (path, "Sys.Console"), owner)
    finally:
        await shell.end()


async def _ticket(call: Call, kind: GuestKind, vmid: int, name: str) -> Ticket:
    guest = call.services.guests.get(GuestId(vmid), kind)
    return await _give_ticket(call, f"/vms/{vmid}", name, object_id=str(guest.guest_id))


async def _give_ticket(call: Call, path: str, name: str, *, object_id: str) -> Ticket:
    async def work(task: TaskHandle) -> None:
        task.log(f"{path}: ticket for {name} given to {call.user} at {call.remote}")

    job = "vncproxy" if name == DISPLAY else "vncshell" if name == HOST_SHELL else "termproxy"
    upid = await call.services.tasks.run(job, object_id=object_id, user=call.user, work=work)
    ticket = call.services.access.console_ticket(call.identity, path)
    return Ticket(user=call.user, ticket=ticket, port=PORTS[name], upid=upid)


def _name_of(port: int, names: Collection[str]) -> str:
    name = NAMES.get(port, "")
    if name not in names:
        raise InvalidParameter({"port": f"{port} is no console of this guest"})
    return name


def _owner_of(call: Call, ticket: str, path: str) -> Identity:
    """Whose ticket it is, once everything that can be refused before the upgrade has been looked at."""
    middleware.check_origin(call.request, call.request[keys.CALLER])
    if not console.new_socket().can_prepare(call.request):
        raise InvalidParameter({"upgrade": "a websocket is expected"})
    owner = call.services.access.verify_console_ticket(ticket, path)
    if owner.user != call.identity.user:
        raise NotAuthenticated("invalid console ticket")
    return owner


def _cmode(call: Call, vmid: int) -> str:
    """What the container's configuration says its console is: who may change that may make it a shell."""
    return call.services.guests.config(GuestId(vmid), GuestKind.LXC)[0].get("cmode", "tty")


async def _terminal(
    call: Call, guest_id: GuestId, name: str, owner: Identity, needed: str = "VM.Console"
) -> web.StreamResponse:
    client = await call.services.guests.attach_console(guest_id, name)
    try:
        return await _relay_terminal(call, client, (f"/vms/{guest_id}", needed), owner)
    finally:
        client.close()


async def _relay_terminal(call: Call, client: console.Terminal, needed: Needed, owner: Identity) -> web.StreamResponse:
    def accept(user: str, ticket: str) -> bool:
        try:
            verified = call.services.access.verify_console_ticket(ticket, needed[0])
        except NotAuthenticated:
            return False
        return verified == owner and user in (owner.user, owner.auth_id)

    async with _opened(call, needed) as socket:
        await console.relay_terminal(socket, client, accept_greeting=accept)
    return socket


async def _display(call: Call, guest_id: GuestId) -> web.StreamResponse:
    reader, writer = await call.services.guests.open_display(guest_id)
    try:
        async with _opened(call, (f"/vms/{guest_id}", "VM.Console")) as socket:
            await console.relay_display(socket, reader, writer)
    finally:
        writer.close()
    return socket


@contextlib.asynccontextmanager
async def _opened(call: Call, needed: Needed) -> AsyncIterator[web.WebSocketResponse]:
    """An upgraded connection, counted, and closed at the end whatever happens; it ends with the right to have it."""
    socket, scope = console.new_socket(), TaskScope("console")
    with (
        call.request.app[keys.SOCKETS].register(socket, call.remote),
        call.services.events.subscribe(limit=EVENTS_LIMIT) as seen,
        call.request.app[VIEWERS].present(_guest_of(needed), call.identity.user),
    ):
        await socket.prepare(call.request)
        call.request[keys.UPGRADED] = socket
        scope.start(_close_when_revoked(call, needed, seen, socket), name=f"rights of {call.user}")
        try:
            yield socket
        finally:
            await scope.close()
            await socket.close()


def _guest_of(needed: Needed) -> GuestId | None:
    """The guest whose console the right is about."""
    number = needed[0].removeprefix("/vms/")
    return GuestId(int(number)) if number.isdecimal() else None


async def _close_when_revoked(call: Call, needed: Needed, seen: Subscription, socket: web.WebSocketResponse) -> None:
    while True:
        event = await seen.next()
        if not events.concerns_access([event]) or (middleware.session_holds(call.request) and call.has(*needed)):
            continue
        log.info("console on %s of %s: closed, the right to it is gone", needed[0], call.user)
        await socket.close(code=console.NOT_AUTHENTICATED, message=b"no longer permitted")
        return
