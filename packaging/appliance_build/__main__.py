"""`./dev deb`: source, ingredients, tree, .deb, single file."""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import ApplianceError
from appliance_build import deb, ingredients, licences, single, source, tree
from appliance_build.run import BuildError, run, say

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Exit status: 0 built, 1 not (the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="./dev deb", description="Build the Debian package and the single file.")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", metavar="DIR", help="default dist")
    parser.add_argument("--version", default="", metavar="V", help="instead of git's; for trying upgrades")
    options = parser.parse_args()
    if options.version and not re.fullmatch(r"\d[A-Za-z0-9.+~]*", options.version):
        parser.error(f"{options.version!r} is no upstream version (deb-version(7))")
    os.umask(0o022)
    try:
        _build(options.output.absolute(), version=options.version)
    except (BuildError, ApplianceError) as error:
        say(str(error))
        return 1
    return 0


def _build(output: Path, *, version: str) -> None:
    began = time.monotonic()
    cache = REPOSITORY / ".build/deb"
    cache.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(cache), tempfile.TemporaryDirectory(dir=cache, prefix="build-") as name:
        packages = ingredients.fetch_debian(cache)
        work = Path(name)
        root, wheels = work / "root", work / "wheels"
        exported = source.export(REPOSITORY, work / "source", version=version)
        say(f"version {exported.version}")
        uv, lock = Path(sys.executable).parent / "uv", (exported.root / "requirements.lock").read_text()
        ingredients.install_wheels(uv, lock, work, wheels)
        home = root / "usr/lib/appliance"
        tree.build(home, source=exported, packages=packages, wheels=wheels, work=work)
        copyright_file = root / "usr/share/doc/appliance/copyright"
        copyright_file.parent.mkdir(parents=True)
        licences.write(
            copyright_file, source=exported, packages=packages, unpacked=work / "unpacked", modules=home / tree.MODULES
        )
        say("packing")
        package = deb.build(root, output, source=exported, packages=packages)
        alone = output / "appliance"
        shutil.copyfile(copyright_file, home / "copyright")
        tree.settle(home, epoch_s=exported.epoch_s)
        single.build(home, exported.root / "packaging/debian/single", alone, epoch_s=exported.epoch_s)
        unpacked = run(["du", "--summarize", "--bytes", home]).split()[0]
    for path in (package, alone):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        sys.stdout.write(f"{digest}  {path}  {path.stat().st_size / 1e6:.1f} MB\n")
    say(f"the tree has {int(unpacked) / 1e6:.0f} MB; {time.monotonic() - began:.0f} s")


@contextlib.contextmanager
def _one_at_a_time(cache: Path) -> Iterator[None]:
    """Hold the cache, which work trees may share, and remove what builds left that were killed. Waits for its turn."""
    with (cache / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in cache.glob("build-*"):
            shutil.rmtree(left)
        yield


if __name__ == "__main__":
    sys.exit(main())
