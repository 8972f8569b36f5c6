"""The boot order: PVE's `order=scsi0;ide2;net0`, its older letters `cdn`, and the default."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from appliance.services.guest_config.values import shorten

DEVICE = re.compile(r"(?:ide[0-3]|scsi(?:[12]?[0-9]|30)|virtio(?:[0-9]|1[0-5])|sata[0-5]|net(?:[12]?[0-9]|3[01]))")
_LETTERS = re.compile(r"[acdn]{1,4}")
_CHANGED_BY_HOST = re.compile(r"(?:usb|hostpci)[0-9]{1,2}")


def boot_text(text: str) -> str:
    """Check a boot string; kept as given. Raises `ValueError`."""
    _parse(text)
    return text


def boot_order(
    text: str, *, bootdisk: str, disks: Sequence[str], cdroms: Sequence[str], nics: Sequence[str]
) -> tuple[str, ...]:
    """Slots to boot from, first one first. `disks`, `cdroms` and `nics` are the machine's, in order of preference.

    Without a `boot` text: the first disk, then the first CD-ROM, then the first NIC (as PVE chooses at creation).
    """
    first_disk = [bootdisk] if bootdisk in disks else list(disks[:1])
    if not text:
        return tuple(first_disk + list(cdroms[:1]) + list(nics[:1]))
    kind, value = _parse(text)
    if kind == "order":
        return tuple(device for device in value.split(";") if device)
    by_letter: Mapping[str, Sequence[str]] = {"c": first_disk, "d": cdroms, "n": nics, "a": ()}
    return tuple(device for letter in value for device in by_letter[letter])


def _parse(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        key, value = "legacy", text
    if key == "legacy" and _LETTERS.fullmatch(value):
        return key, value
    if key != "order":
        raise ValueError(f"invalid format - '{shorten(text)}' is not order=DEVICE;DEVICE")
    devices = [device for device in value.split(";") if device]
    for device in devices:
        if not DEVICE.fullmatch(device):
            reason = "is not supported by this appliance yet" if _CHANGED_BY_HOST.fullmatch(device) else "is no device"
            raise ValueError(f"invalid format - boot device '{shorten(device)}' {reason}")
    if len(set(devices)) != len(devices):
        raise ValueError("invalid format - a device appears twice in the boot order")
    return key, value
