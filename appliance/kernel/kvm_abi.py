"""The binary interface of <linux/kvm.h> for x86-64, part one: what all parts share, and a virtual machine's structures.

    kvm_abi       layout checks, flexible arrays, a VM's structures and constants (this file)
    kvm_cpu_abi   a vCPU's registers and state
    kvm_run_abi   struct kvm_run, the page shared with KVM_RUN, and its exits
    kvm_ioctls    the ioctl numbers
    kvm_caps      the capability numbers

Field names, order and constants are those of include/uapi/linux/kvm.h and arch/x86/include/uapi/asm/kvm.h (Linux 6.1);
what they mean is in Documentation/virt/kvm/api.rst under the ioctl's name. Every structure states its size, and the
offsets at which a wrong padding would show, as a C compiler gives them: a mistake fails the import. Pure; no call is
made here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from ctypes import c_int32, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from typing import TypeVar

S = TypeVar("S", bound=ctypes.Structure)
Entry = TypeVar("Entry", bound=ctypes.Structure)
Kind = TypeVar("Kind", bound="ctypes.Structure | ctypes._SimpleCData[int]")

PAGE_BYTES = 4096
DIRTY_BITMAP_WORD_PAGES = 64  # a dirty bitmap is an array of unsigned long (api.rst KVM_GET_DIRTY_LOG)


def layout(size_bytes: int, **offsets: int) -> Callable[[type[S]], type[S]]:
    """Assert a structure's size, and its fields' `offsets`, when it is defined."""

    def check(structure: type[S]) -> type[S]:
        assert ctypes.sizeof(structure) == size_bytes, f"{structure.__name__} is {ctypes.sizeof(structure)} bytes"
        for name, offset in offsets.items():
            assert getattr(structure, name).offset == offset, f"{structure.__name__}.{name} is misplaced"
        return structure

    return check


def alike(kind: type[Kind], names: str) -> tuple[tuple[str, type[Kind]], ...]:
    """Fields of one kind, for `_fields_`: `names` are separated by blanks."""
    return tuple((name, kind) for name in names.split())


def with_entries(header: type[S], entry: type[Entry], count: int) -> tuple[S, ctypes.Array[Entry]]:
    """A zeroed `header` followed in the same memory by an array of `count` entries (C's flexible array member)."""
    memory = bytearray(ctypes.sizeof(header) + count * ctypes.sizeof(entry))
    # SAFETY: both views are inside `memory`, which each keeps alive; a bytearray with views cannot be resized or moved.
    return header.from_buffer(memory), (entry * count).from_buffer(memory, ctypes.sizeof(header))


# Memory (api.rst KVM_SET_USER_MEMORY_REGION, KVM_GET_DIRTY_LOG, KVM_CLEAR_DIRTY_LOG)

KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY = 1 << 0, 1 << 1


@layout(32, guest_phys_addr=8, memory_size=16, userspace_addr=24)
class KvmUserspaceMemoryRegion(ctypes.Structure):
    """struct kvm_userspace_memory_region."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


@layout(16, dirty_bitmap=8)
class KvmDirtyLog(ctypes.Structure):
    """struct kvm_dirty_log."""

    _fields_ = (("slot", c_uint32), ("padding1", c_uint32), ("dirty_bitmap", c_uint64))


@layout(24, first_page=8, dirty_bitmap=16)
class KvmClearDirtyLog(ctypes.Structure):
    """struct kvm_clear_dirty_log."""

    _fields_ = (("slot", c_uint32), ("num_pages", c_uint32), ("first_page", c_uint64), ("dirty_bitmap", c_uint64))


# Interrupts and doorbells (api.rst KVM_IRQ_LINE, KVM_IRQFD, KVM_IOEVENTFD, KVM_SET_GSI_ROUTING, KVM_SIGNAL_MSI)

KVM_IRQFD_FLAG_DEASSIGN, KVM_IRQFD_FLAG_RESAMPLE = 1 << 0, 1 << 1
KVM_IOEVENTFD_FLAG_DATAMATCH, KVM_IOEVENTFD_FLAG_PIO, KVM_IOEVENTFD_FLAG_DEASSIGN = 1 << 0, 1 << 1, 1 << 2
KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI = 1, 2


@layout(8)
class KvmIrqLevel(ctypes.Structure):
    """struct kvm_irq_level: `irq` is a GSI."""

    _fields_ = (("irq", c_uint32), ("level", c_uint32))


@layout(32, resamplefd=12)
class KvmIrqfd(ctypes.Structure):
    """struct kvm_irqfd."""

    _fields_ = (
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    )


@layout(64, len=16, fd=20, flags=24)
class KvmIoeventfd(ctypes.Structure):
    """struct kvm_ioeventfd: `len` 1, 2, 4, 8, or 0 for any length."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


@layout(32, data=8, flags=12)
class KvmMsi(ctypes.Structure):
    """struct kvm_msi."""

    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    )


@layout(8)
class KvmIrqRoutingIrqchip(ctypes.Structure):
    """struct kvm_irq_routing_irqchip."""

    _fields_ = (("irqchip", c_uint32), ("pin", c_uint32))


@layout(16, data=8)
class KvmIrqRoutingMsi(ctypes.Structure):
    """struct kvm_irq_routing_msi."""

    _fields_ = (("address_lo", c_uint32), ("address_hi", c_uint32), ("data", c_uint32), ("devid", c_uint32))


class _Route(ctypes.Union):
    _fields_ = (("irqchip", KvmIrqRoutingIrqchip), ("msi", KvmIrqRoutingMsi), ("pad", c_uint32 * 8))


@layout(48, u=16)
class KvmIrqRoutingEntry(ctypes.Structure):
    """struct kvm_irq_routing_entry. Make one with `irqchip_route` or `msi_route`."""

    _fields_ = (("gsi", c_uint32), ("type", c_uint32), ("flags", c_uint32), ("pad", c_uint32), ("u", _Route))


@layout(8)
class KvmIrqRouting(ctypes.Structure):
    """struct kvm_irq_routing, without its entries."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32))


def irqchip_route(gsi: int, chip: int, pin: int) -> KvmIrqRoutingEntry:
    """`gsi` raises `pin` of `chip` (KVM_IRQCHIP_*)."""
    entry = KvmIrqRoutingEntry(gsi=gsi, type=KVM_IRQ_ROUTING_IRQCHIP)
    entry.u.irqchip = KvmIrqRoutingIrqchip(chip, pin)
    return entry


def msi_route(gsi: int, address: int, data: int) -> KvmIrqRoutingEntry:
    """`gsi` sends the message `data` to `address` (SDM vol.3 §11.11)."""
    entry = KvmIrqRoutingEntry(gsi=gsi, type=KVM_IRQ_ROUTING_MSI)
    entry.u.msi = KvmIrqRoutingMsi(address & 0xFFFF_FFFF, address >> 32, data, 0)
    return entry


# Interrupt controllers (api.rst KVM_GET_IRQCHIP)

KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC = 0, 1, 2
KVM_IOAPIC_NUM_PINS = 24
_PIC_FIELDS = (
    "last_irr irr imr isr priority_add irq_base read_reg_select poll special_mask init_state auto_eoi "
    "rotate_on_auto_eoi special_fully_nested_mode init4 elcr elcr_mask"
)


@layout(16, imr=2, elcr_mask=15)
class KvmPicState(ctypes.Structure):
    """struct kvm_pic_state: one 8259A."""

    _fields_ = alike(c_uint8, _PIC_FIELDS)


@layout(216, irr=16, redirtbl=24)
class KvmIoapicState(ctypes.Structure):
    """struct kvm_ioapic_state; a `redirtbl` entry is the 64-bit register of the 82093AA (its §3.2.4)."""

    _fields_ = (
        ("base_address", c_uint64),
        ("ioregsel", c_uint32),
        ("id", c_uint32),
        ("irr", c_uint32),
        ("pad", c_uint32),
        ("redirtbl", c_uint64 * KVM_IOAPIC_NUM_PINS),
    )


class _Chip(ctypes.Union):
    _fields_ = (("dummy", c_uint8 * 512), ("pic", KvmPicState), ("ioapic", KvmIoapicState))


@layout(520, chip=8)
class KvmIrqchip(ctypes.Structure):
    """struct kvm_irqchip: `chip_id` says which member of `chip` holds."""

    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", _Chip))


# Timers and clock (api.rst KVM_CREATE_PIT2, KVM_GET_PIT2, KVM_REINJECT_CONTROL, KVM_GET_CLOCK)

KVM_PIT_SPEAKER_DUMMY = 1
KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON = 1, 2
KVM_CLOCK_TSC_STABLE, KVM_CLOCK_REALTIME, KVM_CLOCK_HOST_TSC = 2, 1 << 2, 1 << 3


@layout(64)
class KvmPitConfig(ctypes.Structure):
    """struct kvm_pit_config."""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


@layout(24, count_latched=6, gate=15, count_load_time=16)
class KvmPitChannelState(ctypes.Structure):
    """struct kvm_pit_channel_state: one counter of the 8254."""

    _fields_ = (
        ("count", c_uint32),
        ("latched_count", c_uint16),
        *alike(c_uint8, "count_latched status_latched status read_state write_state write_latch rw_mode mode bcd gate"),
        ("count_load_time", c_int64),
    )


@layout(112, flags=72)
class KvmPitState2(ctypes.Structure):
    """struct kvm_pit_state2."""

    _fields_ = (("channels", KvmPitChannelState * 3), ("flags", c_uint32), ("reserved", c_uint32 * 9))


@layout(32)
class KvmReinjectControl(ctypes.Structure):
    """struct kvm_reinject_control."""

    _fields_ = (("pit_reinject", c_uint8), ("reserved", c_uint8 * 31))


@layout(48, flags=8, realtime=16, host_tsc=24)
class KvmClockData(ctypes.Structure):
    """struct kvm_clock_data: `clock` and `realtime` in nanoseconds; `realtime` counts when KVM_CLOCK_REALTIME is set."""

    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )


@layout(104, args=8)
class KvmEnableCap(ctypes.Structure):
    """struct kvm_enable_cap (api.rst KVM_ENABLE_CAP)."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))
