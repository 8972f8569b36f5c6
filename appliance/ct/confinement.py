"""What a container may not do: capabilities, system calls, paths of /proc and /sys. Pure data and choices over it.

The wall between a container and the host is its user namespace; what is here stands behind that wall. The system-call
filter allows by default and denies what reaches the whole host, as LXC's does: a system container runs a whole
distribution, and a short filter costs 1 ms at each start where the long list of allowed calls costs 20.
Privileged containers (id_base 0) lack that wall: they are for trusted software only (THREAT_MODEL.md).
"""

from __future__ import annotations

from collections.abc import Iterable


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


CAPABILITIES = _words(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP "
    "MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
"""In the order of linux/capability.h: the index is the bit."""

_NEVER = frozenset({"SYS_MODULE", "SYS_RAWIO", "SYS_TIME", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM"}) | {
    "BLOCK_SUSPEND"
}
_NEVER_WHEN_PRIVILEGED = frozenset({"MKNOD", "DAC_READ_SEARCH", "AUDIT_CONTROL", "AUDIT_READ", "PERFMON", "BPF"}) | {
    "CHECKPOINT_RESTORE",
    "SYS_PACCT",
}

_CLONE_NEWUSER = 0x10000000
_MNT_FORCE = 1
_EPERM, _EACCES, _ENOSYS = 1, 13, 38

_HOST_WIDE = _words(
    "_sysctl acct bpf clock_settime clock_settime64 create_module delete_module finit_module "
    "get_kernel_syms init_module ioperm iopl kexec_file_load kexec_load lookup_dcookie nfsservctl open_by_handle_at "
    "perf_event_open query_module quotactl quotactl_fd settimeofday stime swapoff swapon sysfs syslog uselib "
    "userfaultfd ustat vm86 vm86old"
)
_ABSENT = ("io_uring_enter", "io_uring_register", "io_uring_setup")
_SYSTEM_ONLY = _words(
    "fsconfig fsmount fsopen fspick kcmp mount mount_setattr move_mount open_tree pidfd_getfd pivot_root "
    "process_vm_readv process_vm_writev ptrace reboot setns umount umount2 unshare"
)
_KEYRING = ("add_key", "keyctl", "request_key")
_ARCHITECTURES = {"amd64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86"), "arm64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")}

_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY_WHEN_PRIVILEGED = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sysrq-trigger",
    "/proc/sys/abi",
    "/proc/sys/debug",
    "/proc/sys/dev",
    "/proc/sys/fs",
    "/proc/sys/kernel",
    "/proc/sys/vm",
)


def capabilities(
    *,
    privileged: bool,
    permitted: Iterable[str] = CAPABILITIES,
    mknod: bool = False,
    dropped: frozenset[str] = frozenset(),
) -> list[str]:
    """The capabilities a container keeps. A privileged one can have no more than the host's `permitted` set.

    `mknod` lets a privileged one make device nodes; which it may open, its device rules still say.
    """
    if not privileged:
        return [f"CAP_{name}" for name in CAPABILITIES if name not in _NEVER | dropped]
    never = _NEVER | (_NEVER_WHEN_PRIVILEGED - ({"MKNOD"} if mknod else frozenset())) | dropped
    have = frozenset(permitted) - never
    return [f"CAP_{name}" for name in CAPABILITIES if name in have]


def parse_capability_mask(mask: str) -> list[str]:
    """The names in a hexadecimal mask of /proc/PID/status (CapPrm)."""
    bits = int(mask, 16)
    return [name for bit, name in enumerate(CAPABILITIES) if bits >> bit & 1]


def seccomp(*, arch: str, nesting: bool, keyctl: bool, strict: bool = False) -> dict[str, object]:
    """The system-call filter in OCI form. Architectures that are not listed are killed (x32 among them).

    `strict` also denies what a service needs none of, and an init of a distribution does: mounts, namespaces, tracing.
    """
    rules = [_deny(_HOST_WIDE, _EPERM), _deny(_ABSENT, _ENOSYS), _deny_flag("umount2", 1, _MNT_FORCE, _EACCES)]
    if strict:
        rules.append(_deny(_SYSTEM_ONLY, _EPERM))
    if not keyctl:
        rules.append(_deny(_KEYRING, _ENOSYS))
    if not nesting:
        # clone3's flags are behind a pointer that a filter cannot read; ENOSYS makes the C library use clone
        rules += [
            _deny(("clone3",), _ENOSYS),
            *(_deny_flag(c, 0, _CLONE_NEWUSER, _EPERM) for c in ("clone", "unshare")),
        ]
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": list(_ARCHITECTURES[arch]),
        "syscalls": rules,
    }


def masked_paths(*, nesting: bool) -> list[str]:
    """Paths to hide. None with nesting: the kernel refuses a new /proc inside where the present one has covered parts."""
    return [] if nesting else list(_MASKED)


def read_only_paths(*, privileged: bool) -> list[str]:
    """Paths whose writing reaches the host when no user namespace is in between."""
    return list(_READ_ONLY_WHEN_PRIVILEGED) if privileged else []


def _deny(names: Iterable[str], error: int) -> dict[str, object]:
    return {"names": list(names), "action": "SCMP_ACT_ERRNO", "errnoRet": error}


def _deny_flag(name: str, argument: int, flag: int, error: int) -> dict[str, object]:
    condition = {"index": argument, "value": flag, "valueTwo": flag, "op": "SCMP_CMP_MASKED_EQ"}
    return {**_deny((name,), error), "args": [condition]}
