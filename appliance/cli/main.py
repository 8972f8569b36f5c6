"""The command line: a client of the HTTP API, nothing more. Whatever it can do, the API can.

    appliance get|create|set|delete PATH [--param value …]     any method of the API; --help lists its parameters
    appliance vm|ct list|create|start|… [VMID …]               everyday verbs
    appliance tasks [UPID]    appliance audit [verify]    appliance token create|list|delete USER [TOKENID]

Each command imports only what it needs. Exit statuses: `errors.Exit`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.cli.errors import CliError, Exit

if TYPE_CHECKING:
    from appliance.cli.arguments import Arguments
    from appliance.cli.client import Api

USAGE = """usage: appliance [OPTIONS] COMMAND [ARGUMENTS]

  serve                               run the appliance (serve --help)
  get|create|set|delete PATH [--name value ...]
                                      any method of the API; with --help its parameters
  vm|ct list
  vm|ct create VMID [--name value ...]
  vm|ct start|stop|shutdown|reboot|status|config|delete VMID [--name value ...]
  vm    reset|suspend|resume VMID
  vm|ct set VMID --name value ...
  vm|ct resize VMID DISK SIZE
  vm|ct clone VMID NEWID [--name value ...]
  vm|ct console VMID                  Ctrl-] leaves
  tasks [UPID] [--limit n]            recent tasks, or one task's log to its end
  audit [verify] [--limit n]          the audit log, or whether it is whole
  token create USER TOKENID [--privsep 0|1 --expire time --comment text]
  token list USER | token delete USER TOKENID

options, before the command:
  --socket PATH                       the local appliance's socket (APPLIANCE_SOCKET)
  --data-dir DIR                      the local appliance started with this data directory
  --url URL --token USER@REALM!NAME=SECRET [--ca-fingerprint SHA256]
                                      another appliance (APPLIANCE_URL, _TOKEN, _CA_FINGERPRINT)
anywhere:
  --output table|json|text            how replies are shown
  --no-wait                           do not wait for tasks, print the UPID

exit status: 0 done, 1 failed, 2 wrong arguments or parameters, 3 not allowed, 4 does not exist, 5 conflict,
  6 appliance not reachable, 130 interrupted (a task goes on)
"""


@dataclass(slots=True)
class Context:
    """One run of the command line."""

    api: Api
    output: str = "table"
    wait: bool = True

    def show(self, value: Any, columns: Sequence[str] = ()) -> None:
        """Print a reply."""
        from appliance.cli.output import render

        if text := render(value, self.output, columns):
            print(text)

    def finish(self, value: Any) -> None:
        """Print a reply, after waiting for its task when it is one. Raises `CliError` when the task failed."""
        from appliance.cli.waiting import follow, is_upid

        if not (self.wait and is_upid(value)):
            self.show(value)
            return
        status = follow(self.api, value, out=sys.stderr if self.output == "json" else sys.stdout)
        if self.output == "json":
            self.show(status)


Command = Callable[[Context, str, "Arguments"], None]


def main(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status."""
    try:
        return _run(list(argv))
    except CliError as error:
        print(f"appliance: {error.message}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        return Exit.INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has left: say nothing more
        return Exit.FAILED


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return Exit.OK if argv else Exit.USAGE
    from appliance.cli.arguments import parse
    from appliance.cli.client import Api, target_from_environment

    output, wait, argv = _take_anywhere(argv)
    target = target_from_environment()
    while argv and argv[0].startswith("-"):
        target = _with_option(target, argv)
    if not argv:
        raise CliError("a command is missing; see appliance --help", Exit.USAGE)
    if target.url and not target.url.startswith("https://"):
        raise CliError(f"{target.url}: only https:// is spoken", Exit.USAGE)
    word, rest = argv[0], argv[1:]
    with Api(target) as api:
        _command(word)(Context(api, output, wait), word, parse(rest))
    return Exit.OK


def _command(word: str) -> Command:
    match word:
        case "get" | "create" | "set" | "delete":
            from appliance.cli.generic import run
        case "vm" | "ct":
            from appliance.cli.guests import run
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
        if word == "--no-wait":
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
