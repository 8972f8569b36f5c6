"""`appliance ct exec|push|pull|edit|enter`: programs, files and a shell in a running container, over the API.

Those of a virtual machine are its agent's: `agent.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO
from urllib.parse import urlencode

from appliance.cli import agent
from appliance.cli.arguments import Arguments
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit
from appliance.cli.inside_words import SUMMARY, USAGE
from appliance.cli.upload import multipart

NODE = "/nodes/localhost/lxc"
INPUT_LIMIT_BYTES = 4 << 20


def run(context: Context, word: str, name: str, arguments: Arguments) -> None:
    """One of the verbs of "ct" or "vm". Raises `CliError`; `SystemExit` with a program's own status."""
    if arguments.wants_help:
        summary = SUMMARY[word][name]
        print(f"usage: {USAGE[word][name]}\n\n{summary[0].upper()}{summary[1:]}.")
        return
    verbs: dict[str, Callable[[Context, Arguments], None]] = {
        "exec": _exec, "push": _push, "pull": _pull, "edit": _edit, "enter": _enter,
    }  # fmt: skip
    of_agent: dict[str, Callable[[Context, Arguments], None]] = {
        "exec": agent.execute,
        "push": lambda context, arguments: agent.push(context, *_take(arguments, "push", 3, word="vm")),
        "pull": lambda context, arguments: agent.pull(context, *_take(arguments, "pull", 3, word="vm")),
    }
    try:
        (verbs if word == "ct" else of_agent)[name](context, arguments)
    except OSError as error:
        raise CliError(f"{error.filename or name}: {error.strerror}", Exit.FAILED) from error


def _exec(context: Context, arguments: Arguments) -> None:
    if len(arguments.positional) < 2:
        raise CliError(f"usage: {USAGE['ct']['exec']}", Exit.USAGE)
    vmid, *command = arguments.positional
    form: list[tuple[str, str]] = [("command", word) for word in command]
    params = dict(arguments.params)
    form += [("env", params.pop("env"))] if "env" in params else []
    form += list(params.items())
    if not sys.stdin.isatty():
        data = sys.stdin.buffer.read(INPUT_LIMIT_BYTES + 1)
        if len(data) > INPUT_LIMIT_BYTES:
            raise CliError(f"more than {INPUT_LIMIT_BYTES} bytes of input: push them as a file", Exit.USAGE)
        form += [("input-data", base64.b64encode(data).decode()), ("decode", "1")]
    outputs: dict[str, IO[bytes]] = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    for line in context.api.stream("POST", f"/api2/json{NODE}/{_id(vmid)}/exec", urlencode(form)):
        said = json.loads(line)
        if "data" in said:
            out = outputs[said["stream"]]
            out.write(base64.b64decode(said["data"]))
            out.flush()
        elif "exitcode" in said:
            raise SystemExit(int(said["exitcode"]))
        else:
            raise CliError(str(said.get("error")), Exit.FAILED)
    raise CliError("the appliance ended the connection before the program's end", Exit.FAILED)


def _push(context: Context, arguments: Arguments) -> None:
    vmid, source, path = _take(arguments, "push", 3)
    params = {"path": path, **arguments.params}
    if source == "-":
        with tempfile.TemporaryFile() as file:
            while data := sys.stdin.buffer.read(1 << 20):
                file.write(data)
            file.seek(0)
            _send(context, vmid, params, file, "stdin")
        return
    with Path(source).open("rb") as file:
        _send(context, vmid, params, file, Path(source).name)


def _send(context: Context, vmid: str, params: dict[str, str], file: IO[bytes], name: str) -> None:
    size = os.fstat(file.fileno()).st_size
    context.api.send("POST", f"/api2/json{NODE}/{vmid}/file", multipart(params, name, file, size))  # type: ignore[arg-type]


def _pull(context: Context, arguments: Arguments) -> None:
    vmid, path, target = _take(arguments, "pull", 3)
    if target == "-":
        _copy(context, vmid, path, sys.stdout.buffer)
        return
    place = Path(target) / Path(path).name if Path(target).is_dir() else Path(target)
    partial = place.with_name(f".{place.name}.part")
    try:
        with partial.open("wb") as file:
            _copy(context, vmid, path, file)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)


def _copy(context: Context, vmid: str, path: str, out: IO[bytes]) -> None:
    query = urlencode({"path": path})
    for data in context.api.stream("GET", f"/api2/json{NODE}/{vmid}/file?{query}", lines=False):
        out.write(data)
    out.flush()


def _edit(context: Context, arguments: Arguments) -> None:
    vmid, path = _take(arguments, "edit", 2)
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as directory:
        local = Path(directory) / (Path(path).name or "file")
        expected = "absent"
        try:
            with local.open("wb") as file:
                _copy(context, vmid, path, file)
            expected = hashlib.sha256(local.read_bytes()).hexdigest()
        except CliError as error:
            if error.status is not Exit.NOT_FOUND:
                raise
        before = local.read_bytes()
        if subprocess.run([*shlex.split(editor), str(local)], check=False).returncode != 0:
            raise CliError(f"{editor} failed: nothing is changed", Exit.FAILED)
        if local.read_bytes() == before:
            return
        with local.open("rb") as file:
            _send(context, vmid, {"path": path, "expected": expected}, file, local.name)


def _enter(context: Context, arguments: Arguments) -> None:
    from appliance.cli.console import attach

    (vmid,) = _take(arguments, "enter", 1)
    attach(context.api, f"{NODE}/{vmid}", {"cmd": "shell"})


def _take(arguments: Arguments, name: str, count: int, *, word: str = "ct") -> list[str]:
    if len(arguments.positional) != count:
        raise CliError(f"usage: {USAGE[word][name]}", Exit.USAGE)
    _id(arguments.positional[0])
    return arguments.positional


def _id(text: str) -> str:
    if not text.isdecimal():
        raise CliError(f"'{text}' is no VMID", Exit.USAGE)
    return text
