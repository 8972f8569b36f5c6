"""`appliance tasks`, `appliance audit`, `appliance token`: see `help.py` for what they do."""

from __future__ import annotations

import sys

from appliance.cli.arguments import Arguments
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit
from appliance.cli.waiting import follow, is_upid

TASK_COLUMNS = ("upid", "starttime", "type", "id", "user", "status")
AUDIT_COLUMNS = ("n", "time", "who", "remote", "action", "target", "outcome")
TOKEN_COLUMNS = ("tokenid", "privsep", "expire", "comment")


def run(context: Context, word: str, arguments: Arguments) -> None:
    """One of the three."""
    if arguments.wants_help:
        _help(context, word)
        return
    match word:
        case "tasks":
            _tasks(context, arguments)
        case "audit":
            _audit(context, arguments)
        case _:
            _token(context, arguments)


def _tasks(context: Context, arguments: Arguments) -> None:
    if arguments.positional:
        cancel = arguments.positional[0] == "cancel"
        upid = arguments.take(*(("cancel", "upid") if cancel else ("upid",)))[-1]
        if not is_upid(upid):
            raise CliError(f"{upid} is no task's UPID", Exit.USAGE)
        if cancel:
            context.show(context.api.call("DELETE", f"/nodes/localhost/tasks/{upid}"))
            return
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
    context.show(verdict if verdict.get("problem") else {"ok": verdict["ok"], "rows": verdict["rows"]})
    if not verdict["ok"]:
        where = f"line {verdict['bad_line']}: " if verdict.get("bad_line") else ""
        raise CliError(f"the audit log is damaged: {where}{verdict.get('problem', '')}", Exit.FAILED)


def _token(context: Context, arguments: Arguments) -> None:
    verb = arguments.positional.pop(0) if arguments.positional else ""
    match verb:
        case "create":
            user, name = arguments.take("user", "name")
            context.show(context.api.call("POST", f"/access/users/{user}/token/{name}", arguments.params))
        case "list":
            (user,) = arguments.take("user")
            context.show(context.api.get(f"/access/users/{user}/token"), TOKEN_COLUMNS)
        case "delete":
            user, name = arguments.take("user", "name")
            context.show(context.api.call("DELETE", f"/access/users/{user}/token/{name}"))
        case _:
            raise CliError("usage: appliance token create|list|delete USER [NAME]", Exit.USAGE)


def _help(context: Context, word: str) -> None:
    from appliance.cli.help import AUDIT, TASKS, TOKENS, operation_of, parameters_of

    text, path = {"tasks": (TASKS, "/nodes/localhost/tasks"), "audit": (AUDIT, ""), "token": (TOKENS, "")}[word]
    print(text.rstrip())
    if path:
        try:
            print("\n".join(parameters_of(operation_of(context.api.document(), "GET", path))))
        except CliError as error:
            if error.status is not Exit.UNREACHABLE:
                raise
