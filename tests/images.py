"""The two images of the recipe `debian-12`, kept under .build/: built from Debian's packages once, then found there.

`python -m tests.images` builds them beforehand, so that no test's time limit has to hold minutes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from appliance.storage.recipes.builder import build

DIRECTORY = Path(__file__).resolve().parent.parent / ".build" / "images"


async def build_images(say: Callable[[str], None]) -> tuple[Path, Path]:
    """(VM disk, container root)."""
    vm = await build("debian-12", "vm", DIRECTORY, say)
    return vm, await build("debian-12", "ct", DIRECTORY, say)


if __name__ == "__main__":
    asyncio.run(build_images(lambda line: print(line, flush=True)))
