"""The C library: raw system calls by number, and the rule every wrapper here keeps.

An `OSError` raised from `appliance.kernel` names the call and the object it was about ("move_mount /run/x: Device or
resource busy"), so that the layer above needs to add nothing but its own object. No asyncio here; calls may block, and
release the interpreter lock while they do. Any thread may enter.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import platform
import signal
from collections.abc import Iterator

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_libc.mmap.restype = ctypes.c_void_p

Argument = int | bytes | None | ctypes.Array[ctypes.c_char]


def failure(call: str, about: object, number: int | None = None) -> OSError:
    """The `OSError` for `call` having failed on `about`, from the thread's errno (or `number`)."""
    code = ctypes.get_errno() if number is None else number
    return OSError(code, f"{call} {about}: {os.strerror(code)}")


def checked(result: int, call: str, about: object) -> int:
    """Pass a C result on; -1 becomes the `OSError`."""
    if result < 0:
        raise failure(call, about)
    return result


def syscall(call: str, number: int, *arguments: Argument, about: object) -> int:
    """`syscall(2)`. Integers go as longs, bytes as NUL-terminated strings, ctypes buffers by address, None as NULL.

    Only numbers that are the same on every architecture (424 and above) are used with it.
    """
    # SAFETY: bytes and buffers are referenced by `converted` until the call has returned, and the kernel keeps no
    # pointer to them; their sizes are passed explicitly or they are NUL-terminated.
    converted = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    return checked(_libc.syscall(ctypes.c_long(number), *converted), call, about)


def umount2(target: os.PathLike[str] | str, flags: int = 0) -> None:
    """umount2(2)."""
    checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), "umount2", target)


def mount(source: str, target: str, fs_type: str, flags: int, options: str) -> None:
    """mount(2)."""
    words = (os.fsencode(source), os.fsencode(target), os.fsencode(fs_type))
    checked(_libc.mount(*words, ctypes.c_ulong(flags), os.fsencode(options)), "mount", f"{fs_type} {target}")


def unshare(flags: int) -> None:
    """unshare(2), of the calling thread alone."""
    checked(_libc.unshare(ctypes.c_int(flags)), "unshare", hex(flags))


@contextlib.contextmanager
def paused_child(flags: int) -> Iterator[int]:
    """clone(2) a child with `flags` that does nothing but wait; yields its pid, and ends it afterwards.

    It shares our memory, for a copy of a large process costs 10 ms and more; so nothing of ours runs in it but `_WAITING`,
    with every signal blocked. It sends no signal when it ends, and it ends with the thread that made it, however that ends:
    one that stayed would keep all our files open, locks and listening sockets too.
    """
    # SAFETY: the child lives on `stack`, which outlives it: it is killed and collected before this function ends. Its code
    # makes system calls and touches no memory. The stack grows down from its 16-byte-aligned end.
    stack = ctypes.create_string_buffer(1 << 14)
    top = (ctypes.addressof(stack) + len(stack)) & ~15
    if platform.machine() == "x86_64":
        entry, argument, flags = _waiting(), ctypes.c_void_p(os.getpid()), flags | _CLONE_VM
    else:  # libc's pause uses thread-local state: on a copy
        entry, argument, flags = ctypes.cast(_libc.pause, ctypes.c_void_p), ctypes.c_void_p(), flags & ~_CLONE_VM
    mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    try:
        pid = _libc.clone(entry, ctypes.c_void_p(top), ctypes.c_int(flags), argument)
        error = ctypes.get_errno()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    if pid < 0:
        raise failure("clone", f"flags {flags:#x}", error)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, _WALL)


@functools.cache
def _waiting() -> ctypes.c_void_p:
    """Where `_WAITING` can be called: mapped once, never writable and executable at the same time."""
    fd = os.memfd_create("waiting", os.MFD_CLOEXEC)
    try:
        os.write(fd, _WAITING)
        address = _libc.mmap(
            None, ctypes.c_size_t(len(_WAITING)), ctypes.c_int(mmap.PROT_READ | mmap.PROT_EXEC),
            ctypes.c_int(mmap.MAP_PRIVATE), ctypes.c_int(fd), ctypes.c_long(0),
        )  # fmt: skip
        if address == ctypes.c_void_p(-1).value:
            raise failure("mmap", "the code of a waiting child")
    finally:
        os.close(fd)
    return ctypes.c_void_p(address)


_WAITING = bytes.fromhex(
    "89fb"  # mov ebx, edi: the parent's pid
    "b89d000000 bf01000000 be09000000 0f05"  # prctl(PR_SET_PDEATHSIG, SIGKILL)
    "b86e000000 0f05"  # getppid()
    "39d8 7509"  # cmp eax, ebx; jne to the end: it has died before we asked for the signal
    "b822000000 0f05 ebf7"  # pause(), for ever
    "b83c000000 31ff 0f05"  # exit(0)
)
"""x86-64. Of prctl(2)'s five arguments PR_SET_PDEATHSIG looks at two; the kernel keeps all registers but rax, rcx, r11."""
_CLONE_VM = 0x100
_WALL = 0x40000000  # linux/wait.h: also children that send no SIGCHLD
