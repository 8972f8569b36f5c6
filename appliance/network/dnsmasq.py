"""DHCP and DNS of the managed bridge: dnsmasq's configuration, its lease file, and the process under supervision.

dnsmasq is bound to the bridge and to nothing else, answers only MACs that have a reservation, and keeps running while
the appliance is down. So each start first ends the one an earlier appliance left (found by its configuration's name on
its command line and by its network namespace, never by a pid file) and starts its own: there are never two.

The process is spawned by the network thread, whose namespace it inherits. Every function marked *thread* may block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from ipaddress import IPv4Address
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import HostError, TimedOut
from appliance.kernel.spawn import inheritable, watch_child
from appliance.model.network import BridgeSettings
from appliance.waiting import readable

log = logging.getLogger(__name__)

LEASE_S = 3600
STOP_TIMEOUT_S = 3.0
READY_TIMEOUT_S = 2.0
BACKOFF_FIRST_S, BACKOFF_LAST_S, STABLE_AFTER_S = 0.5, 30.0, 60.0
LEASE_FILE_LIMIT_BYTES = 4 << 20
COMPLAINT_LIMIT_BYTES = 4096
UNPRIVILEGED = ("nobody", "nogroup")


class DnsmasqFiles:
    """Where one bridge's dnsmasq keeps its files. The configuration's name tells processes of instances apart."""

    def __init__(self, directory: Path, *, tag: str, bridge: str) -> None:
        self.directory = directory
        self.config = directory / f"dnsmasq-{tag}-{bridge}.conf"
        self.hosts = directory / f"dnsmasq-{bridge}.hosts"
        self.leases = directory / f"dnsmasq-{bridge}.leases"
        self.errors = directory / f"dnsmasq-{bridge}.err"

    def all(self) -> tuple[Path, ...]:
        """Every file, for removal."""
        return (self.config, self.hosts, self.leases, self.errors)


def configuration(settings: BridgeSettings, files: DnsmasqFiles, *, user: tuple[str, str], pool_size: int) -> str:
    """dnsmasq(8)'s configuration file. Pure."""
    assert settings.subnet is not None
    subnet, gateway = settings.subnet, settings.gateway
    lines = [
        "# written by the appliance; changes are lost",
        f"interface={settings.name}",
        "except-interface=lo",
        "bind-interfaces",
        f"port={53 if settings.dns else 0}",
        f"user={user[0]}",
        f"group={user[1]}",
        "no-hosts",
        "domain-needed",
        "cache-size=400",
        "dhcp-authoritative",
        f"dhcp-range={subnet.network_address},static,{subnet.netmask},{LEASE_S}",
        f"dhcp-lease-max={pool_size}",
        f"dhcp-hostsfile={files.hosts}",
        f"dhcp-leasefile={files.leases}",
        f"dhcp-option=option:router,{gateway}",
        f"dhcp-option=option:mtu,{settings.mtu}",
        "dhcp-name-match=set:wpad,wpad",  # no guest becomes the others' proxy by its name
        "dhcp-ignore-names=tag:wpad",
        "quiet-dhcp",
        "log-facility=/dev/null",  # a guest can make it complain without end; what ends it goes to stderr all the same
    ]
    if settings.dns:
        lines.append(f"dhcp-option=option:dns-server,{gateway}")
    return "\n".join(lines) + "\n"


def hosts_text(reservations: Iterable[tuple[str, IPv4Address]]) -> str:
    """The dhcp-hostsfile: one `MAC,ADDRESS` a line. Pure."""
    return "".join(f"{mac},{address}\n" for mac, address in reservations)


def parse_hosts(text: str) -> list[tuple[str, IPv4Address]]:
    """Read `hosts_text` back; a damaged line is left out. Pure."""
    found: list[tuple[str, IPv4Address]] = []
    for line in text.splitlines():
        mac, _, address = line.partition(",")
        with contextlib.suppress(ValueError):
            found.append((mac.lower(), IPv4Address(address)))
    return found


def parse_leases(text: str, *, now: float) -> dict[str, str]:
    """MAC (upper case) to address of the leases not over yet (`EXPIRY MAC ADDRESS NAME CLIENT-ID` a line). Pure.

    Names in it come from guests and are not looked at; lines that are not leases are left out.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) < 4 or not fields[0].isdigit() or not (fields[0] == "0" or int(fields[0]) > now):
            continue
        with contextlib.suppress(ValueError):
            found[fields[1].upper()] = str(IPv4Address(fields[2]))
    return found


def read_leases(path: Path, *, now: float) -> Mapping[str, str]:
    """`parse_leases` of a file; nothing when there is none yet. *Thread.*"""
    try:
        with path.open("rb") as file:
            return parse_leases(file.read(LEASE_FILE_LIMIT_BYTES).decode(errors="replace"), now=now)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error


def user_for(directory: Path) -> tuple[str, str]:
    """Who dnsmasq becomes: nobody, where nobody can reach its files, else root. *Thread.*"""
    reachable = all(path.stat().st_mode & 0o001 for path in (directory, *directory.resolve().parents))
    return UNPRIVILEGED if reachable else ("root", "root")


# --- processes (network thread) ---------------------------------------------------------------------------------


def find_running(tag: str, bridge: str) -> list[int]:
    """Pids of dnsmasq processes of this instance and bridge in the calling thread's network namespace. *Thread.*"""
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if _is_ours(pid, tag, bridge)]


def _is_ours(pid: int, tag: str, bridge: str) -> bool:
    wanted = f"/dnsmasq-{tag}-{bridge}.conf".encode()
    try:
        command_line = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if not command_line[0].endswith(b"dnsmasq") or not any(part.endswith(wanted) for part in command_line):
            return False
        return Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/thread-self/ns/net").readlink()
    except OSError:  # it has ended
        return False


def end_running(tag: str, bridge: str) -> int:
    """End every process `find_running` names and wait for it; how many there were. *Thread.* Raises `TimedOut`."""
    found = find_running(tag, bridge)
    for pid in found:
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                if _is_ours(pid, tag, bridge):  # still, and so it is what the descriptor holds
                    end_process(fd, f"dnsmasq of {bridge} (pid {pid})")
            finally:
                os.close(fd)
    return len(found)


def end_process(pidfd: int, name: str) -> None:
    """Terminate the process behind `pidfd`, by force if it does not end in time, and reap it when it is our child."""
    for number, patience_s in ((signal.SIGTERM, STOP_TIMEOUT_S), (signal.SIGKILL, STOP_TIMEOUT_S)):
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, number)
        if select.select([pidfd], [], [], patience_s)[0]:
            reap(pidfd)
            return
    raise TimedOut(f"{name} to end", 2 * STOP_TIMEOUT_S)


def reap(pidfd: int) -> int | None:
    """Collect a child that has ended: its exit status, negative for a signal; None when it is not our child."""
    try:
        result = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return None
    if result is None:
        return None
    return result.si_status if result.si_code == os.CLD_EXITED else -result.si_status


def spawn(files: DnsmasqFiles) -> tuple[int, int]:
    """Start dnsmasq in the calling thread's network namespace: (pid, pidfd). *Thread.* Raises `HostError`.

    Returns once SIGHUP would not kill it: it reads its hosts file after it has set its handlers, so a reload asked
    for from then on is never lost.
    """
    program = shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise HostError("dnsmasq: not installed (package dnsmasq-base)")
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, "/dev/null", os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, str(files.errors), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        *((os.POSIX_SPAWN_CLOSE, fd) for fd in inheritable()),
    ]
    argv = [program, "--keep-in-foreground", f"--conf-file={files.config}"]
    environment = {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}
    try:
        pid = os.posix_spawn(program, argv, environment, file_actions=actions, setsid=True)
        pidfd = watch_child(pid)
    except OSError as error:
        raise HostError.from_os_error(error, f"start {program}") from error
    deadline = time.monotonic() + READY_TIMEOUT_S
    while not _catches_sighup(pid) and time.monotonic() < deadline:
        if select.select([pidfd], [], [], 0.001)[0]:
            break  # it has ended: the supervisor sees that
    return pid, pidfd


def _catches_sighup(pid: int) -> bool:
    """Whether the process has a handler for SIGHUP (bit 0 of SigCgt in /proc/PID/status)."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    mask = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
    return bool(int(mask, 16) & 1)


# --- supervision (loop) -----------------------------------------------------------------------------------------


class Dnsmasq:
    """One supervised dnsmasq: started again when it ends, sooner at first, then every 30 s."""

    def __init__(
        self, files: DnsmasqFiles, clock: Clock, in_thread: Callable[[Callable[[], None]], Awaitable[None]]
    ) -> None:
        self.files = files
        self._clock = clock
        self._in_thread = in_thread
        self._pidfd: int | None = None
        self.pid: int | None = None
        self.starts = 0

    async def supervise(self) -> None:
        """Run it until cancelled; the process goes on then (`end` ends it)."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            began = self._clock.monotonic()
            try:
                await self._in_thread(self._start)
            except HostError as error:
                log.error("%s: %s", self.files.config.name, error)
            else:
                assert self._pidfd is not None
                await readable(self._pidfd)
                await self._ended()
            if self._clock.monotonic() - began > STABLE_AFTER_S:
                backoff_s = BACKOFF_FIRST_S
            await self._clock.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, BACKOFF_LAST_S)

    def _start(self) -> None:
        """Kept here rather than returned: a cancelled `supervise` must not lose the process. *Thread.*"""
        self.pid, self._pidfd = spawn(self.files)
        self.starts += 1

    async def _ended(self) -> None:
        assert self._pidfd is not None
        status = reap(self._pidfd)
        pid = self.pid
        self.let_go()
        said = await asyncio.to_thread(self.complaint)
        log.warning("dnsmasq %s (pid %s) ended with status %s: %s", self.files.config.name, pid, status, said)

    def complaint(self) -> str:
        """The last line it wrote before it gave up. *Thread.*"""
        try:
            with self.files.errors.open("rb") as file:
                text = file.read(COMPLAINT_LIMIT_BYTES).decode(errors="replace")
        except OSError:
            return "no message"
        return text.strip().splitlines()[-1] if text.strip() else "no message"

    def reload(self) -> None:
        """Make it read its hosts file again; nothing when it does not run (it reads it when it starts)."""
        if self._pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGHUP)

    def let_go(self) -> None:
        """Forget the process without ending it."""
        if self._pidfd is not None:
            os.close(self._pidfd)
        self.pid = self._pidfd = None

    def end(self) -> None:
        """End it and wait until it has. *Thread.* Call after `supervise` has been cancelled. Raises `TimedOut`."""
        if self._pidfd is not None:
            end_process(self._pidfd, self.files.config.name)
            self.let_go()
