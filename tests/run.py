"""`./dev test`: linters and types, then every test, in parallel where they do not meet; the two images beside them.

pytest's closing line comes last, and its status is ours; a linter that fails fails the run before any test starts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


WORKERS = 3
"""On two cores: browser and host tests wait for others' processes nearly half of their time."""


def main(arguments: list[str]) -> int:
    """Run everything, or just pytest with `arguments` when some are given."""
    if arguments:
        return subprocess.run([BIN / "pytest", *arguments], cwd=ROOT, check=False).returncode
    for argv in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
        print("+", *argv, flush=True)
        if status := subprocess.run([BIN / argv[0], *argv[1:]], cwd=ROOT, check=False).returncode:
            return status
    # made beside the first tests, minutes the first time; the tests that want them are among the last and wait for a lock
    images = subprocess.Popen([sys.executable, "-m", "tests.images"], cwd=ROOT)
    try:
        # by file: the tests of one may share a running appliance and build on each other there
        argv = ["pytest", "-n", str(WORKERS), "--dist", "loadfile"]
        return subprocess.run([BIN / argv[0], *argv[1:]], cwd=ROOT, check=False).returncode
    finally:
        images.terminate()
        images.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
