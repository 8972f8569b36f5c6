"""Doorbells in the kernel: a driver's kick signals an eventfd and causes no exit (api.rst KVM_IOEVENTFD)."""

from __future__ import annotations

from typing import Protocol

from appliance.errors import HostError
from appliance.kernel.eventfd import EventFd

KICK_BYTES = 2  # §4.1.5.2: a driver writes the queue's 16-bit index


class Doorbells(Protocol):
    """On memory addresses. Both raise `HostError`; tests have a fake."""

    def add(self, event: EventFd, address: int) -> None:
        """From now on a guest's write to `address` signals `event`."""

    def remove(self, event: EventFd, address: int) -> None:
        """No more."""


class IoEventFds(Protocol):
    """The part of `kernel.kvm_vm.Vm` that is used here."""

    def ioeventfd(
        self,
        event: EventFd,
        address: int,
        *,
        length: int,
        datamatch: int | None = None,
        pio: bool = False,
        deassign: bool = False,
    ) -> None: ...


class KvmDoorbells:
    """`any_length`: KVM_CAP_IOEVENTFD_ANY_LENGTH, with which KVM need not decode the instruction that kicks. Without it a
    kick has the width that it ought to have; others are exits, and heard too."""

    def __init__(self, vm: IoEventFds, *, any_length: bool) -> None:
        self._vm = vm
        self._length = 0 if any_length else KICK_BYTES

    def add(self, event: EventFd, address: int) -> None:
        self._change(event, address, deassign=False)

    def remove(self, event: EventFd, address: int) -> None:
        self._change(event, address, deassign=True)

    def _change(self, event: EventFd, address: int, *, deassign: bool) -> None:
        try:
            self._vm.ioeventfd(event, address, length=self._length, deassign=deassign)
        except OSError as error:
            raise HostError.from_os_error(error, f"doorbell at {address:#x}") from error
