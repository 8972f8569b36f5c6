"""The kinds of lab hosts: which packages they hold. Data, and the one list it is taken from: ./dev's."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import recipe

_ROOT = Path(__file__).resolve().parent.parent.parent
_TOO_MUCH = frozenset({"qemu-system-arm", "qemu-efi-aarch64", "mmdebstrap"})
"""Of the appliance's own packages: what is large, and would need a network or hours inside of an emulated host."""

_SYSTEM = (
    "systemd", "systemd-sysv", "udev", "dbus", "kmod", "iputils-ping", "openssh-server", "busybox-static", "netbase",
    "login", "passwd", "less",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """One kind of host. A change of anything here builds its image anew."""

    name: str
    packages: tuple[str, ...]
    kernels: tuple[str, ...]
    codename: str = recipe.CODENAME
    developed: bool = False
    """Has an environment in which the repository runs (`LabHost.put_source`)."""
    offered: tuple[str, ...] = ()
    """Not installed, but there for the host's apt, with all that they need: see package_archive.py."""


def runtime_packages() -> tuple[str, ...]:
    """The Debian packages `./dev` installs for running the appliance."""
    match = re.search(r"^RUNTIME_PACKAGES=\(([^)]*)\)", (_ROOT / "dev").read_text(), re.M)
    assert match is not None, "./dev has no RUNTIME_PACKAGES"
    return tuple(match[1].split())


_NEEDED = tuple(package for package in runtime_packages() if package not in _TOO_MUCH)

LAB: Final = Variant(
    name="host",
    packages=(*_SYSTEM, "python3", "python3-venv", "btrfs-progs", "strace", "tcpdump", *_NEEDED),
    kernels=(recipe.HOST_KERNEL, recipe.DRIVER_KERNEL),
    developed=True,
)
"""For developing: everything is there, the repository comes over ssh."""

_OFFERED = ("conmon", "crun", "dnsmasq-base", "lxcfs", "nftables", "libnftables1", "seabios")

BARE: Final = Variant(
    name="bare",
    packages=(*_SYSTEM, *(package for package in _NEEDED if package not in {*_OFFERED, "runc"})),
    kernels=(recipe.HOST_KERNEL,),
    offered=_OFFERED,
)
"""For the package: a host without Python, where apt has to bring some of what the package depends on. What takes minutes to
unpack under emulation (QEMU, firmware) is there already."""
