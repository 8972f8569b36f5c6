"""What this host's QEMU, KVM and firmware can do: asked of them, never assumed from a version or a device node.

One QEMU per architecture is started without a machine, asked over QMP and ended: about 0.1 s each.
Whether KVM is usable is `kernel.virtualization`'s judgement.
"""

from __future__ import annotations

import asyncio
import json
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from appliance.command import run
from appliance.errors import CommandFailed, HostError
from appliance.kernel import hugepages, virtiofsd
from appliance.kernel.virtualization import KVM_DEVICE, kvm_problem, open_error
from appliance.model.guest import Capabilities
from appliance.qemu.firmware import Firmware, find_firmware

PROBE_TIMEOUT_S = 20.0
OLDEST_VERSION = (7, 0, 0)  # JSON syntax for -netdev
SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"

_PACKAGES = {"x86_64": "qemu-system-x86", "aarch64": "qemu-system-arm"}
_QUESTIONS = ("qmp_capabilities", "query-machines", "qom-list-types", "query-command-line-options", "quit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Emulator:
    """One qemu-system-ARCH. `machines` holds names and aliases; `types` every QOM type, devices among them."""

    arch: str
    binary: str
    version: tuple[int, int, int]
    machines: frozenset[str] = frozenset()
    types: frozenset[str] = frozenset()
    sandbox: bool = False
    firmware: Firmware | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """All the engine knows of its host. Empty `no_kvm`, `no_vhost` and `no_cpu_limit` mean usable; otherwise they hold
    the reason."""

    emulators: Mapping[str, Emulator] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    host_arch: str = "x86_64"
    no_kvm: str = ""
    no_vhost: str = ""
    no_cpu_limit: str = ""
    keymaps: frozenset[str] = frozenset()
    boot_roms: frozenset[str] = frozenset()
    virtiofsd: str | None = None
    huge_pages_kib: frozenset[int] = frozenset()

    def kvm_problem(self, arch: str) -> str:
        """Why a guest of `arch` cannot use KVM; empty when it can."""
        if arch != self.host_arch:
            return f"a {arch} guest cannot use KVM on a {self.host_arch} host"
        return self.no_kvm

    def summary(self) -> Capabilities:
        """The engine-neutral form: "start", "kvm", "tcg", "vhost-net", "cpu-limit", "sandbox", and "arch:", "machine:",
        "firmware:" names."""
        available: set[str] = set()
        missing = dict(self.missing)
        for emulator in self.emulators.values():
            available |= {"start", "tcg", f"arch:{emulator.arch}"}
            available |= {f"machine:{name}" for name in emulator.machines}
            firmware = f"firmware:{'ovmf' if emulator.arch == 'x86_64' else 'aavmf'}"
            if emulator.firmware:
                available.add(firmware)
            else:
                missing[firmware] = (
                    f"no UEFI firmware for {emulator.arch} (package {_FIRMWARE_PACKAGES[emulator.arch]})"
                )
            _note(available, missing, "sandbox", "" if emulator.sandbox else "QEMU was built without seccomp")
        if not self.emulators:
            missing["start"] = "; ".join(self.missing.values()) or "no QEMU found"
        _note(available, missing, "kvm", self.kvm_problem(self.host_arch))
        _note(available, missing, "vhost-net", self.no_vhost)
        _note(available, missing, "cpu-limit", self.no_cpu_limit)
        newest = max((emulator.version for emulator in self.emulators.values()), default=(0, 0, 0))
        version = ".".join(map(str, newest))
        return Capabilities(engine="qemu", version=version, available=frozenset(available), missing=missing)


_FIRMWARE_PACKAGES = {"x86_64": "ovmf", "aarch64": "qemu-efi-aarch64"}


def _note(available: set[str], missing: dict[str, str], feature: str, problem: str) -> None:
    if problem:
        missing[feature] = problem
    else:
        available.add(feature)


async def probe_host() -> HostFacts:
    """Ask everything. Never raises for what is missing: that is part of the answer."""
    found = await asyncio.gather(*(_probe_emulator(arch) for arch in _PACKAGES))
    emulators = {item.arch: item for item in found if isinstance(item, Emulator)}
    missing = {f"arch:{arch}": item for arch, item in zip(_PACKAGES, found, strict=True) if isinstance(item, str)}
    return await asyncio.to_thread(_local_facts, emulators, missing)


def parse_answers(arch: str, binary: str, output: str) -> Emulator:
    """Read what `_QUESTIONS` brought, one JSON document a line. Raises `HostError` for anything unexpected. Pure."""
    try:
        answers = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        version = answers[0]["QMP"]["version"]["qemu"]
        machines, types, options = (answer["return"] for answer in answers[2:5])
        return Emulator(
            arch=arch,
            binary=binary,
            version=(int(version["major"]), int(version["minor"]), int(version["micro"])),
            machines=frozenset(name for m in machines for name in (m["name"], m.get("alias")) if name),
            types=frozenset(item["name"] for item in types),
            sandbox=any(item["option"] == "sandbox" for item in options),
        )
    except (KeyError, IndexError, ValueError, TypeError) as error:
        raise HostError(f"{binary}: its monitor's answers are not understood: {error!r}") from error


async def _probe_emulator(arch: str) -> Emulator | str:
    name = f"qemu-system-{arch}"
    binary = await asyncio.to_thread(shutil.which, name)
    if binary is None:
        return f"{name} is not installed (package {_PACKAGES[arch]})"
    # under timeout(1): should we be killed meanwhile, the QEMU that was asked ends by itself
    argv = ["timeout", "--kill-after=5", "30", binary, "-S", "-no-user-config", "-nodefaults", "-nographic"]
    argv += ["-machine", "none,accel=tcg", "-qmp", "stdio"]
    questions = "".join(json.dumps({"execute": question}) + "\n" for question in _QUESTIONS)
    try:
        completed = await run(argv, timeout_s=PROBE_TIMEOUT_S, stdin=questions.encode())
        emulator = parse_answers(arch, binary, completed.text)
    except CommandFailed as error:
        return f"{name} does not start: {error}"
    except HostError as error:
        return str(error)
    if emulator.version < OLDEST_VERSION:
        return (
            f"{name} {'.'.join(map(str, emulator.version))} is too old: {'.'.join(map(str, OLDEST_VERSION))} is needed"
        )
    return emulator


def _local_facts(emulators: Mapping[str, Emulator], missing: Mapping[str, str]) -> HostFacts:
    host_arch = platform.machine()
    with_firmware = {arch: replace(found, firmware=find_firmware(arch)) for arch, found in emulators.items()}
    return HostFacts(
        emulators=with_firmware,
        missing=missing,
        host_arch=host_arch,
        no_kvm=kvm_problem(
            open_error=open_error(KVM_DEVICE), cpuinfo=Path("/proc/cpuinfo").read_text(), host_arch=host_arch
        ),
        no_vhost=open_error("/dev/vhost-net"),
        keymaps=_names("/usr/share/qemu/keymaps"),
        boot_roms=_names("/usr/lib/ipxe/qemu", "/usr/share/qemu"),
        virtiofsd=virtiofsd.find_program(),
        huge_pages_kib=hugepages.sizes_kib(),
    )


def _names(*directories: str) -> frozenset[str]:
    def listed() -> Iterable[str]:
        for directory in directories:
            if Path(directory).is_dir():
                yield from (path.name for path in Path(directory).iterdir())

    return frozenset(listed())
