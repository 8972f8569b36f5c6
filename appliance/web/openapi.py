"""The OpenAPI 3.1 document and the browsable API page, both from the table of declared methods."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from appliance.lazy import LazyModule
from appliance.version import PVE_API_VERSION, VERSION
from appliance.web import keys
from appliance.web.parameters import fields_of
from appliance.web.registry import VERBS, Allow, Everyone, Method
from appliance.web.table import ApiTable

if TYPE_CHECKING:
    import jinja2
else:
    jinja2 = LazyModule("jinja2")

Schema = dict[str, Any]
PAGE = "api_docs.html"

_PART = re.compile(r"\{(\w+)(?::path)?\}")
_REF = "#/components/schemas/{name}"
ERROR_SCHEMA: Schema = {
    "type": "object",
    "description": "The message is in the reason phrase of the status line too.",
    "required": ["data", "message"],
    "properties": {
        "data": {"type": "null"},
        "message": {"type": "string"},
        "errors": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "What is wrong with each parameter.",
        },
    },
}


async def serve_document(request: web.Request) -> web.StreamResponse:
    """GET /api2/openapi.json"""
    documents = request.app[keys.DOCUMENTS]
    if documents.json is None:
        documents.json = await asyncio.to_thread(_encode, request.app[keys.TABLE])
    return web.Response(body=documents.json, content_type="application/json", charset="utf-8")


async def serve_page(request: web.Request) -> web.StreamResponse:
    """GET /api-docs"""
    documents = request.app[keys.DOCUMENTS]
    if documents.page is None:
        directory = request.app[keys.SERVICES].config.templates_dir
        documents.page = await asyncio.to_thread(_render, request.app[keys.TABLE], str(directory), PAGE)
    return web.Response(text=documents.page, content_type="text/html", charset="utf-8")


def _encode(table: ApiTable) -> bytes:
    return msgspec.json.encode(build_document(table.methods()))


async def explorer(request: web.Request) -> str:
    """The list of methods as the API explorer shows it, without the parameters: its forms have them."""
    documents = request.app[keys.DOCUMENTS]
    if documents.explorer is None:
        directory = request.app[keys.SERVICES].config.templates_dir
        template = "fragments/api_operations.html"
        documents.explorer = await asyncio.to_thread(_render, request.app[keys.TABLE], str(directory), template)
    return documents.explorer


def _render(table: ApiTable, directory: str, template: str) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(directory), autoescape=True, trim_blocks=True)
    document = build_document(table.methods())
    groups: dict[str, list[Schema]] = {}
    for path, item in document["paths"].items():
        for verb, operation in item.items():
            entry = operation | {"verb": verb.upper(), "path": path.removeprefix("/api2/json")}
            groups.setdefault(operation["tags"][0], []).append(entry)
    return environment.get_template(template).render(groups=groups, document=document, is_explorer=template != PAGE)


def build_document(methods: Sequence[Method]) -> Schema:
    """The whole document as plain data."""
    types = [method.params for method in methods] + [method.returns for method in methods if method.returns]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REF, schema_hook=_anything)
    by_type: list[Schema] = [dict(schema) for schema in schemas]
    of_params, of_returns = by_type[: len(methods)], iter(by_type[len(methods) :])
    paths: dict[str, Schema] = {}
    for method, params in zip(methods, of_params, strict=True):
        returned = next(of_returns) if method.returns else {}
        properties = components[params["$ref"].rpartition("/")[2]]["properties"] if "$ref" in params else {}
        path = "/api2/json" + _plain_path(method)
        paths.setdefault(path, {})[method.verb.lower()] = _operation(method, properties, _as_reply(returned))
    used = {schema["$ref"].rpartition("/")[2] for schema in of_params if "$ref" in schema}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "appliance",
            "version": VERSION,
            "description": f"The API of Proxmox VE {PVE_API_VERSION}, as far as it is served here. Booleans in replies "
            "are 0 and 1; long jobs return a UPID to be polled at /nodes/{node}/tasks/{upid}/status.",
        },
        "servers": [{"url": "/"}],
        "security": [{"cookie": [], "csrf": []}, {"token": []}],
        "paths": paths,
        "components": {
            "schemas": {name: _as_reply(schema) for name, schema in components.items() if name not in used}
            | {"Error": ERROR_SCHEMA},
            "responses": {
                "Error": {
                    "description": "Refused or failed.",
                    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
                }
            },
            "securitySchemes": {
                "cookie": {"type": "apiKey", "in": "cookie", "name": "PVEAuthCookie"},
                "csrf": {"type": "apiKey", "in": "header", "name": "CSRFPreventionToken"},
                "token": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "PVEAPIToken=USER@REALM!TOKENID=SECRET",
                },
            },
        },
    }


def _anything(declared: type) -> Schema:
    """A type JSON schema has no word for (`object`). msgspec takes an empty schema for a refusal."""
    return {"description": "any value"}


def _operation(method: Method, properties: Mapping[str, Schema], returned: Schema) -> Schema:
    operation: Schema = {
        "operationId": _operation_id(method),
        "summary": method.summary,
        "description": method.description,
        "tags": [_tag(method)],
        "x-cli": f"appliance {VERBS[method.verb]} {_plain_path(method)}",
        "x-permission": describe_permission(method),
        "responses": {
            "200": {
                "description": "Done, or for a long job: begun.",
                "content": {
                    "application/json": {
                        "schema": {"type": "object", "required": ["data"], "properties": {"data": returned}}
                    }
                },
            },
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if isinstance(method.allow, Everyone) and not method.allow.must_log_in:
        operation["security"] = []
    fields = fields_of(method.params)
    in_path = set(method.path_parts)
    plain = {name: properties[name] for name, field in fields.items() if field.kind != "rest" and name not in in_path}
    parameters = [_path_parameter(name, properties.get(name, {})) for name in method.path_parts]
    if method.verb in ("GET", "DELETE"):
        parameters += [_query_parameter(name, schema, fields[name].required) for name, schema in plain.items()]
    elif plain or method.rest_schema or method.upload:
        operation["requestBody"] = _body(method, plain, [name for name in plain if fields[name].required])
    if parameters:
        operation["parameters"] = parameters
    return operation


def _body(method: Method, properties: Mapping[str, Schema], required: Sequence[str]) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {name: _as_parameter(schema) for name, schema in properties.items()},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = list(required)
    for name, extra in (method.rest_schema() if method.rest_schema else {}).items():
        if name.endswith("[n]"):
            schema.setdefault("patternProperties", {})[f"^{re.escape(name[:-3])}[0-9]+$"] = dict(extra)
        else:
            schema["properties"][name] = dict(extra)
    if method.upload:
        schema["properties"][method.upload] = {"type": "string", "contentMediaType": "application/octet-stream"}
        return {"required": True, "content": {"multipart/form-data": {"schema": schema}}}
    forms = ("application/x-www-form-urlencoded", "application/json")
    return {"required": bool(required), "content": {form: {"schema": schema} for form in forms}}


def _path_parameter(name: str, schema: Schema) -> Schema:
    shown = _as_parameter(schema) or {"type": "string"}
    shown.pop("default", None)
    return {"name": name, "in": "path", "required": True, "schema": shown}


def _query_parameter(name: str, schema: Schema, required: bool) -> Schema:
    parameter: Schema = {"name": name, "in": "query", "required": required, "schema": _as_parameter(schema)}
    if parameter["schema"].get("type") == "array":
        parameter |= {"style": "form", "explode": False}
    return parameter


def _as_parameter(schema: Schema) -> Schema:
    """Without the null of an optional field: a parameter is given or not."""
    shown = dict(schema)
    arms = [arm for arm in shown.get("anyOf", ()) if arm.get("type") != "null"]
    if arms:
        shown = {key: value for key, value in shown.items() if key != "anyOf"} | (
            arms[0] if len(arms) == 1 else {"anyOf": arms}
        )
    if shown.get("default", "") is None:
        del shown["default"]
    return shown


def _as_reply(schema: Any) -> Any:
    """Booleans are sent as 0 and 1, and what is None is left out."""
    match schema:
        case {"type": "boolean"}:
            rest = {key: value for key, value in schema.items() if key not in ("type", "default")}
            return rest | {"type": "integer", "enum": [0, 1]}
        case {"anyOf": [*arms]} if any(arm.get("type") == "null" for arm in arms):
            return _as_reply(_as_parameter(schema))
        case dict():
            return {key: _as_reply(value) for key, value in schema.items()}
        case list() | tuple():
            return [_as_reply(entry) for entry in schema]
    return schema


def describe_permission(method: Method) -> str:
    """Who may call it, for people."""
    match method.allow:
        case Everyone(must_log_in=False):
            return "anyone, without logging in"
        case Everyone():
            return "anyone logged in"
        case Allow() as allow:
            return allow.describe()
        case check:
            return (check.__doc__ or "depends on the parameters").strip().splitlines()[0]


def _plain_path(method: Method) -> str:
    return _PART.sub(r"{\1}", method.path)


def _operation_id(method: Method) -> str:
    words = re.sub(r"[^A-Za-z0-9]+", "_", method.path).strip("_")
    return f"{VERBS[method.verb]}_{words or 'root'}"


def _tag(method: Method) -> str:
    segments = [segment for segment in method.path.split("/") if segment]
    if segments[:2] == ["nodes", "{node}"] and len(segments) > 2:
        return segments[2]
    return segments[0] if segments else "root"
