"""`dist/appliance`: a shell script, followed by the same tree, packed. See packaging/debian/single for what it does."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

from appliance_build.run import run


def build(tree: Path, script: Path, target: Path, *, epoch_s: int) -> None:
    """Write `target`. gzip, because every Debian has it (Essential: yes), whatever else is missing. Raises `BuildError`."""
    packed = gzip.compress(run([
        "tar", "--create", "--format=gnu", "--sort=name", "--owner=0", "--group=0", "--numeric-owner",
        f"--mtime=@{epoch_s}", "--directory", tree, ".",
    ]), compresslevel=6, mtime=0)  # fmt: skip
    target.write_bytes(head(script.read_text(), hashlib.sha256(packed).hexdigest()) + packed)
    target.chmod(0o755)


def head(script: str, digest: str) -> bytes:
    """The script with its own length and the payload's name filled in."""
    filled = script.replace("@DIGEST@", digest[:16])
    length = len(filled.encode()) - len("@OFFSET@") + 8
    return filled.replace("@OFFSET@", f"{length + 1:08d}").encode()
