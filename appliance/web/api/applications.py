"""/nodes/{node}/lxc/{vmid}/logs and …/health: application containers. Ours; PVE's containers have neither."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
from aiohttp import web

from appliance.errors import ApplianceError
from appliance.model.guest import GuestId, GuestKind
from appliance.services.ports.application_logs import LogPiece
from appliance.web.api.guest_params import AUDIT
from appliance.web.registry import Allow, Call, GuestParams, Resource

api = Resource()

CONSOLE = Allow("/vms/{vmid}", "VM.Console")


class LogParams(GuestParams, kw_only=True):
    """GET logs."""

    follow: Annotated[bool, msgspec.Meta(description="go on until the container has ended")] = False
    tail: Annotated[int, msgspec.Meta(ge=0, le=100_000, description="lines before the end; default: all")] | None = None
    timestamps: Annotated[bool, msgspec.Meta(description="begin each line with its time")] = False
    stdout: bool = True
    stderr: bool = True


class ProbeRow(msgspec.Struct, kw_only=True):
    """A health check that was made; without `exit-code` it gave no answer."""

    time: float
    exit_code: int | None = msgspec.field(name="exit-code", default=None)
    output: str


class HealthReply(msgspec.Struct, kw_only=True):
    """The health of a container and the newest checks."""

    health: str | None = None
    checks: list[ProbeRow]


@api.get("/nodes/{node}/lxc/{vmid}/logs", summary="What an application container has said", allow=CONSOLE,
         timeout_s=None, returns=str)  # fmt: skip
async def read_logs(call: Call, params: LogParams) -> web.StreamResponse:
    """Plain text as it was written, streamed. A line that both streams write to at once is told in its pieces."""
    wanted = {name for name, asked in (("stdout", params.stdout), ("stderr", params.stderr)) if asked}
    response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8", "X-Accel-Buffering": "no"})
    at_line_start = True

    def follow() -> bool:  # nobody tells a handler that its client has gone
        transport = call.request.transport
        return params.follow and transport is not None and not transport.is_closing()

    try:
        async with contextlib.aclosing(
            call.services.guests.application_logs(params.vmid, tail=params.tail, follow=follow)
        ) as pieces:
            async for lines in pieces:
                if not response.prepared:
                    await response.prepare(call.request)
                text, at_line_start = _text(lines, wanted, at_line_start=at_line_start, timestamps=params.timestamps)
                await response.write(text)
        if not response.prepared:
            await response.prepare(call.request)
        await response.write_eof()
    except ApplianceError:
        if not response.prepared:
            raise
        # it has begun: what is missing cannot be told any more but by the missing end
        if call.request.transport is not None:
            call.request.transport.abort()
    except ConnectionError:  # the client has gone
        return response
    return response


@api.get("/nodes/{node}/lxc/{vmid}/health", summary="Health checks of an application container", allow=AUDIT,
         returns=HealthReply)  # fmt: skip
async def read_health(call: Call, params: GuestParams) -> HealthReply:
    """The newest checks of its present run, the oldest first."""
    guests = call.services.guests
    guests.get(GuestId(params.vmid), GuestKind.LXC)
    health = guests.applications.status(GuestId(params.vmid)).get("health")
    return HealthReply(
        health=str(health) if health else None,
        checks=[
            ProbeRow(time=probe.started_at, exit_code=probe.exit_code, output=probe.output)
            for probe in guests.applications.probes(GuestId(params.vmid))
        ],
    )


def _text(lines: Sequence[LogPiece], wanted: set[str], *, at_line_start: bool, timestamps: bool) -> tuple[bytes, bool]:
    parts = []
    for line in lines:
        if line.stream not in wanted:
            continue
        if timestamps and at_line_start:
            parts.append(f"{line.time} ".encode())
        parts.append(line.text + (b"\n" if line.whole else b""))
        at_line_start = line.whole
    return b"".join(parts), at_line_start
