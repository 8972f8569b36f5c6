"""Helper programs. One that fails ends the build with its own words."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


class BuildError(Exception):
    """What cannot be built and why, for the person at the terminal."""


def run(
    argv: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, stdin: bytes = b""
) -> bytes:
    """Standard output. Raises `BuildError` with the program's standard error when it fails or is not there."""
    try:
        done = subprocess.run(argv, cwd=cwd, env=env, input=stdin, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise BuildError(f"{argv[0]}: not installed") from error
    if done.returncode:
        words = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        raise BuildError(f"{' '.join(map(str, argv[:6]))}: {words}")
    return done.stdout


def say(text: str) -> None:
    """A line of progress, on standard error."""
    sys.stderr.write(f"deb: {text}\n")
