"""Network interfaces of a running container as its kernel sees them, addresses included."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from appliance.command import run
from appliance.errors import HostError

IP_TIMEOUT_S = 5.0
_FAMILIES = {"inet": "inet", "inet6": "inet6"}


async def interfaces(pid: int) -> list[dict[str, object]]:
    """PVE's rows for the network namespace of process `pid`: name, hwaddr, inet, inet6, ip-addresses.

    Raises `CommandFailed` when the process has just ended, `HostError` for output that is no JSON.
    """
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-json", "address", "show"]
    completed = await run(argv, timeout_s=IP_TIMEOUT_S)
    try:
        links = json.loads(completed.stdout or b"[]")
    except ValueError as error:
        raise HostError("ip -json address: its output is no JSON") from error
    return [row(link) for link in links if isinstance(link, dict) and link.get("ifname")]


def row(link: Mapping[str, object]) -> dict[str, object]:
    """One interface of `ip -json address` in PVE's form; `inet` and `inet6` are the first of their family."""
    mac = str(link.get("address", "00:00:00:00:00:00"))
    shown: dict[str, object] = {"name": link["ifname"], "hwaddr": mac, "hardware-address": mac}
    entries = link.get("addr_info", [])
    addresses = [_address(entry) for entry in entries if entry.get("local")] if isinstance(entries, Sequence) else []
    for family in _FAMILIES.values():
        first = next((entry for entry in addresses if entry["ip-address-type"] == family), None)
        if first is not None:
            shown[family] = f"{first['ip-address']}/{first['prefix']}"
    return shown | {"ip-addresses": addresses}


def _address(entry: Mapping[str, object]) -> dict[str, object]:
    return {
        "ip-address": entry["local"],
        "ip-address-type": _FAMILIES.get(str(entry.get("family")), "inet"),
        "prefix": entry.get("prefixlen", 0),
    }
