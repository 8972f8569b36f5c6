"""/appliance/audit: the audit log. Proxmox VE has no such thing; our extensions live under /appliance."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from appliance.web.registry import Allow, Call, Resource

api = Resource()

MAY_READ = Allow("/", "Sys.Audit")


class AuditParams(msgspec.Struct, kw_only=True):
    """How much."""

    limit: Annotated[int, Meta(ge=1, le=1000, description="at most so many of the newest rows")] = 100


class AuditRow(msgspec.Struct, kw_only=True):
    """One row; `hash` covers it and by `previous` all rows before it."""

    n: int
    time: float
    who: str
    remote: str
    action: str
    target: str
    outcome: str
    detail: str
    previous: str
    hash: str


class Verdict(msgspec.Struct, kw_only=True):
    """Whether the chain is whole; else the first bad line and what is wrong with it."""

    ok: bool
    rows: int
    bad_line: int | None = None
    problem: str = ""


@api.get("/appliance/audit", summary="The newest rows of the audit log", allow=MAY_READ, returns=list[AuditRow])
async def read_audit(call: Call, params: AuditParams) -> object:
    """Newest first."""
    return await call.services.audit.tail(params.limit)


@api.get("/appliance/audit/verify", summary="Check the audit log's chain of hashes", allow=MAY_READ, returns=Verdict)
async def verify_audit(call: Call) -> Verdict:
    """Reads the whole log."""
    verdict = await call.services.audit.verify()
    return Verdict(ok=verdict.ok, rows=verdict.rows, bad_line=verdict.bad_line, problem=verdict.problem)
