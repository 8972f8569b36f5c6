"""The common configuration structure of virtio over PCI (virtio 1.2 §4.1.4.3), as registers of any width and order.

    0x00 device_feature_select 4   0x04 device_feature 4    0x08 driver_feature_select 4   0x0c driver_feature 4
    0x10 config_msix_vector 2      0x12 num_queues 2        0x14 device_status 1           0x15 config_generation 1
    0x16 queue_select 2            0x18 queue_size 2        0x1a queue_msix_vector 2       0x1c queue_enable 2
    0x1e queue_notify_off 2        0x20 queue_desc 8        0x28 queue_driver 8            0x30 queue_device 8

A write of part of a register changes that part; a write over several changes each, lowest address first. What belongs
to a queue does not move while the queue is enabled. The device's lock is held by whoever enters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from appliance.vmm.virtio.consts import NO_VECTOR
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import VirtQueue

COMMON_BYTES: Final = 0x38

_MASK_32 = 0xFFFF_FFFF


@dataclass(slots=True)
class Selectors:
    """What the driver's next accesses are about."""

    device_feature: int = 0
    driver_feature: int = 0
    queue: int = 0


@dataclass(frozen=True, slots=True)
class Register:
    """`size` bytes at `offset`. Without `write` it is read-only."""

    offset: int
    size: int
    read: Callable[[], int]
    write: Callable[[int], None] | None = None


class CommonConfig:
    """The registers of `device`. `mapped` is told of each change of an interrupt vector, `was_reset` of status 0."""

    def __init__(
        self,
        device: VirtioDevice,
        *,
        vectors: int,
        mapped: Callable[[int | None], None],
        was_reset: Callable[[], None],
    ) -> None:
        self.select = Selectors()
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(device.queues)
        self._device = device
        self._vectors = vectors
        self._mapped = mapped
        self._was_reset = was_reset
        self._registers = (
            Register(0x00, 4, lambda: self.select.device_feature, self._select_device_feature),
            Register(0x04, 4, lambda: _word(device.features, self.select.device_feature)),
            Register(0x08, 4, lambda: self.select.driver_feature, self._select_driver_feature),
            Register(0x0C, 4, self._read_driver_feature, self._write_driver_feature),
            Register(0x10, 2, lambda: self.config_vector, self._map_config),
            Register(0x12, 2, lambda: len(device.queues)),
            Register(0x14, 1, device.read_status, self._write_status),
            Register(0x15, 1, lambda: device.config_generation),
            Register(0x16, 2, lambda: self.select.queue, self._select_queue),
            Register(0x18, 2, self._queue_size, self._set_queue_size),
            Register(0x1A, 2, self._queue_vector, self._map_queue),
            Register(0x1C, 2, self._queue_enabled, self._enable_queue),
            Register(0x1E, 2, self._queue_notify_off),
            Register(0x20, 8, partial(self._area, "desc"), partial(self._move, "desc")),
            Register(0x28, 8, partial(self._area, "avail"), partial(self._move, "avail")),
            Register(0x30, 8, partial(self._area, "used"), partial(self._move, "used")),
        )

    def reset(self) -> None:
        """Every event unmapped (§4.1.5.1.2.1), selectors at zero."""
        self.select = Selectors()
        self.config_vector = NO_VECTOR
        self.queue_vectors = [NO_VECTOR] * len(self.queue_vectors)

    # The guest's door

    def read(self, offset: int, size: int) -> int:
        value, end = 0, offset + size
        for register in self._registers:
            if register.offset < end and offset < register.offset + register.size:
                shift = 8 * (register.offset - offset)
                part = register.read()
                value |= part << shift if shift >= 0 else part >> -shift
        return value & ((1 << 8 * size) - 1)

    def write(self, offset: int, size: int, value: int) -> None:
        end = offset + size
        for register in self._registers:
            if register.write is None or register.offset >= end or offset >= register.offset + register.size:
                continue
            first, last = max(offset, register.offset), min(end, register.offset + register.size)
            part = value >> 8 * (first - offset) & ((1 << 8 * (last - first)) - 1)
            if last - first < register.size:
                place = 8 * (first - register.offset)
                kept = register.read() & ~(((1 << 8 * (last - first)) - 1) << place)
                part = kept | part << place
            register.write(part)

    # The whole device

    def _select_device_feature(self, value: int) -> None:
        self.select.device_feature = value

    def _select_driver_feature(self, value: int) -> None:
        self.select.driver_feature = value

    def _read_driver_feature(self) -> int:
        return _word(self._device.driver_features, self.select.driver_feature)

    def _write_driver_feature(self, value: int) -> None:
        if self.select.driver_feature < 2:  # none is defined beyond 63, and none is presented
            shift = 32 * self.select.driver_feature
            self._device.write_driver_features(self._device.driver_features & ~(_MASK_32 << shift) | value << shift)

    def _map_config(self, value: int) -> None:
        self.config_vector = value if value < self._vectors else NO_VECTOR
        self._mapped(None)

    def _write_status(self, value: int) -> None:
        self._device.write_status(value)
        if not value:
            self.reset()
            self._was_reset()

    # The selected queue; one that is not there has size 0 and ignores writes

    @property
    def _queue(self) -> VirtQueue | None:
        return self._device.queues[self.select.queue] if self.select.queue < len(self._device.queues) else None

    def _select_queue(self, value: int) -> None:
        self.select.queue = value

    def _queue_size(self) -> int:
        return self._queue.size if self._queue else 0

    def _set_queue_size(self, value: int) -> None:
        if self._queue and not self._queue.enabled:
            self._queue.size = value

    def _queue_vector(self) -> int:
        return self.queue_vectors[self.select.queue] if self._queue else NO_VECTOR

    def _map_queue(self, value: int) -> None:
        if self._queue:
            self.queue_vectors[self.select.queue] = value if value < self._vectors else NO_VECTOR
            self._mapped(self.select.queue)

    def _queue_enabled(self) -> int:
        return int(self._queue.enabled) if self._queue else 0

    def _enable_queue(self, value: int) -> None:
        if self._queue and value == 1:  # 0 must not be written; there is no way back but reset
            self._device.enable_queue(self.select.queue)

    def _queue_notify_off(self) -> int:
        return self.select.queue if self._queue else 0

    def _area(self, name: str) -> int:
        value: int = getattr(self._queue, name) if self._queue else 0
        return value

    def _move(self, name: str, value: int) -> None:
        if self._queue and not self._queue.enabled:
            setattr(self._queue, name, value)


def _word(features: int, number: int) -> int:
    """Bits 32 * number and up; nothing is defined beyond bit 63."""
    return features >> 32 * number & _MASK_32 if number < 2 else 0
