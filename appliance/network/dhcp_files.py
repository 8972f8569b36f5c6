"""What a DHCP client of a container's interface is told, and what it leaves behind: dhcpcd's configuration and files.

    DIRECTORY/             root's alone; one a port, named by instance and port
      about.json           whose it is, and how to start it again
      dhcpcd.conf, hook    what it reads and runs
      pid                  /proc/PID/stat of its first process, from before it became dhcpcd
      complaints           why it could not be started
      heard                a FIFO: something below has changed
      lease/               its own (/var/lib/dhcpcd in there): leases, so that it asks for the same address again
        resolvers.PROTOCOL the name servers it was told

`lease/` is written by a process that speaks with the network and is root in the container only: what is in it is read
without following links, up to a bound, and checked.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path

from appliance.kernel.pidfd import ProcessIdentity, identify
from appliance.model.guest import GuestId

RESOLVERS_LIMIT = 3
"""resolv.conf(5) MAXNS."""
_FILE_LIMIT_BYTES = 4096
_PROTOCOLS = ("dhcp", "dhcp6")

HOOK = """#!/bin/sh
servers="$new_domain_name_servers $new_dhcp6_name_servers"
[ "$servers" != " " ] && cd /var/lib/dhcpcd || exit 0
echo "$servers" >"resolvers.$protocol.new" && mv "resolvers.$protocol.new" "resolvers.$protocol" && echo 1<>/run/heard
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class DhcpRequest:
    """What a client is to ask for: addresses of which families, on which interface of which network namespace.

    `namespace` is that one's identity (device and inode of its file), by which it is found again after a restart.
    """

    guest_id: GuestId
    slot: str
    interface: str
    mac: str  # lower case
    four: bool
    six: bool
    namespace: tuple[int, int]


def configuration(request: DhcpRequest) -> str:
    """dhcpcd.conf(5). Pure.

    The identities are made of the MAC, so that a server that reserves by either knows the container again. Routers are the
    kernel's (`noipv6rs`): a route must not end with a client. No probing of the address: that takes five seconds, in which
    the container has none, and no other client for servers does it.
    """
    families = {(True, True): [], (True, False): ["ipv4only"], (False, True): ["ipv6only"]}[request.four, request.six]
    return "\n".join(
        [
            "# written by the appliance; changes are lost",
            *families,
            "duid ll",
            f"clientid 01:{request.mac}",
            "release",
            "timeout 0",
            "reboot 0",
            "nodelay",
            "noarp",
            "noipv4ll",
            "noipv6rs",
            "option domain_name_servers",
            "option dhcp6_name_servers",
            "script /run/hook",
            f"interface {request.interface}",
            *(["ia_na"] if request.six else []),
            "",
        ]
    )


def parse_resolvers(text: str) -> list[str]:
    """Addresses among the words of `text`, each once. Pure. The words are a DHCP server's."""
    found: dict[str, None] = {}
    for word in text.split():
        try:
            address = ip_address(word)
        except ValueError:
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_multicast or "%" in word):
            found[str(address)] = None
    return list(found)


class DhcpFiles:
    """One client's directory. Everything here blocks."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @property
    def lease(self) -> Path:
        return self.directory / "lease"

    @property
    def complaints(self) -> Path:
        return self.directory / "complaints"

    def make(self, request: DhcpRequest) -> None:
        """Write what the client needs; leases of an earlier run of the container stay."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.lease.mkdir(exist_ok=True)
        self.lease.chmod(0o777)  # nobody but the client gets there: the directory above is root's
        for name, text, mode in (
            ("dhcpcd.conf", configuration(request), 0o644),
            ("hook", HOOK, 0o755),
            ("about.json", json.dumps(asdict(request)), 0o600),
        ):
            path = self.directory / name
            path.write_text(text)
            path.chmod(mode)
        heard = self.directory / "heard"
        if not heard.exists():
            os.mkfifo(heard)
        heard.chmod(0o666)

    def request(self) -> DhcpRequest | None:
        """What `make` wrote; None when that was cut off."""
        try:
            values = json.loads((self.directory / "about.json").read_text())
            return DhcpRequest(**(values | {"namespace": tuple(values["namespace"])}))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def process(self) -> ProcessIdentity | None:
        """The client that was started here last, if it still runs."""
        try:
            text = (self.directory / "pid").read_text()
            meant = ProcessIdentity(int(text.split()[0]), int(text.rpartition(")")[2].split()[19]))
        except (OSError, ValueError, IndexError):
            return None
        return meant if identify(meant.pid) == meant else None

    def resolvers(self) -> tuple[str, ...]:
        """The name servers it was told, those by IPv4 first."""
        text = " ".join(self._read(f"resolvers.{protocol}") for protocol in _PROTOCOLS)
        return tuple(parse_resolvers(text)[:RESOLVERS_LIMIT])

    def _read(self, name: str) -> str:
        try:
            fd = os.open(self.lease / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            return os.read(fd, _FILE_LIMIT_BYTES).decode(errors="replace") if regular else ""
        finally:
            os.close(fd)

    def open_heard(self) -> int:
        """The FIFO, for the loop: readable when something has changed. The caller closes it. Raises `OSError`.

        Opened for writing too: without a writer it would be readable for ever.
        """
        return os.open(self.directory / "heard", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def complaint(self) -> str:
        """The last line about a failed start."""
        try:
            with self.complaints.open("rb") as file:
                text = file.read(_FILE_LIMIT_BYTES).decode(errors="replace").strip()
        except OSError:
            return ""
        return text.splitlines()[-1] if text else ""

    def remove(self) -> None:
        """All of it, the leases too."""
        shutil.rmtree(self.directory, ignore_errors=True)
