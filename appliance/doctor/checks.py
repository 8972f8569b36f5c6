"""Facts -> findings: what is missing, what that costs, what helps. Pure; the order is that of the report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance.doctor.facts import CONTROLLERS, Facts
from appliance.doctor.finding import Finding, broken, install, lacks, ok
from appliance.kernel.hugepages import HUGE_SHARED_MEMORY, SHARED_MEMORY_POLICY
from appliance.version import DATA_FORMAT

MEMORY_MIN_BYTES = 1 << 30
SPACE_MIN_BYTES = 1 << 30
SPACE_LOW_RATIO = 0.05
CERTIFICATE_WARNING_S = 14 * 86400
NAMESPACES_MIN = 64

_LIBRARY_COSTS = {
    "libnftables.so.1": ("libnftables1", "no bridge of the appliance's own, no filter for guests' addresses"),
    "libpam.so.0": ("libpam0g", "users of the host (realm pam) cannot log in"),
    "libcrypt.so.1": ("libcrypt1", "cloud-init's password cannot be set"),
}
_PROGRAM_COSTS = {
    "qemu-img": ("qemu-utils", "no qcow2 disks, no imports, no cloud-init drives"),
    "qemu-storage-daemon": ("qemu-system-common", "native machines have raw disks only"),
    "mkfs.ext4": ("e2fsprogs", "containers have no volumes of a size"),
    "dnsmasq": ("dnsmasq-base", "no DHCP and DNS on the managed bridge"),
    "dhcpcd": ("dhcpcd-base", "no ip=dhcp or ip6=dhcp of containers the host addresses, on bridges of yours"),
    "mmdebstrap": ("mmdebstrap", "no templates can be built on this host"),
    "sfdisk": ("fdisk", "no templates of virtual machines can be built"),
    "mkfs.vfat": ("dosfstools", "no templates of virtual machines can be built"),
    "mcopy": ("mtools", "no templates of virtual machines can be built"),
    "grub-mkimage": ("grub-common", "no templates of virtual machines can be built"),
    "xz": ("xz-utils", "templates packed by xz cannot be used"),
    "zstd": ("zstd", "templates packed by zstd cannot be used"),
}
_DEVICE_COSTS = {
    "/dev/net/tun": "virtual machines have no network",
    "/dev/vhost-net": "virtual machines' network costs more processor time",
    "/dev/vhost-vsock": "no sockets between host and guests (vsock)",
    "/dev/fuse": "containers cannot mount FUSE file systems",
}
_NEEDED_DEVICES = frozenset({"/dev/net/tun"})
_CONTROLLER_COSTS = {
    "cpu": "limits and weights of processor time have no effect",
    "memory": "memory of containers is not limited: one can take the host's",
    "pids": "containers can exhaust the host's process numbers",
    "io": "no figures of containers' disks",
}


def examine(facts: Facts, *, now: float) -> Sequence[Finding]:
    """Everything, worst and best, in a fixed order."""
    parts = (_host, _machines, _containers, _network, _storage, _templates, _service)
    return [*(finding for part in parts for finding in part(facts)), *_data(facts, now)]


def _host(facts: Facts) -> Iterator[Finding]:
    yield ok("system", f"{facts.system or 'unknown'}, Linux {facts.kernel}")
    if not facts.is_root:
        yield lacks("user", "not root", "some of what follows cannot be seen, and may be wrong", "run it as root")
    memory = f"{facts.memory_bytes / (1 << 30):.1f} GiB"
    if facts.memory_bytes < MEMORY_MIN_BYTES:
        yield lacks("memory", memory, "little room for guests beside the appliance")
    else:
        yield ok("memory", memory)


def _machines(facts: Facts) -> Iterator[Finding]:
    if problem := facts.kvm.machine_problem():
        yield lacks(
            "native machines",
            problem,
            "virtual machines run in QEMU only, emulated: twenty to fifty times slower",
            "enable virtualization in the firmware setup (VT-x, AMD-V); in a virtual machine, nested virtualization",
        )
    elif problem := facts.kvm.problem():
        yield lacks(
            "native machines", problem, "only guests with engine=native run natively, and few systems boot there"
        )
    elif lost := [f"{each.purpose}: {each.lost}" for each in facts.kvm.missing]:
        yield lacks("native machines", "KVM lacks some features", "; ".join(lost), "a newer kernel")
    else:
        yield ok("native machines", "KVM with hardware virtualization")
        if facts.shared_memory_pages and facts.shared_memory_pages not in HUGE_SHARED_MEMORY:
            yield lacks(
                "huge pages",
                f"{SHARED_MEMORY_POLICY} says {facts.shared_memory_pages}",
                "memory of native machines is in small pages, which costs them speed",
                f"echo advise >{SHARED_MEMORY_POLICY} (the package does so at boot)",
            )
    if facts.no_seabios:
        yield lacks("SeaBIOS", facts.no_seabios, "native machines boot kernels directly only", install("seabios"))
    yield from _qemu(facts)


def _qemu(facts: Facts) -> Iterator[Finding]:
    emulator = facts.qemu.emulators.get(facts.qemu.host_arch)
    if emulator is None:
        why = facts.qemu.missing.get(f"arch:{facts.qemu.host_arch}", "not found")
        cost = "virtual machines that the native engine cannot run do not start (UEFI, other architectures)"
        yield broken("QEMU", why, cost, install("qemu-system-x86"))
        return
    yield ok("QEMU", ".".join(map(str, emulator.version)))
    if emulator.firmware is None:
        yield lacks("UEFI", "no firmware for UEFI", "guests with bios=ovmf do not start", install("ovmf"))
    if not emulator.sandbox:
        yield lacks(
            "QEMU's sandbox", "QEMU was built without seccomp", "a guest that breaks QEMU reaches more of the host"
        )


def _containers(facts: Facts) -> Iterator[Finding]:
    runtimes = [name for name in ("crun", "runc") if name in facts.programs]
    if not runtimes:
        yield broken("OCI runtime", "neither crun nor runc is installed", "no container starts", install("crun"))
    elif runtimes == ["crun"] and not facts.cgroup2:
        found = "crun alone, and control groups are not version 2"
        yield broken("OCI runtime", found, "no container starts", install("runc"))
    else:
        yield ok("OCI runtime", ", ".join(runtimes))
    if "conmon" not in facts.programs:
        yield broken("conmon", "not installed", "no container starts", install("conmon"))
    if facts.user_namespaces < NAMESPACES_MIN:
        found = f"user.max_user_namespaces is {facts.user_namespaces}"
        yield broken(
            "user namespaces", found, "no unprivileged container starts", "sysctl user.max_user_namespaces=16384"
        )
    else:
        yield ok("user namespaces", str(facts.user_namespaces))
    if not facts.cgroup2:
        cost = "slower starts; memory.high and pressure figures are missing"
        yield lacks("control groups", "not version 2 alone", cost, "boot with systemd.unified_cgroup_hierarchy=1")
    for name in CONTROLLERS:
        if name not in facts.controllers:
            yield lacks(f"controller {name}", "the kernel does not offer it", _CONTROLLER_COSTS[name])
    if facts.controllers >= {*CONTROLLERS} and facts.cgroup2:
        yield ok("control groups", "version 2 with cpu, memory, pids, io")
    if not facts.lxcfs_mounted:
        cost = "containers see the host's memory and processors in /proc, not their own limits"
        remedy = "systemctl start lxcfs" if "lxcfs" in facts.programs else install("lxcfs")
        yield lacks("lxcfs", "not mounted at /var/lib/lxcfs", cost, remedy)
    if "apparmor" in facts.security_modules and "apparmor_parser" not in facts.programs:
        cost = "containers have no profile of their own; user namespace, seccomp and capabilities confine them"
        yield lacks("AppArmor", "in the kernel, but apparmor_parser is not installed", cost, install("apparmor"))
    elif "apparmor" in facts.security_modules:
        yield ok("AppArmor", "there, beside user namespace, seccomp and capabilities")
    else:
        cost = "none for unprivileged containers: user namespace, seccomp and capabilities confine them"
        yield lacks("AppArmor", "not enabled in this kernel", cost, "boot with apparmor=1 security=apparmor")


def _network(facts: Facts) -> Iterator[Finding]:
    for device, error in facts.device_errors.items():
        if error:
            make = broken if device in _NEEDED_DEVICES else lacks
            module = device.rpartition("/")[2].replace("-", "_")
            yield make(device, error, _DEVICE_COSTS[device], f"modprobe {module}")
    yield from _libraries_and_programs(
        facts, ("libnftables.so.1", "libpam.so.0", "libcrypt.so.1"), ("dnsmasq", "dhcpcd")
    )


def _storage(facts: Facts) -> Iterator[Finding]:
    yield from _libraries_and_programs(facts, (), ("qemu-img", "qemu-storage-daemon", "mkfs.ext4", "xz", "zstd"))


def _templates(facts: Facts) -> Iterator[Finding]:
    yield from _libraries_and_programs(facts, (), ("mmdebstrap", "sfdisk", "mkfs.vfat", "mcopy", "grub-mkimage"))


def _libraries_and_programs(facts: Facts, libraries: Sequence[str], programs: Sequence[str]) -> Iterator[Finding]:
    for library in libraries:
        package, cost = _LIBRARY_COSTS[library]
        if library not in facts.libraries:
            yield lacks(library, "cannot be loaded", cost, install(package))
    for program in programs:
        package, cost = _PROGRAM_COSTS[program]
        if program not in facts.programs:
            yield lacks(program, "not installed", cost, install(package))


def _service(facts: Facts) -> Iterator[Finding]:
    if facts.serves:
        yield ok("appliance", f"answers for {facts.data_dir}")
    elif facts.unit_state == "active":
        cost = "no API, no pages; guests go on"
        yield broken("appliance", "its process runs but does not answer", cost, "journalctl -u appliance -n 100")
    elif facts.unit_state:
        yield lacks("appliance", "the service does not run", "no API, no pages", "systemctl start appliance")
    else:
        yield lacks("appliance", f"does not run for {facts.data_dir}", "no API, no pages", "appliance serve")


def _data(facts: Facts, now: float) -> Iterator[Finding]:
    where = str(facts.data_dir)
    if facts.data_problem:
        yield lacks("data directory", facts.data_problem, "it cannot be examined")
    elif facts.data_format and (not facts.data_format.isdigit() or int(facts.data_format) > DATA_FORMAT):
        found = f"{where} has format {facts.data_format[:20]}, this appliance knows formats up to {DATA_FORMAT}"
        yield broken("data directory", found, "the appliance does not start", "install the newer version again")
    elif facts.data_format:
        yield ok("data directory", f"{where}, format {facts.data_format}")
    free = f"{facts.data_free_bytes / (1 << 30):.1f} GiB free at {where}"
    if facts.data_free_bytes < max(SPACE_MIN_BYTES, facts.data_total_bytes * SPACE_LOW_RATIO):
        cost = "disks of guests cannot grow; guests whose disk is full are paused or see errors"
        yield lacks("disk space", free, cost, "delete unused volumes, or add space")
    else:
        yield ok("disk space", free)
    if facts.certificate_ends and facts.certificate_ends - now < CERTIFICATE_WARNING_S:
        days = (facts.certificate_ends - now) / 86400
        found = f"ends in {days:.0f} days" if days > 0 else "has ended"
        yield lacks("certificate", found, "browsers and clients refuse the connection", "systemctl restart appliance")
