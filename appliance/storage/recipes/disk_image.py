"""A root directory becomes a disk that boots under SeaBIOS and UEFI. No loop device, no mount: tools write into the file.

sector      0     protective MBR: GRUB's boot sector          (grub.py)
        2,048     BIOS-boot partition, 1 MiB: core.img, contiguous by construction
        4,096     EFI system partition, 64 MiB FAT: /EFI/BOOT/BOOTX64.EFI
      135,168     root, ext4, to the end: a guest can grow it after its disk has grown
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from appliance import command
from appliance.errors import HostError
from appliance.storage.recipes import grub, root_files

MIB: Final = 1 << 20
_CORE_MIB, _ESP_MIB, _ROOT_MIB = 1, 2, 66
_TAIL_MIB = 1  # the second partition table
_TYPE_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_TYPE_ESP = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
_TYPE_ROOT = "4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709"  # Linux root (x86-64)
# features that GRUB 2.06 cannot read, and that later versions of mkfs.ext4 switch on by default
_EXT4_FEATURES = "^metadata_csum_seed,^orphan_file"
STEP_TIMEOUT_S: Final = 600.0


async def make_disk(
    root: Path, work: Path, output: Path, *, size_mib: int, kernel_arguments: str, log: Callable[[str], None]
) -> None:
    """Write the qcow2 image `output` with the content of `root`, using `work` for what lies between.

    Raises `CommandFailed` (a tool failed or is not installed), `HostError`.
    """
    root_uuid = str(uuid.uuid4())
    raw = work / "disk.raw"
    await asyncio.to_thread(_write_boot_files, root, root_uuid, kernel_arguments)
    log("partitions and boot loaders")
    await asyncio.to_thread(_make_sparse, raw, size_mib * MIB)
    await _partition(raw, size_mib)
    await _place_bios_loader(raw, work, root_uuid)
    await _place_efi_loader(raw, work, root_uuid)
    log("root file system")
    await _place_root(raw, root, root_uuid, size_mib=size_mib)
    log("compressing the disk image")
    await _run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd", raw, output)
    await asyncio.to_thread(raw.unlink)


async def _run(*argv: str | Path, stdin: bytes | None = None) -> None:
    await command.run([str(word) for word in argv], timeout_s=STEP_TIMEOUT_S, stdin=stdin)


def _make_sparse(path: Path, size_bytes: int) -> None:
    with path.open("xb") as file:
        file.truncate(size_bytes)


async def _partition(raw: Path, size_mib: int) -> None:
    root_mib = size_mib - _ROOT_MIB - _TAIL_MIB
    table = (
        "label: gpt\nunit: sectors\n"
        f"start={_sector(_CORE_MIB)}, size={_sector(1)}, type={_TYPE_BIOS_BOOT}, name=bios\n"
        f"start={_sector(_ESP_MIB)}, size={_sector(_ROOT_MIB - _ESP_MIB)}, type={_TYPE_ESP}, name=efi\n"
        f"start={_sector(_ROOT_MIB)}, size={_sector(root_mib)}, type={_TYPE_ROOT}, name=root\n"
    )
    await _run("sfdisk", "--quiet", "--no-reread", "--no-tell-kernel", raw, stdin=table.encode())


async def _place_bios_loader(raw: Path, work: Path, root_uuid: str) -> None:
    core = await grub.make_core("i386-pc", work, root_uuid=root_uuid)

    def place() -> None:
        sector = _sector(_CORE_MIB)
        image = grub.placed_core(core.read_bytes(), core_sector=sector)
        if len(image) > MIB:
            raise HostError(f"{core}: {len(image)} bytes do not fit the BIOS-boot partition")
        fd = os.open(raw, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(fd, image, sector * grub.SECTOR_BYTES)
            os.pwrite(fd, grub.boot_sector(grub.read_boot_image(), core_sector=sector), 0)
        finally:
            os.close(fd)

    await asyncio.to_thread(place)


async def _place_efi_loader(raw: Path, work: Path, root_uuid: str) -> None:
    loader = await grub.make_core("x86_64-efi", work, root_uuid=root_uuid)
    partition = f"{raw}@@{_ESP_MIB * MIB}"
    blocks = str((_ROOT_MIB - _ESP_MIB) * 1024)
    await _run("mkfs.vfat", "-F", "16", "-n", "EFI", "--offset", str(_sector(_ESP_MIB)), raw, blocks)
    await _run("mmd", "-i", partition, "::/EFI", "::/EFI/BOOT")
    await _run("mcopy", "-i", partition, loader, "::/EFI/BOOT/BOOTX64.EFI")


async def _place_root(raw: Path, root: Path, root_uuid: str, *, size_mib: int) -> None:
    size = f"{size_mib - _ROOT_MIB - _TAIL_MIB}M"
    extended = f"offset={_ROOT_MIB * MIB},lazy_itable_init=1,root_owner=0:0"
    await _run(
        "mkfs.ext4", "-q", "-F", "-d", root, "-L", "root", "-U", root_uuid, "-O", _EXT4_FEATURES, "-m", "1",
        "-E", extended, raw, size,
    )  # fmt: skip


def _write_boot_files(root: Path, root_uuid: str, kernel_arguments: str) -> None:
    root_files.write_file(root, "boot/grub/grub.cfg", grub.menu(root_uuid, kernel_arguments))
    root_files.write_file(root, "etc/fstab", f"UUID={root_uuid} / ext4 errors=remount-ro,discard 0 1\n")


def _sector(mib: int) -> int:
    return mib * MIB // grub.SECTOR_BYTES
