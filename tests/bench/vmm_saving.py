"""Figures of saving and restoring a native machine's memory: MiB of guest RAM in a second, into a file of the page cache."""

from __future__ import annotations

import os
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from appliance.vmm import saved
from appliance.vmm.memory import GuestMemory
from tests.bench.figures import Figure

MIB = 1 << 20
RAM_MIB = 512
USED = 0.5  # of its pages; the rest was never touched


def saving() -> Iterable[Figure]:
    """A guest of 512 MiB, half of it in use: a quarter each text, binaries, noise and zeros that were written."""
    memory, restored = _filled(), GuestMemory(RAM_MIB * MIB, name="vm 102")
    header = saved.Header(guest_id=101, saved_at=0.0, ram_bytes=memory.size, spec=b"", vm=b"", vcpus=[], devices={})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "101.saved"
        for level, name in ((saved.COMPRESSION_LEVEL, "save"), (0, "save_plain")):
            with path.open("wb") as file:
                began = time.monotonic()
                size = saved.save(file, header, memory, level=level)
                yield Figure(f"{name}_mib_s", RAM_MIB / (time.monotonic() - began), "MiB/s", 100, at_most=False)
            yield Figure(f"{name}_file_mib", size / MIB, "MiB", RAM_MIB * USED)
            with path.open("rb") as file:
                began = time.monotonic()
                _, checksum = saved.read_header(file, about="vm 102")
                saved.restore_ram(file, restored, checksum, about="vm 102")
                took = time.monotonic() - began
            yield Figure(f"{name}_restore_mib_s", RAM_MIB / took, "MiB/s", 100, at_most=False)
    if restored.whole()[:] != memory.whole()[:]:
        raise RuntimeError("what was restored is not what was saved")
    memory.close()
    restored.close()


def _filled() -> GuestMemory:
    memory = GuestMemory(RAM_MIB * MIB, name="vm 101")
    program = Path("/proc/self/exe").resolve().read_bytes()
    text = b"".join(b"%08d a line of a log, much like the one before\n" % number for number in range(20_000))
    kinds = [text[:MIB].ljust(MIB, b"."), program[:MIB].ljust(MIB, b"\x90"), b"", bytes(MIB)]
    order = random.Random(1)
    for number in range(int(RAM_MIB * USED)):
        content = kinds[number % 4] or os.urandom(MIB)
        memory.write(MIB * (1 + number + order.randrange(2) * 200), content)
    return memory
