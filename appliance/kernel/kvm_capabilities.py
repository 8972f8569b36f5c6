"""What this host's KVM can do, and what is lost by what it cannot: one table, asked once, never assumed.

The table's order is api.rst's reader's: what no machine can do without first. Nothing here changes the host; the
device is opened and closed again.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance.kernel.kvm import KVM_API_VERSION, Kvm
from appliance.kernel.kvm_caps import Cap
from appliance.kernel.virtualization import KVM_DEVICE, hardware_problem


@dataclass(frozen=True, slots=True)
class Feature:
    """One row: a capability, what it is for, and what is lost where it is missing. `needed`: without it no guest runs."""

    cap: Cap
    purpose: str
    lost: str
    needed: bool = False

    def is_missing(self, value: int) -> bool:
        """Whether KVM_CHECK_EXTENSION's answer `value` means no."""
        return value <= 0


_NOTHING_RUNS = "no guest can run natively"

FEATURES = (
    Feature(Cap.USER_MEMORY, "guest memory from the process's own", _NOTHING_RUNS, needed=True),
    Feature(Cap.DESTROY_MEMORY_REGION_WORKS, "memory slots that go away", _NOTHING_RUNS, needed=True),
    Feature(Cap.JOIN_MEMORY_REGIONS_WORKS, "memory slots made anew elsewhere", _NOTHING_RUNS, needed=True),
    Feature(Cap.SYNC_MMU, "guest memory that follows the host's mappings", _NOTHING_RUNS, needed=True),
    Feature(Cap.SET_TSS_ADDR, "real mode on Intel processors", _NOTHING_RUNS, needed=True),
    Feature(Cap.EXT_CPUID, "CPUID leaves with sub-leaves", _NOTHING_RUNS, needed=True),
    Feature(Cap.IRQCHIP, "PIC, IOAPIC and local APIC in the kernel", _NOTHING_RUNS, needed=True),
    Feature(Cap.IRQ_ROUTING, "GSIs routed to pins and messages", _NOTHING_RUNS, needed=True),
    Feature(Cap.IRQFD, "interrupts from a descriptor", _NOTHING_RUNS, needed=True),
    Feature(Cap.IOEVENTFD, "doorbells that cause no exit", _NOTHING_RUNS, needed=True),
    Feature(Cap.SIGNAL_MSI, "message-signalled interrupts", _NOTHING_RUNS, needed=True),
    Feature(Cap.PIT2, "the 8254 timer", _NOTHING_RUNS, needed=True),
    Feature(Cap.IMMEDIATE_EXIT, "stopping a vCPU without a race", _NOTHING_RUNS, needed=True),
    Feature(Cap.MP_STATE, "application processors that wait for INIT and SIPI", _NOTHING_RUNS, needed=True),
    Feature(Cap.SET_IDENTITY_MAP_ADDR, "moving Intel's identity page away", "firmware above 0xfffbc000 may be hit"),
    Feature(Cap.READONLY_MEM, "ROM and flash", "a guest can write to its firmware; no UEFI variables"),
    Feature(Cap.IOEVENTFD_ANY_LENGTH, "doorbells of any width", "each doorbell of another width causes an exit"),
    Feature(Cap.IRQFD_RESAMPLE, "level-triggered interrupts from a descriptor", "INTx only through the process"),
    Feature(Cap.INTERNAL_ERROR_DATA, "details of failures in KVM", "a failed guest's reason has no details"),
    Feature(Cap.EXIT_ON_EMULATION_FAILURE, "instructions KVM cannot emulate", "such a guest gets #UD, not a reason"),
    Feature(Cap.USER_NMI, "injecting an NMI", "no NMI button"),
    Feature(Cap.PIT_STATE2, "saving the 8254", "no saving, no live migration"),
    Feature(Cap.VCPU_EVENTS, "saving pending exceptions and interrupts", "no saving, no live migration"),
    Feature(Cap.DEBUGREGS, "saving the debug registers", "no saving, no live migration"),
    Feature(Cap.XSAVE, "saving FPU, SSE and AVX state", "no saving, no live migration"),
    Feature(Cap.XCRS, "saving which of these are on", "no saving, no live migration"),
    Feature(Cap.XSAVE2, "saving AMX state", "guests have no AMX"),
    Feature(Cap.ADJUST_CLOCK, "saving the guest's clock", "a restored guest's clock jumps"),
    Feature(Cap.CLOCKSOURCE, "kvmclock", "guests measure time by the TSC or the ACPI timer alone"),
    Feature(Cap.KVMCLOCK_CTRL, "telling a guest that it was paused", "soft-lockup warnings after a long pause"),
    Feature(Cap.TSC_DEADLINE_TIMER, "the local APIC's deadline mode", "guests program timers by slower means"),
    Feature(Cap.GET_TSC_KHZ, "the guest's TSC frequency", "guests calibrate it themselves"),
    Feature(Cap.TSC_CONTROL, "another TSC frequency than the host's", "live migration only between equal clocks"),
    Feature(Cap.MANUAL_DIRTY_LOG_PROTECT2, "clearing the dirty log by parts", "longer stalls during live migration"),
    Feature(Cap.REINJECT_CONTROL, "dropping missed 8254 ticks", "a burst of ticks after a pause"),
    Feature(Cap.X86_DISABLE_EXITS, "halting without an exit", "dedicated processors gain nothing"),
    Feature(Cap.STEAL_TIME, "telling guests of time taken from them", "no steal time in the guest's figures"),
)
"""Capability, what it is for, what is lost."""


@dataclass(frozen=True, slots=True)
class KvmCapabilities:
    """`probe`'s answer. `values` are KVM_CHECK_EXTENSION's, empty where the device could not be asked."""

    device_problem: str = ""
    """Why /dev/kvm is of no use; empty when it could be asked."""
    hardware_problem: str = ""
    """Why ordinary guests would fail although the device works; empty on a host fit for them."""
    values: Mapping[Cap, int] = field(default_factory=dict)

    @property
    def missing(self) -> tuple[Feature, ...]:
        """The rows of `FEATURES` this host lacks; none are named when the device itself is the problem."""
        if self.device_problem:
            return ()
        return tuple(feature for feature in FEATURES if feature.is_missing(self.values.get(feature.cap, 0)))

    @property
    def max_vcpus(self) -> int:
        """The most vCPUs a VM may have (api.rst KVM_CREATE_VCPU: MAX_VCPUS, else NR_VCPUS, else 4)."""
        return self.values.get(Cap.MAX_VCPUS, 0) or self.values.get(Cap.NR_VCPUS, 0) or 4

    @property
    def max_memory_slots(self) -> int:
        """The most memory slots a VM may have."""
        return self.values.get(Cap.NR_MEMSLOTS, 0)

    def machine_problem(self) -> str:
        """Why no virtual machine can be run at all; empty when small guests and firmware run."""
        needed = [feature.cap.name for feature in self.missing if feature.needed]
        return self.device_problem or (f"this kernel's KVM lacks {', '.join(needed)}" if needed else "")

    def problem(self) -> str:
        """Why ordinary guests (a stock Linux) cannot be run natively; empty when they can."""
        return self.machine_problem() or self.hardware_problem

    def lines(self) -> list[str]:
        """For people: one line for each thing missing, saying what is lost."""
        first = [f"{problem}: {_NOTHING_RUNS}" for problem in (self.device_problem,) if problem]
        first += [f"{self.hardware_problem}: ordinary guests fail"] if self.hardware_problem else []
        rows = (f"KVM_CAP_{each.cap.name}, {each.purpose}, is missing: {each.lost}" for each in self.missing)
        return [*first, *rows]


def probe(device: str = KVM_DEVICE, cpuinfo: Path = Path("/proc/cpuinfo")) -> KvmCapabilities:
    """Ask the device and the processor. Never raises for what is missing: that is part of the answer."""
    hardware = hardware_problem(cpuinfo.read_text(), platform.machine())
    try:
        with Kvm(device) as kvm:
            if (version := kvm.get_api_version()) != KVM_API_VERSION:
                return KvmCapabilities(f"{device}: API version {version}, not {KVM_API_VERSION}", hardware)
            return KvmCapabilities("", hardware, {cap: kvm.check_extension(cap) for cap in Cap})
    except OSError as error:
        return KvmCapabilities(str(error.strerror), hardware)
