"""Keys of application containers as people fill them in: variables and labels as lines, health checks and ports in parts.

`static/js/widgets.js` makes the key's text of it again. A line of the environment ends at its end, unless it ends with a
backslash: then the value goes on, with a newline, in the next one; backslashes at the end of a line are doubled. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from appliance.services.guest_config import app_formats

_LAST_BACKSLASHES = re.compile(r"\\+$", re.MULTILINE)
SHELL = ("/bin/sh", "-c")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthParts:
    """A health check in parts. `is_set` is False where there is none: the other parts are what a new one would have."""

    is_set: bool
    command: str = ""
    interval: str = "30"
    timeout: str = "30"
    start_period: str = "0"
    retries: str = "3"


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRow:
    """A published port, or one that could be: `host_port` is "" then."""

    host_port: str
    container_port: str
    protocol: str
    address: str = ""


def lines_of(pairs: Iterable[str]) -> str:
    """Texts as lines, one each."""
    doubled = (_LAST_BACKSLASHES.sub(lambda found: found[0] * 2, pair).replace("\n", "\\\n") for pair in pairs)
    return "\n".join(doubled)


def environment_lines(text: str) -> str:
    """The key `env` as lines."""
    return lines_of(text.split("\0")) if text else ""


def label_lines(text: str) -> str:
    """The key `app-labels` as lines NAME=VALUE; what cannot be read is shown empty, and refused until it is right."""
    try:
        return lines_of(f"{name}={value}" for name, value in app_formats.label_map(text).items())
    except ValueError:
        return ""


def health_parts(text: str) -> HealthParts:
    """The key `app-health` in parts. A command of a shell is shown as it is typed, another one as a JSON list."""
    try:
        check = app_formats.health_check(text)
    except ValueError:
        check = None
    if check is None:
        return HealthParts(is_set=False)
    is_shell = check.command[:2] == SHELL and len(check.command) == 3 and not check.command[2].startswith("[")
    return HealthParts(
        is_set=True,
        command=check.command[2] if is_shell else json.dumps(list(check.command), ensure_ascii=False),
        interval=f"{check.interval_s:g}",
        timeout=f"{check.timeout_s:g}",
        start_period=f"{check.start_period_s:g}",
        retries=str(check.retries),
    )


def port_rows(text: str, exposed: Sequence[str] = ()) -> Sequence[PortRow]:
    """The key `app-publish` as rows, and a row for each port an image `exposes` ("80/tcp") that is not published."""
    try:
        ports = app_formats.published_ports(text)
    except ValueError:
        ports = ()
    rows = [
        PortRow(
            host_port=str(port.host_port), container_port=str(port.container_port), protocol=port.protocol,
            address=port.host_address,
        )
        for port in ports
    ]  # fmt: skip
    shown = {(row.container_port, row.protocol) for row in rows}
    for each in exposed:
        number, _, protocol = each.partition("/")
        row = PortRow(host_port="", container_port=number, protocol=protocol or "tcp")
        if number.isdecimal() and (row.container_port, row.protocol) not in shown and row.protocol in ("tcp", "udp"):
            rows.append(row)
    return rows
