"""`./dev deb`: source, ingredients, tree, .deb, single file."""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from appliance.errors import ApplianceError
from appliance_build import deb, ingredients, licences, single, source, tree
from appliance_build.run import BuildError, run, say

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def main() -> int:
    """Exit status: 0 built, 1 not (the reason is on stderr)."""
    parser = argparse.ArgumentParser(prog="./dev deb", description="Build the Debian package and the single file.")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "dist", metavar="DIR", help="default dist")
    options = parser.parse_args()
    os.umask(0o022)
    try:
        _build(options.output.absolute())
    except (BuildError, ApplianceError) as error:
        say(str(error))
        return 1
    return 0


def _build(output: Path) -> None:
    began = time.monotonic()
    cache = REPOSITORY / ".build/deb"
    cache.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    packages = ingredients.fetch_debian(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix="build-") as name:
        work = Path(name)
        root, wheels = work / "root", work / "wheels"
        exported = source.export(REPOSITORY, work / "source")
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


if __name__ == "__main__":
    sys.exit(main())
