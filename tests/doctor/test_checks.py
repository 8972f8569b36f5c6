"""What the doctor says of hosts that lack something; each missing thing is named with its cost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance.doctor.checks import examine
from appliance.doctor.facts import CONTROLLERS, DEVICES, LIBRARIES, PROGRAMS, Facts
from appliance.doctor.finding import Finding, Level
from appliance.doctor.main import render
from appliance.kernel.kvm_capabilities import FEATURES, KvmCapabilities
from appliance.kernel.kvm_caps import Cap
from appliance.qemu.capabilities import Emulator, HostFacts
from appliance.qemu.firmware import Firmware
from appliance.version import DATA_FORMAT

NOW = 1_700_000_000.0
_EVERY_CAP = {feature.cap: 1 for feature in FEATURES}
GOOD = Facts(
    system="Debian GNU/Linux 12 (bookworm)",
    kernel="6.1.0",
    memory_bytes=16 << 30,
    kvm=KvmCapabilities(values=_EVERY_CAP),
    qemu=HostFacts(
        emulators={
            "x86_64": Emulator(
                arch="x86_64", binary="qemu", version=(7, 2, 0), sandbox=True, firmware=Firmware.__new__(Firmware)
            )
        }
    ),
    shared_memory_pages="advise",
    programs={name: f"/usr/bin/{name}" for name in PROGRAMS},
    libraries=frozenset(LIBRARIES),
    device_errors=dict.fromkeys(DEVICES, ""),
    controllers=frozenset(CONTROLLERS),
    user_namespaces=60000,
    security_modules=("capability", "apparmor"),
    data_free_bytes=50 << 30,
    data_total_bytes=100 << 30,
    data_format=str(DATA_FORMAT),
    certificate_ends=NOW + 300 * 86400,
    serves=True,
    unit_state="active",
)


def bad(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts, now=NOW) if finding.level is not Level.OK]


def test_a_whole_host_lacks_nothing() -> None:
    assert bad(GOOD) == []


def _without(mapping: dict[str, str], name: str) -> dict[str, str]:
    return {key: value for key, value in mapping.items() if key != name}


@pytest.mark.parametrize(
    ("change", "what", "level"),
    [
        ({"is_root": False}, "user", Level.LACKS),
        ({"memory_bytes": 512 << 20}, "memory", Level.LACKS),
        ({"kvm": KvmCapabilities(device_problem="/dev/kvm: No such file")}, "native machines", Level.LACKS),
        ({"kvm": KvmCapabilities(hardware_problem="no svm", values=_EVERY_CAP)}, "native machines", Level.LACKS),
        ({"kvm": KvmCapabilities(values=_EVERY_CAP | {Cap.XSAVE: 0})}, "native machines", Level.LACKS),
        ({"shared_memory_pages": "never"}, "huge pages", Level.LACKS),
        ({"no_seabios": "no bios-256k.bin"}, "SeaBIOS", Level.LACKS),
        ({"qemu": HostFacts(missing={"arch:x86_64": "not installed"})}, "QEMU", Level.BROKEN),
        ({"programs": _without(dict(GOOD.programs), "conmon")}, "conmon", Level.BROKEN),
        ({"programs": {"conmon": "x"}}, "OCI runtime", Level.BROKEN),
        ({"programs": _without(dict(GOOD.programs), "mmdebstrap")}, "mmdebstrap", Level.LACKS),
        ({"programs": _without(dict(GOOD.programs), "dnsmasq")}, "dnsmasq", Level.LACKS),
        ({"libraries": frozenset({"libpam.so.0", "libcrypt.so.1"})}, "libnftables.so.1", Level.LACKS),
        ({"device_errors": {"/dev/net/tun": "No such device"}}, "/dev/net/tun", Level.BROKEN),
        ({"device_errors": {"/dev/vhost-net": "No such device"}}, "/dev/vhost-net", Level.LACKS),
        ({"user_namespaces": 0}, "user namespaces", Level.BROKEN),
        ({"cgroup2": False}, "control groups", Level.LACKS),
        ({"controllers": frozenset({"cpu", "memory", "io"})}, "controller pids", Level.LACKS),
        ({"lxcfs_mounted": False}, "lxcfs", Level.LACKS),
        ({"security_modules": ()}, "AppArmor", Level.LACKS),
        ({"programs": _without(dict(GOOD.programs), "apparmor_parser")}, "AppArmor", Level.LACKS),
        ({"data_format": str(DATA_FORMAT + 1)}, "data directory", Level.BROKEN),
        ({"data_format": "garbage"}, "data directory", Level.BROKEN),
        ({"data_problem": "Permission denied"}, "data directory", Level.LACKS),
        ({"data_free_bytes": 100 << 20}, "disk space", Level.LACKS),
        ({"certificate_ends": NOW + 86400}, "certificate", Level.LACKS),
        ({"serves": False}, "appliance", Level.BROKEN),
        ({"serves": False, "unit_state": "inactive"}, "appliance", Level.LACKS),
        ({"serves": False, "unit_state": ""}, "appliance", Level.LACKS),
    ],
)
def test_what_is_missing_is_named_with_what_it_costs(change: dict[str, Any], what: str, level: Level) -> None:
    found = next(finding for finding in bad(replace(GOOD, **change)) if finding.what == what)
    assert found.level is level
    assert found.found
    assert found.cost


def test_crun_alone_does_not_do_on_the_hybrid_layout() -> None:
    facts = replace(GOOD, programs={"conmon": "x", "crun": "x"}, cgroup2=False)
    assert Level.BROKEN in {finding.level for finding in bad(facts) if finding.what == "OCI runtime"}


def test_lines_fit_a_terminal_and_the_last_one_counts() -> None:
    lines = list(render(examine(replace(GOOD, security_modules=(), user_namespaces=0), now=NOW)))
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "1 lacking, 1 broken"
