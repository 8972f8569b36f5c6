"""What guests of a lab host are booted from: paths inside of it. See `guest_files.py` and `guest_console.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GuestFiles:
    """Of one kernel."""

    vmlinux: str
    bzimage: str
    initramfs: str
    disk: str
    """Debian 12 as `tests/images.py` builds it, qcow2, read-only: the base of an overlay."""
