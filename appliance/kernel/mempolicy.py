"""mbind(2): on which of the host's NUMA nodes memory shall be. Blocking for as long as page tables take.

The C library has no wrapper (libnuma has), and its number differs from architecture to architecture.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Iterable
from enum import IntEnum
from pathlib import Path
from typing import Final

from appliance.kernel import libc

_MBIND: Final = {"x86_64": 237, "aarch64": 235}
NODES: Final = Path("/sys/devices/system/node/online")
HIGHEST_NODE: Final = 1023


class Policy(IntEnum):
    """MPOL_* of linux/mempolicy.h."""

    PREFERRED = 1  # there first, elsewhere when it is full
    BIND = 2  # there only
    INTERLEAVE = 3  # page by page on each of them


def mbind(address: int, length: int, policy: Policy, nodes: Iterable[int], *, about: str) -> None:
    """For pages of the mapping at `address` (a whole page's) that are still to come. `OSError`: EINVAL for a node that the
    host has not, ENOSYS without NUMA in the kernel."""
    mask, number = sum(1 << node for node in nodes), _MBIND.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"mbind {about}: {os.strerror(errno.ENOSYS)}")
    bits = HIGHEST_NODE + 1
    # SAFETY: the kernel reads `bits` bits of the mask and keeps no pointer to it
    buffer = ctypes.create_string_buffer(mask.to_bytes(bits // 8, "little"), bits // 8)
    libc.syscall("mbind", number, address, length, int(policy), buffer, bits + 1, 0, about=about)


def online_nodes() -> frozenset[int]:
    """Blocking. The host's nodes; 0 alone where the kernel does not say."""
    try:
        text = NODES.read_text().strip()
    except OSError:
        return frozenset({0})
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)
