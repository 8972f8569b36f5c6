"""The C library: raw system calls by number, and the rule every wrapper here keeps.

An `OSError` raised from `appliance.kernel` names the call and the object it was about ("move_mount /run/x: Device or
resource busy"), so that the layer above needs to add nothing but its own object. No asyncio here; calls may block, and
release the interpreter lock while they do. Any thread may enter.
"""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

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


def clone_paused(flags: int) -> int:
    """clone(2) a child that does nothing but pause(2); returns its pid.

    The child is a copy (no CLONE_VM) which never returns to Python, so the state of other threads' locks does not
    matter to it. It sends no signal when it ends: reap it with `reap_clone`.
    """
    # SAFETY: without CLONE_VM the child runs on its own copy of `stack`; the parent may free it as soon as clone
    # returns. The stack grows down from its 16-byte-aligned end; `pause` needs far less than 64 KiB.
    stack = ctypes.create_string_buffer(1 << 16)
    top = (ctypes.addressof(stack) + len(stack)) & ~15
    entry = ctypes.cast(_libc.pause, ctypes.c_void_p)
    return checked(_libc.clone(entry, ctypes.c_void_p(top), ctypes.c_int(flags), None), "clone", f"flags {flags:#x}")


def reap_clone(pid: int) -> None:
    """Kill a child of `clone_paused` and collect it."""
    os.kill(pid, 9)
    os.waitpid(pid, _WALL)


_WALL = 0x40000000  # linux/wait.h: also children that send no SIGCHLD
