"""Texts of an application container's keys: checked here, read by `applications.py`. Raise `ValueError` with one line."""

from __future__ import annotations

import ipaddress
import json
import re
import signal
from collections.abc import Mapping

from appliance.model.application import HealthCheck, PublishedPort, signal_number
from appliance.services.guest_config.values import shorten

PORTS_LIMIT = 256
LABELS_LIMIT = 1000
_USER = re.compile(r"[\w.-]{1,64}(:[\w.-]{1,64})?", re.ASCII)
_PORT = re.compile(
    r"(?:(?P<address>\d{1,3}(?:\.\d{1,3}){3}):)?(?P<host>\d{1,5}):(?P<inside>\d{1,5})(?:/(?P<protocol>tcp|udp))?"
)
_NO_HEALTH = "none"


def user(text: str) -> str:
    """A name or number, with or without a group."""
    if not _USER.fullmatch(text):
        raise ValueError(f"'{shorten(text)}' is not USER or USER:GROUP")
    return text


def working_directory(text: str) -> str:
    """An absolute path inside."""
    if not text.startswith("/") or ".." in text.split("/") or "\0" in text:
        raise ValueError(f"'{shorten(text)}' is not an absolute path")
    return text


def stop_signal(text: str) -> str:
    """A signal by name or number; stored as its name (`SIGTERM`, `SIGRTMIN+3`)."""
    number = signal_number(text)
    if number >= signal.SIGRTMIN:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
    return signal.Signals(number).name


def publish(text: str) -> str:
    """`[ADDRESS:]HOST_PORT:PORT[/tcp|/udp]`, separated by commas."""
    ports = published_ports(text)
    seen: dict[tuple[int, str], PublishedPort] = {}
    for port in ports:
        other = seen.setdefault((port.host_port, port.protocol), port)
        if other is not port and (
            not other.host_address or not port.host_address or other.host_address == port.host_address
        ):
            raise ValueError(f"port {port.host_port}/{port.protocol} of the host is published twice")
    return ",".join(map(str, ports))


def published_ports(text: str) -> tuple[PublishedPort, ...]:
    """What the text means."""
    parts = [part.strip() for part in re.split(r"[,;\s]+", text) if part.strip()]
    if len(parts) > PORTS_LIMIT:
        raise ValueError(f"more than {PORTS_LIMIT} ports")
    return tuple(_port(part) for part in parts)


def _port(text: str) -> PublishedPort:
    match = _PORT.fullmatch(text)
    if match is None:
        raise ValueError(f"'{shorten(text)}' is not [ADDRESS:]HOST_PORT:PORT[/tcp|/udp]")
    host, inside = int(match["host"]), int(match["inside"])
    if not 0 < host < 65536 or not 0 < inside < 65536:
        raise ValueError(f"'{shorten(text)}': ports are 1 to 65535")
    address = match["address"] or ""
    if address:
        address = str(ipaddress.IPv4Address(address))
    return PublishedPort(host, inside, match["protocol"] or "tcp", address)


def health(text: str) -> str:
    """`none`, or JSON: {"command": [...], "interval": 30, "timeout": 30, "start-period": 0, "retries": 3}."""
    check = health_check(text)
    return _NO_HEALTH if check is None else print_health(check)


def health_check(text: str) -> HealthCheck | None:
    """What the text means; None for "none" and ""."""
    if text in ("", _NO_HEALTH):
        return None
    value = _object(text)
    if unknown := value.keys() - {"command", "interval", "timeout", "start-period", "retries"}:
        raise ValueError(f"unknown word '{shorten(sorted(unknown)[0])}'")
    command = value.get("command")
    if isinstance(command, str):
        command = ["/bin/sh", "-c", command]
    if not isinstance(command, list) or not command or not all(isinstance(each, str) and each for each in command):
        raise ValueError("command must be a text, or a list of texts")
    retries = value.get("retries", 3)
    if not isinstance(retries, int) or isinstance(retries, bool) or not 1 <= retries <= 1000:
        raise ValueError("retries must be 1 to 1000")
    return HealthCheck(
        command=tuple(command),
        interval_s=_seconds(value, "interval", 30.0),
        timeout_s=_seconds(value, "timeout", 30.0),
        start_period_s=_seconds(value, "start-period", 0.0),
        retries=retries,
    )


def print_health(check: HealthCheck) -> str:
    """The canonical text of a check."""
    return json.dumps(
        {
            "command": list(check.command),
            "interval": check.interval_s,
            "timeout": check.timeout_s,
            "start-period": check.start_period_s,
            "retries": check.retries,
        }
    )


def labels(text: str) -> str:
    """A JSON object of texts."""
    return json.dumps(label_map(text), sort_keys=True)


def label_map(text: str) -> Mapping[str, str]:
    """What the text means; "" is no labels."""
    found = _object(text) if text else {}
    if len(found) > LABELS_LIMIT or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"labels are a JSON object of at most {LABELS_LIMIT} texts")
    return {name: str(value) for name, value in found.items()}


def _seconds(value: Mapping[str, object], name: str, default: float) -> float:
    found = value.get(name, default)
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 86400:
        raise ValueError(f"{name} must be 0 to 86400 seconds")
    if name != "start-period" and found < 0.1:
        raise ValueError(f"{name} must be at least 0.1 seconds")
    return float(found)


def _object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("not JSON") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value
