"""Application containers in a configuration: what an image asks for as keys, and the keys as an `Application`. Pure."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

from appliance.errors import InvalidParameter
from appliance.model.application import Application, HealthCheck, RestartMode, RestartPolicy
from appliance.model.guest import GuestKind
from appliance.services.guest_config import app_formats, formats
from appliance.services.guest_config.parsing import parse_one

T = TypeVar("T")

IMAGE_KEY = "app-image"
VOLUMES_LIMIT = 16
_MOUNT = re.compile(r"mp\d{1,3}")
_SIZE = re.compile(r"\d{1,9}(\.\d{1,9})?")
_ENV_NAME = re.compile(r"\w+")
_CONTROL = re.compile(r"[\x00-\x08\x10-\x1f\x7f]")


def is_application(config: Mapping[str, str]) -> bool:
    """Whether a container is made of an image."""
    return IMAGE_KEY in config


def image_keys(
    *,
    image: str,
    entrypoint: Sequence[str],
    command: Sequence[str],
    environment: Mapping[str, str],
    user: str,
    working_directory: str,
    stop_signal: str,
    health: HealthCheck | None,
    labels: Mapping[str, str],
    given: Collection[str] = (),
) -> tuple[dict[str, str], list[str]]:
    """The keys an image sets where the request does not (`given` it does), and a line for each thing that cannot be kept.

    Raises `InvalidParameter` for an image without a program, or with one that cannot be written.
    """
    lost: list[str] = []
    words = [*entrypoint, *command]
    if "entrypoint" not in given and any(_CONTROL.search(word) for word in words):
        raise InvalidParameter({"entrypoint": "the image's command holds control characters; give another one"})
    pairs = []
    for name, value in environment.items():
        if _ENV_NAME.fullmatch(name) and not _CONTROL.search(value):
            pairs.append(f"{name}={value}")
        else:
            lost.append(f"the image's environment variable {name!r} cannot be kept")
    keys = {
        "ostype": "unmanaged",
        "entrypoint": shlex.join(words),
        "env": "\0".join(pairs),
        "app-user": user,
        "app-workdir": f"/{working_directory.lstrip('/')}" if working_directory.strip("/") else "",
        "app-stopsignal": stop_signal,
        "app-health": app_formats.print_health(health) if health is not None else "",
        "app-labels": json.dumps(dict(labels), sort_keys=True) if labels else "",
    }
    checks: dict[str, Callable[[str], str]] = {
        "app-user": app_formats.user,
        "app-workdir": app_formats.working_directory,
        "app-stopsignal": app_formats.stop_signal,
    }
    for name, check in checks.items():
        if name in given:
            continue
        try:
            keys[name] = check(keys[name]) if keys[name] else ""
        except ValueError as error:
            raise InvalidParameter({name: f"the image's own value: {error}; give another one"}) from error
    found = {name: text for name, text in keys.items() if text}
    return found | {IMAGE_KEY: image}, lost


def image_mounts(volumes: Sequence[str], config: Mapping[str, str]) -> dict[str, str]:
    """Mount points for the volumes an image declares and `config` does not mount: new ones on the root's storage, as it is.

    Only plain absolute paths count; an image that declares more than `VOLUMES_LIMIT` is refused.
    """
    if len(volumes) > VOLUMES_LIMIT:
        raise InvalidParameter({"ostemplate": f"the image declares more than {VOLUMES_LIMIT} volumes"})
    storage, colon, rest = config.get("rootfs", "").partition(":")
    if not colon:
        return {}
    size = rest.partition(",")[0]
    slots = (f"mp{number}" for number in range(256) if f"mp{number}" not in config)
    taken = {
        parse_one(GuestKind.LXC, key, text)["mp"] for key, text in config.items() if _MOUNT.fullmatch(key) and text
    }
    found = {}
    for path in sorted(set(volumes)):
        try:
            place = formats.mount_path(path)
        except ValueError:
            continue
        if place not in taken and place != "/":
            found[next(slots)] = f"{storage}:{size if _SIZE.fullmatch(size) else '1'},mp={place}"
    return found


def merged_environment(image: str, given: str) -> str:
    """Two texts of `env` as one; what is given wins."""
    pairs = dict(pair.partition("=")[::2] for pair in [*image.split("\0"), *given.split("\0")] if pair)
    return "\0".join(f"{name}={value}" for name, value in pairs.items())


def to_application(config: Mapping[str, str]) -> Application | None:
    """The keys' meaning; None for a container that is not made of an image. Raises `InvalidParameter`."""
    if not is_application(config):
        return None
    return Application(
        image=config[IMAGE_KEY],
        user=config.get("app-user", ""),
        working_directory=config.get("app-workdir") or "/",
        stop_signal=config.get("app-stopsignal", ""),
        terminal=config.get("app-terminal") == "1",
        health=_read(config, "app-health", app_formats.health_check),
        restart=_restart(config),
        ports=_read(config, "app-publish", app_formats.published_ports),
        labels=_read(config, "app-labels", app_formats.label_map),
    )


def _restart(config: Mapping[str, str]) -> RestartPolicy:
    values = parse_one(GuestKind.LXC, "restart", config["restart"]) if config.get("restart") else {}
    return RestartPolicy(mode=RestartMode(values.get("when", "no")), attempts=int(values.get("max", "0")))


def _read(config: Mapping[str, str], name: str, read: Callable[[str], T]) -> T:
    try:
        return read(config.get(name, ""))
    except ValueError as error:
        raise InvalidParameter({name: str(error)}) from error
