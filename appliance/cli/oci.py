"""`appliance oci …`: images, and the registries they come from, from one table of verbs over the API."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from appliance.cli.arguments import Arguments
from appliance.cli.context import Context
from appliance.cli.errors import CliError, Exit

NODE = "/nodes/localhost"
OURS = "/appliance/oci"
COLUMNS = ("volid", "reference", "digest", "size", "layers", "architecture", "created")
REGISTRY_COLUMNS = ("registry", "transport", "username", "password", "ca")


@dataclass(frozen=True, slots=True)
class Verb:
    """A method of the API; `positional` come as path parts or parameters."""

    method: str
    path: str
    positional: tuple[str, ...]
    summary: str


VERBS = {
    "pull": Verb("POST", f"{NODE}/storage/{{storage}}/oci-registry-pull", ("reference",), "fetch an image"),
    "push": Verb("POST", f"{OURS}/push", ("volume", "reference"), "send an image to a registry"),
    "list": Verb("GET", f"{OURS}/images", (), "the images there are"),
    "show": Verb("GET", f"{OURS}/images/{{volume}}", ("volume",), "what an image says of itself"),
    "rm": Verb("DELETE", f"{OURS}/images/{{volume}}", ("volume",), "remove an image and the layers only it needs"),
    "gc": Verb("POST", f"{OURS}/gc", (), "remove what no image and no container needs"),
    "tags": Verb("GET", f"{NODE}/query-oci-repo-tags", ("reference",), "the tags of a repository"),
    "registries": Verb("GET", f"{OURS}/registries", (), "registries with settings"),
    "login": Verb("POST", f"{OURS}/registries", ("registry",), "set how a registry is reached, and as whom"),
    "logout": Verb("DELETE", f"{OURS}/registries/{{registry}}", ("registry",), "forget a registry's settings"),
}

EXAMPLES = """\
  appliance oci pull docker.io/library/alpine:3.20
  appliance oci login registry.example.com --username me --password-file /root/token
  appliance oci push local:vztmpl/alpine_3.20.tar registry.example.com/team/alpine:3.20
  appliance ct create 200 --ostemplate local:vztmpl/alpine_3.20.tar --start"""


def run(context: Context, word: str, arguments: Arguments) -> None:
    """One verb."""
    if not arguments.positional or (arguments.wants_help and arguments.positional[0] not in VERBS):
        if not arguments.wants_help:
            raise CliError("usage: appliance oci VERB …; see appliance oci --help", Exit.USAGE)
        print("\n".join(overview()))
        return
    name = arguments.positional.pop(0)
    verb = VERBS.get(name)
    if verb is None:
        raise CliError(f"unknown verb {name}; see appliance oci --help", Exit.USAGE)
    if arguments.wants_help:
        _help(context, name, verb)
        return
    try:
        values = dict(zip(verb.positional, arguments.take(*verb.positional), strict=True))
    except CliError as error:
        raise CliError(f"{error.message}\nusage: {usage(name)}", error.status) from error
    _call(context, name, verb, values, dict(arguments.params))


def _call(context: Context, name: str, verb: Verb, values: dict[str, str], params: dict[str, str]) -> None:
    if name == "login" and (path := params.pop("password-file", "")):
        params["password"] = _first_line(path)
    if name == "pull":
        values["storage"] = params.pop("storage", "local")
    path = verb.path.format_map(values)
    rest = {key: value for key, value in values.items() if f"{{{key}}}" not in verb.path} | params
    reply = context.api.call(verb.method, path, rest)
    match name:
        case "list":
            context.show(reply, COLUMNS)
        case "registries":
            context.show(reply, REGISTRY_COLUMNS)
        case "tags":
            context.show([{"tag": tag} for tag in reply], ("tag",))
        case _:
            context.finish(reply)


def _first_line(path: str) -> str:
    """A secret from a file, or from standard input ("-"): arguments can be seen by everybody."""
    try:
        if path == "-":
            return sys.stdin.readline().rstrip("\n")
        with open(path) as file:
            return file.readline().rstrip("\n")
    except OSError as error:
        raise CliError(f"{path}: {error.strerror}", Exit.FAILED) from error


def overview() -> Iterator[str]:
    """Lines about all verbs."""
    yield "usage: appliance oci VERB [--name value …]"
    yield ""
    yield "OCI images and registries. Verbs that take time show their task's log as it grows."
    yield ""
    for name, verb in VERBS.items():
        left = " ".join([name, *(part.upper() for part in verb.positional)])
        yield f"  {left:<28}{verb.summary}"
    yield ""
    yield "Examples:"
    yield EXAMPLES


def usage(name: str) -> str:
    """`appliance oci push VOLUME REFERENCE …`."""
    return " ".join(["appliance", "oci", name, *(part.upper() for part in VERBS[name].positional), "[--name value …]"])


def _help(context: Context, name: str, verb: Verb) -> None:
    from appliance.cli.help import operation_of, parameters_of

    print(f"usage: {usage(name)}\n\n{verb.summary[0].upper()}{verb.summary[1:]}.")
    if name == "login":
        print("\n  --password-file FILE reads the password from a file, - from standard input.")
    try:
        operation = operation_of(context.api.document(), verb.method, verb.path)
    except CliError as error:
        if error.status is not Exit.UNREACHABLE:
            raise
        sys.stdout.flush()
        print(f"\nThe appliance, which knows the parameters, is not reachable: {error.message}", file=sys.stderr)
        return
    print(f"\nNeeds: {operation['x-permission']}")
    print("\n".join(parameters_of(operation, without=verb.positional)))
