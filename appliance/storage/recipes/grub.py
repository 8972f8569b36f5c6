"""GRUB for a disk image: the loader of a BIOS in the MBR and a BIOS-boot partition, the loader of UEFI as one file.

`grub-mkimage` makes both; `grub-install` is not used, for it wants a mounted block device. What it would do for a BIOS
is little: the boot sector must know the sector `core.img` begins at, and `core.img`'s first sector where the rest lies.

    boot.img (sector 0)      0x5c  u64  first sector of core.img            (grub-core/boot/i386/pc/boot.S, kernel_sector)
    core.img, first sector   0x1f4 u64  sector, u16 count, u16 segment      (diskboot.S, the last entry of the list)
"""

from __future__ import annotations

import asyncio
import struct
from pathlib import Path
from typing import Final

from appliance import command

SECTOR_BYTES: Final = 512
_KERNEL_SECTOR = 0x5C
_BLOCK_LIST = 0x1F4
_LOAD_SEGMENT = 0x820  # GRUB_BOOT_MACHINE_KERNEL_SEG + one sector: where diskboot.S loads what follows itself
_MBR_CODE_BYTES = 440  # behind it lie the disk's signature and the protective partition table
_MODULES = (
    "part_gpt", "ext2", "fat", "normal", "configfile", "linux", "search", "search_fs_uuid", "serial", "terminal",
    "echo", "test", "boot", "minicmd", "all_video",
)  # fmt: skip
_LIBRARY = Path("/usr/lib/grub")
TIMEOUT_S = 60.0


def boot_sector(boot_image: bytes, *, core_sector: int) -> bytes:
    """The first 440 bytes of the disk: GRUB's boot sector, told where `core.img` begins."""
    code = bytearray(boot_image[:_MBR_CODE_BYTES])
    struct.pack_into("<Q", code, _KERNEL_SECTOR, core_sector)
    return bytes(code)


def placed_core(core_image: bytes, *, core_sector: int) -> bytes:
    """`core.img`, padded to sectors, with its block list saying that the rest follows right behind its first sector."""
    core = bytearray(core_image + bytes(-len(core_image) % SECTOR_BYTES))
    struct.pack_into("<QHH", core, _BLOCK_LIST, core_sector + 1, len(core) // SECTOR_BYTES - 1, _LOAD_SEGMENT)
    return bytes(core)


def menu(root_uuid: str, kernel_arguments: str) -> str:
    """`/boot/grub/grub.cfg`. The kernel is found by Debian's links in `/`, so it survives the guest's upgrades."""
    return f"""\
serial --unit=0 --speed=115200
if [ "$grub_platform" = "pc" ]; then
  terminal_input console serial
  terminal_output console serial
fi
set timeout=0
menuentry 'Debian GNU/Linux' {{
  search --no-floppy --fs-uuid --set=root {root_uuid}
  echo 'Loading Linux ...'
  linux /vmlinuz root=UUID={root_uuid} ro {kernel_arguments}
  echo 'Loading the initial RAM disk ...'
  initrd /initrd.img
}}
"""


async def make_core(platform: str, work: Path, *, root_uuid: str) -> Path:
    """Run grub-mkimage for `platform` ("i386-pc" or "x86_64-efi"); returns the file made in `work`.

    Raises `CommandFailed` where the platform's modules are not installed.
    """
    early = work / f"early-{platform}.cfg"
    commands = f"search --no-floppy --fs-uuid --set=root {root_uuid}\nset prefix=($root)/boot/grub\n"
    await asyncio.to_thread(early.write_text, commands)
    output = work / f"core-{platform}.img"
    modules = (*_MODULES, "biosdisk") if platform == "i386-pc" else (*_MODULES, "efi_gop")
    await command.run(
        ["grub-mkimage", "-O", platform, "-d", str(_LIBRARY / platform), "-c", str(early), "-p", "/boot/grub",
         "-o", str(output), *modules],
        timeout_s=TIMEOUT_S,
    )  # fmt: skip
    return output


def read_boot_image() -> bytes:
    """`boot.img` of the installed GRUB."""
    return (_LIBRARY / "i386-pc" / "boot.img").read_bytes()
