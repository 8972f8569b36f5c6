"""The OpenAPI document, the API page and static files."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer

from appliance.errors import NotFound
from appliance.web.application import RESOURCES, build_application
from appliance.web.openapi import build_document
from appliance.web.static import ASK_AGAIN, FOREVER, StaticFiles
from appliance.web.table import ApiTable
from tests.fakes.services import fake_services
from tests.web.conftest import Site

Document = dict[str, Any]


@pytest.fixture(scope="module")
def document() -> Document:
    """The document of everything served, as a client would read it."""
    import msgspec

    return dict(json.loads(msgspec.json.encode(build_document(ApiTable(RESOURCES).methods()))))


def test_every_reference_leads_somewhere(document: Document) -> None:
    for reference in re.findall(r'"\$ref": "([^"]+)"', json.dumps(document)):
        found: Any = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
        assert found


def test_every_path_parameter_is_declared(document: Document) -> None:
    for path, item in document["paths"].items():
        for operation in item.values():
            declared = {entry["name"] for entry in operation.get("parameters", ()) if entry["in"] == "path"}
            assert declared == set(re.findall(r"\{(\w+)\}", path))
            assert all(entry["required"] for entry in operation.get("parameters", ()) if entry["in"] == "path")


def test_operations_have_unique_ids_and_what_the_standard_demands(document: Document) -> None:
    assert document["openapi"] == "3.1.0"
    operations = [operation for item in document["paths"].values() for operation in item.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    for operation in operations:
        assert operation["summary"]
        assert operation["x-permission"]
        assert "200" in operation["responses"]


def test_parameters_carry_their_rules(document: Document) -> None:
    tasks = document["paths"]["/api2/json/nodes/{node}/tasks"]["get"]
    rules = {entry["name"]: entry["schema"] for entry in tasks["parameters"]}
    assert rules["source"]["enum"] == ["active", "all", "archive"]
    assert (rules["vmid"]["minimum"], rules["vmid"]["maximum"]) == (100, 999_999_999)
    options = document["paths"]["/api2/json/cluster/options"]["put"]["requestBody"]["content"]
    schema = options["application/json"]["schema"]
    assert schema["additionalProperties"] is False
    assert {"next-id", "delete"} <= set(schema["properties"])


def test_replies_say_booleans_as_numbers(document: Document) -> None:
    row = document["components"]["schemas"]["StatusRow"]["properties"]
    assert row["online"] == {"type": "integer", "enum": [0, 1]}


def test_open_methods_say_so(document: Document) -> None:
    assert document["paths"]["/api2/json/access/ticket"]["post"]["security"] == []
    assert "security" not in document["paths"]["/api2/json/version"]["get"]


async def test_the_document_and_the_page_are_served(site: Site) -> None:
    async with site.client.get("/api2/openapi.json") as reply:
        assert (await reply.json())["info"]["title"] == "appliance"
    async with site.client.get("/api-docs") as reply:
        page = await reply.text()
    assert reply.content_type == "text/html"
    assert "/nodes/{node}/tasks/{upid}/log" in page
    assert "appliance get /cluster/resources" in page
    assert re.search(r"<script(?![^>]*\bsrc=)", page) is None, "the policy forbids inline scripts"


async def test_static_files_are_kept_for_ever_only_under_their_hash(tmp_path: Path) -> None:
    root = tmp_path / "static"
    (root / "vendor").mkdir(parents=True)
    (root / "vendor" / "x.js").write_text("let x\n")
    (tmp_path / "secret").write_text("no")
    files = await asyncio.to_thread(StaticFiles.scan, root)
    services, _ = fake_services(tmp_path)
    async with TestClient(TestServer(build_application(services, static=files))) as client:
        async with client.get(files.url("vendor/x.js")) as reply:
            assert (reply.headers["Cache-Control"], reply.content_type) == (FOREVER, "text/javascript")
        async with client.get("/static/vendor/x.js") as reply:
            assert (reply.headers["Cache-Control"], await reply.text()) == (ASK_AGAIN, "let x\n")
        for path in ("/static/../secret", "/static/%2e%2e/secret", "/static/none.css", "/static/vendor"):
            async with client.get(path) as reply:
                assert reply.status == 404
    with pytest.raises(NotFound):
        files.url("none.css")
