"""The Debian package as the end-to-end tests install it: built from the last commit, and a later version of the same.

    dist/lab/COMMIT/appliance_VERSION_amd64.deb, appliance

The later version is the same package with another number inside and outside: what dpkg, the maintainer scripts and
`GET /version` see of an upgrade is all there, and it costs seconds.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.lab import image

BUILD_TIMEOUT_S: Final = 900.0
_STEP_TIMEOUT_S = 120.0
_DIRECTORY: Final = image.ROOT / "dist/lab"
_LOCK: Final = image.ROOT / "dist/.lab.lock"
_MODULES = "usr/lib/appliance/lib/python3.11"


@dataclass(frozen=True, slots=True)
class Package:
    """A .deb and its version; `alone` is the single file of the same build, where there is one."""

    path: Path
    version: str
    alone: Path | None = None


def build() -> Package:
    """The package of the last commit; built where there is none. What is not committed is not in it.

    Waits for a build under way in another process, which is bounded.
    """
    commit = _run("git", "-C", image.ROOT, "rev-parse", "HEAD").strip()
    directory = _DIRECTORY / commit
    _LOCK.parent.mkdir(exist_ok=True)
    with _LOCK.open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "appliance").exists():
            for old in _DIRECTORY.glob("*"):
                shutil.rmtree(old)
            _run(image.ROOT / "dev", "deb", "--output", directory, timeout_s=BUILD_TIMEOUT_S)
    (path,) = directory.glob("appliance_*_amd64.deb")
    return Package(path, path.name.split("_")[1], directory / "appliance")


def later(package: Package, directory: Path) -> Package:
    """The same as a later version, in `directory`."""
    version = f"{package.version}.later"
    target = directory / f"appliance_{version}_amd64.deb"
    with tempfile.TemporaryDirectory(dir=directory) as name:
        root = Path(name)
        _run("dpkg-deb", "--raw-extract", package.path, root)
        control = root / "DEBIAN/control"
        control.write_text(re.sub(r"^Version: .*$", f"Version: {version}", control.read_text(), flags=re.M))
        module = root / _MODULES / "appliance/version.py"
        module.write_text(re.sub(r'^VERSION = ".*"$', f'VERSION = "{version}"', module.read_text(), flags=re.M))
        interpreter = root / "usr/lib/appliance/bin/python3.11"
        _run(interpreter, "-I", "-S", "-m", "compileall", "-q", "-f", "--invalidation-mode", "unchecked-hash", module)
        _run("dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", root, target)
    return Package(target, version)


def _run(*argv: str | Path, timeout_s: float = _STEP_TIMEOUT_S) -> str:
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, timeout=timeout_s, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.stdout.write(f"{build()}\n")
