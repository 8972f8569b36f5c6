"""`appliance get|create|set|delete PATH`: any method of the API; help comes from the appliance's own OpenAPI document."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from appliance.cli.arguments import Arguments
from appliance.cli.errors import CliError, Exit
from appliance.cli.main import Context

VERBS = {"get": "GET", "create": "POST", "set": "PUT", "delete": "DELETE"}


def run(context: Context, word: str, arguments: Arguments) -> None:
    """Call the method, or describe it."""
    if len(arguments.positional) != 1:
        raise CliError(f"usage: appliance {word} PATH [--name value ...]", Exit.USAGE)
    path = "/" + arguments.positional[0].strip("/")
    if arguments.wants_help:
        print("\n".join(describe(context.api.request("GET", "/api2/openapi.json"), word, path)))
        return
    context.finish(context.api.call(VERBS[word], path, arguments.params))


def describe(document: dict[str, Any], word: str, path: str) -> Iterator[str]:
    """Lines about the method `word` of `path`. Raises `CliError` when there is none."""
    template, item = _find(document, path)
    operation = item.get(VERBS[word].lower())
    if operation is None:
        words = ", ".join(name for name, verb in VERBS.items() if verb.lower() in item)
        raise CliError(f"{path} has no {word}, only {words}", Exit.NOT_FOUND)
    yield f"appliance {word} {template.removeprefix('/api2/json')}"
    yield f"  {operation['summary']}. {operation.get('description', '')}".rstrip()
    yield f"  needs: {operation.get('x-permission', '')}"
    for name, schema, required in _parameters(operation):
        kind = " | ".join(map(str, schema["enum"])) if "enum" in schema else str(schema.get("type", ""))
        note = "required" if required else (f"default {schema['default']}" if "default" in schema else "")
        yield f"  --{name:<24} {kind:<12} {schema.get('description', '')}{f' ({note})' if note else ''}".rstrip()


def _find(document: dict[str, Any], path: str) -> tuple[str, dict[str, Any]]:
    wanted = "/api2/json" + path
    if wanted in document["paths"]:
        return wanted, document["paths"][wanted]
    for template, item in document["paths"].items():
        if re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), wanted):
            return template, item
    raise CliError(f"{path} does not exist", Exit.NOT_FOUND)


def _parameters(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], bool]]:
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
