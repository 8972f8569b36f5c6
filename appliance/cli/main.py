"""The command line: a client of the HTTP API, nothing more. Whatever it can do, the API can.

    appliance get|create|set|delete PATH [--param value …]     any method of the API; --help lists its parameters
    appliance vm|ct list|create|start|… [VMID …]               everyday verbs
    appliance oci pull|push|list|… [NAME …]                    images and registries
    appliance tasks [UPID]    appliance audit [verify]    appliance token create|list|delete USER [NAME]
    appliance upload FILE

Each command imports only what it needs. Exit statuses: `errors.Exit`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit

if TYPE_CHECKING:
    from appliance.cli.arguments import Arguments

Command = Callable[[Context, str, "Arguments"], None]


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        status = _run(list(argv))
        sys.stdout.flush()
        return status
    except CliError as error:
        sys.stdout.flush()
        print(f"appliance: {error.message}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # the reader of our output has left: say nothing more, not even when the interpreter flushes it at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.FAILED


def _run(argv: list[str]) -> int:
    if argv[:1] == ["help"]:
        argv = [*argv[1:], "--help"]
    if not argv:
        _usage(sys.stderr)
        return Exit.USAGE
    from appliance.cli.arguments import parse
    from appliance.cli.client import Api, target_from_environment

    output, wait, argv = _take_anywhere(argv)
    target = target_from_environment()
    while argv and argv[0].startswith("-"):
        if argv[0] in ("-h", "--help"):
            _usage(sys.stdout)
            return Exit.OK
        target = _with_option(target, argv)
    if not argv:
        raise CliError("a command is missing; see appliance --help", Exit.USAGE)
    if target.url and not target.url.startswith("https://"):
        raise CliError(f"{target.url}: only https:// is spoken", Exit.USAGE)
    word, rest = argv[0], argv[1:]
    with Api(target) as api:
        _command(word)(Context(api, output, wait), word, parse(rest))
    return Exit.OK


def _usage(out: TextIO) -> None:
    from appliance.cli.help import USAGE

    print(USAGE, end="", file=out)


def _command(word: str) -> Command:
    match word:
        case "get" | "create" | "set" | "delete":
            from appliance.cli.generic import run
        case "vm" | "ct":
            from appliance.cli.guests import run
        case "oci":
            from appliance.cli.oci import run
        case "upload":
            from appliance.cli.upload import run
        case "tasks" | "audit" | "token":
            from appliance.cli.admin import run
        case _:
            raise CliError(f"unknown command {word}; see appliance --help", Exit.USAGE)
    return run


def _take_anywhere(argv: list[str]) -> tuple[str, bool, list[str]]:
    from appliance.cli.output import FORMATS

    output, wait, rest = "table", True, list[str]()
    words = iter(argv)
    for word in words:
        if word == "--":  # what follows is somebody else's
            rest += [word, *words]
        elif word == "--no-wait":
            wait = False
        elif word == "--output" or word.startswith("--output="):
            output = word.partition("=")[2] or next(words, "")
            if output not in FORMATS:
                raise CliError(f"--output is one of {', '.join(FORMATS)}", Exit.USAGE)
        else:
            rest.append(word)
    return output, wait, rest


def _with_option(target: Any, argv: list[str]) -> Any:
    name, given, value = argv.pop(0).partition("=")
    if not given:
        if not argv:
            raise CliError(f"{name} needs a value", Exit.USAGE)
        value = argv.pop(0)
    match name:
        case "--url":
            return replace(target, url=value if "://" in value else f"https://{value}")
        case "--token":
            return replace(target, token=value)
        case "--ca-fingerprint":
            return replace(target, fingerprint=value)
        case "--socket":
            return replace(target, socket_path=Path(value))
        case "--data-dir":
            from appliance.cli.client import SOCKET_NAME
            from appliance.config import default_run_dir

            return replace(target, socket_path=default_run_dir(Path(value)) / SOCKET_NAME)
    raise CliError(f"unknown option {name}; see appliance --help", Exit.USAGE)
