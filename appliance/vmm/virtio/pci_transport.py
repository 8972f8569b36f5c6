"""virtio over PCI (virtio 1.2 §4.1): how a `VirtioDevice` is seen as a PCI function. Modern only.

BAR 0, 32-bit memory, 32 KiB:

    0x0000  common configuration      §4.1.4.3    `common_config`
    0x1000  ISR status                §4.1.4.5    read: what interrupted, and withdraw INTx
    0x2000  device configuration      §4.1.4.6    the device's own
    0x3000  doorbells                 §4.1.4.4    four bytes for each queue: an ioeventfd each, which causes no exit
    0x4000  MSI-X table               PCI 3.0 §6.8.2
    0x7000  MSI-X pending bits

The same registers can be reached through configuration space (§4.1.4.9), which firmware does in 16-bit code. A vector for
each queue and one for the configuration; a driver without MSI-X has INTA# and the ISR.

One lock serves the function and the device. The machine knows this object only: it resets, pauses, saves and closes the
device with itself.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from appliance.errors import GuestFault, HostError, Unsupported
from appliance.vmm.device import State
from appliance.vmm.irq import MessageVector
from appliance.vmm.pci.function import BarKind, PciFunction, PciFunctionState
from appliance.vmm.virtio.common_config import COMMON_BYTES, CommonConfig
from appliance.vmm.virtio.consts import NO_VECTOR, PCI_DEVICE_BASE, PCI_VENDOR, DeviceId
from appliance.vmm.virtio.device import VirtioDevice, VirtioState

BAR: Final = 0
BAR_BYTES: Final = 0x8000
COMMON, ISR, DEVICE, NOTIFY, MSIX_TABLE, MSIX_PENDING = 0x0000, 0x1000, 0x2000, 0x3000, 0x4000, 0x7000
AREA_BYTES: Final = 0x1000
NOTIFY_MULTIPLIER: Final = 4
KICK_BYTES: Final = 2  # §4.1.5.2: a driver writes the queue's 16-bit index

ISR_QUEUE, ISR_CONFIG = 1, 2

# Capabilities, §4.1.4
CAP_VENDOR: Final = 0x09
CFG_COMMON, CFG_NOTIFY, CFG_ISR, CFG_DEVICE, CFG_PCI = 1, 2, 3, 4, 5

SUBSYSTEM: Final = 0x1100  # at least 0x40, §4.1.2.1
REVISION: Final = 1

CLASS_CODES: Final = {  # PCI Code and ID Assignment 1.11
    DeviceId.NET: 0x02_0000,
    DeviceId.BLOCK: 0x01_0000,
    DeviceId.CONSOLE: 0x07_8000,
    DeviceId.SCSI: 0x01_0000,
    DeviceId.GPU: 0x03_8000,
    DeviceId.INPUT: 0x09_8000,
    DeviceId.VSOCK: 0x02_8000,
    DeviceId.FS: 0x01_8000,
}
CLASS_OTHER: Final = 0x00_FF00

STATE_VERSION: Final = 1

_CAPABILITY = struct.Struct("<BBBBHII")  # cap_len, cfg_type, bar, id, padding, offset, length


class VirtioPciState(State):
    """`function` is the PCI function's part, `device` the virtio device's."""

    version: int
    function: PciFunctionState
    device: VirtioState
    config_vector: int
    queue_vectors: list[int]
    isr: int
    select: list[int]


class VirtioPci(PciFunction):
    """`device` as a PCI function of the same name. Where the machine has no doorbells a kick is an exit, and heard as well."""

    def __init__(self, device: VirtioDevice) -> None:
        super().__init__(
            device.name,
            device.context,
            vendor=PCI_VENDOR,
            device=PCI_DEVICE_BASE + device.device_id,
            class_code=CLASS_CODES.get(device.device_id, CLASS_OTHER),
            revision=REVISION,
            subsystem=(PCI_VENDOR, SUBSYSTEM),
            interrupt_pin=True,
        )
        self.lock = device.lock
        self.device = device
        self._rung_at: dict[int, tuple[int, int]] = {}  # queue: address and length of its ioeventfd
        self._isr, self._had_msix = 0, False
        vectors = len(device.queues) + 1
        self.common = CommonConfig(device, vectors=vectors, mapped=self._vector_mapped, was_reset=self._driver_reset)
        self.add_bar(BAR, BAR_BYTES, BarKind.MEM32, self)
        self._describe(CFG_COMMON, COMMON, COMMON_BYTES)
        self._describe(CFG_ISR, ISR, 4)
        self._describe(CFG_DEVICE, DEVICE, AREA_BYTES)
        notify_bytes = NOTIFY_MULTIPLIER * max(1, len(device.queues))
        self._describe(CFG_NOTIFY, NOTIFY, notify_bytes, NOTIFY_MULTIPLIER.to_bytes(4, "little"))
        self._window = self._describe_window()
        self.add_msix(vectors, bar=BAR, table_offset=MSIX_TABLE, pba_offset=MSIX_PENDING)
        device.transport = self

    def _describe(self, kind: int, offset: int, length: int, more: bytes = b"") -> None:
        self.add_capability(CAP_VENDOR, _CAPABILITY.pack(16 + len(more), kind, BAR, 0, 0, offset, length) + more)

    def _describe_window(self) -> int:
        """The capability whose data is a window into the BAR: the driver sets bar, offset and length."""
        body = _CAPABILITY.pack(20, CFG_PCI, 0, 0, 0, 0, 0) + bytes(4)
        writable = _CAPABILITY.pack(0, 0, 0xFF, 0, 0, 0xFFFF_FFFF, 0xFFFF_FFFF) + b"\xff" * 4
        return self.add_capability(CAP_VENDOR, body, writable)

    # BAR 0, but for MSI-X

    def read(self, offset: int, size: int) -> int:
        """As the guest sees it: a `BusHandler`."""
        area, inside = offset & ~(AREA_BYTES - 1), offset & (AREA_BYTES - 1)
        with self.lock:
            match area:
                case 0x0000:
                    return self.common.read(inside, size)
                case 0x1000 if inside == 0:
                    return self._read_isr()
                case 0x2000:
                    return self.device.config_as_read(inside, size) & ((1 << 8 * size) - 1)
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """As the guest does it."""
        area, inside = offset & ~(AREA_BYTES - 1), offset & (AREA_BYTES - 1)
        match area:
            case 0x0000:
                with self.lock:
                    self.common.write(inside, size, value)
            case 0x2000:
                self._write_device_config(inside, size, value)
            case 0x3000:
                if inside // NOTIFY_MULTIPLIER < len(self.device.queues):
                    self.device.kick(inside // NOTIFY_MULTIPLIER)

    def _write_device_config(self, offset: int, size: int, value: int) -> None:
        try:
            with self.lock:
                self.device.write_config(offset, size, value)
        except GuestFault as fault:
            self.device.broken(fault.message)

    def _read_isr(self) -> int:
        isr, self._isr = self._isr, 0
        self.set_intx(False)
        return isr

    # The window in configuration space, §4.1.4.9

    def config_reading(self, offset: int, size: int) -> None:
        data = self._window + 16
        if offset < data + 4 and offset + size > data and (access := self._window_access()):
            where, length = access
            value = self.bars[BAR].handler.read(where, length)
            kept = self.config.get(data, 4) >> 8 * length << 8 * length
            self.config.poke(data, 4, kept | value)

    def config_written(self, offset: int, size: int) -> None:
        data = self._window + 16
        if offset < data + 4 and offset + size > data and (access := self._window_access()):
            where, length = access
            self.bars[BAR].handler.write(where, length, self.config.get(data, length))
        self._follow_msix()

    def _window_access(self) -> tuple[int, int] | None:
        """(offset, length) in BAR 0 that the driver has set; None when it is no access."""
        bar = self.config.get(self._window + 4, 1)
        where, length = self.config.get(self._window + 8, 4), self.config.get(self._window + 12, 4)
        if bar != BAR or length not in (1, 2, 4) or where % length or where + length > BAR_BYTES:
            return None
        return where, length

    # Doorbells

    def bar_moved(self, index: int, base: int | None) -> None:
        for queue, (address, length) in self._rung_at.items():
            self._ring(queue, address, length, deassign=True)
        self._rung_at = {}
        if base is None or self.context.doorbells is None:
            return
        for queue in range(len(self.device.queues)):
            address = base + NOTIFY + NOTIFY_MULTIPLIER * queue
            # KVM_CAP_IOEVENTFD_ANY_LENGTH need not decode the instruction; an older kernel wants the width it has to have
            for length in (0, KICK_BYTES):
                if self._ring(queue, address, length):
                    self._rung_at[queue] = (address, length)
                    break
            else:
                self.context.note(f"{self.label}: queue {queue} has no doorbell in KVM: each kick is an exit")

    def _ring(self, queue: int, address: int, length: int, *, deassign: bool = False) -> bool:
        """False when KVM will not: then `write` hears the kick."""
        assert self.context.doorbells is not None
        event = self.device.doorbell(queue)
        try:
            self.context.doorbells.ioeventfd(event, address, length=length, deassign=deassign)
        except (HostError, OSError):
            return False
        return True

    # Interrupts: what a device asks of its transport

    def queue_interrupt(self, index: int) -> None:
        self._interrupt(ISR_QUEUE, index)

    def config_interrupt(self) -> None:
        self._interrupt(ISR_CONFIG, None)

    def vector(self, index: int) -> MessageVector | None:
        return self.msix.vector(self.common.queue_vectors[index]) if self.msix and self.msix.enabled else None

    def _interrupt(self, reason: int, queue: int | None) -> None:
        with self.lock:
            number = self.common.config_vector if queue is None else self.common.queue_vectors[queue]
            if self.msix is not None and self.msix.enabled:
                if queue is None:
                    self._isr |= ISR_CONFIG  # §4.1.4.5.1: whatever MSI-X is
                if number != NO_VECTOR:
                    self.msix.signal(number)
            else:
                self._isr |= reason
                self.set_intx(True)

    def _vector_mapped(self, queue: int | None) -> None:
        if queue is not None:
            self.device.call_changed(queue)

    def _follow_msix(self) -> None:
        """MSI-X may have been switched on or off: the calls of all queues are others then, and INTx's meaning."""
        enabled = self.msix is not None and self.msix.enabled
        if enabled == self._had_msix:
            return
        self._had_msix = enabled
        self.set_intx(bool(self._isr) and not enabled)
        for queue in range(len(self.device.queues)):
            self.device.call_changed(queue)

    def _driver_reset(self) -> None:
        self._isr = 0
        self.set_intx(False)

    # The machine

    def unplugged(self) -> None:
        super().unplugged()
        self._power_on()

    def reset(self) -> None:
        super().reset()
        self._power_on()

    def _power_on(self) -> None:
        with self.lock:
            self.device.reset()
            self.common.reset()
            self._isr, self._had_msix = 0, False

    def pause(self) -> None:
        self.device.pause()

    def resume(self) -> None:
        self.device.resume()

    @property
    def state_type(self) -> type[State] | None:
        return VirtioPciState

    def save(self) -> State | None:
        device = self.device.save()
        assert isinstance(device, VirtioState)
        select = self.common.select
        return VirtioPciState(
            version=STATE_VERSION,
            function=self.save_function(),
            device=device,
            config_vector=self.common.config_vector,
            queue_vectors=list(self.common.queue_vectors),
            isr=self._isr,
            select=[select.device_feature, select.driver_feature, select.queue],
        )

    def restore(self, state: State) -> None:
        if not isinstance(state, VirtioPciState) or state.version > STATE_VERSION:
            raise Unsupported(f"{self.label}: saved state of another version")
        if not self._fits(state):
            raise Unsupported(f"{self.label}: saved state of a device with other queues")
        self.restore_function(state.function)
        with self.lock:
            self.common.reset()
            self.common.config_vector, self.common.queue_vectors = state.config_vector, list(state.queue_vectors)
            select = self.common.select
            select.device_feature, select.driver_feature, select.queue = state.select
            self._isr = state.isr
            self._had_msix = self.msix is not None and self.msix.enabled
            self.device.restore(state.device)

    def _fits(self, state: VirtioPciState) -> bool:
        vectors: Sequence[int] = [state.config_vector, *state.queue_vectors]
        known = all(0 <= each <= len(self.device.queues) or each == NO_VECTOR for each in vectors)
        return known and len(state.queue_vectors) == len(self.device.queues) and len(state.select) == 3

    def close(self) -> None:
        super().close()
        self.device.close()

    def give_back(self) -> None:
        self.device.give_back()
