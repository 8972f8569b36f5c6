"""Following a task from its UPID to its end, showing its log as it grows."""

from __future__ import annotations

import re
from typing import Any, TextIO

from appliance.cli.client import Api
from appliance.cli.errors import CliError, Exit

WAIT_S = 0.5
"""How long the server may hold the question whether a task still runs; new log lines show at this pace."""
LOG_PAGE = 500
_UPID = re.compile(r"UPID:[^:\s]+(:[0-9A-Fa-f]{8,9}){3}:[^:\s]*:[^:\s]*:[^:\s]+:")


def is_upid(value: Any) -> bool:
    """Whether a reply says that a task has begun."""
    return isinstance(value, str) and _UPID.fullmatch(value) is not None


def follow(api: Api, upid: str, *, out: TextIO) -> dict[str, Any]:
    """Write the task's log to `out` until it ends; returns its status. Raises `CliError` when it failed."""
    shown = 0
    try:
        while True:
            status: dict[str, Any] = api.get(f"/nodes/localhost/tasks/{upid}/status", wait=WAIT_S)
            shown = _show_log(api, upid, shown, out)
            if status["status"] == "stopped":
                break
    except KeyboardInterrupt as error:
        text = f"no longer waiting; the task goes on. To see its end, or to end it:\n  appliance tasks {upid}\n"
        raise CliError(f"{text}  appliance tasks cancel {upid}", Exit.INTERRUPTED) from error
    ending = str(status.get("exitstatus", "unknown"))
    if ending == "OK" or ending.startswith("WARNINGS"):
        return status
    raise CliError(f"task failed: {ending}", Exit.FAILED)


def _show_log(api: Api, upid: str, shown: int, out: TextIO) -> int:
    while True:
        reply = api.request("GET", f"/api2/json/nodes/localhost/tasks/{upid}/log", {"start": shown, "limit": LOG_PAGE})
        lines = reply.get("data") or []
        if not shown and [line["t"] for line in lines] == ["no content"]:
            return 0
        for line in lines:
            out.write(f"{line['t']}\n")
        out.flush()
        shown += len(lines)
        if len(lines) < LOG_PAGE:
            return shown
