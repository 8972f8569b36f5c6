"""A bug report's archive: what is known of host and appliance, as text, without secrets (`redaction.py`). Blocks.

    appliance-report/doctor.txt         the findings
    appliance-report/host/…             files of /proc and /etc, and what a few programs print
    appliance-report/api/….json         the appliance's own view, where it answers
    appliance-report/data-directory.txt names, sizes and modes; no content

Each part is bounded in size and time, and one that cannot be had says why instead. Guests' disks, consoles and task logs
are never in it.
"""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from appliance.doctor import redaction
from appliance.errors import HostError

PART_LIMIT_BYTES = 2 << 20
PROGRAM_TIMEOUT_S = 20.0
GUESTS_LIMIT = 200
NAMES_LIMIT = 5000
JOURNAL_LINES = 3000

FILES = (
    "/etc/os-release", "/etc/debian_version", "/etc/default/appliance", "/proc/cmdline", "/proc/cpuinfo",
    "/proc/meminfo", "/proc/loadavg", "/proc/self/mountinfo", "/proc/modules", "/proc/net/dev",
    "/sys/fs/cgroup/cgroup.controllers", "/sys/kernel/security/lsm", "/proc/sys/user/max_user_namespaces",
)  # fmt: skip
PROGRAMS: dict[str, Sequence[str]] = {
    "uname": ("uname", "-a"),
    "addresses": ("ip", "-details", "address"),
    "routes": ("ip", "route"),
    "disk-space": ("df", "-PT"),
    "service": ("systemctl", "status", "--no-pager", "--full", "--lines=0", "appliance.service"),
    "journal": ("journalctl", "--no-pager", "-o", "short-iso", "-n", str(JOURNAL_LINES), "-u", "appliance.service"),
    "kernel-log": ("dmesg", "--level=emerg,alert,crit,err,warn"),
    "packages": (
        "dpkg-query", "-W", "appliance", "qemu-*", "seabios", "ovmf", "crun", "runc", "conmon", "lxcfs", "dnsmasq*",
        "nftables", "libnftables1", "linux-image-*", "systemd", "libc6",
    ),
}  # fmt: skip
PATHS = (
    "/version", "/cluster/resources", "/cluster/options", "/storage", "/nodes/localhost/status",
    "/nodes/localhost/network", "/nodes/localhost/storage", "/nodes/localhost/tasks",
)  # fmt: skip
_DIRECTORY = "appliance-report"


class Reader(Protocol):
    """The appliance's API, as far as it is asked: `cli.client.Api`."""

    def get(self, path: str, **params: object) -> Any: ...


def write(path: Path, findings: str, *, data_dir: Path, api: Reader | None) -> None:
    """Write the archive (.tar.gz, 0600). `api` is None where no appliance answers. Raises `HostError`."""
    known = known_secrets(data_dir)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HostError.from_os_error(error, f"create {path}") from error
    try:
        with os.fdopen(fd, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in _parts(findings, data_dir, api, known):
                _add(archive, name, content)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise HostError.from_os_error(error, f"write {path}") from error
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def known_secrets(data_dir: Path) -> frozenset[str]:
    """Secrets that stand in files of the data directory in clear."""
    try:
        return frozenset({(data_dir / "admin-password").read_text(errors="replace").strip()} - {""})
    except OSError:
        return frozenset()


def _parts(findings: str, data_dir: Path, api: Reader | None, known: frozenset[str]) -> Iterator[tuple[str, str]]:
    yield "doctor.txt", redaction.text(findings, known)
    for file in FILES:
        yield f"host/{_flat(file)}.txt", redaction.text(_file(Path(file)), known)
    for name, argv in PROGRAMS.items():
        yield f"host/{name}.txt", redaction.text(_output(argv), known)
    yield "data-directory.txt", _names(data_dir)
    if api is None:
        yield "api/unreachable.txt", "no appliance answers\n"
        return
    for path in _paths(api):
        text = json.dumps(redaction.values(_answer(api, path), known), indent=1)
        yield f"api/{_flat(path)}.json", text


def _flat(path: str) -> str:
    return path.strip("/").replace("/", "-")


def _paths(api: Reader) -> Iterator[str]:
    yield from PATHS
    rows = _answer(api, "/cluster/resources", type="vm")
    for row in rows[:GUESTS_LIMIT] if isinstance(rows, list) else ():
        yield f"/nodes/localhost/{row['type']}/{row['vmid']}/config"
        yield f"/nodes/localhost/{row['type']}/{row['vmid']}/status/current"


def _answer(api: Reader, path: str, **params: object) -> Any:
    from appliance.cli.errors import CliError

    try:
        return api.get(path, **params)
    except (CliError, OSError) as error:
        return {"error": str(error)}


def _file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(PART_LIMIT_BYTES).decode(errors="replace")
    except OSError as error:
        return f"{path}: {error.strerror}\n"


def _output(argv: Sequence[str]) -> str:
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
            timeout=PROGRAM_TIMEOUT_S, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{argv[0]}: no end within {PROGRAM_TIMEOUT_S:g} s\n"
    except OSError as error:
        return f"{argv[0]}: {error.strerror}\n"
    return done.stdout[-PART_LIMIT_BYTES:].decode(errors="replace")


def _names(data_dir: Path) -> str:
    lines: list[str] = []
    for directory, names, files in os.walk(data_dir):
        names[:] = sorted(name for name in names if "rootfs" not in name)
        for name in sorted(files):
            path = Path(directory) / name
            try:
                found = path.lstat()
            except OSError:
                continue
            mode, used = stat.filemode(found.st_mode), found.st_blocks * 512
            lines.append(f"{mode} {found.st_uid} {found.st_size:>14} {used:>14} {path.relative_to(data_dir)}")
            if len(lines) == NAMES_LIMIT:
                return "\n".join([*lines, "… and more"]) + "\n"
    return "\n".join(lines) + "\n"


def _add(archive: tarfile.TarFile, name: str, content: str) -> None:
    data = content.encode(errors="replace")
    info = tarfile.TarInfo(f"{_DIRECTORY}/{name}")
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    archive.addfile(info, io.BytesIO(data))
