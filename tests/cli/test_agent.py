"""`appliance vm exec|push|pull` over an API that answers as a guest agent's does."""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from appliance.cli import agent
from appliance.cli.arguments import Arguments
from appliance.cli.client import Api, Body
from appliance.cli.context import Context
from appliance.cli.errors import CliError


@dataclass(slots=True)
class AgentApi:
    """Files by path; a program says its own words back after `turns` questions."""

    files: dict[str, bytes] = field(default_factory=dict)
    turns: int = 1
    sent: list[dict[str, Any]] = field(default_factory=list)

    def send(self, verb: str, path: str, body: Body) -> dict[str, Any]:
        self.sent.append(json.loads(b"".join(body.parts)))
        if path.endswith("file-write"):
            self.files[self.sent[-1]["file"]] = base64.b64decode(self.sent[-1]["content"])
        return {"data": {"pid": 7}}

    def get(self, path: str, *, pid: int) -> dict[str, object]:
        self.turns -= 1
        words = "|".join(self.sent[-1]["command"])
        return {"exited": 1, "exitcode": 3, "out-data": words, "err-data": "!"} if self.turns < 0 else {"exited": 0}

    def call(self, verb: str, path: str, params: Mapping[str, Any]) -> dict[str, object]:
        data = self.files[params["file"]][params["offset"] :][: params["count"]]
        more = params["offset"] + len(data) < len(self.files[params["file"]])
        return {"content": base64.b64encode(data).decode(), "truncated": 1 if more else None}


def context(api: AgentApi) -> Context:
    return Context(cast(Api, api))


def test_a_programs_words_output_and_status_are_passed_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(agent, "POLL_S", (0.0,))
    monkeypatch.setattr(sys, "stdin", io.StringIO("typed"))
    api = AgentApi()
    with pytest.raises(SystemExit) as ended:
        agent.execute(context(api), Arguments(["100", "/opt/a b", "c,d"]))
    assert ended.value.code == 3
    assert capsys.readouterr() == ("/opt/a b|c,d", "!")
    assert api.sent == [{"command": ["/opt/a b", "c,d"], "input-data": "typed"}]


def test_a_program_that_takes_too_long_is_named_by_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "POLL_S", (0.0,))
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(CliError, match="longer than 0 s and still runs, as process 7"):
        agent.execute(context(AgentApi(turns=99)), Arguments(["100", "sleep"], {"timeout": "0"}))


def test_files_go_in_and_out_byte_for_byte_and_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "PIECE_BYTES", 7)
    api, data = AgentApi(), bytes(range(256))
    (tmp_path / "data").write_bytes(data)
    agent.push(context(api), "100", str(tmp_path / "data"), "/srv/data")
    agent.pull(context(api), "100", "/srv/data", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == data
    (tmp_path / "data").write_bytes(b"x" * (agent.FILE_LIMIT_BYTES + 1))
    with pytest.raises(CliError, match="at most 46080 bytes"):
        agent.push(context(api), "100", str(tmp_path / "data"), "/srv/data")
