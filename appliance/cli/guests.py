"""`appliance vm …` and `appliance ct …`: the everyday verbs over /nodes/localhost/{qemu,lxc}, from one table."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.cli.arguments import Arguments
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit
from appliance.cli.inside_words import SUMMARY as INSIDE

NODE = "/nodes/localhost"
COLUMNS = ("vmid", "name", "status", "cpus", "mem", "maxmem", "maxdisk", "uptime", "tags")


@dataclass(frozen=True, slots=True)
class Verb:
    """An everyday verb: a method below /nodes/localhost/{qemu|lxc}. `positional` come as path parts or parameters."""

    method: str
    path: str
    positional: tuple[str, ...]
    summary: str
    only: str = ""
    """"vm" or "ct" when only these have it."""
    changes: bool = False
    """Whether it makes no sense without a parameter."""


def _power(verb: str, summary: str, only: str = "") -> Verb:
    return Verb("POST", f"/{{vmid}}/status/{verb}", ("vmid",), summary, only)


VERBS = {
    "list": Verb("GET", "", (), "all of them, and how they are"),
    "create": Verb("POST", "", ("vmid",), "make a new one"),
    "status": Verb("GET", "/{vmid}/status/current", ("vmid",), "whether it runs, and what it uses"),
    "config": Verb("GET", "/{vmid}/config", ("vmid",), "its configuration"),
    "set": Verb("PUT", "/{vmid}/config", ("vmid",), "change its configuration", changes=True),
    "start": _power("start", "start it"),
    "shutdown": _power("shutdown", "ask it to shut down, and wait until it has"),
    "stop": _power("stop", "end it at once, as pulling the plug does"),
    "reboot": _power("reboot", "shut it down and start it again"),
    "reset": _power("reset", "press the reset button", "vm"),
    "suspend": _power("suspend", "halt it, keep its memory"),
    "resume": _power("resume", "go on after suspend"),
    "console": Verb("POST", "/{vmid}/termproxy", ("vmid",), "its terminal in this one; Ctrl-] leaves"),
    "logs": Verb("GET", "/{vmid}/logs", ("vmid",), "what an application container has said; --follow", "ct"),
    "resize": Verb("PUT", "/{vmid}/resize", ("vmid", "disk", "size"), "grow a disk, to 20G or by +5G"),
    "clone": Verb("POST", "/{vmid}/clone", ("vmid", "newid"), "copy it"),
    "snapshots": Verb("GET", "/{vmid}/snapshot", ("vmid",), "its snapshots; the last line is the present state"),
    "snapshot": Verb("POST", "/{vmid}/snapshot", ("vmid", "snapname"), "keep its disks and configuration as they are"),
    "rollback": Verb("POST", "/{vmid}/snapshot/{snapname}/rollback", ("vmid", "snapname"), "return it to a snapshot"),
    "delsnapshot": Verb("DELETE", "/{vmid}/snapshot/{snapname}", ("vmid", "snapname"), "forget a snapshot"),
    "template": Verb("POST", "/{vmid}/template", ("vmid",), "make it a template, to clone from"),
    "move-disk": Verb("POST", "/{vmid}/move_disk", ("vmid", "disk", "storage"), "move a disk to another storage", "vm"),
    "move-volume": Verb(
        "POST", "/{vmid}/move_volume", ("vmid", "volume", "storage"), "move a volume to another storage", "ct"
    ),
    "backup": Verb("POST", f"{NODE}/vzdump", ("vmid",), "back it up into a storage"),
    "delete": Verb("DELETE", "/{vmid}", ("vmid",), "remove it with its disks"),
}

EXAMPLES = {
    ("vm", "create"): """\
  appliance vm create 100 --name web --cores 2 --memory 2048 --ostype l26 --scsihw virtio-scsi-pci \\
      --scsi0 local:32,discard=on --ide2 local:iso/debian.iso,media=cdrom --net0 virtio,bridge=vmbr0 --start
  appliance vm create 101 --memory 1024 --scsi0 local:0,import-from=local:import/debian-12.qcow2 \\
      --ide2 local:cloudinit --ciuser me --ipconfig0 ip=dhcp --net0 virtio,bridge=vmbr0 --serial0 socket""",
    ("ct", "create"): """\
  appliance ct create 200 --ostemplate local:vztmpl/debian-12.tar.zst --hostname db --rootfs local:8 \\
      --memory 1024 --cores 2 --net0 name=eth0,bridge=vmbr0,ip=dhcp --unprivileged 1 --start""",
    ("vm", "set"): """\
  appliance vm set 100 --memory 4096 --description "the web server"
  appliance vm set 100 --scsi1 local:100
  appliance vm set 100 --delete ide2,net1""",
    ("ct", "set"): """\
  appliance ct set 200 --memory 2048 --onboot 1
  appliance ct set 200 --mp0 local:20,mp=/srv
  appliance ct set 200 --delete mp0""",
    ("vm", "resize"): "  appliance vm resize 100 scsi0 +10G",
    ("ct", "resize"): "  appliance ct resize 200 rootfs 20G",
    ("vm", "clone"): "  appliance vm clone 100 110 --name copy --full 1",
    ("ct", "clone"): "  appliance ct clone 200 210 --hostname copy",
    ("vm", "snapshot"): "  appliance vm snapshot 100 before-update --vmstate 1 --description 'all well'",
    ("ct", "snapshot"): "  appliance ct snapshot 200 before-update",
    ("vm", "rollback"): "  appliance vm rollback 100 before-update --start 1",
    ("ct", "rollback"): "  appliance ct rollback 200 before-update --start 1",
    ("ct", "move-volume"): "  appliance ct move-volume 200 rootfs other --delete 1",
    ("vm", "backup"): "  appliance vm backup 100 --storage local --compress zstd --prune-backups keep-last=3",
    ("ct", "backup"): "  appliance ct backup 200 --storage local --compress zstd --mode suspend",
    ("vm", "console"): "  appliance vm console 100 --serial serial0",
    ("vm", "shutdown"): "  appliance vm shutdown 100 --timeout 120 --forceStop 1",
    ("ct", "shutdown"): "  appliance ct shutdown 200 --timeout 60 --forceStop 1",
    ("ct", "logs"): "  appliance ct logs 200 --follow --tail 20",
    ("vm", "list"): "  appliance vm list --output json",
}  # fmt: skip


def run(context: Context, word: str, arguments: Arguments) -> None:
    """One verb on virtual machines or containers."""
    if not arguments.positional:
        if not arguments.wants_help:
            raise CliError(f"usage: appliance {word} VERB …; see appliance {word} --help", Exit.USAGE)
        print("\n".join(overview(word)))
        return
    name = arguments.positional.pop(0)
    if name in INSIDE[word]:
        from appliance.cli import inside

        inside.run(context, word, name, arguments)
        return
    verb = VERBS.get(name)
    if verb is not None and verb.only not in ("", word):
        whose = {"vm": "virtual machines", "ct": "containers"}[verb.only]
        raise CliError(f"{name} is for {whose} only", Exit.USAGE)
    if verb is None:
        known = [*_names(word), *INSIDE[word]]
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"see appliance {word} --help"
        raise CliError(f"unknown verb {name}; {hint}", Exit.USAGE)
    if arguments.wants_help:
        _help(context, word, name, verb)
        return
    _call(context, word, name, verb, arguments)


def _call(context: Context, word: str, name: str, verb: Verb, arguments: Arguments) -> None:
    try:
        values = dict(zip(verb.positional, arguments.take(*verb.positional), strict=True))
    except CliError as error:
        raise CliError(f"{error.message}\nusage: {usage(word, name)}", error.status) from error
    if twice := values.keys() & arguments.params.keys():
        raise CliError(f"{min(twice)} is given twice\nusage: {usage(word, name)}", Exit.USAGE)
    if verb.changes and not arguments.params:
        raise CliError(f"nothing to change\nusage: {usage(word, name)}", Exit.USAGE)
    path = _path(word, verb).format_map(values)
    params = {name: value for name, value in values.items() if f"{{{name}}}" not in verb.path} | arguments.params
    match name:
        case "list":
            rows = context.api.call(verb.method, path, params)
            context.show(sorted(rows, key=lambda row: int(row["vmid"])), COLUMNS)
        case "console":
            from appliance.cli.console import attach

            attach(context.api, path.removesuffix("/termproxy"), params)
        case "logs":
            _show_logs(context, path, params)
        case _:
            context.finish(context.api.call(verb.method, path, params))


def _show_logs(context: Context, path: str, params: dict[str, str]) -> None:
    from urllib.parse import urlencode

    try:
        for piece in context.api.stream("GET", f"/api2/json{path}?{urlencode(params)}", lines=False):
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
    except KeyboardInterrupt:  # how a log that is followed is left
        return


def overview(word: str) -> Iterator[str]:
    """Lines about all verbs."""
    yield f"usage: appliance {word} VERB [VMID] [--name value …]"
    yield ""
    yield {"vm": "Virtual machines.", "ct": "Containers."}[
        word
    ] + " Verbs that take time show their task's log as it grows."
    yield ""
    for name in _names(word):
        left = " ".join([name, *(part.upper() for part in VERBS[name].positional)])
        yield f"  {left:<35}{VERBS[name].summary}"
    for name, summary in INSIDE[word].items():
        yield f"  {name + ' VMID …':<35}{summary}"
    yield ""
    yield f"A verb's own help lists its parameters: appliance {word} create --help"
    yield ""
    yield "Examples:"
    yield EXAMPLES[word, "create"]
    yield EXAMPLES[word, "resize"]


def usage(word: str, name: str) -> str:
    """`appliance vm resize VMID DISK SIZE …`."""
    return " ".join(["appliance", word, name, *(part.upper() for part in VERBS[name].positional), "[--name value …]"])


def _help(context: Context, word: str, name: str, verb: Verb) -> None:
    from appliance.cli.help import operation_of, parameters_of

    print(f"usage: {usage(word, name)}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.")
    if examples := EXAMPLES.get((word, name)):
        print(f"\nExamples:\n{examples}")
    try:
        operation = operation_of(context.api.document(), verb.method, _path(word, verb))
    except CliError as error:
        if error.status is not Exit.UNREACHABLE:
            raise
        sys.stdout.flush()
        print(f"\nThe appliance, which knows the parameters, is not reachable: {error.message}", file=sys.stderr)
        return
    print(f"\nNeeds: {operation['x-permission']}")
    print("\n".join(parameters_of(operation, without=verb.positional)))


def _names(word: str) -> list[str]:
    return [name for name, verb in VERBS.items() if verb.only in ("", word)]


def _path(word: str, verb: Verb) -> str:
    return verb.path if verb.path.startswith(NODE) else f"{_base(word)}{verb.path}"


def _base(word: str) -> str:
    return f"{NODE}/{'qemu' if word == 'vm' else 'lxc'}"
