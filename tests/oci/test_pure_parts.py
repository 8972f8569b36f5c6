"""Pure parts of images and application containers: names, challenges, platforms, policies, published ports."""

from __future__ import annotations

import pytest

from appliance.errors import InvalidParameter
from appliance.model.application import PublishedPort, RestartMode, RestartPolicy, signal_number
from appliance.network import publish
from appliance.network.publish import Publication
from appliance.services import app_restart
from appliance.services.guest_config import app_formats, applications
from appliance.storage.oci import challenge, manifest
from appliance.storage.oci.reference import Digest, Reference

DIGEST = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("alpine", "docker.io/library/alpine:latest"),
        ("alpine:3.20", "docker.io/library/alpine:3.20"),
        ("team/app", "docker.io/team/app:latest"),
        ("docker.io/alpine", "docker.io/library/alpine:latest"),
        ("index.docker.io/alpine:1", "docker.io/library/alpine:1"),
        ("localhost/app:1", "localhost/app:1"),
        ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
        ("quay.io/a__b/c-d.e:1_2", "quay.io/a__b/c-d.e:1_2"),
        (f"quay.io/a@{DIGEST}", f"quay.io/a@{DIGEST}"),
        (f"quay.io/a:1@{DIGEST}", f"quay.io/a:1@{DIGEST}"),
    ],
)
def test_references_are_understood_as_other_clients_understand_them(text: str, whole: str) -> None:
    assert str(Reference.parse(text)) == whole
    assert str(Reference.parse(whole)) == whole


@pytest.mark.parametrize(
    "text",
    ["", "/", "a/", "/a", "A/b", "a b", "a:", "a:-x", "a@x", "a@sha256:0", f"a@md5:{'0' * 32}", "../a", "quay.io/../a:1",
     "http://quay.io/a", "quay.io:99999999/a", "a" * 600, "a:" + "b" * 129, "host.x/\0a"],
)  # fmt: skip
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter):
        Reference.parse(text)


def test_docker_hub_answers_elsewhere() -> None:
    assert Reference.parse("alpine").api_host == "registry-1.docker.io"
    assert Reference.parse("quay.io/a").api_host == "quay.io"
    assert Reference.parse("quay.io/team/app:1.2").file_stem == "app_1.2"


def test_challenges_are_read_whatever_their_form() -> None:
    found = challenge.parse(
        ['Basic realm="x", Bearer realm="https://a/t?x=1,2",service="a \\"b\\"",scope="r:a/b:pull"']
    )
    assert [each.scheme for each in found] == ["basic", "bearer"]
    assert found[1].parameters == {"realm": "https://a/t?x=1,2", "service": 'a "b"', "scope": "r:a/b:pull"}
    chosen = challenge.choose(found)
    assert chosen is not None
    assert chosen.scheme == "bearer"
    assert challenge.choose(challenge.parse(["", "Negotiate", "Bearer"])) is None
    assert challenge.parse(["x" * 100_000]) is not None


def test_chain_ids_are_image_specs() -> None:
    one, two = Digest.of(b"1"), Digest.of(b"2")
    assert manifest.chain_ids([one, two]) == (one, Digest.of(f"{one} {two}".encode()))
    assert manifest.chain_ids([]) == ()


@pytest.mark.parametrize(
    ("text", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", 37), ("RTMIN", 34), ("SIGUSR1", 10)],
)
def test_signals_are_read_as_images_name_them(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "0", "99", "32", "SIGNOPE", "SIGRTMIN+99", "-1", "15 ", "__class__"])
def test_what_is_no_signal_is_refused(text: str) -> None:
    if text.strip() == "15":
        assert signal_number(text) == 15
        return
    with pytest.raises(ValueError, match="is not a signal"):
        signal_number(text)


def test_published_ports_are_read_and_written() -> None:
    assert (
        app_formats.publish("8080:80, 127.0.0.1:53:53/udp;443:443/tcp") == "8080:80/tcp,127.0.0.1:53:53/udp,443:443/tcp"
    )
    for bad in (
        "80",
        "0:80",
        "80:0",
        "70000:80",
        "80:80/sctp",
        "300.1.1.1:80:80",
        "80:80,80:81",
        "1.1.1.1:80:80,80:80",
    ):
        with pytest.raises(ValueError):
            app_formats.publish(bad)
    app_formats.publish("1.1.1.1:80:80,1.1.1.2:80:80,80:80/udp")


def test_a_health_check_is_json_with_known_words() -> None:
    text = app_formats.health('{"command": "true", "interval": 5}')
    check = app_formats.health_check(text)
    assert check is not None
    assert (check.command, check.interval_s, check.retries) == (("/bin/sh", "-c", "true"), 5.0, 3)
    assert app_formats.health(text) == text
    assert app_formats.health_check("none") is None
    for bad in ("{}", "[]", "x", '{"command": []}', '{"command": "a", "interval": -1}', '{"command": "a", "x": 1}',
                '{"command": "a", "retries": true}', '{"command": "a", "interval": 0}'):  # fmt: skip
        with pytest.raises(ValueError):
            app_formats.health(bad)


POLICIES = {mode: RestartPolicy(mode=mode) for mode in RestartMode}


@pytest.mark.parametrize(
    ("mode", "asked", "code", "starts"),
    [
        (RestartMode.NO, False, 1, False),
        (RestartMode.ON_FAILURE, False, 0, False),
        (RestartMode.ON_FAILURE, False, 1, True),
        (RestartMode.ON_FAILURE, False, None, True),
        (RestartMode.ON_FAILURE, True, 1, False),
        (RestartMode.ALWAYS, False, 0, True),
        (RestartMode.ALWAYS, True, 0, False),
        (RestartMode.UNLESS_STOPPED, False, 0, True),
        (RestartMode.UNLESS_STOPPED, True, 143, False),
    ],
)
def test_which_ends_are_followed_by_a_start(mode: RestartMode, asked: bool, code: int | None, starts: bool) -> None:
    assert (app_restart.delay_s(POLICIES[mode], asked=asked, exit_code=code, in_a_row=1) is not None) == starts


def test_the_back_off_doubles_to_a_minute_and_a_good_run_ends_it() -> None:
    always = POLICIES[RestartMode.ALWAYS]
    waits = [app_restart.delay_s(always, asked=False, exit_code=1, in_a_row=count) for count in range(1, 13)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == 60
    assert app_restart.delay_s(always, asked=False, exit_code=1, in_a_row=10**6) == 60
    assert app_restart.restarts_in_a_row(7, ran_s=1) == 8
    assert app_restart.restarts_in_a_row(7, ran_s=11) == 1
    limited = RestartPolicy(mode=RestartMode.ON_FAILURE, attempts=2)
    told = [app_restart.delay_s(limited, asked=False, exit_code=1, in_a_row=count) for count in (1, 2, 3)]
    assert told == [0.1, 0.2, None]


@pytest.mark.parametrize(
    ("mode", "was_running", "by_hand", "starts"),
    [
        (RestartMode.NO, True, False, False),
        (RestartMode.ON_FAILURE, True, False, True),
        (RestartMode.ON_FAILURE, False, False, False),
        (RestartMode.ALWAYS, False, True, True),
        (RestartMode.UNLESS_STOPPED, False, True, False),
        (RestartMode.UNLESS_STOPPED, False, False, True),
    ],
)
def test_what_starts_with_the_appliance(mode: RestartMode, was_running: bool, by_hand: bool, starts: bool) -> None:
    assert app_restart.starts_with_appliance(POLICIES[mode], was_running=was_running, stopped_by_hand=by_hand) == starts


def test_the_table_of_published_ports_is_whole_or_nothing() -> None:
    ports = [PublishedPort(8080, 80), PublishedPort(8080, 81, "tcp", "198.51.100.2"), PublishedPort(53, 53, "udp")]
    made = [Publication(guest_id=100, port=port, address="10.64.0.9/22", bridge="vmbr0") for port in ports]
    text = publish.table("appliance-x-ports", made)
    rules = [line.strip() for line in text.splitlines() if "dnat to" in line]
    assert rules == [  # one address of the host before all of them: the first match counts
        "ip daddr 198.51.100.2 tcp dport 8080 dnat to 10.64.0.9:81",
        "udp dport 53 dnat to 10.64.0.9:53",
        "tcp dport 8080 dnat to 10.64.0.9:80",
    ]
    assert 'iifname "vmbr0" ip daddr 127.0.0.0/8 drop' in text
    assert text.count("delete table ip appliance-x-ports") == 1
    assert publish.table("t", []) == "table ip t\ndelete table ip t\n"


def keys(**changes: object) -> dict[str, str]:
    said: dict[str, object] = {
        "image": "a/b:1@x", "entrypoint": ["/x"], "command": ["a b"], "environment": {}, "user": "", "labels": {},
        "working_directory": "/", "stop_signal": "", "health": None,
    }  # fmt: skip
    return applications.image_keys(**(said | changes))[0]  # type: ignore[arg-type]  # its own parameters


def test_what_an_image_says_becomes_keys() -> None:
    assert keys() == {"ostype": "unmanaged", "entrypoint": "/x 'a b'", "app-image": "a/b:1@x"}
    found = keys(user="app:www", working_directory="srv/x", stop_signal="15", environment={"A": "1", "B": ""})
    assert (found["app-user"], found["app-workdir"], found["app-stopsignal"]) == ("app:www", "/srv/x", "SIGTERM")
    assert found["env"] == "A=1\0B="
    assert applications.merged_environment(found["env"], "B=2\0C=3") == "A=1\0B=2\0C=3"


def test_what_an_image_says_and_cannot_be_kept_is_told_or_refused_unless_it_is_given() -> None:
    _, lost = applications.image_keys(
        image="x", entrypoint=["/x"], command=[], environment={"a.b": "1", "C": "\x01"}, user="", labels={},
        working_directory="/", stop_signal="", health=None,
    )  # fmt: skip
    assert len(lost) == 2
    with pytest.raises(InvalidParameter, match="give another one"):
        keys(user="$UID")
    assert keys(user="$UID", given={"app-user"})["app-image"]
    with pytest.raises(InvalidParameter, match="control characters"):
        keys(entrypoint=["\x07"])


def test_volumes_of_an_image_become_mount_points_that_are_not_there() -> None:
    config = {"rootfs": "local:0", "mp0": "local:4,mp=/data"}
    assert applications.image_mounts(["/data", "/srv//x/", "/", "rel", "/a/../b"], config) == {
        "mp1": "local:0,mp=/srv/x"
    }
    assert applications.image_mounts(["/d"], {"rootfs": "big:8"}) == {"mp0": "big:8,mp=/d"}
    with pytest.raises(InvalidParameter):
        applications.image_mounts([f"/{number}" for number in range(17)], config)
