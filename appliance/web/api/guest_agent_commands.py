"""/nodes/{node}/qemu/{vmid}/agent: what can be asked of the guest agent inside a VM."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from appliance.errors import Conflict, InvalidParameter, Unsupported
from appliance.model.guest import GuestId, GuestKind
from appliance.services import guest_agent
from appliance.services.ports.running_guest import RunningGuest
from appliance.web.api.guest_params import stored_config
from appliance.web.api.guest_rows import has_agent
from appliance.web.api.inside_params import UNRESTRICTED, Expected, FilePath
from appliance.web.parameters import UNLOGGED
from appliance.web.registry import LOGGED_IN, Allow, Call, GuestParams, PveBool, Resource

SHUTDOWN_COMMANDS = ("shutdown", "suspend-disk", "suspend-hybrid", "suspend-ram")
CONTENT_LIMIT = 61_440


class CommandParams(GuestParams, kw_only=True):
    """One of the commands without arguments."""

    command: Annotated[str, Meta(max_length=64)]


class ExecParams(GuestParams, kw_only=True):
    """A program and its arguments."""

    command: Annotated[list[str], Meta(min_length=1, max_length=256, extra=UNLOGGED)]
    input_data: Annotated[str, Meta(max_length=65536, extra=UNLOGGED)] | None = msgspec.field(
        name="input-data", default=None
    )


class ExecStatusParams(GuestParams, kw_only=True):
    """What exec returned."""

    pid: Annotated[int, Meta(ge=0)]


class PasswordParams(GuestParams, kw_only=True):
    """Whose password."""

    username: Annotated[str, Meta(min_length=1, max_length=64)]
    password: Annotated[str, Meta(min_length=5, max_length=1024)]
    crypted: Annotated[PveBool, Meta(description="it is a crypt(3) hash")] = False


class ReadFileParams(GuestParams, kw_only=True):
    """Which file, how much."""

    file: FilePath
    count: Annotated[int, Meta(ge=1, le=guest_agent.READ_LIMIT_BYTES)] = guest_agent.READ_LIMIT_BYTES
    offset: Annotated[int, Meta(ge=0, description="leave out so many bytes")] = 0
    decode: Annotated[PveBool, Meta(description="as text; else as base64, which keeps every byte")] = True


class WriteFileParams(GuestParams, kw_only=True):
    """Which file, with what."""

    file: FilePath
    content: Annotated[str, Meta(max_length=CONTENT_LIMIT, extra=UNLOGGED)]
    encode: Annotated[PveBool, Meta(description="`content` is text; else it is base64 already")] = True
    expected: Expected | None = None


class FileContent(msgspec.Struct, kw_only=True):
    """Bytes that are not UTF-8 are replaced. `truncated` says that there is more."""

    content: str
    truncated: bool | None = None


class Result(msgspec.Struct, kw_only=True):
    """What the agent said."""

    result: Any


def declare(api: Resource) -> None:
    """Add all methods."""
    for name in guest_agent.QUERIES:
        _declare_query(api, name)
    for name, need in guest_agent.ACTIONS.items():
        _declare_action(api, name, need)
    for name in SHUTDOWN_COMMANDS:
        _declare_refused(api, name)
    _declare_general(api)
    _declare_programs_and_files(api)


def allow(*privileges: str) -> Allow:
    """One of `privileges`, or the unrestricted one."""
    return Allow("/vms/{vmid}", *privileges, UNRESTRICTED, any_of=True)


def _declare_query(api: Resource, name: str) -> None:
    @api.get(f"/nodes/{{node}}/qemu/{{vmid}}/agent/{name}", summary=f"Guest agent: {name}", returns=Result,
             allow=allow("VM.GuestAgent.Audit"))  # fmt: skip
    async def query(call: Call, params: GuestParams) -> Result:
        """What the agent inside the guest says; it may say anything."""
        return Result(result=await guest_agent.ask(_running(call, params.vmid), name))


def _declare_action(api: Resource, name: str, need: Sequence[str]) -> None:
    @api.post(f"/nodes/{{node}}/qemu/{{vmid}}/agent/{name}", summary=f"Guest agent: {name}", returns=Result,
              allow=allow(*need))  # fmt: skip
    async def act(call: Call, params: GuestParams) -> Result:
        """Done by the agent inside the guest."""
        return Result(result=await guest_agent.ask(_running(call, params.vmid), name))


def _declare_refused(api: Resource, name: str) -> None:
    @api.post(f"/nodes/{{node}}/qemu/{{vmid}}/agent/{name}", summary=f"Guest agent: {name} (refused)",
              allow=allow("VM.PowerMgmt"))  # fmt: skip
    async def refused(call: Call, params: GuestParams) -> None:
        """The state of a guest is changed by its status methods only."""
        stored_config(call, GuestKind.QEMU, params.vmid)
        raise Unsupported(f"vm {params.vmid}: use status/shutdown or status/suspend instead of the agent's {name}")


def _declare_general(api: Resource) -> None:
    @api.get("/nodes/{node}/qemu/{vmid}/agent", summary="Commands of the guest agent", allow=LOGGED_IN,
             returns=list[dict[str, str]])  # fmt: skip
    async def index(call: Call, params: GuestParams) -> list[dict[str, str]]:
        """Names below this path."""
        names = (*guest_agent.QUERIES, *guest_agent.ACTIONS, "exec", "exec-status", "file-read", "file-write",
                 "set-user-password")  # fmt: skip
        return [{"name": name} for name in sorted(names)]

    @api.post("/nodes/{node}/qemu/{vmid}/agent", summary="Run a command of the guest agent", returns=Result,
              allow=Allow("/vms/{vmid}", UNRESTRICTED))  # fmt: skip
    async def run_command(call: Call, params: CommandParams) -> Result:
        """One of the commands without arguments."""
        if params.command not in (*guest_agent.QUERIES, *guest_agent.ACTIONS):
            raise InvalidParameter({"command": f"value '{params.command}' is no command without arguments"})
        return Result(result=await guest_agent.ask(_running(call, params.vmid), params.command))

    @api.post("/nodes/{node}/qemu/{vmid}/agent/set-user-password", summary="Guest agent: set a user's password",
              returns=Result, allow=Allow("/vms/{vmid}", UNRESTRICTED))  # fmt: skip
    async def set_user_password(call: Call, params: PasswordParams) -> Result:
        """Inside the guest."""
        running = _running(call, params.vmid)
        answer = await guest_agent.set_password(running, params.username, params.password, crypted=params.crypted)
        return Result(result=answer)


def _declare_programs_and_files(api: Resource) -> None:
    base, unrestricted = "/nodes/{node}/qemu/{vmid}/agent", Allow("/vms/{vmid}", UNRESTRICTED)

    @api.post(f"{base}/exec", summary="Guest agent: start a program", allow=unrestricted, returns=dict[str, int])
    async def execute(call: Call, params: ExecParams) -> object:
        """Returns its pid inside the guest, for exec-status."""
        return await guest_agent.execute(_running(call, params.vmid), params.command, input_data=params.input_data)

    @api.get(f"{base}/exec-status", summary="Guest agent: how a program ended", allow=unrestricted,
             returns=dict[str, str | int])  # fmt: skip
    async def exec_status(call: Call, params: ExecStatusParams) -> dict[str, object]:
        """`exited`, `exitcode`, `out-data`, `err-data`."""
        return await guest_agent.exec_status(_running(call, params.vmid), params.pid)

    @api.get(f"{base}/file-read", summary="Guest agent: read a file", allow=allow("VM.GuestAgent.FileRead"),
             returns=FileContent)  # fmt: skip
    async def read_file(call: Call, params: ReadFileParams) -> FileContent:
        """At most 16 MiB."""
        content, more = await guest_agent.read_file(
            _running(call, params.vmid), params.file, offset=params.offset, limit_bytes=params.count
        )
        text = content.decode(errors="replace") if params.decode else base64.b64encode(content).decode()
        return FileContent(content=text, truncated=True if more else None)

    @api.post(f"{base}/file-write", summary="Guest agent: write a file", allow=allow("VM.GuestAgent.FileWrite"))
    async def write_file(call: Call, params: WriteFileParams) -> None:
        """The file is replaced; with `expected` only if nobody has changed it."""
        content = params.content.encode() if params.encode else _from_base64(params.content)
        await guest_agent.write_file(_running(call, params.vmid), params.file, content, expected=params.expected or "")


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError as error:
        raise InvalidParameter({"content": "invalid format - not base64"}) from error


def _running(call: Call, vmid: int) -> RunningGuest:
    """The running VM with an agent configured. Raises `NotFound`, `Conflict`."""
    config, _ = stored_config(call, GuestKind.QEMU, vmid)
    if not has_agent(config):
        raise Conflict(f"vm {vmid}: No QEMU guest agent configured")
    return call.services.guests.running(GuestId(vmid), GuestKind.QEMU)
