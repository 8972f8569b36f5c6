"""The signal that makes another thread leave KVM_RUN (api.rst immediate_exit): SIGURG, with a handler that does nothing.

SIGURG, for its default is to be ignored: one that comes when the handler has gone harms nobody. Nobody else here asks
for it (a socket sends it only after F_SETOWN), and being no real-time signal any number of kicks are one.

The handler is not Python's: that could be set by the main thread only, and would write to the event loop's wake-up
descriptor at each kick. It is a C function which takes an int and does nothing: abs(3). Any thread may enter.
"""

from __future__ import annotations

import ctypes
import signal

from appliance.kernel.libc import checked

KICK = signal.SIGURG

_libc = ctypes.CDLL(None, use_errno=True)


class _SigAction(ctypes.Structure):
    """struct sigaction of glibc (bits/sigaction.h), the same on x86-64 and aarch64; the mask is 1024 bits wide."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_uint8 * 128),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


def install() -> None:
    """Once for the process, or again: from now on `KICK` interrupts a blocking ioctl and does nothing else."""
    # SAFETY: abs touches no memory and lives as long as the C library. Without SA_RESTART (flags 0) calls are
    # interrupted. The kernel copies the structure before the call returns.
    action = _SigAction(handler=ctypes.cast(_libc.abs, ctypes.c_void_p).value)
    checked(_libc.sigaction(ctypes.c_int(KICK), ctypes.byref(action), None), "sigaction", KICK.name)


def send(thread_ident: int) -> None:
    """Interrupt the thread. It has not ended: the caller sees to that."""
    signal.pthread_kill(thread_ident, KICK)
