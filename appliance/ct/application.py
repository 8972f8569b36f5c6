"""What is different about an application container: its process, its mounts, its identity. Pure, but for `identity`.

The program is PID 1, with Docker's usual capabilities, without a way to new privileges other than set-uid programs of its own
user namespace. Three files of /etc are the host's to write (name, hosts, resolver): they are bound in from the bundle, so
that nothing is written into what the image brought.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.ct import records
from appliance.ct.host import Surroundings, surroundings
from appliance.ct.interior import hosts_lines, resolv_conf
from appliance.ct.tree import RootTree
from appliance.errors import GuestFault, HostError, InvalidParameter
from appliance.model.guest import CtSpec

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
FILES = ("hostname", "hosts", "resolv.conf")
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "NET_RAW",
    "SYS_CHROOT", "MKNOD", "AUDIT_WRITE", "SETFCAP",
)  # fmt: skip
"""What Docker gives; everything else an image's program has learned to live without."""
_OF_INITS = ("/run", "/run/lock")
_GROUPS_LIMIT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who runs the program, in the container's own ids."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"


def identity(tree: RootTree, user: str) -> Identity:
    """Resolve `user` (`NAME|UID[:GROUP|GID]`, "" for root) by the container's own passwd(5) and group(5). Blocking.

    Raises `InvalidParameter` when there is no such user or group inside.
    """
    name, _, group = user.partition(":")
    accounts = _rows(tree, "/etc/passwd", 7)
    groups = _rows(tree, "/etc/group", 3)
    row = next((each for each in accounts if each[0] == name), None) if name else None
    if row is None and (not name or name.isdecimal()):
        number = int(name or 0)
        row = next((each for each in accounts if each[2] == str(number)), None)
        uid, gid, home, name = number, int(row[3]) if row else 0, row[5] if row else "/", row[0] if row else ""
    elif row is None:
        raise InvalidParameter({"app-user": f"there is no user '{name}' inside"})
    else:
        uid, gid, home = int(row[2]), int(row[3]), row[5]
    extra = [int(each[2]) for each in groups if len(each) > 3 and name and name in each[3].split(",")]
    if group:
        gid, extra = _group(groups, group), []
    return Identity(uid=uid, gid=gid, groups=tuple(extra[:_GROUPS_LIMIT]), home=home or "/")


def prepare(spec: CtSpec, bundle: Path, config: Mapping[str, object]) -> dict[str, object]:
    """The bundle's configuration as an application's, whose files are put there; the root is attached. Blocking.

    Raises `InvalidParameter`, `HostError`.
    """
    assert spec.application is not None
    write_files(spec, surroundings(), bundle)
    fd = os.open(bundle / spec.root.slot, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        who = identity(RootTree(fd, f"ct {spec.guest_id}"), spec.application.user)
    finally:
        os.close(fd)
    return adapt(config, spec, who, bundle)


def adapt(config: Mapping[str, object], spec: CtSpec, who: Identity, bundle: Path) -> dict[str, object]:
    """A system container's runtime configuration (`oci.container_config`) as an application's."""
    system, mounts = config["process"], config["mounts"]
    assert isinstance(system, dict)
    assert isinstance(mounts, list)
    kept = [
        _read_only_cgroup(each) for each in mounts if each["type"] != "tmpfs" or each["destination"] not in _OF_INITS
    ]
    have = [name for name in system["capabilities"]["bounding"] if name.removeprefix("CAP_") in CAPABILITIES]
    if spec.id_base and "CAP_MKNOD" not in have:
        have.append("CAP_MKNOD")  # of no use in a user namespace, and looked for by some
    return {**config, "process": {**system, **_process(spec, who, have)}, "mounts": [*kept, *_file_mounts(bundle)]}


def _process(spec: CtSpec, who: Identity, capabilities: Sequence[str]) -> dict[str, object]:
    assert spec.application is not None
    environment = {"PATH": PATH, "HOME": who.home, "HOSTNAME": spec.hostname, **spec.environment}
    if spec.application.terminal:
        environment.setdefault("TERM", "xterm")
    # a program of another user has none in effect; what it starts with set-uid can have these at most
    effective = list(capabilities) if who.uid == 0 else []
    return {
        "terminal": spec.application.terminal,
        "user": {"uid": who.uid, "gid": who.gid, "additionalGids": list(who.groups)},
        "args": list(spec.command),
        "env": [f"{name}={value}" for name, value in environment.items()],
        "cwd": spec.application.working_directory,
        "capabilities": {"bounding": list(capabilities), "effective": effective, "permitted": effective},
    }


def _read_only_cgroup(mount: Mapping[str, object]) -> Mapping[str, object]:
    options = mount["options"]
    assert isinstance(options, list)
    if mount["destination"] != "/sys/fs/cgroup":
        return mount
    return {**mount, "options": ["ro" if option == "rw" else option for option in options]}


def files(spec: CtSpec, around: Surroundings) -> Mapping[str, str]:
    """The content of `FILES`."""
    hosts = ["127.0.0.1 localhost", "::1 localhost ip6-localhost ip6-loopback", *hosts_lines(spec)]
    return {
        "hostname": f"{spec.hostname}\n",
        "hosts": "\n".join([*hosts, ""]),
        "resolv.conf": resolv_conf(spec, around.resolver),
    }


def write_files(spec: CtSpec, around: Surroundings, bundle: Path) -> None:
    """Put `files` into the bundle, the container's root's own. Blocking. Raises `HostError`."""
    for name, text in files(spec, around).items():
        records.save(bundle, name, text.encode())
        try:
            os.chown(bundle / name, spec.id_base, spec.id_base)
            (bundle / name).chmod(0o644)
        except OSError as error:
            raise HostError.from_os_error(error, f"write {bundle / name}") from error


def rewrite_resolver(bundle: Path, text: str) -> None:
    """Change the resolver's file of a container that runs: in place, as it is bound in. Blocking. Raises `HostError`."""
    path = bundle / "resolv.conf"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(fd, "wb", buffering=0) as file:
            file.write(text.encode())
    except OSError as error:
        raise HostError.from_os_error(error, f"write {path}") from error


def _file_mounts(bundle: Path) -> list[dict[str, object]]:
    options = ["bind", "nosuid", "nodev", "noexec"]
    return [
        {"destination": f"/etc/{name}", "type": "bind", "source": str(bundle / name), "options": options}
        for name in FILES
    ]


def _rows(tree: RootTree, path: str, fields: int) -> list[list[str]]:
    """The rows of a table of accounts that are whole. A file that is too large is no table."""
    try:
        text = (tree.read(path) or b"").decode(errors="replace")
    except GuestFault:
        return []
    rows = [line.split(":") for line in text.splitlines()]
    return [
        row
        for row in rows
        if len(row) >= fields and row[2].isdecimal() and len(row[2]) < 10 and (fields < 7 or row[3].isdecimal())
    ]


def _group(groups: Sequence[Sequence[str]], name: str) -> int:
    for row in groups:
        if row[0] == name:
            return int(row[2])
    if name.isdecimal():
        return int(name)
    raise InvalidParameter({"app-user": f"there is no group '{name}' inside"})
