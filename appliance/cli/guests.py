"""`appliance vm …` and `appliance ct …`: the everyday verbs over /nodes/localhost/{qemu,lxc}."""

from __future__ import annotations

from appliance.cli.arguments import Arguments
from appliance.cli.errors import CliError, Exit
from appliance.cli.main import Context

NODE = "/nodes/localhost"
COLUMNS = ("vmid", "name", "status", "cpus", "mem", "maxmem", "maxdisk", "uptime", "tags")
POWER = {"start", "stop", "shutdown", "reboot", "reset", "suspend", "resume"}


def run(context: Context, word: str, arguments: Arguments) -> None:
    """One verb on virtual machines or containers."""
    base = f"{NODE}/{'qemu' if word == 'vm' else 'lxc'}"
    if not arguments.positional:
        raise CliError(f"usage: appliance {word} VERB ...; see appliance --help", Exit.USAGE)
    verb = arguments.positional.pop(0)
    if arguments.wants_help:
        _help(context, base, verb)
        return
    if verb == "list":
        arguments.take()
        context.show(sorted(context.api.get(base), key=lambda row: int(row["vmid"])), COLUMNS)
        return
    _on_one_guest(context, base, verb, arguments)


def _on_one_guest(context: Context, base: str, verb: str, arguments: Arguments) -> None:
    api, params = context.api, arguments.params
    match verb:
        case "create":
            (vmid,) = arguments.take("vmid")
            context.finish(api.call("POST", base, {"vmid": vmid, **params}))
        case "status":
            (vmid,) = arguments.take("vmid")
            context.show(api.get(f"{base}/{vmid}/status/current"))
        case "config":
            (vmid,) = arguments.take("vmid")
            context.show(api.call("GET", f"{base}/{vmid}/config", params))
        case "set":
            (vmid,) = arguments.take("vmid")
            context.finish(api.call("PUT", f"{base}/{vmid}/config", params))
        case "resize":
            vmid, disk, size = arguments.take("vmid", "disk", "size")
            context.finish(api.call("PUT", f"{base}/{vmid}/resize", {"disk": disk, "size": size, **params}))
        case "clone":
            vmid, new_id = arguments.take("vmid", "newid")
            context.finish(api.call("POST", f"{base}/{vmid}/clone", {"newid": new_id, **params}))
        case "delete":
            (vmid,) = arguments.take("vmid")
            context.finish(api.call("DELETE", f"{base}/{vmid}", params))
        case "console":
            from appliance.cli.console import attach

            (vmid,) = arguments.take("vmid")
            attach(api, f"{base}/{vmid}", params)
        case _ if verb in POWER:
            (vmid,) = arguments.take("vmid")
            context.finish(api.call("POST", f"{base}/{vmid}/status/{verb}", params))
        case _:
            raise CliError(f"unknown verb {verb}; see appliance --help", Exit.USAGE)


def _help(context: Context, base: str, verb: str) -> None:
    from appliance.cli.generic import describe

    one = f"{base}/{{vmid}}"
    methods = {
        "list": ("get", base),
        "create": ("create", base),
        "status": ("get", f"{one}/status/current"),
        "config": ("get", f"{one}/config"),
        "set": ("set", f"{one}/config"),
        "resize": ("set", f"{one}/resize"),
        "clone": ("create", f"{one}/clone"),
        "delete": ("delete", one),
        "console": ("create", f"{one}/termproxy"),
        **{name: ("create", f"{one}/status/{name}") for name in POWER},
    }
    if verb not in methods:
        raise CliError(f"unknown verb {verb}; see appliance --help", Exit.USAGE)
    word, path = methods[verb]
    document = context.api.request("GET", "/api2/openapi.json")
    print("\n".join(describe(document, word, path)))
