"""How a virtio device reaches its driver (virtio 1.2 §4); `pci_transport` is the one there is. Any thread may enter."""

from __future__ import annotations

from typing import Protocol

from appliance.vmm.irq import MessageVector


class Transport(Protocol):
    """How a device reaches its driver. Any thread."""

    def queue_interrupt(self, index: int) -> None:
        """Buffers of this queue were used."""

    def config_interrupt(self) -> None:
        """The configuration, or the status, has changed."""

    def vector(self, index: int) -> MessageVector | None:
        """The queue's message vector; None when it has none of its own (INTx, or not configured)."""


class NoTransport:
    """Before a transport has taken the device: nobody hears."""

    def queue_interrupt(self, index: int) -> None:
        return

    def config_interrupt(self) -> None:
        return

    def vector(self, index: int) -> MessageVector | None:
        return None
