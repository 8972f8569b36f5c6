"""What /dev/kvm, a VM and a vCPU have in common: an owned descriptor, a name, and ioctls whose errors tell both.

Ioctls go through the C library by ctypes: `fcntl.ioctl` takes a C int, too small for KVM_SET_TSS_ADDR's address. Only
KVM_RUN, where each microsecond counts, has a way of its own (`run_ioctl`). Calls release the interpreter lock.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

from appliance.kernel.kvm_ioctls import Ioctl
from appliance.kernel.libc import failure

S = TypeVar("S", bound=ctypes.Structure)

ioctl = ctypes.CDLL(None, use_errno=True).ioctl
"""ioctl(2), unchecked: -1 leaves the reason in `ctypes.get_errno`. This library handle is ours alone, so setting the
argument types changes no other module's `ioctl`."""
# SAFETY: the argument is an integer, or the address of a structure which the caller keeps alive over the call and whose
# size is encoded in the request (kvm_ioctls); the flexible ones say their count in their header.
ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
ioctl.restype = ctypes.c_int


def _run_by_ctypes(fd: int, request: int) -> int:
    result: int = ioctl(fd, request, None)
    if result < 0:
        raise OSError(ctypes.get_errno(), "KVM_RUN")
    return result


run_ioctl: Callable[[int, int], int]
"""An ioctl without argument that raises `OSError` for any error, EINTR included (`ValueError` for descriptor -1)."""
# One microsecond of ten less for an exit than by ctypes. But from Python 3.14 on fcntl.ioctl calls again by itself
# after EINTR: with `immediate_exit` set that would never end.
run_ioctl = fcntl.ioctl if sys.version_info < (3, 14) else _run_by_ctypes


class KvmObject:
    """A KVM file descriptor that is owned. `name` says in errors what it is.

    Every method named after an ioctl raises `OSError` naming the ioctl and the object
    ("KVM_CREATE_VCPU vm 101: vcpu 3: File exists"); after `close` that is EBADF.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self.name = name

    def fileno(self) -> int:
        """The descriptor; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Close the descriptor; once is enough, twice is harmless."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, request: Ioctl, argument: int = 0, *, about: str = "") -> int:
        """An ioctl that takes an integer; `about` names what it was about when that is more than this object."""
        result: int = ioctl(self._fd, request, argument)
        if result < 0:
            raise failure(request.name, about or self.name)
        return result

    def _pass(self, request: Ioctl, structure: ctypes.Structure, *, about: str = "") -> int:
        """An ioctl that reads or changes `structure`."""
        result: int = ioctl(self._fd, request, ctypes.byref(structure))
        if result < 0:
            raise failure(request.name, about or self.name)
        return result

    def _filled(self, request: Ioctl, structure: S, *, about: str = "") -> S:
        """`structure`, after an ioctl that fills it in."""
        self._pass(request, structure, about=about)
        return structure
