"""The real /dev/kvm, and small machines on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_vm import Vm
from appliance.kernel.virtualization import KVM_DEVICE, open_error
from tests.kvm.machine import SmallMachine


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    """/dev/kvm, open. The one place that skips where there is none."""
    if problem := open_error(KVM_DEVICE):
        pytest.skip(f"{problem}: these tests run guests on the real device")
    with Kvm() as device:
        yield device


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    """A VM with nothing in it."""
    with kvm.create_vm("vm t") as machine:
        yield machine


@pytest.fixture
def machine(vm: Vm) -> Iterator[SmallMachine]:
    """64 KiB of memory and one vCPU, no interrupt controllers: HLT is an exit."""
    with SmallMachine(vm) as small:
        yield small


@pytest.fixture
def pc(vm: Vm) -> Iterator[SmallMachine]:
    """The same with KVM's interrupt controllers and timer."""
    vm.set_tss_addr(0xFFFB_D000)  # above what a C int holds
    vm.set_identity_map_addr(0xFFFB_C000)
    vm.create_irqchip()
    vm.create_pit2()
    with SmallMachine(vm) as small:
        yield small
