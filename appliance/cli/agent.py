"""`appliance vm exec|push|pull`: programs and files inside a virtual machine, by its guest agent, over the API."""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.cli.arguments import Arguments
from appliance.cli.client import Body
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit
from appliance.cli.inside_words import USAGE

NODE = "/nodes/localhost/qemu"
INPUT_LIMIT_CHARS = 65_536
FILE_LIMIT_BYTES = 45 << 10
"""What fits into the API's 60 KiB of base64."""
PIECE_BYTES = 4 << 20
POLL_S = (0.1, 0.2, 0.4, 1.0)


def execute(context: Context, arguments: Arguments) -> None:
    """Start a program and wait for its end, which is when the agent tells its output. `SystemExit` with its status."""
    if len(arguments.positional) < 2:
        raise CliError(f"usage: {USAGE['vm']['exec']}", Exit.USAGE)
    vmid, *command = arguments.positional
    limit_s = _seconds(arguments.params.get("timeout", "inf"))
    request: dict[str, object] = {"command": command}
    if not sys.stdin.isatty() and (text := sys.stdin.read(INPUT_LIMIT_CHARS + 1)):
        if len(text) > INPUT_LIMIT_CHARS:
            raise CliError(f"more than {INPUT_LIMIT_CHARS} characters of input", Exit.USAGE)
        request["input-data"] = text
    # as JSON: in a form, one word with spaces or commas would be several
    pid = int(str(_send(context, f"{NODE}/{vmid}/agent/exec", request)["pid"]))
    status = _ended(context, vmid, pid, limit_s)
    sys.stdout.write(str(status.get("out-data", "")))
    sys.stdout.flush()
    sys.stderr.write(str(status.get("err-data", "")))
    signal = int(str(status.get("signal", 0)))
    raise SystemExit(128 + signal if signal else int(str(status.get("exitcode", 0))))


def push(context: Context, vmid: str, source: str, path: str) -> None:
    """Write a file into the guest; "-" is the standard input."""
    content = sys.stdin.buffer.read(FILE_LIMIT_BYTES + 1) if source == "-" else _read(Path(source))
    if len(content) > FILE_LIMIT_BYTES:
        raise CliError(f"{source}: a guest agent takes at most {FILE_LIMIT_BYTES} bytes", Exit.USAGE)
    request = {"file": path, "content": base64.b64encode(content).decode(), "encode": 0}
    _send(context, f"{NODE}/{vmid}/agent/file-write", request)


def pull(context: Context, vmid: str, path: str, target: str) -> None:
    """Read a file out of the guest; "-" is the standard output."""
    if target == "-":
        for data in _pieces(context, vmid, path):
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    place = Path(target) / Path(path).name if Path(target).is_dir() else Path(target)
    partial = place.with_name(f".{place.name}.part")
    try:
        with partial.open("wb") as file:
            for data in _pieces(context, vmid, path):
                file.write(data)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def _pieces(context: Context, vmid: str, path: str) -> Iterator[bytes]:
    offset, more = 0, True
    while more:
        params = {"file": path, "offset": offset, "count": PIECE_BYTES, "decode": 0}
        reply = context.api.call("GET", f"{NODE}/{vmid}/agent/file-read", params)
        data = base64.b64decode(reply["content"])
        offset, more = offset + len(data), bool(reply.get("truncated"))
        yield data


def _ended(context: Context, vmid: str, pid: int, limit_s: float) -> dict[str, object]:
    begun, waits = time.monotonic(), iter(POLL_S)
    while True:
        status: dict[str, object] = context.api.get(f"{NODE}/{vmid}/agent/exec-status", pid=pid)
        if status.get("exited"):
            return status
        if time.monotonic() - begun > limit_s:
            raise CliError(
                f"it takes longer than {limit_s:g} s and still runs, as process {pid} of the guest", Exit.FAILED
            )
        time.sleep(next(waits, POLL_S[-1]))


def _send(context: Context, path: str, request: dict[str, object]) -> dict[str, object]:
    body = json.dumps(request).encode()
    reply = context.api.send("POST", f"/api2/json{path}", Body((body,), len(body), "application/json"))
    return dict(reply.get("data") or {})


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise CliError(f"'{text}' is no number of seconds", Exit.USAGE) from error


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_LIMIT_BYTES + 1)
