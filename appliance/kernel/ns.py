"""Namespaces held by file descriptors (namespaces(7)): made before anybody lives in them.

A user namespace serves idmapped mounts. A pair of a user and a network namespace is joined by a container later on, by
the path of its descriptors: its network can be made ready while the container itself is being created.
"""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

from appliance.kernel import libc

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
_CLONE_FILES = 0x400
_NS_GET_USERNS = 0xB701


@dataclass(frozen=True, slots=True)
class GuestNamespaces:
    """Descriptors of a fresh network namespace and of the user namespace that owns it (None: ours). Close it once."""

    user_fd: int | None
    net_fd: int

    def path_of(self, fd: int) -> Path:
        """Where another process of root can open what `fd` names, for as long as we keep it open."""
        return Path(f"/proc/{os.getpid()}/fd/{fd}")

    @property
    def paths(self) -> dict[str, Path]:
        """By their names in an OCI configuration."""
        user = {} if self.user_fd is None else {"user": self.path_of(self.user_fd)}
        return user | {"network": self.path_of(self.net_fd)}

    def close(self) -> None:
        """Whoever has joined keeps them alive."""
        os.close(self.net_fd)
        if self.user_fd is not None:
            os.close(self.user_fd)


def user_namespace(id_base: int, id_count: int) -> int:
    """A new user namespace in which ids 0…id_count-1 are id_base…; returns a descriptor that keeps it alive.

    Needs CAP_SETUID and CAP_SETGID. Raises `OSError` naming the file or call.
    """
    # a shared table: a copied one would keep every file open that other threads close meanwhile
    with libc.paused_child(CLONE_NEWUSER | _CLONE_FILES) as pid:
        _map_ids(pid, id_base, id_count)
        return _open(pid, "user")


def owner_of(fd: int) -> int | None:
    """A descriptor of the user namespace that owns the namespace behind `fd`; None when that is ours (ioctl_ns(2)).

    The caller closes it. Raises `OSError` (EPERM: it is none of ours to enter).
    """
    owner = fcntl.ioctl(fd, _NS_GET_USERNS)
    theirs, ours = os.fstat(owner), Path("/proc/self/ns/user").stat()
    if (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino):
        os.close(owner)
        return None
    os.set_inheritable(owner, False)
    return owner


def guest_namespaces(id_base: int, id_count: int) -> GuestNamespaces:
    """Fresh namespaces for one container; with `id_base` 0 it shares our user namespace. Raises as `user_namespace`."""
    flags = CLONE_NEWNET | (CLONE_NEWUSER if id_base else 0)
    with libc.paused_child(flags | _CLONE_FILES) as pid:
        if not id_base:
            return GuestNamespaces(None, _open(pid, "net"))
        _map_ids(pid, id_base, id_count)
        user_fd = _open(pid, "user")
        try:
            return GuestNamespaces(user_fd, _open(pid, "net"))
        except OSError:
            os.close(user_fd)
            raise


def _map_ids(pid: int, id_base: int, id_count: int) -> None:
    for name in ("uid_map", "gid_map"):
        path, text = Path(f"/proc/{pid}/{name}"), f"0 {id_base} {id_count}"
        try:
            path.write_text(text)
        except OSError as error:
            raise OSError(error.errno, f"write {path} ({text!r}): {error.strerror}") from error


def _open(pid: int, kind: str) -> int:
    return os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
