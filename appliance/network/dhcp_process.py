"""dhcpcd in a container's network namespace: found, started, ended. Every function blocks.

The program is the host's: an image without a client is what it is for. It runs as the container's root, in the container's user
and network namespaces but in the host's pid namespace, where the container cannot see it, with the capabilities such a
client needs and no others, and in a mount namespace of its own: `/run` and `/var/lib` are empty there but for its own files,
so that any number of them, all with an `eth0`, never meet. It splits itself further, into processes without privilege.

Its first process leads a session: whatever is left of it is in that.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import time
from pathlib import Path

from appliance.errors import HostError, Unsupported
from appliance.kernel import netns, ns, rtnetlink
from appliance.kernel.pidfd import ProcessIdentity, pidfd_open, pidfd_send_signal
from appliance.kernel.spawn import inheritable, posix_spawn, watch_child
from appliance.network.dhcp_files import DhcpFiles, DhcpRequest
from appliance.network.dnsmasq import reap

RELEASE_TIMEOUT_S = 3.0
"""It gives its addresses back and ends in 20 ms, unless it hangs."""
REMAINS_TIMEOUT_S = 1.0
"""Its other processes send what it said last (that the addresses are free), and end then."""
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NET_FD, _USER_FD = 3, 4
_CAPABILITIES = (
    "chown",
    "dac_override",
    "kill",
    "net_admin",
    "net_bind_service",
    "net_raw",
    "setgid",
    "setuid",
    "sys_chroot",
)

# `.` stays what it was when /run is hidden, and so is named as that (mount -c)
_SURROUNDINGS = """
read -r stat </proc/$$/stat
cd "$1"
echo "$stat" >pid.new
mv pid.new pid
for place in /run /var/lib; do mount -t tmpfs -o mode=755,size=1m,nosuid,nodev tmpfs $place; done
mkdir -m 777 /run/dhcpcd /var/lib/dhcpcd
cp -p dhcpcd.conf hook /run/
: >/run/heard
mount -c --bind heard /run/heard
mount -c --bind lease /var/lib/dhcpcd
cd /
shift
exec "$@"
"""


def program() -> str:
    """Where dhcpcd is. Raises `Unsupported`."""
    found = shutil.which("dhcpcd", path=_PATH)
    if found is None:
        raise Unsupported("the host has no DHCP client (package dhcpcd-base)")
    return found


def command(files: DhcpFiles, request: DhcpRequest, *, program: str, user: bool) -> list[str]:
    """The whole command line; descriptor 3 is the network namespace, 4 the user namespace where it has one. Pure."""
    enter = ["nsenter", f"--net=/proc/self/fd/{_NET_FD}"]
    if user:
        enter += [f"--user=/proc/self/fd/{_USER_FD}", "--setuid", "0", "--setgid", "0"]
    bounded = ",".join(["-all", *(f"+{name}" for name in _CAPABILITIES)])
    return [
        *("unshare", "--mount", "--propagation", "private"),
        *("sh", "-euc", _SURROUNDINGS, "dhcp-client", str(files.directory)),
        *enter,
        *("setpriv", f"--bounding-set={bounded}", "--no-new-privs"),
        # twice quiet: not a word on stderr, which a hostile server could fill the disk with
        *(program, "--nobackground", "--quiet", "--quiet", "--config", "/run/dhcpcd.conf", request.interface),
    ]


def start(files: DhcpFiles, request: DhcpRequest, namespace: Path) -> tuple[int, int]:
    """Start a client: (pid, pidfd). Raises `HostError`, `Unsupported`; nothing runs then."""
    client = program()
    files.make(request)
    with contextlib.ExitStack() as stack:
        try:
            net = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, net)
            user = ns.owner_of(net)
            if user is not None:
                stack.callback(os.close, user)
            silent = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(os.close, silent)
            complaints = os.open(files.complaints, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            stack.callback(os.close, complaints)
            descriptors = {0: silent, 1: silent, 2: complaints, _NET_FD: net}
            if user is not None:
                descriptors[_USER_FD] = user
            argv = command(files, request, program=client, user=user is not None)
            pid = posix_spawn(argv, {"PATH": _PATH, "LC_ALL": "C"}, descriptors, unwanted=inheritable())
            return pid, watch_child(pid)
        except OSError as error:
            raise HostError.from_os_error(error, f"start a DHCP client for {request.interface}") from error


def namespace_of(request: DhcpRequest) -> Path | None:
    """The network namespace `request` names, if it is still there: some process is in it, and the interface as well."""
    for pid in _pids():
        path = Path(f"/proc/{pid}/ns/net")
        with contextlib.suppress(OSError):
            found = path.stat()
            # of several in there the first may be ending, as what is left of a client that was killed is
            if (found.st_dev, found.st_ino) == request.namespace and _has_interface(path, request):
                return path
    return None


def _has_interface(path: Path, request: DhcpRequest) -> bool:
    """An inode's number may be another namespace's by now; that has not this interface with this address."""

    def look() -> bool:
        route = rtnetlink.RouteSocket()
        try:
            link = rtnetlink.find_link(route, request.interface)
            return link is not None and link.address.lower() == request.mac
        finally:
            route.close()

    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return not netns.is_own(fd) and netns.call_inside(fd, look)
        finally:
            os.close(fd)
    return False


def end(process: ProcessIdentity) -> None:
    """Let it give its addresses back and end; by force when it does not in time, and whatever is left of it."""
    fd = pidfd_open(process)
    if fd is not None:
        try:
            pidfd_send_signal(fd, signal.SIGTERM)
            if not select.select([fd], [], [], RELEASE_TIMEOUT_S)[0]:
                pidfd_send_signal(fd, signal.SIGKILL)
                select.select([fd], [], [], RELEASE_TIMEOUT_S)
            reap(fd)
        finally:
            os.close(fd)
    end_remains(process.pid, patience_s=REMAINS_TIMEOUT_S)


def end_remains(session: int, *, patience_s: float = 0.0) -> None:
    """See that nothing is left of a client whose first process was `session` and has ended; they have `patience_s` for it.

    A session's number is nobody else's while one of it lives; the name is looked at for the moment after that.
    """
    with contextlib.ExitStack() as descriptors:
        left: list[int] = []
        for pid in _pids():
            if pid == session or not _is_of(pid, session):
                continue
            with contextlib.suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                descriptors.callback(os.close, fd)
                if _is_of(pid, session):
                    left.append(fd)
        deadline = time.monotonic() + patience_s
        for fd in left:
            waiting = select.poll()
            waiting.register(fd, select.POLLIN)
            if not waiting.poll(max(0.0, deadline - time.monotonic()) * 1000):
                pidfd_send_signal(fd, signal.SIGKILL)
                waiting.poll(RELEASE_TIMEOUT_S * 1000)


def _is_of(pid: int, session: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    name, fields = stat[stat.index(b"(") + 1 : stat.rindex(b")")], stat[stat.rindex(b")") + 2 :].split()
    return name == b"dhcpcd" and int(fields[3]) == session


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]  # noqa: PTH208 - a listing, not a path each
