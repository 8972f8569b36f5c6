"""User namespaces held by a file descriptor, for idmapped mounts (user_namespaces(7))."""

from __future__ import annotations

import os
from pathlib import Path

from appliance.kernel import libc

CLONE_NEWUSER = 0x10000000
_CLONE_FILES = 0x400


def user_namespace(id_base: int, id_count: int) -> int:
    """A new user namespace in which ids 0…id_count-1 are id_base…; returns a descriptor that keeps it alive.

    Needs CAP_SETUID and CAP_SETGID. Raises `OSError` naming the file or call.
    """
    # a shared table: a copied one would keep every file open that other threads close meanwhile
    pid = libc.clone_paused(CLONE_NEWUSER | _CLONE_FILES)
    try:
        for name in ("uid_map", "gid_map"):
            _write(Path(f"/proc/{pid}/{name}"), f"0 {id_base} {id_count}")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        libc.reap_clone(pid)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        raise OSError(error.errno, f"write {path} ({text!r}): {error.strerror}") from error
