"""A small lab of network namespaces: the appliance's host, a world behind its uplink, and guests.

Everything in it belongs to namespaces made here, and goes with them: the machine's own network is never touched.
"""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

_COUNT = itertools.count()
UDHCPC_SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace "$ip/$mask" dev "$interface"
[ -z "$router" ] || ip route replace default via "$router"
echo "leased $ip router $router dns $dns mtu $mtu"
"""
PAUSE_S = 0.1
WORLD_ADDRESS, HOST_UPLINK = "198.51.100.1", "198.51.100.2"


def run(*argv: str, check: bool = True, timeout_s: float = 20) -> str:
    """Run a program; its output, both streams."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert not check or done.returncode == 0, f"{argv}: {done.returncode} {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def is_answered(command: Callable[..., str], address: str, *, source: str | None = None, within_s: int = 10) -> bool:
    """Whether an echo request is answered, as soon as one is; `command` runs a program where they are sent from.

    A port just made forwards when its carrier is seen, which the kernel may look at a second later, and a lost solicitation
    of a neighbour takes a second more. A ping that is told of an error meanwhile (no route, no neighbour) gives up: another
    is begun.
    """
    options = ["-I", source] if source else []
    deadline = time.monotonic() + within_s
    while (left_s := deadline - time.monotonic()) > 0:
        limit = f"-w{math.ceil(left_s)}"
        answer = command("ping", "-n", "-c1", limit, "-i0.2", *options, address, check=False)
        if "1 received" in answer:
            return True
        print(answer)
        time.sleep(PAUSE_S)
    return False


class Guest:
    """A process with a network namespace of its own, as a container's init is."""

    def __init__(self, *, enter: tuple[str, ...] = ("unshare", "--net")) -> None:
        ready, done = os.pipe()
        self._process = subprocess.Popen(
            [*enter, "sh", "-c", "echo >&3; exec sleep 600 3>&-"],
            preexec_fn=lambda: os.dup2(done, 3),
            close_fds=False,
        )
        os.close(done)
        os.read(ready, 1)
        os.close(ready)
        self.pid = self._process.pid

    @property
    def netns(self) -> Path:
        """Its network namespace."""
        return Path(f"/proc/{self.pid}/ns/net")

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program in its namespace."""
        return run("nsenter", "-t", str(self.pid), "-n", *argv, check=check)

    def can_ping(self, address: str, *, source: str | None = None, within_s: int = 10) -> bool:
        """See `is_answered`."""
        return is_answered(self.run, address, source=source, within_s=within_s)

    def cannot_ping(self, address: str, *, source: str | None = None) -> bool:
        """Whether no echo request is answered in two seconds."""
        return not self.can_ping(address, source=source, within_s=2)

    def dhcp(self, directory: Path, *options: str, interface: str = "eth0") -> str:
        """Ask for a lease with busybox's client, as a guest does; what it said."""
        script = directory / "udhcpc.sh"
        script.write_text(UDHCPC_SCRIPT)
        script.chmod(0o755)
        argv = [
            "busybox",
            "udhcpc",
            "-i",
            interface,
            "-n",
            "-q",
            "-f",
            "-t",
            "5",
            "-T",
            "1",
            "-s",
            str(script),
            *options,
        ]
        return self.run(*argv, check=False)

    def end(self) -> None:
        """End it; its namespace goes with it."""
        self._process.kill()
        self._process.wait()


class Lab:
    """The appliance's host as a namespace (`name`). Use as a context manager."""

    def __init__(self) -> None:
        self.name = f"lab{os.getpid()}x{next(_COUNT)}"
        self._stack = ExitStack()

    def __enter__(self) -> Lab:
        run("ip", "netns", "add", self.name)
        self._stack.callback(run, "ip", "netns", "delete", self.name)
        self.run("ip", "link", "set", "lo", "up")
        self.run("sysctl", "-q", "net.ipv4.ip_forward=0")  # a new namespace inherits the machine's
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def guest(self, *, enter: tuple[str, ...] = ("unshare", "--net")) -> Guest:
        """A new guest, ended with the lab."""
        guest = Guest(enter=enter)
        self._stack.callback(guest.end)
        return guest

    def neighbour(self) -> Guest:
        """A process that shares the host's namespace."""
        neighbour = Guest(enter=("nsenter", f"--net=/run/netns/{self.name}"))
        self._stack.callback(neighbour.end)
        return neighbour

    def world(self) -> Guest:
        """Another machine behind the host's uplink; it knows no route to the guests."""
        world = self.guest()
        self.run("ip", "link", "add", "uplink", "type", "veth", "peer", "name", "wan")
        self.run("ip", "link", "set", "wan", "netns", str(world.pid))
        self.run("ip", "address", "add", f"{HOST_UPLINK}/24", "dev", "uplink")
        self.run("ip", "link", "set", "uplink", "up")
        world.run("ip", "address", "add", f"{WORLD_ADDRESS}/24", "dev", "wan")
        world.run("ip", "link", "set", "wan", "up")
        return world

    def run(self, *argv: str, check: bool = True) -> str:
        """Run a program on the host."""
        return run("ip", "netns", "exec", self.name, *argv, check=check)

    def can_ping(self, address: str, *, within_s: int = 10) -> bool:
        """See `is_answered`."""
        return is_answered(self.run, address, within_s=within_s)

    def interfaces(self) -> set[str]:
        """The names of the host's interfaces, without what this kernel puts into every namespace."""
        names = {line.split(":")[1].split("@")[0].strip() for line in self.run("ip", "-o", "link").splitlines()}
        return names - {"lo", "ifb0", "ifb1"}

    def tables(self) -> str:
        """nft's tables on the host."""
        return self.run("nft", "list", "tables").strip()

    def sysctl(self, name: str) -> str:
        """A setting of the host."""
        return self.run("sysctl", "-n", name).strip()

    def dnsmasq_pids(self) -> set[int]:
        """dnsmasq processes of the host."""
        inside = run("ip", "netns", "pids", self.name).split()
        return {int(pid) for pid in inside if Path(f"/proc/{pid}/comm").read_text().strip() == "dnsmasq"}
