"""A thread's own file-system ids (setfsuid(2), capabilities(7)): acting as another owner without losing root's powers.

The calls concern the calling thread alone; the rest of the process stays what it is.
"""

from __future__ import annotations

import contextlib
import ctypes
import struct
from collections.abc import Iterator

from appliance.kernel.libc import checked

_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


@contextlib.contextmanager
def fs_ids(owner: int) -> Iterator[None]:
    """Files made by this thread belong to user and group `owner` meanwhile; its capabilities stay. Raises `OSError`.

    An overlay mount keeps the ids of whoever makes it, and uses them for what it makes in its layers: where those are
    idmapped, only a mapped owner can be written down there.
    """
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0), 8)  # pid 0: the calling thread
    data = ctypes.create_string_buffer(24)
    # SAFETY: version 3 of capget and capset uses an 8-byte header and two 12-byte records; both buffers outlive the calls.
    checked(_libc.capget(header, data), "capget", "thread")
    before = _libc.setfsgid(owner), _libc.setfsuid(owner)  # they return the old ids, and drop capabilities for files
    try:
        checked(_libc.capset(header, data), "capset", "thread")
        yield
    finally:
        _libc.setfsuid(before[1])
        _libc.setfsgid(before[0])
        checked(_libc.capset(header, data), "capset", "thread")
