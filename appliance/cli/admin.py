"""`appliance tasks`, `appliance audit`, `appliance token`."""

from __future__ import annotations

import sys

from appliance.cli.arguments import Arguments
from appliance.cli.errors import CliError, Exit
from appliance.cli.main import Context
from appliance.cli.waiting import follow

TASK_COLUMNS = ("upid", "type", "id", "user", "status")
AUDIT_COLUMNS = ("n", "time", "who", "remote", "action", "target", "outcome")
TOKEN_COLUMNS = ("tokenid", "privsep", "expire", "comment")


def run(context: Context, word: str, arguments: Arguments) -> None:
    """One of the three."""
    if arguments.wants_help:
        raise CliError("see appliance --help", Exit.USAGE)
    match word:
        case "tasks":
            _tasks(context, arguments)
        case "audit":
            _audit(context, arguments)
        case _:
            _token(context, arguments)


def _tasks(context: Context, arguments: Arguments) -> None:
    if arguments.positional:
        (upid,) = arguments.take("upid")
        status = follow(context.api, upid, out=sys.stderr if context.output == "json" else sys.stdout)
        if context.output == "json":
            context.show(status)
        return
    rows = context.api.call("GET", "/nodes/localhost/tasks", {"source": "all", **arguments.params})
    context.show([row | {"status": row.get("status", "running")} for row in rows], TASK_COLUMNS)


def _audit(context: Context, arguments: Arguments) -> None:
    if not arguments.positional:
        context.show(context.api.call("GET", "/appliance/audit", arguments.params), AUDIT_COLUMNS)
        return
    if arguments.take("verify") != ["verify"]:
        raise CliError("usage: appliance audit [verify]", Exit.USAGE)
    verdict = context.api.get("/appliance/audit/verify")
    context.show(verdict)
    if not verdict["ok"]:
        raise CliError(f"the audit log is damaged: {verdict.get('problem', '')}", Exit.FAILED)


def _token(context: Context, arguments: Arguments) -> None:
    verb = arguments.positional.pop(0) if arguments.positional else ""
    match verb:
        case "create":
            user, name = arguments.take("user", "tokenid")
            context.show(context.api.call("POST", f"/access/users/{user}/token/{name}", arguments.params))
        case "list":
            (user,) = arguments.take("user")
            context.show(context.api.get(f"/access/users/{user}/token"), TOKEN_COLUMNS)
        case "delete":
            user, name = arguments.take("user", "tokenid")
            context.show(context.api.call("DELETE", f"/access/users/{user}/token/{name}"))
        case _:
            raise CliError("usage: appliance token create|list|delete USER [TOKENID]", Exit.USAGE)
