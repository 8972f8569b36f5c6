"""The process's own settings, from argv only: what must be known before the store opens. All else is in the store."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import InvalidParameter

DEFAULT_DATA_DIR = Path("/var/lib/appliance")
DEFAULT_LISTEN = "0.0.0.0:8006"
_BASE_PATH = re.compile(r"(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*){1,8}")
_BASE_PATH_LIMIT = 200
REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of one appliance process."""

    data_dir: Path
    """Everything that must survive a reboot."""
    run_dir: Path
    """Sockets, pid files and logs of running guests; a tmpfs, short enough for UNIX socket paths (108 bytes)."""
    listen_host: str
    listen_port: int
    node_name: str
    admin_password_file: Path | None = None
    bridge: str = "vmbr0"
    log_format: str = "plain"
    verbose: bool = False
    base_path: str = ""
    """What stands before every address behind a proxy that cannot say so itself: "/appliance"."""
    proxies: frozenset[str] = frozenset()
    """Addresses of reverse proxies, whose X-Forwarded-* headers are believed."""
    templates_dir: Path = REPOSITORY_ROOT / "templates"
    static_dir: Path = REPOSITORY_ROOT / "static"


def default_run_dir(data_dir: Path) -> Path:
    """`/run/appliance` for the default data directory, else a short name of its own, so that instances never meet."""
    if data_dir == DEFAULT_DATA_DIR:
        return Path("/run/appliance")
    return Path(f"/run/appliance-{hashlib.sha256(bytes(data_dir.resolve())).hexdigest()[:8]}")


def default_node_name() -> str:
    """The host's name without its domain, in lower case."""
    return re.sub(r"[^a-z0-9-]", "-", socket.gethostname().split(".")[0].lower()).strip("-") or "localhost"


def check_node_name(name: str) -> str:
    """A node's name is a DNS label in lower case. Raises `InvalidParameter`."""
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise InvalidParameter({"node-name": f"{name!r} is not a host name without its domain, in lower case"})
    return name


def check_base_path(text: str) -> str:
    """ "/a/b/" as "/a/b", "" for none. Raises `InvalidParameter` for what is no plain path."""
    path = text.strip().rstrip("/")
    if path and (len(path) > _BASE_PATH_LIMIT or not _BASE_PATH.fullmatch(path)):
        raise InvalidParameter({"base-path": f"{text[:60]!r} is not a path such as /appliance"})
    return path


def plain_address(text: str) -> str:
    """An IP address in its shortest form, "" for anything else."""
    try:
        return str(ipaddress.ip_address(text.strip().removeprefix("[").removesuffix("]")))
    except ValueError:
        return ""


def check_proxies(texts: Sequence[str]) -> frozenset[str]:
    """Addresses of reverse proxies. Raises `InvalidParameter`."""
    for text in texts:
        if not plain_address(text):
            raise InvalidParameter({"proxy": f"{text[:60]!r} is not an IP address"})
    return frozenset(map(plain_address, texts))


def parse_listen(text: str) -> tuple[str, int]:
    """`ADDR:PORT`, with IPv6 in brackets. Port 0 lets the kernel choose. Raises `InvalidParameter`."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]*)):(\d{1,5})", text)
    if match is None or int(match[3]) > 65535:
        raise InvalidParameter({"listen": f"{text!r} is not ADDR:PORT"})
    return match[1] or match[2] or "0.0.0.0", int(match[3])  # noqa: S104  an empty address means all, as everywhere
