"""`./dev test`: linters, types and the two images, then every test, in parallel where they do not meet.

pytest's closing line comes last, and its status is ours; a linter that fails fails the run before any test starts.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent


def main(arguments: list[str]) -> int:
    """Run everything, or just pytest with `arguments` when some are given."""
    if arguments:
        return subprocess.run([BIN / "pytest", *arguments], cwd=ROOT, check=False).returncode
    images = subprocess.Popen([sys.executable, "-m", "tests.images"], cwd=ROOT)  # minutes, the first time
    try:
        for argv in (["ruff", "format", "--check", "."], ["ruff", "check", "."], ["mypy"]):
            print("+", *argv, flush=True)
            status = subprocess.run([BIN / argv[0], *argv[1:]], cwd=ROOT, check=False).returncode
            if status:
                return status
        if status := images.wait():
            print("the images could not be built", flush=True)
            return status
    finally:
        images.terminate()
        images.wait()
    # by file: the tests of one may share a running appliance and build on each other there
    return subprocess.run([BIN / "pytest", "-n", "2", "--dist", "loadfile"], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
