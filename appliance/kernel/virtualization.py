"""Whether this host's KVM is fit for ordinary guests: asked by every engine that would use it, answered here once.

KVM is usable on x86 only where /dev/kvm opens *and* the processor shows vmx or svm: a software-backed /dev/kvm opens
too, and then fails in the middle of an ordinary guest.
"""

from __future__ import annotations

import os
import re

KVM_DEVICE = "/dev/kvm"
NO_HARDWARE = "the processor shows neither vmx nor svm: no hardware virtualization"

_FLAGS = re.compile(r"^flags\s*:.*\b(?:vmx|svm)\b", re.MULTILINE)


def open_error(device: str) -> str:
    """Why `device` cannot be opened for reading and writing ("/dev/kvm: Permission denied"); empty when it can."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{device}: {error.strerror}"
    return ""


def hardware_problem(cpuinfo: str, host_arch: str) -> str:
    """Why the processor that `cpuinfo` (/proc/cpuinfo's text) describes cannot run guests itself; empty when it can.

    Only x86 says so there (VMX: SDM vol.3 §24.6, SVM: APM vol.2 §15.4): elsewhere the answer is empty. Pure.
    """
    return NO_HARDWARE if host_arch == "x86_64" and not _FLAGS.search(cpuinfo) else ""


def kvm_problem(*, open_error: str, cpuinfo: str, host_arch: str) -> str:
    """Why KVM is unusable, given the device's `open_error`; empty when it is usable. Pure."""
    return open_error or hardware_problem(cpuinfo, host_arch)
