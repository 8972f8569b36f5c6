"""The OCI configuration is a pure function of the specification and the host's facts."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance.ct import confinement, oci
from appliance.model.guest import CtDevice, CtMount, CtSecurity, CtSpec, GuestId, MountKind

GOLDEN = Path(__file__).parent / "golden"
FACTS = oci.HostFacts(
    cgroup2=False,
    swap_limit=True,
    lxcfs_files={"meminfo": Path("/var/lib/lxcfs/proc/meminfo")},
    permitted_capabilities=[name for name in confinement.CAPABILITIES if name != "SYS_RESOURCE"],
    pids_limit=1000,
)
SPEC = CtSpec(
    guest_id=GuestId(101),
    hostname="web",
    id_base=200_000,
    cores=2,
    memory_mib=256,
    swap_mib=128,
    root=CtMount(slot="rootfs", volume="local:101/vm-101-disk-0.raw", path="/"),
    mounts=(
        CtMount(slot="mp1", volume="local:101/vm-101-disk-2.raw", path="/srv/deep/inside"),
        CtMount(slot="mp0", volume="local:101/vm-101-disk-1.raw", path="/srv", read_only=True),
    ),
)


JOINED = {"user": Path("/proc/1/fd/8"), "network": Path("/proc/1/fd/9")}


def config(spec: CtSpec = SPEC, facts: oci.HostFacts = FACTS) -> Any:
    return json.loads(
        json.dumps(
            oci.container_config(spec, host=facts, bundle=Path("/run/a/ct/101"), cgroup="/a/ct-101", joined=JOINED)
        )
    )


def test_the_configuration_of_a_system_container_is_as_reviewed() -> None:
    assert config() == json.loads((GOLDEN / "system.json").read_text())


def test_an_unprivileged_container_has_its_own_id_range_and_all_namespaces() -> None:
    linux = config()["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 200_000, "size": 65_536}]
    kinds = {each["type"] for each in linux["namespaces"]}
    assert kinds == {"user", "pid", "ipc", "uts", "mount", "network", "cgroup"}


def test_a_privileged_container_gets_no_more_than_the_host_may_and_no_device_nodes() -> None:
    made = config(replace(SPEC, id_base=0))
    kept = made["process"]["capabilities"]["bounding"]
    assert "user" not in {each["type"] for each in made["linux"]["namespaces"]}
    assert "uidMappings" not in made["linux"]
    assert not {"CAP_SYS_RESOURCE", "CAP_MKNOD", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_TIME"} & set(kept)
    assert "/proc/sysrq-trigger" in made["linux"]["readonlyPaths"]


@pytest.mark.parametrize("id_base", [0, 100_000])
def test_no_container_may_load_modules_set_the_clock_or_touch_ports(id_base: int) -> None:
    kept = set(config(replace(SPEC, id_base=id_base))["process"]["capabilities"]["effective"])
    assert not kept & {"CAP_SYS_MODULE", "CAP_SYS_TIME", "CAP_SYS_RAWIO", "CAP_SYSLOG", "CAP_MAC_ADMIN"}


@pytest.mark.parametrize(
    ("cores", "cpu_limit", "quota"),
    [(None, 0.0, None), (2, 0.0, 200_000), (None, 0.5, 50_000), (4, 1.5, 150_000), (1, 8.0, 100_000)],
)
def test_the_cpu_quota_is_the_smaller_of_cores_and_limit(
    cores: int | None, cpu_limit: float, quota: int | None
) -> None:
    cpu = oci.resources(replace(SPEC, cores=cores, cpu_limit=cpu_limit), FACTS)["cpu"]
    assert isinstance(cpu, dict)
    assert cpu.get("quota") == quota


def test_cpu_units_become_shares_on_cgroup1_and_weight_on_cgroup2() -> None:
    v1 = oci.resources(SPEC, FACTS)
    v2 = oci.resources(replace(SPEC, cpu_units=500), replace(FACTS, cgroup2=True))
    assert v1["cpu"] == {"period": 100_000, "quota": 200_000, "shares": 1024}
    assert v2["cpu"] == {"period": 100_000, "quota": 200_000}
    assert v2["unified"] == {"cpu.weight": "500"}


def test_swap_is_limited_on_top_of_memory_where_the_kernel_can() -> None:
    mib = 1 << 20
    assert oci.resources(SPEC, FACTS)["memory"] == {"limit": 256 * mib, "swap": 384 * mib}
    assert oci.resources(SPEC, replace(FACTS, swap_limit=False))["memory"] == {"limit": 256 * mib}
    assert "memory" not in oci.resources(replace(SPEC, memory_mib=0), FACTS)


def test_mount_points_come_before_those_inside_them() -> None:
    paths = [each["destination"] for each in config()["mounts"]]
    assert paths.index("/srv") < paths.index("/srv/deep/inside")


def test_fuse_brings_its_device_and_only_its_device() -> None:
    linux = config(replace(SPEC, features=frozenset({"fuse"})))["linux"]
    assert [each["path"] for each in linux["devices"]] == ["/dev/fuse"]
    assert linux["resources"]["devices"][0] == {"allow": False, "access": "rwm"}
    assert len(linux["resources"]["devices"]) == 2


def test_nesting_opens_user_namespaces_and_shows_an_uncovered_proc() -> None:
    plain, nesting = config(), config(replace(SPEC, features=frozenset({"nesting"})))
    assert {"clone3", "unshare"} <= denied(plain)
    assert not {"clone3", "unshare"} & denied(nesting)
    assert nesting["linux"]["maskedPaths"] == []
    assert "/dev/.lxc/proc" in [each["destination"] for each in nesting["mounts"]]


def test_keyrings_are_absent_unless_asked_for() -> None:
    assert "keyctl" in denied(config())
    assert "keyctl" not in denied(config(replace(SPEC, features=frozenset({"keyctl"}))))


def test_the_host_cannot_be_reached_by_system_calls_with_any_feature() -> None:
    everything = denied(config(replace(SPEC, features=frozenset({"nesting", "keyctl", "fuse"}))))
    assert {"kexec_load", "init_module", "open_by_handle_at", "bpf", "perf_event_open", "clock_settime"} <= everything


def test_a_capability_mask_is_read_in_the_kernels_order() -> None:
    assert confinement.parse_capability_mask("0000000000000003") == ["CHOWN", "DAC_OVERRIDE"]
    assert "SYS_RESOURCE" not in confinement.parse_capability_mask("000001fffeffffff")
    assert len(confinement.CAPABILITIES) == 41  # CAP_LAST_CAP 40, linux/capability.h


def test_a_path_of_the_host_is_mounted_without_devices_and_set_id() -> None:
    shared = CtMount(slot="mp0", volume="/srv", path="/in", kind=MountKind.HOST_PATH, options=frozenset({"noexec"}))
    (made,) = [each for each in config(replace(SPEC, mounts=(shared,)))["mounts"] if each["destination"] == "/in"]
    assert {"nosuid", "nodev", "noexec"} <= set(made["options"])
    assert made["source"] == "/run/a/ct/101/mp0"


def test_a_file_system_in_memory_has_its_size() -> None:
    memory = CtMount(slot="mp0", volume="", path="/in", size_bytes=1 << 20, kind=MountKind.MEMORY)
    (made,) = [each for each in config(replace(SPEC, mounts=(memory,)))["mounts"] if each["destination"] == "/in"]
    assert made["type"] == "tmpfs"
    assert {"size=1048576", "nosuid", "nodev"} <= set(made["options"])


def test_a_device_is_bound_from_the_node_made_for_it() -> None:
    tun = CtDevice(slot="dev0", path="/dev/net/tun", read_only=True)
    made = config(replace(SPEC, devices=(tun,)))
    assert [each["source"] for each in made["mounts"] if each["destination"] == "/dev/net/tun"] == [
        "/run/a/ct/101/devices/dev0"
    ]
    assert oci.device_rule(tun, kind="c", major=10, minor=200)["access"] == "r"


def test_confinement_can_be_made_stricter_or_left_out() -> None:
    strict = config(replace(SPEC, security=CtSecurity(seccomp="strict", dropped=frozenset({"NET_RAW"}))))
    assert {"mount", "ptrace", "kexec_load"} <= denied(strict)
    assert "CAP_NET_RAW" not in strict["process"]["capabilities"]["bounding"]
    assert "seccomp" not in config(replace(SPEC, security=CtSecurity(seccomp="none")))["linux"]


def test_apparmor_is_asked_for_only_where_the_host_has_it() -> None:
    assert "apparmorProfile" not in config()["process"]
    known = replace(FACTS, apparmor_profile="appliance-container")
    assert config(facts=known)["process"]["apparmorProfile"] == "appliance-container"
    free = replace(SPEC, security=CtSecurity(apparmor="unconfined"))
    assert config(free, known)["process"]["apparmorProfile"] == "unconfined"


def test_mknod_and_a_writable_sys_are_given_when_asked_for() -> None:
    privileged = replace(SPEC, id_base=0, features=frozenset({"mknod", "force_rw_sys"}))
    made = config(privileged)
    assert "CAP_MKNOD" in made["process"]["capabilities"]["bounding"]
    assert "rw" in next(each["options"] for each in made["mounts"] if each["destination"] == "/sys")


def denied(made: Any) -> set[str]:
    return {name for rule in made["linux"]["seccomp"]["syscalls"] for name in rule["names"]}
