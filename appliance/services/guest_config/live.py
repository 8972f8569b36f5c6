"""What a change of its configuration means for a VM that runs: which disks and NICs come and go at once. Pure.

    the slot         has, runs with     is to have      step
    a disk           another volume     a volume        out, in
    a NIC            another card       a NIC           out, in      (model, MAC, MTU or queues)
    a NIC            the same card      link_down       the cable is pulled, or plugged
    either           nothing / it       it / nothing    in / out
Everything else waits for the next start: other options of a disk or NIC that stays, CD-ROM and cloud-init drives, and what
the key `hotplug` does not name. Removals come first: a volume or a MAC address may move to another slot.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from appliance.model.guest import NicSpec, VmDisk, VmSpec
from appliance.services.guest_config.vm_schema import VM_KEYS

Device = VmDisk | NicSpec

DISK, NETWORK = "disk", "network"
_ALL = "network,disk,usb"


@dataclass(frozen=True, slots=True)
class Detach:
    """Take it out."""

    device: Device


@dataclass(frozen=True, slots=True)
class Attach:
    """Plug it in."""

    device: Device


@dataclass(frozen=True, slots=True)
class SetLink:
    """Plug or pull the cable of a NIC that stays."""

    device: NicSpec


Step = Detach | Attach | SetLink


@dataclass(frozen=True, slots=True)
class LivePlan:
    """`steps` in order; `waiting` are slots that differ and wait for the next start."""

    steps: tuple[Step, ...]
    waiting: tuple[str, ...]


def hotplug_kinds(config: Mapping[str, str]) -> frozenset[str]:
    """What may be plugged while it runs: the words of the key `hotplug`."""
    text = config.get("hotplug") or VM_KEYS.default("hotplug")
    if text in ("0", "1"):
        text = _ALL if text == "1" else ""
    return frozenset(text.split(",")) - {""}


def live_plan(
    changed: Collection[str], attached: Mapping[str, Device], spec: VmSpec, *, kinds: Collection[str]
) -> LivePlan:
    """`attached` is what the running machine has, `spec` what it is to be; only slots in `changed` are looked at."""
    wanted: dict[str, Device] = {disk.slot: disk for disk in spec.disks if disk.volume is not None}
    wanted |= {nic.slot: nic for nic in spec.nics}
    out: list[Step] = []
    rest: list[Step] = []
    waiting: list[str] = []
    for slot in sorted(changed):
        has, want = attached.get(slot), wanted.get(slot)
        steps = _steps(has, want)
        if any(not isinstance(step, SetLink) and not _may(step.device, kinds) for step in steps):
            steps = []
        out += [step for step in steps if isinstance(step, Detach)]
        rest += [step for step in steps if not isinstance(step, Detach)]
        if not _same(_after(has, steps), want):
            waiting.append(slot)
    return LivePlan((*out, *rest), tuple(waiting))


def _steps(has: Device | None, want: Device | None) -> list[Step]:
    match has, want:
        case (VmDisk(), VmDisk()) if has.volume == want.volume:
            return []
        case (NicSpec(), NicSpec()) if _card(has) == _card(want):
            return [SetLink(want)] if has.link_down != want.link_down else []
    steps: list[Step] = [] if has is None else [Detach(has)]
    return steps if want is None else [*steps, Attach(want)]


def _after(has: Device | None, steps: list[Step]) -> Device | None:
    for step in steps:
        match step:
            case Attach(device):
                has = device
            case Detach():
                has = None
            case SetLink(nic) if isinstance(has, NicSpec):
                has = replace(has, link_down=nic.link_down)
    return has


def _may(device: Device, kinds: Collection[str]) -> bool:
    if isinstance(device, NicSpec):
        return NETWORK in kinds
    return DISK in kinds and not device.cdrom and not device.cloudinit


def _card(nic: NicSpec) -> tuple[object, ...]:
    return nic.model, nic.mac.upper(), nic.mtu, nic.queues


def _same(has: Device | None, want: Device | None) -> bool:
    """But for what is told to the running machine on its own (a disk's size), or is no part of it (addresses)."""
    match has, want:
        case (VmDisk(), VmDisk()):
            return replace(has, size_bytes=0) == replace(want, size_bytes=0)
        case (NicSpec(), NicSpec()):
            return _told(has) == _told(want)
    return has is want is None


def _told(nic: NicSpec) -> NicSpec:
    return replace(nic, mac=nic.mac.upper(), ip="", gateway="", ip6="", gateway6="")
