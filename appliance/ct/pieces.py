"""Pieces of a container's start: its directory, its namespaces, a hold of its processes. Blocking: call them in a thread."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from appliance.ct.records import CtRecord
from appliance.errors import HostError
from appliance.kernel import ns, pidfd
from appliance.model.guest import CtSpec


def make_bundle(bundle: Path, spec: CtSpec) -> bool:
    """Make the bundle's directory; False when there is one already. Blocking. Raises `HostError`."""
    try:
        bundle.mkdir(mode=0o711 if spec.id_base else 0o700)
    except FileExistsError:
        return False
    except OSError as error:
        raise HostError.from_os_error(error, f"mkdir {bundle}") from error
    return True


def make_namespaces(spec: CtSpec, held: contextlib.ExitStack) -> Mapping[str, Path]:
    """The namespaces the container will join, kept open by `held`; their paths. Blocking. Raises `HostError`."""
    try:
        made = ns.guest_namespaces(spec.id_base, spec.id_count)
    except OSError as error:
        raise HostError.from_os_error(error, f"ct {spec.guest_id}: namespaces") from error
    held.callback(made.close)
    return made.paths


def open_processes(record: CtRecord) -> tuple[int, int] | None:
    """Pidfds of init and shim, or None when either has ended."""
    init_fd = pidfd.pidfd_open(record.init)
    if init_fd is None:
        return None
    shim_fd = pidfd.pidfd_open(record.shim)
    if shim_fd is None:
        os.close(init_fd)
        return None
    return init_fd, shim_fd
