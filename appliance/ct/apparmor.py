"""The AppArmor profile of containers, where the host has AppArmor: a third wall behind user namespace and system-call filter.

It matters most to privileged containers: kernel file systems that rule the host stay unmounted, and the settings in /proc and
/sys that are the host's cannot be written, whatever the container mounts where. It does not restrict files, for a container
has its own, nor signals and tracing, which its pid namespace bounds. Another profile, or none, is a container's by `security`.
"""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

from appliance import command
from appliance.errors import ApplianceError

NAME = "appliance-container"
PARSER = "apparmor_parser"
LOAD_LIMIT_S = 30.0
_ENABLED = Path("/sys/module/apparmor/parameters/enabled")
_HOST_FILE_SYSTEMS = ("configfs", "debugfs", "efivarfs", "pstore", "securityfs", "tracefs")
_NEVER = ("/proc/sysrq-trigger", "/proc/kcore", "/proc/acpi/**", "/sys/firmware/**", "/sys/devices/virtual/powercap/**")
_NOT_WRITTEN = (
    "/proc/sys/kernel/{core_pattern,core_pipe_limit,modprobe,modules_disabled,hotplug,poweroff_cmd,sysrq}",
    "/proc/sys/kernel/{kexec*,panic*,ftrace*,perf*,randomize_va_space,dmesg_restrict,kptr_restrict}",
    "/proc/sys/{abi,debug,dev,vm}/**",
    "/proc/sys/fs/binfmt_misc/**",
    "/sys/kernel/**",
    "/sys/module/**",
    "/sys/power/**",
)


def profile() -> str:
    """The profile's source (apparmor.d(5)). Needs no include: the parser alone is enough."""
    rules = ["network", "capability", "file", "unix", "dbus", "signal", "ptrace", "mount", "umount", "pivot_root"]
    rules += [f"deny mount fstype={name}" for name in _HOST_FILE_SYSTEMS]
    rules += [f"deny {path} rwklx" for path in _NEVER]
    rules += [f"deny {path} wkl" for path in _NOT_WRITTEN]
    body = "".join(f"  {rule},\n" for rule in rules)
    return f"profile {NAME} flags=(attach_disconnected,mediate_deleted) {{\n{body}}}\n"


async def load() -> tuple[str, str]:
    """Give the kernel the profile. (name, "") when it has it; ("", why) where containers go without."""
    if not await asyncio.to_thread(_is_enabled):
        return "", "this kernel has no AppArmor, or it is off"
    if await asyncio.to_thread(shutil.which, PARSER) is None:
        return "", f"{PARSER} is not installed"
    try:
        await command.run([PARSER, "--replace", "--skip-cache"], timeout_s=LOAD_LIMIT_S, stdin=profile().encode())
    except ApplianceError as error:
        return "", str(error)
    return NAME, ""


def _is_enabled() -> bool:
    try:
        return _ENABLED.read_text().strip() == "Y"
    except OSError:
        return False
