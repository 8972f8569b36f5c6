"""/nodes/{node}/lxc/{vmid}/{exec,file}: programs and files inside a running container. PVE has these as `pct` only.

    exec   a stream of JSON lines: {"stream": "stdout" | "stderr", "data": BASE64} …, at last {"exitcode": N} or {"error": …}
    file   GET its bytes, POST (multipart) new ones; file/stat is about it, and lists a directory

The privileges are those of a VM's guest agent: VM.GuestAgent.Unrestricted, FileRead, FileWrite.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
from collections.abc import Coroutine
from typing import Annotated, Any

import msgspec
from aiohttp import web
from msgspec import Meta

from appliance.errors import ApplianceError, InvalidParameter
from appliance.model.guest import GuestId, GuestKind
from appliance.model.inside import ExecRequest, FileInfo, FileWrite
from appliance.services import ct_inside
from appliance.web.api.inside_params import UNRESTRICTED, Expected, FilePath
from appliance.web.parameters import UNLOGGED
from appliance.web.registry import Allow, Call, GuestParams, PveBool, Resource

MAY_EXECUTE = Allow("/vms/{vmid}", UNRESTRICTED)
MAY_READ = Allow("/vms/{vmid}", "VM.GuestAgent.FileRead", UNRESTRICTED, any_of=True)
MAY_WRITE = Allow("/vms/{vmid}", "VM.GuestAgent.FileWrite", UNRESTRICTED, any_of=True)
INPUT_LIMIT_BYTES = 4 << 20
NAMES = {1: "stdout", 2: "stderr"}
GONE_POLL_S = 1.0
INFO_HEADER = "X-Appliance-File"

InsideId = Annotated[int, Meta(ge=0, le=65535, description="as inside")]


class ExecParams(GuestParams, kw_only=True):
    """A program, its arguments, and how it runs."""

    command: Annotated[list[str], Meta(min_length=1, max_length=1024, extra=UNLOGGED)]
    input_data: Annotated[str, Meta(description="its standard input", extra=UNLOGGED)] | None = msgspec.field(
        name="input-data", default=None
    )
    decode: Annotated[PveBool, Meta(description="`input-data` is base64")] = False
    env: Annotated[list[str], Meta(max_length=256, description="NAME=VALUE", extra=UNLOGGED)] = msgspec.field(
        default_factory=list
    )
    cwd: Annotated[str, Meta(min_length=1, max_length=4096)] = "/"
    uid: InsideId = 0
    gid: InsideId = 0
    timeout: Annotated[int, Meta(ge=1, le=86_400, description="seconds until it is killed; none without")] | None = None


class FileParams(GuestParams, kw_only=True):
    """Which file."""

    path: FilePath


class ReadParams(FileParams, kw_only=True):
    """Which file, and which part."""

    offset: Annotated[int, Meta(ge=0, le=1 << 62)] = 0
    count: Annotated[int, Meta(ge=0, le=1 << 62)] = 1 << 62


class WriteParams(FileParams, kw_only=True):
    """Which file, and what it shall be like."""

    mode: Annotated[str, Meta(pattern=r"^[0-7]{3,4}$", description="octal; as before, else 0644")] | None = None
    uid: InsideId | None = None
    gid: InsideId | None = None
    parents: Annotated[PveBool, Meta(description="make missing directories")] = False
    expected: Expected | None = None


class Entry(msgspec.Struct, kw_only=True):
    """A name in a directory."""

    name: str
    type: str
    size: int
    mode: int


class Info(msgspec.Struct, kw_only=True):
    """A file or directory; ids are those inside. `more`: the directory holds more than is listed. `target`: the path is a
    symbolic link that says this; writing to it replaces the link."""

    type: str
    size: int
    mode: int
    uid: int
    gid: int
    mtime: int
    target: str | None = None
    entries: list[Entry] | None = None
    more: bool | None = None


def declare(api: Resource) -> None:
    """Add all methods."""
    base = "/nodes/{node}/lxc/{vmid}"

    @api.post(f"{base}/exec", summary="Run a program in a container", allow=MAY_EXECUTE, timeout_s=None,
              body_limit_bytes=2 * INPUT_LIMIT_BYTES)  # fmt: skip
    async def execute(call: Call, params: ExecParams) -> web.StreamResponse:
        """Streams what it says as lines of JSON; who goes away kills it."""
        request = _request(params)
        inside = _inside(call, params.vmid)
        async with inside.executions.run(request) as execution:
            stream = _LineStream(call)
            try:
                async with asyncio.timeout(params.timeout):
                    await _while_connected(call.request, _relay(execution, stream))
            except TimeoutError:
                await stream.send({"error": f"it took longer than {params.timeout} s and was killed"})
            except ApplianceError as error:
                if not stream.begun:
                    raise  # what cannot be started is an ordinary error
                await stream.send({"error": error.message})
        with contextlib.suppress(ConnectionError):
            return await stream.finish()
        return stream.response

    @api.get(f"{base}/file", summary="Read a file in a container", allow=MAY_READ, timeout_s=None)
    async def read(call: Call, params: ReadParams) -> web.StreamResponse:
        """Its bytes as they are; X-Appliance-File says what `file/stat` does."""
        async with _inside(call, params.vmid).files.read(params.path, offset=params.offset, limit=params.count) as (
            info,
            content,
        ):
            if info.type != "file":
                raise InvalidParameter({"path": f"{params.path} is a directory"})
            response = web.StreamResponse(headers={INFO_HEADER: json.dumps(_reply(info))})
            response.content_type = "application/octet-stream"
            await response.prepare(call.request)
            async for data in content:
                await response.write(data)
            await response.write_eof()
            return response

    @api.get(f"{base}/file/stat", summary="What a file in a container is", allow=MAY_READ, returns=Info)
    async def stat(call: Call, params: FileParams) -> dict[str, object]:
        """Of a directory, `entries` are the names in it. Links are followed inside the container."""
        async with _inside(call, params.vmid).files.read(params.path, limit=0) as (info, _):
            return _reply(info)

    @api.post(f"{base}/file", summary="Write a file in a container", allow=MAY_WRITE, upload="filename", returns=Info)
    async def write(call: Call, params: WriteParams) -> dict[str, object]:
        """multipart/form-data; the content comes last, as the part `filename`. It appears only when it is whole."""
        sent, inside = call.upload, _inside(call, params.vmid)
        how = FileWrite(
            mode=None if params.mode is None else int(params.mode, 8),
            uid=params.uid,
            gid=params.gid,
            parents=params.parents,
            expected=params.expected or "",
        )
        return _reply(await inside.files.write(params.path, sent.chunks, how))


class _LineStream:
    """A reply of JSON lines, begun with the first of them."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self.response = web.StreamResponse()
        self.response.content_type = "application/x-ndjson"

    @property
    def begun(self) -> bool:
        return self.response.prepared

    async def send(self, line: dict[str, object]) -> None:
        if not self.response.prepared:
            await self.response.prepare(self._call.request)
        await self.response.write(json.dumps(line).encode() + b"\n")

    async def finish(self) -> web.StreamResponse:
        await self.response.write_eof()
        return self.response


async def _while_connected(request: web.Request, work: Coroutine[Any, Any, None]) -> None:
    """`work`, cut off when the client has gone: a program that says nothing would never notice."""
    working = asyncio.ensure_future(work)
    try:
        while not working.done():
            await asyncio.wait((working,), timeout=GONE_POLL_S)
            if request.transport is None or request.transport.is_closing():
                break
    finally:
        working.cancel()
        await asyncio.wait((working,))
    if not working.cancelled():
        working.result()


async def _relay(execution: ct_inside.Execution, stream: _LineStream) -> None:
    while said := await execution.next():
        await stream.send({"stream": NAMES[said[0]], "data": base64.b64encode(said[1]).decode()})
    await stream.send({"exitcode": await execution.wait()})


def _inside(call: Call, vmid: int) -> ct_inside.ContainerInside:
    return ct_inside.of(call.services.guests.running(GuestId(vmid), GuestKind.LXC))


def _request(params: ExecParams) -> ExecRequest:
    environment = dict(_split(text) for text in params.env)
    if any("\0" in text for text in (*params.command, *params.env, params.cwd)):
        raise InvalidParameter({"command": "a NUL character is in it"})
    return ExecRequest(
        argv=tuple(params.command),
        environment=environment,
        cwd=params.cwd,
        uid=params.uid,
        gid=params.gid,
        stdin=_input(params),
    )


def _input(params: ExecParams) -> bytes:
    text = params.input_data or ""
    try:
        data = base64.b64decode(text, validate=True) if params.decode else text.encode()
    except (binascii.Error, ValueError) as error:
        raise InvalidParameter({"input-data": "not base64"}) from error
    if len(data) > INPUT_LIMIT_BYTES:
        raise InvalidParameter({"input-data": f"more than {INPUT_LIMIT_BYTES} bytes"})
    return data


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidParameter({"env": f"'{text[:40]}' is not NAME=VALUE"})
    return name, value


def _text(name: str) -> str:
    """Bytes of a name that are no UTF-8 are replaced: JSON cannot say them."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _reply(info: FileInfo) -> dict[str, object]:
    return {
        "type": info.type,
        "size": info.size,
        "mode": info.mode,
        "uid": info.uid,
        "gid": info.gid,
        "mtime": info.mtime,
        "target": _text(info.target) or None,
        "entries": None
        if info.entries is None
        else [{**entry, "name": _text(str(entry["name"]))} for entry in info.entries],
        "more": True if info.more else None,
    }
