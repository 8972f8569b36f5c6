"""What the kinds of kernel share: the error, and where an initial RAM disk goes. Files are hostile and come as buffers."""

from __future__ import annotations

from appliance.errors import UserError
from appliance.vmm.layout import MIB, PAGE, split_ram
from appliance.vmm.memory import GuestMemory

Buffer = bytes | bytearray | memoryview


class BadKernel(UserError):
    """The file given as a kernel is none, is broken, is for another machine, or does not fit this one."""


def low_ram_end(memory: GuestMemory) -> int:
    """Where RAM below 4 GiB ends."""
    return split_ram(memory.size)[0]


def place_initrd(memory: GuestMemory, initrd: Buffer, *, above: int, below: int, name: str) -> int:
    """Put it as high as may be, as bootloaders do, so that the kernel can grow; its address, 0 without one.

    `above` is where the kernel's memory ends. Raises `BadKernel` when there is no room.
    """
    if not len(initrd):
        return 0
    end = min(below, low_ram_end(memory))
    address = (end - len(initrd)) // PAGE * PAGE
    if address < above:
        room = max(0, end - above) / MIB
        raise BadKernel(f"{name}: an initrd of {len(initrd) / MIB:.1f} MiB, and {room:.1f} MiB above the kernel")
    memory.write(address, initrd)
    return address


def clear(memory: GuestMemory, address: int, length: int) -> None:
    """Zeros, by the mebibyte."""
    zeros = bytes(min(length, MIB))
    for done in range(0, length, MIB):
        memory.write(address + done, zeros[: min(MIB, length - done)])
