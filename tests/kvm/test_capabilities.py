"""What KVM can do, and that a missing feature is named with what is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.kernel.kvm import Kvm
from appliance.kernel.kvm_capabilities import FEATURES, KvmCapabilities, probe
from appliance.kernel.kvm_caps import Cap

EVERYTHING = dict.fromkeys(Cap, 0xFFFF)


def test_a_host_with_everything_misses_nothing() -> None:
    found = KvmCapabilities(values=EVERYTHING)
    assert (found.missing, found.lines(), found.problem()) == ((), [], "")
    assert found.max_vcpus == found.max_memory_slots == 0xFFFF


def test_each_feature_missing_is_named_with_what_is_lost() -> None:
    for feature in FEATURES:
        found = KvmCapabilities(values={**EVERYTHING, feature.cap: 0})
        line = next(line for line in found.lines() if feature.purpose in line)
        assert feature.cap.name in line
        assert line.endswith(feature.lost)
        assert (feature.cap.name in found.problem()) == feature.needed


def test_without_hardware_virtualization_small_guests_run_and_ordinary_ones_do_not() -> None:
    found = KvmCapabilities(hardware_problem="neither vmx nor svm", values=EVERYTHING)
    assert found.machine_problem() == ""
    assert found.problem() == "neither vmx nor svm"
    assert found.lines() == ["neither vmx nor svm: ordinary guests fail"]


def test_an_old_kernel_still_has_four_vcpus() -> None:
    assert KvmCapabilities(values={}).max_vcpus == 4
    assert KvmCapabilities(values={Cap.NR_VCPUS: 8}).max_vcpus == 8


def test_no_device_is_an_answer_and_not_an_error(tmp_path: Path) -> None:
    found = probe(str(tmp_path / "kvm"))
    assert found.problem() == f"open {tmp_path}/kvm: No such file or directory"
    assert found.lines()[0] == f"{found.problem()}: no guest can run natively"
    assert found.missing == ()


def test_a_device_that_is_not_kvm_is_an_answer_and_not_an_error() -> None:
    assert probe("/dev/null").machine_problem().startswith("KVM_GET_API_VERSION /dev/null: ")


@pytest.mark.host
def test_the_probe_asks_the_real_device_and_the_processor(kvm: Kvm, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu svm\n")
    fit = probe(cpuinfo=cpuinfo)
    assert fit.problem() == ""
    assert fit.values == {cap: kvm.check_extension(cap) for cap in Cap}
    cpuinfo.write_text("flags\t\t: fpu\n")
    unfit = probe(cpuinfo=cpuinfo)
    assert "neither vmx nor svm" in unfit.problem()
    assert unfit.machine_problem() == ""
