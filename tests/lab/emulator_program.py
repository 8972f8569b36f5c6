"""Which QEMU emulates the lab's hosts: this system's, or a newer one of the same release's backports.

Hosts in 7.2 stood still; the reason (host.FIRST_PROCESSOR) is in 10.0 as well, and whether 7.2 would do by now has not been
tried. What users run is not touched: the newer packages are only unpacked, below `.build/`. They need no library that the
release has not.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from appliance import command
from appliance.errors import ApplianceError, HostError
from appliance.storage.recipes import apt_sources
from tests.lab.image import DIRECTORY

SYSTEM: Final = "qemu-system-x86_64"
WANTED_MAJOR: Final = 10
PACKAGES: Final = ("qemu-system-x86", "qemu-system-common", "qemu-system-data")
FIRMWARE: Final = ("/usr/share/seabios", "/usr/lib/ipxe/qemu")
TIMEOUT_S: Final = 300.0


async def words() -> tuple[str, ...]:
    """The first words of QEMU's command line. Downloads 13 MB, once; says so when it has to be this system's old one."""
    told = (await command.run([SYSTEM, "--version"], timeout_s=30)).text
    if major(told) >= WANTED_MAJOR:
        return (SYSTEM,)
    try:
        root = await _unpacked()
    except ApplianceError as error:
        print(f"lab: {told.splitlines()[0]}: hosts may stand still; no newer one: {error}", flush=True)
        return (SYSTEM,)
    places = (str(root / "usr/share/qemu"), *FIRMWARE)
    return (str(root / "usr/bin" / SYSTEM), *(word for place in places for word in ("-L", place)))


def major(version: str) -> int:
    """Of "QEMU emulator version 10.0.2 (Debian …": 10; 0 when nothing is understood."""
    found = re.search(r"version (\d+)\.", version)
    return int(found[1]) if found else 0


def backports(host: str, codename: str) -> str:
    """deb822 text of the backports of `codename`, on the servers of the sources `host`. Raises `Unsupported`: none."""
    sources = [each for each in apt_sources.parse("host.sources", host) if codename in each.suites]
    return "\n".join(replace(each, suites=(f"{codename}-backports",)).render() for each in sources)


async def _unpacked() -> Path:
    """The directory the packages are unpacked in. Raises `ApplianceError`."""
    sources = backports(await asyncio.to_thread(apt_sources.read_host), apt_sources.host_codename())
    root = DIRECTORY.parent / "emulator" / hashlib.sha256(sources.encode()).hexdigest()[:12]
    if root.exists():
        return root
    root.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=root.parent, prefix=".work-"))
    try:
        (work / "debian.sources").write_text(sources)
        (work / "lists/partial").mkdir(parents=True)
        options = [
            f"Dir::Etc::sourcelist={work}/debian.sources", "Dir::Etc::sourceparts=/dev/null", f"Dir::State::lists={work}/lists",
            "Dir::Cache::pkgcache=", "Dir::Cache::srcpkgcache=", "APT::Sandbox::User=root",
        ]  # fmt: skip
        apt = ["apt-get", "-qq", *(word for option in options for word in ("-o", option))]
        await command.run([*apt, "update"], timeout_s=TIMEOUT_S)
        await command.run([*apt, "download", *PACKAGES], cwd=work, timeout_s=TIMEOUT_S)
        for package in sorted(work.glob("*.deb")):
            await command.run(["dpkg-deb", "--extract", str(package), str(work / "root")], timeout_s=TIMEOUT_S)
        if not (work / "root/usr/bin" / SYSTEM).exists():
            raise HostError(f"lab: the backports have no {SYSTEM}")
        try:
            (work / "root").rename(root)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):  # else somebody else was faster
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return root
