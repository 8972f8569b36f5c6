"""Ports of the host that lead to containers: DNAT in a table of our own. Everything here runs in the network thread.

    prerouting, output ─ to an address of this host ─▶ ports ─ dnat ─▶ container
    postrouting: what comes from the container's own network, or from 127.0.0.0/8, is masqueraded, for the answer to come back

The table is made anew as a whole for every change, in one transaction. It stays in the kernel while the appliance is away; what
it was made of is in a file beside it, so that the next start knows whose each port is. A port somebody on the host listens on is
refused: his service would be gone without a word.

127.0.0.1 is published too, which needs route_localnet on our bridge; therefore nothing that comes in from there may be for
127.0.0.0/8 (CVE-2020-8558).
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Interface
from pathlib import Path

from appliance.errors import Conflict, InvalidParameter
from appliance.model.application import PublishedPort
from appliance.model.guest import GuestId
from appliance.network.home import Home

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """One port, and where it leads. `address` has the prefix of the container's network."""

    guest_id: int
    port: PublishedPort
    address: str
    bridge: str


def table_of(tag: str) -> str:
    """The name of the table."""
    return f"appliance-{tag}-ports"


def table(name: str, publications: Sequence[Publication]) -> str:
    """(Re)make the table for these publications; without any it is removed. Pure."""
    lines = [f"table ip {name}", f"delete table ip {name}"]
    if not publications:
        return "\n".join([*lines, ""])
    networks = sorted({(each.bridge, str(IPv4Interface(each.address).network)) for each in publications})
    bridges = sorted({bridge for bridge, _ in networks})
    return "\n".join(
        [
            *lines,
            f"table ip {name} {{",
            "  chain guard {",
            "    type filter hook prerouting priority -300; policy accept;",
            *(f'    iifname "{bridge}" ip daddr 127.0.0.0/8 drop' for bridge in bridges),
            "  }",
            "  chain prerouting {",
            "    type nat hook prerouting priority -100; policy accept;",
            "    fib daddr type local jump ports",
            "  }",
            "  chain output {",
            "    type nat hook output priority -100; policy accept;",
            "    fib daddr type local jump ports",
            "  }",
            "  chain postrouting {",
            "    type nat hook postrouting priority 100; policy accept;",
            *(f'    oifname "{bridge}" ip saddr 127.0.0.0/8 masquerade' for bridge in bridges),
            *(
                f'    oifname "{bridge}" ip saddr {network} ip daddr {network} ct status dnat masquerade'
                for bridge, network in networks
            ),
            "  }",
            "  chain ports {",
            *(
                f"    {_rule(each)}"
                for each in sorted(publications, key=lambda each: (not each.port.host_address, each.port))
            ),
            "  }",
            "}",
            "",
        ]
    )


def _rule(publication: Publication) -> str:
    port = publication.port
    where = f"ip daddr {port.host_address} " if port.host_address else ""
    target = IPv4Interface(publication.address).ip
    return f"{where}{port.protocol} dport {port.host_port} dnat to {target}:{port.container_port}"


def overlap(one: PublishedPort, other: PublishedPort) -> bool:
    """Whether a packet could be for both."""
    return (one.host_port, one.protocol) == (other.host_port, other.protocol) and (
        not one.host_address or not other.host_address or one.host_address == other.host_address
    )


class Published:
    """The publications of this instance. `file` is in the run directory."""

    def __init__(self, home: Home, tag: str, file: Path) -> None:
        self._home = home
        self._name = table_of(tag)
        self._file = file
        self._all: list[Publication] = _read(file)

    def restore(self) -> None:
        """Make the table as it was. Raises `OSError`."""
        if self._all:
            self._apply(self._all)

    def add(self, guest_id: GuestId, ports: Sequence[PublishedPort], *, address: str, bridge: str) -> None:
        """Publish a guest's ports, in place of those it has. Raises `Conflict` naming the port and who has it, `OSError`."""
        others = [each for each in self._all if each.guest_id != guest_id]
        mine = {each.port for each in self._all if each.guest_id == guest_id}
        for port in ports:
            for other in others:
                if overlap(port, other.port):
                    raise Conflict(f"port {port.host_port}/{port.protocol} is published by ct {other.guest_id} already")
            if port not in mine:
                _require_free(port)
        new = [Publication(guest_id=guest_id, port=port, address=address, bridge=bridge) for port in ports]
        self._home.write_sysctl(f"ipv4/conf/{bridge}/route_localnet", "1")
        self._change([*others, *new])

    def remove(self, guest_id: GuestId) -> None:
        """Take a guest's ports back; not an error when it has none. Raises `OSError`."""
        left = [each for each in self._all if each.guest_id != guest_id]
        if len(left) != len(self._all):
            self._change(left)

    def keep(self, guests: Collection[int]) -> None:
        """Take back the ports of all but these guests."""
        left = [each for each in self._all if each.guest_id in guests]
        if len(left) != len(self._all):
            self._change(left)

    def clear(self) -> None:
        """Remove the table and what is kept."""
        self._all = []
        self._apply([])
        self._file.unlink(missing_ok=True)

    def _change(self, publications: list[Publication]) -> None:
        # the file first: what a crash leaves out of the table is made, or removed, by the next start
        _write(self._file, publications)
        try:
            self._apply(publications)
        except OSError:
            _write(self._file, self._all)
            raise
        self._all = publications

    def _apply(self, publications: Sequence[Publication]) -> None:
        self._home.nft.run(table(self._name, publications))


def _require_free(port: PublishedPort) -> None:
    """Raises `Conflict` when somebody on the host listens there, `InvalidParameter` when it has no such address."""
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if port.protocol == "tcp":  # what waits for its time-out is no listener
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host_address, port.host_port))
            if port.protocol == "tcp":
                probe.listen(1)
        except OSError as error:
            if port.host_address and "assign" in (error.strerror or ""):
                raise InvalidParameter({"app-publish": f"this host has no address {port.host_address}"}) from error
            raise Conflict(f"port {port.host_port}/{port.protocol} is in use on this host") from error


def _read(file: Path) -> list[Publication]:
    with contextlib.suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        value = json.loads(file.read_text())
        if value["format"] == FORMAT:
            return [Publication(**{**each, "port": PublishedPort(**each["port"])}) for each in value["publications"]]
    return []


def _write(file: Path, publications: Sequence[Publication]) -> None:
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps({"format": FORMAT, "publications": [asdict(each) for each in publications]}))
    temporary.replace(file)
