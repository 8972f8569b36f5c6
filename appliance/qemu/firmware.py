"""UEFI firmware: the read-only code, and each VM's own store of variables made from a template.

The code is mapped as pflash 0 and the variables as pflash 1 (docs/interop/firmware.json in QEMU). A store has exactly its
template's size; a volume may be larger (storages round up), never smaller.
"""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from appliance.command import run
from appliance.errors import HostError
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.threads import to_the_end

_IMG_TIMEOUT_S = 30.0
_BLANK_CHECK_BYTES = 1 << 16

_PLACES = {
    "x86_64": (("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),),
    "aarch64": (
        ("/usr/share/AAVMF/AAVMF_CODE.no-secboot.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
        ("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"),
    ),
}


@dataclass(frozen=True, slots=True)
class Firmware:
    """Code and the template of its variables; `vars_bytes` is the template's size."""

    code: Path
    vars_template: Path
    vars_bytes: int


@dataclass(frozen=True, slots=True)
class VarsStore:
    """The variables of one VM: an image of at least `size_bytes`, of which that many are mapped."""

    path: Path
    format: VolumeFormat
    size_bytes: int


def find_firmware(arch: str) -> Firmware | None:
    """Blocking. The firmware Debian's packages installed for `arch`, without Secure Boot; None when there is none."""
    for code, template in _PLACES.get(arch, ()):
        if Path(code).is_file() and Path(template).is_file():
            return Firmware(Path(code), Path(template), Path(template).stat().st_size)
    return None


async def temporary_vars(firmware: Firmware, path: Path) -> VarsStore:
    """A fresh copy of the template at `path`. Raises `HostError`."""
    try:
        await to_the_end(shutil.copyfile, firmware.vars_template, path)
    except OSError as error:
        raise HostError.from_os_error(error, f"copy {firmware.vars_template} to {path}") from error
    return VarsStore(path, VolumeFormat.RAW, firmware.vars_bytes)


async def volume_vars(firmware: Firmware, volume: OpenedVolume) -> VarsStore:
    """The store in an EFI disk's volume, filled from the template if it is still blank. Raises `HostError`."""
    if volume.size_bytes < firmware.vars_bytes:
        raise HostError(f"EFI disk {volume.path}: {volume.size_bytes} bytes, the firmware needs {firmware.vars_bytes}")
    if await _is_blank(volume):
        source, target = str(firmware.vars_template), str(volume.path)
        await run(
            ["qemu-img", "convert", "-n", "-f", "raw", "-O", volume.format.value, source, f"{target}"],
            timeout_s=_IMG_TIMEOUT_S,
        )
    return VarsStore(volume.path, volume.format, firmware.vars_bytes)


async def _is_blank(volume: OpenedVolume) -> bool:
    if volume.format is VolumeFormat.RAW:
        return not any(await asyncio.to_thread(_first_bytes, volume.path))
    argv = ["qemu-img", "map", "--output=json", "-f", volume.format.value, str(volume.path)]
    extents = json.loads((await run(argv, timeout_s=_IMG_TIMEOUT_S)).stdout)
    return not any(extent["data"] for extent in extents)


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_BLANK_CHECK_BYTES)
    except OSError as error:
        raise HostError.from_os_error(error, f"read EFI disk {path}") from error
