"""Keys of application containers in parts and lines: nothing is lost on the way to a form, and only one container's keys show."""

from __future__ import annotations

import json

import pytest

from appliance.model.guest import GuestKind
from appliance.web.pages import app_creation, app_forms, contexts, forms, hardware
from appliance.web.pages.hardware import Tab
from tests.fakes.images import describe, web_server


@pytest.mark.parametrize(
    ("pairs", "lines"),
    [
        (["A=1", "B=x y"], "A=1\nB=x y"),
        (["A=one\ntwo", "B=2"], "A=one\\\ntwo\nB=2"),
        (["A=C:\\", "B=2"], "A=C:\\\\\nB=2"),
        (["A=C:\\\n\\"], "A=C:\\\\\\\n\\\\"),
        (["A=a\\b"], "A=a\\b"),
    ],
)
def test_every_text_has_one_form_in_lines(pairs: list[str], lines: str) -> None:
    assert app_forms.lines_of(pairs) == lines


def test_a_shells_command_is_shown_as_typed_and_another_as_a_list() -> None:
    shell = json.dumps({"command": ["/bin/sh", "-c", "curl -f localhost"], "interval": 10})
    parts = app_forms.health_parts(shell)
    assert (parts.is_set, parts.command, parts.interval, parts.retries) == (True, "curl -f localhost", "10", "3")
    assert app_forms.health_parts('{"command": ["curl", "a b"]}').command == '["curl", "a b"]'
    looks_like_a_list = '{"command": ["/bin/sh", "-c", "[ -e /x ]"]}'
    assert app_forms.health_parts(looks_like_a_list).command == '["/bin/sh", "-c", "[ -e /x ]"]'


@pytest.mark.parametrize("text", ["", "none", "nonsense", "[]", '{"command": 5}'])
def test_no_check_and_one_that_cannot_be_read_are_none(text: str) -> None:
    assert not app_forms.health_parts(text).is_set


def test_ports_an_image_exposes_are_offered_until_they_are_published() -> None:
    rows = app_forms.port_rows("127.0.0.1:8080:80/tcp", ["80/tcp", "53/udp", "x/tcp", "9/sctp"])
    assert [(row.address, row.host_port, row.container_port, row.protocol) for row in rows] == [
        ("127.0.0.1", "8080", "80", "tcp"),
        ("", "", "53", "udp"),
    ]


def test_what_an_image_says_is_filled_in() -> None:
    image = describe("docker.io/library/nginx:1.27", ["base"], web_server())
    keys, problem = app_creation.image_keys(image)
    assert problem == ""
    (program,) = app_creation.inputs("entrypoint", keys, image)
    assert program.value == "/docker-entrypoint.sh nginx -g 'daemon off;'"
    (environment,) = app_creation.inputs("env", keys, image)
    assert (environment.kind, environment.value) == ("env", "NGINX_VERSION=1.27.0\nSAID=fine")
    (ports,) = app_creation.inputs("app-publish", keys, image)
    assert [row.container_port for row in ports.ports] == ["80", "443"]


def test_an_image_that_cannot_run_as_it_is_says_why() -> None:
    keys, problem = app_creation.image_keys(describe("x", ["base"], web_server("\x01")))
    assert "SAID" in problem
    assert "SAID" not in keys["env"]


@pytest.mark.parametrize(
    ("name", "host"),
    [("docker.io/library/nginx:1.27", "nginx"), ("registry:5000/My_App@sha256:ab", "my-app"), ("", ""), ("___", "")],
)
def test_a_container_is_named_after_its_image(name: str, host: str) -> None:
    assert app_creation.host_name(describe(name, ["base"])) == host


def test_a_system_container_shows_no_keys_of_applications_and_an_application_all_of_them() -> None:
    def shown(config: dict[str, str]) -> set[str]:
        return {row.key for row in hardware.rows(GuestKind.LXC, Tab.OPTIONS, config, (), contexts.label_of)}

    assert not any(key.startswith("app-") for key in shown({"hostname": "dns"}))
    of_application = {key for key in shown({"app-image": "nginx@sha256:1"}) if key.startswith("app-")}
    assert {"app-user", "app-health", "app-publish", "app-workdir", "app-stopsignal", "app-labels"} <= of_application


def test_the_environment_in_a_form_holds_no_character_that_a_browser_exchanges() -> None:
    (one,) = forms.inputs_of(GuestKind.LXC, "env", "A=1\0B=2", choices={}, label_of=contexts.label_of)
    assert one.value == "A=1\nB=2"
