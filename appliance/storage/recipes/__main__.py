"""`python -m appliance.storage.recipes RECIPE KIND DIRECTORY`: build one image by hand and print its path."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from appliance.errors import ApplianceError
from appliance.storage.recipes.builder import build


def main() -> int:
    """Returns the exit status."""
    if len(sys.argv) != 4:
        sys.stderr.write("usage: python -m appliance.storage.recipes RECIPE vm|ct DIRECTORY\n")
        return 2
    _, recipe, kind, directory = sys.argv
    try:
        path = asyncio.run(build(recipe, kind, Path(directory), _say))
    except ApplianceError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{path}\n")
    return 0


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
