"""Help texts. What is general is written here; what a method takes comes from the appliance's OpenAPI document. Pure."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from appliance.cli.client import VERBS
from appliance.cli.errors import CliError, Exit

WIDTH = 100
NAME_COLUMN = 30
SHORT_CHOICES = 24

USAGE = """usage: appliance [OPTIONS] COMMAND [ARGUMENTS]

Virtual machines and containers:
  vm VERB …                 virtual machines: list, create, start, console, …  (appliance vm --help)
  ct VERB …                 containers: the same verbs                        (appliance ct --help)

  oci VERB …                images and registries: pull, push, list, rm, gc   (appliance oci --help)

The whole API:
  get PATH                  read, for example: appliance get /nodes
  create|set|delete PATH    act and change; PATH --help lists the parameters

The appliance:
  upload FILE               an ISO, disk image or container template into a storage
  tasks [UPID]              recent tasks; or one task's log, to its end
  audit [verify]            who changed what; or whether that log is whole
  token create|list|delete  API tokens
  doctor [--bundle FILE]    what this host lacks and what that costs; an archive for a bug report
  serve                     run the appliance itself

Options:
  --socket PATH             the local appliance's socket (default: the one under /run; APPLIANCE_SOCKET)
  --data-dir DIR            the local appliance that was started with this data directory
  --url URL                 an appliance elsewhere: https://HOST[:8006] (APPLIANCE_URL)
  --token TOKEN             as whom: USER@REALM!NAME=SECRET (APPLIANCE_TOKEN)
  --ca-fingerprint SHA256   the certificate to trust there, of its CA or its own (APPLIANCE_CA_FINGERPRINT)
Anywhere in the line:
  --output FORMAT           table (default), json or text (tab-separated)
  --no-wait                 print a task's UPID instead of following it to its end
  --help                    about a command, a verb or a path
  --version

Examples:
  appliance vm create 100 --name web --memory 2048 --scsi0 local:32 --net0 virtio,bridge=vmbr0
  appliance vm start 100
  appliance ct console 101
  appliance create /nodes/localhost/qemu/100/status/start --help

Exit status: 0 done, 1 failed, 2 wrong arguments or parameters, 3 not allowed, 4 does not exist,
  5 conflict (exists already, wrong state, changed by others), 6 appliance not reachable,
  130 interrupted (a task goes on)
"""

TASKS = """usage: appliance tasks [--limit N] [--FILTER VALUE …]
       appliance tasks UPID
       appliance tasks cancel UPID

Lists the newest tasks, follows the log of one to its end, or cancels one.
A task that failed makes the exit status 1.

"""

AUDIT = """usage: appliance audit [--limit N]
       appliance audit verify

Shows who changed what, newest first, or checks that no row of the log was changed or removed: if one
was, it is named, and the exit status is 1.

"""

TOKENS = """usage: appliance token create USER NAME [--privsep 0|1] [--expire TIME] [--comment TEXT]
       appliance token list USER
       appliance token delete USER NAME

API tokens of a user, for programs. The secret is shown once, by create. A token with --privsep 1 (the
default) has the privileges given to it alone, at most its user's; with --privsep 0 it has the user's.

Examples:
  appliance token create admin@pve backup --privsep 0 --comment "nightly job"
  appliance --url https://10.0.0.5 --token 'admin@pve!backup=SECRET' --ca-fingerprint SHA256 vm list

"""

UPLOAD = """usage: appliance upload FILE [--storage NAME] [--content iso|vztmpl|import|snippets] [--filename NAME]
                        [--checksum SUM --checksum-algorithm sha256]

Sends a file to a storage (default: local). What it is follows from its name: .iso, .qcow2 and .raw
(disk images to import), .tar.gz, .tar.xz and .tar.zst (container templates); else say it by --content.

Examples:
  appliance upload debian-12.iso
  appliance upload disk.vmdk.img --content import --filename web.raw
  appliance create /nodes/localhost/storage/local/download-url --url https://… --content iso --filename x.iso

"""

API = """usage: appliance get PATH [--name value …]
       appliance create PATH [--name value …]
       appliance set PATH [--name value …]
       appliance delete PATH [--name value …]

Any method of the API: GET, POST, PUT and DELETE below /api2/json. "get /" and the paths it shows list
what is there; with --help a path tells what it takes. The node may be called localhost. --flag alone
is --flag 1; a name given twice makes a list. A method that begins a task is followed to its end.

Examples:
  appliance get /cluster/resources --type vm --output json
  appliance create /pools --poolid prod --comment "do not touch"
  appliance set /nodes/localhost/qemu/100/config --help
"""


def describe(document: Mapping[str, Any], word: str, path: str) -> Iterator[str]:
    """Lines about the method `word` of `path`. Raises `CliError` when there is none."""
    template, item = _find(document, path)
    operation = item.get(VERBS[word].lower())
    if operation is None:
        words = ", ".join(name for name, verb in VERBS.items() if verb.lower() in item)
        raise CliError(f"{path} has no {word}, only {words}", Exit.NOT_FOUND)
    shown = template.removeprefix("/api2/json") or "/"
    yield f"usage: appliance {word} {shown}{' [--name value …]' if any(_parameters(operation)) else ''}"
    yield ""
    yield from _wrapped(f"{operation['summary']}. {operation.get('description', '')}")
    yield ""
    yield f"Needs: {operation.get('x-permission', '')}"
    if others := [name for name, verb in VERBS.items() if verb.lower() in item and name != word]:
        yield f"Also here: {', '.join(others)}"
    yield from parameters_of(operation)


def parameters_of(operation: Mapping[str, Any], *, without: tuple[str, ...] = ()) -> Iterator[str]:
    """The parameters, required ones first. `without` are given in another way."""
    entries = [entry for entry in _parameters(operation) if entry[0] not in without]
    if not entries:
        return
    entries.sort(key=lambda entry: not entry[2])
    yield ""
    yield "Parameters:"
    for name, schema, required in entries:
        yield from _parameter(name, schema, required=required)
    if any("Property string" in schema.get("description", "") for _, schema, _ in entries):
        yield ""
        yield from _wrapped(
            "A property string is written key=value,key=value: above, the key in [brackets=] may be left out before its "
            "value, a key with ? is optional. [n] stands for a number from 0 on."
        )


def operation_of(document: Mapping[str, Any], verb: str, path: str) -> Mapping[str, Any]:
    """The operation `verb` (HTTP's) of `path`. Raises `CliError`."""
    _, item = _find(document, path)
    operation: Mapping[str, Any] = item[verb.lower()]
    return operation


def _parameter(name: str, schema: Mapping[str, Any], *, required: bool) -> Iterator[str]:
    kind, text = _kind(schema), [_sentence(str(schema.get("description", "")).strip())]
    if "enum" in schema and kind == "WORD":
        text.append(f"One of: {', '.join(map(str, schema['enum']))}.")
    if required:
        text.append("Required.")
    elif schema.get("default") not in (None, "", []):
        default = schema["default"]
        text.append(f"Default: {int(default) if isinstance(default, bool) else default}.")
    lines = list(_wrapped(" ".join(part for part in text if part), WIDTH - NAME_COLUMN))
    left = f"  --{name} {kind}"
    if len(left) >= NAME_COLUMN:
        yield left
    else:
        yield f"{left:<{NAME_COLUMN}}{lines.pop(0) if lines else ''}".rstrip()
    for line in lines:
        yield f"{'':<{NAME_COLUMN}}{line}".rstrip()


def _sentence(text: str) -> str:
    if text.partition(" ")[0].isalpha() and text.partition(" ")[0].islower():
        text = text[0].upper() + text[1:]
    return f"{text}." if text and not text.endswith((".", ".)", "?", "!", ":")) else text


def _kind(schema: Mapping[str, Any]) -> str:
    if "enum" in schema:
        joined = "|".join(map(str, schema["enum"]))
        return joined if len(joined) <= SHORT_CHOICES else "WORD"
    kinds = {"boolean": "0|1", "integer": "INT", "number": "NUMBER", "array": "LIST"}
    return kinds.get(str(schema.get("type", "")), "TEXT")


def _wrapped(text: str, width: int = WIDTH) -> Iterator[str]:
    for paragraph in text.strip().split("\n\n"):
        yield from textwrap.wrap(" ".join(paragraph.split()), width, break_on_hyphens=False, break_long_words=False)


def _find(document: Mapping[str, Any], path: str) -> tuple[str, dict[str, Any]]:
    wanted = "/api2/json" + path
    if wanted in document["paths"]:
        return wanted, document["paths"][wanted]
    for template, item in document["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), wanted):
            return template, item
    raise CliError(f"{path} does not exist", Exit.NOT_FOUND)


def _parameters(operation: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    for entry in operation.get("parameters", ()):
        if entry["in"] == "query":
            yield entry["name"], entry["schema"], bool(entry.get("required"))
    for content in operation.get("requestBody", {}).get("content", {}).values():
        schema = content["schema"]
        for name, properties in schema["properties"].items():
            yield name, properties, name in schema.get("required", ())
        for pattern, properties in schema.get("patternProperties", {}).items():
            yield pattern.strip("^$").replace("[0-9]+", "[n]"), properties, False
        return
