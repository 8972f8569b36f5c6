"""Application containers: guests made of an OCI image, whose first process is the image's program, not an init."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """A program that says by its status (0) that a container works. Times in seconds; `retries` failures in a row tell
    that it does not, and failures within `start_period_s` of its start do not count."""

    command: tuple[str, ...]
    interval_s: float = 30.0
    timeout_s: float = 30.0
    start_period_s: float = 0.0
    retries: int = 3


class Health(StrEnum):
    """What the checks of a running container say."""

    STARTING = "starting"  # no check has ended well yet, and none counts as failed
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class RestartMode(StrEnum):
    """Which ends of a container are followed by a start."""

    NO = "no"
    ON_FAILURE = "on-failure"  # a status other than 0, or a signal
    ALWAYS = "always"  # every end but a stop, and the appliance's start even after that
    UNLESS_STOPPED = "unless-stopped"  # every end but a stop, and the appliance's start unless it was stopped


@dataclass(frozen=True, slots=True, kw_only=True)
class RestartPolicy:
    """A mode, and for `ON_FAILURE` how often in a row (0: without end)."""

    mode: RestartMode = RestartMode.NO
    attempts: int = 0


@dataclass(frozen=True, slots=True, order=True)
class PublishedPort:
    """A port of the host that leads to one of the container's. `host_address` "" is every address of the host."""

    host_port: int
    container_port: int
    protocol: str = "tcp"  # or "udp"
    host_address: str = ""

    def __str__(self) -> str:
        """As it is written in a configuration."""
        address = f"{self.host_address}:" if self.host_address else ""
        return f"{address}{self.host_port}:{self.container_port}/{self.protocol}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What an application container has that a system container has not. `image` is `REFERENCE@DIGEST`.

    `user` is a name or number, with or without a group ("app:www-data"), "" for root; resolved inside the container.
    """

    image: str
    user: str = ""
    working_directory: str = "/"
    stop_signal: str = ""
    terminal: bool = False
    health: HealthCheck | None = None
    restart: RestartPolicy = RestartPolicy()
    ports: tuple[PublishedPort, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


def signal_number(text: str) -> int:
    """The number of a signal as images name them: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. Raises `ValueError`."""
    name = text.strip().upper().removeprefix("SIG")
    base, plus, offset = name.partition("+")
    found = 0
    if name.isdecimal() and len(name) <= 2:
        found = int(name)
    elif base == "RTMIN" and (not plus or (offset.isdecimal() and len(offset) <= 2)):
        found = signal.SIGRTMIN + int(offset or 0)
    elif f"SIG{name}" in signal.Signals.__members__:
        found = int(signal.Signals[f"SIG{name}"])
    if not 0 < found <= signal.SIGRTMAX or signal.SIGSYS < found < signal.SIGRTMIN:
        raise ValueError(f"'{text[:40]}' is not a signal")
    return found
