"""Whether a ring may be had, as the kernel answers."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from appliance.kernel import io_uring, libc


@pytest.mark.parametrize(("answer", "available"), [(errno.EFAULT, True), (errno.ENOSYS, False), (errno.EPERM, False)])
def test_a_kernel_that_would_look_for_its_description_would_make_a_ring(
    monkeypatch: pytest.MonkeyPatch, answer: int, available: bool
) -> None:
    def refuse(call: str, *_: object, about: object) -> int:
        raise OSError(answer, call)

    monkeypatch.setattr(libc, "syscall", refuse)
    assert io_uring.is_available() is available


@pytest.mark.host
def test_what_is_said_of_this_kernel_is_so() -> None:
    description = ctypes.create_string_buffer(120)  # struct io_uring_params
    try:
        ring = libc.syscall("io_uring_setup", 425, 1, description, about="a ring")
    except OSError:
        assert not io_uring.is_available()
    else:
        os.close(ring)
        assert io_uring.is_available()
