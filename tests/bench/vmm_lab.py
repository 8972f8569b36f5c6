"""Figures of the native machine against QEMU, with Debian's kernel in the guests, on a lab host: `./dev bench vmm-lab`.

Both run in the same emulated host and take turns (`vmm_lab_host` is what runs there). What is measured is ratios: everything
in such a host is 20 to 50 times slower than on hardware. Takes about ten minutes, so it runs only when it is asked for.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import uvloop

from tests.bench.figures import Benchmark, Figure
from tests.lab import image
from tests.lab.cpio import CpioArchive
from tests.lab.host import LabHost
from tests.lab.recipe import GUEST_DIR, SOURCE_DIR, VENV_DIR

DIRECTORY = "/var/tmp/bench"
LIMIT_S = 1500.0


def lab() -> Iterable[Figure]:
    """All parts, or those of APPLIANCE_BENCH_PARTS ("boot exits load")."""
    found, problems = uvloop.run(_lab(os.environ.get("APPLIANCE_BENCH_PARTS", "").split()))
    yield from found
    if problems:
        raise RuntimeError("; ".join(problems))


async def _lab(parts: list[str]) -> tuple[list[Figure], list[str]]:
    built = await image.build(lambda line: print(line, file=sys.stderr))
    async with LabHost(built) as host:
        await host.put_source()
        with tempfile.TemporaryDirectory() as made:
            await asyncio.to_thread(_make_load, Path(made))
            await host.put(Path(made), DIRECTORY)
        await host.shell(
            f"cd {DIRECTORY}; cp {GUEST_DIR}/initramfs .; truncate -s %4 initramfs; cat extra >>initramfs", timeout_s=60
        )
        python = f"exec {VENV_DIR}/bin/python -m tests.bench.vmm_lab_host {DIRECTORY} {' '.join(parts)}"
        async with host.dialogue(["sh", "-c", f"cd {SOURCE_DIR}; {python}"], limit_s=LIMIT_S) as (reader, _):
            return await _listen(reader)


async def _listen(reader: asyncio.StreamReader) -> tuple[list[Figure], list[str]]:
    figures: list[Figure] = []
    problems: list[str] = []
    while line := await reader.readline():
        try:
            message = json.loads(line)
        except ValueError:
            sys.stderr.write(line.decode(errors="replace"))
            continue
        if "figure" in message:
            figures.append(Figure(**message["figure"]))
            sys.stderr.write(f"{figures[-1].name} {figures[-1].value:.3f}\n")
        elif "problem" in message:
            problems.append(message["problem"])
        elif message.get("done"):
            return figures, problems
    return figures, [*problems, "the host's side ended before it was done"]


def _make_load(directory: Path) -> None:
    """The program that makes load, for the host, and in an archive that the guests' initial RAM disk ends with."""
    source, program = Path(__file__).with_name("guest_load.c"), directory / "load"
    subprocess.run(["gcc", "-O2", "-static", "-o", program, source], check=True)
    archive = CpioArchive()
    archive.file("bin/load", program.read_bytes(), mode=0o755)
    (directory / "extra").write_bytes(archive.finish())


BENCHMARKS: list[Benchmark] = [lab]
