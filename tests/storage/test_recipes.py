"""Recipes: the pure parts, and (marked `images`) the real thing."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
import subprocess
from pathlib import Path

import pytest

from appliance.errors import NotFound, Unsupported
from appliance.storage.recipes import apt_sources, grub
from appliance.storage.recipes.builder import build, cache_key
from appliance.storage.recipes.recipe import DEBIAN_12, ImageKind, Recipe

DEB822 = """\
# a comment
Types: deb
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: https://vendor.example/linux
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/vendor.gpg

Types: deb-src
URIs: http://archive.example/debian
Suites: bookworm
Components: main
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://archive.example/debian bookworm main contrib # x
deb http://security.example bookworm-security main
deb cdrom:[Debian]/ bookworm main
deb-src http://archive.example/debian bookworm main
deb http://tool.example/apt stable tool
"""


def test_only_debians_archive_is_kept_of_either_format() -> None:
    found = [*apt_sources.parse("a.sources", DEB822), *apt_sources.parse("b.list", ONE_LINE)]
    text = apt_sources.render(found, host_codename="bookworm")
    assert "vendor.example" not in text
    assert "tool.example" not in text
    assert "cdrom" not in text
    assert "backports" not in text
    suites = [line for line in text.splitlines() if line.startswith("Suites:")]
    assert suites == ["Suites: bookworm bookworm-updates", "Suites: bookworm", "Suites: bookworm-security"]


def test_sources_move_to_the_recipes_release() -> None:
    text = apt_sources.render(apt_sources.parse("a.sources", DEB822), host_codename="bookworm")
    moved = apt_sources.move(text, host_codename="bookworm", codename="trixie")
    assert "Suites: trixie trixie-updates" in moved
    assert "bookworm" not in moved


def test_a_host_without_debians_archive_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="no Debian archive"):
        apt_sources.render([], host_codename="bookworm")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/os-release").write_text("ID=other\nVERSION_CODENAME=jammy\n")
    with pytest.raises(Unsupported, match="Debian host"):
        apt_sources.read_host(tmp_path)


def test_the_boot_sector_names_the_core_and_the_core_its_own_rest() -> None:
    sector = grub.boot_sector(bytes(512), core_sector=2048)
    assert len(sector) == 440
    assert struct.unpack_from("<Q", sector, 0x5C) == (2048,)
    core = grub.placed_core(b"x" * 1300, core_sector=2048)
    assert len(core) == 3 * 512
    assert struct.unpack_from("<QHH", core, 500) == (2049, 2, 0x820)


def test_a_change_builds_anew_what_it_touches_and_no_more() -> None:
    kinds = (None, ImageKind.CT, ImageKind.VM)

    def touched(recipe: Recipe, sources: str = "a") -> list[bool]:
        return [cache_key(recipe, sources, kind) != cache_key(DEBIAN_12, "a", kind) for kind in kinds]

    assert touched(DEBIAN_12) == [False, False, False]
    assert touched(DEBIAN_12, "b") == [True, True, True]
    assert touched(dataclasses.replace(DEBIAN_12, base_packages=("systemd",))) == [True, True, True]
    assert touched(dataclasses.replace(DEBIAN_12, vm_packages=("vim",))) == [False, False, True]
    assert touched(dataclasses.replace(DEBIAN_12, kernel_arguments="quiet")) == [False, False, True]
    assert touched(dataclasses.replace(DEBIAN_12, vm_early_files={})) == [False, False, True]
    masked = {ImageKind.CT: ("x.service",), ImageKind.VM: DEBIAN_12.masked[ImageKind.VM]}
    assert touched(dataclasses.replace(DEBIAN_12, masked=masked)) == [False, True, False]


def test_no_recipe_names_a_mirror(repository: Path) -> None:
    for path in (repository / "appliance/storage/recipes").glob("*.py"):
        assert "http://" not in path.read_text()
        assert "https://" not in path.read_text()


async def test_an_unknown_recipe_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        await build("windows-95", "vm", tmp_path, lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.images
@pytest.mark.host
async def test_a_cancelled_build_leaves_nothing(tmp_path: Path) -> None:
    begun = asyncio.Event()
    task = asyncio.create_task(build("debian-12", "ct", tmp_path, lambda line: begun.set()))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
    await asyncio.wait([task], timeout=4)  # in the middle of unpacking: no event tells
    waiting.cancel()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    assert str(tmp_path) not in Path("/proc/self/mounts").read_text()


@pytest.mark.images
@pytest.mark.host
@pytest.mark.timeout(600)
async def test_the_images_are_what_they_should_be(repository: Path, tmp_path: Path) -> None:
    log: list[str] = []
    directory = repository / ".build/images"
    root = await build("debian-12", "ct", directory, log.append)
    disk = await build("debian-12", "vm", directory, log.append)
    assert log
    names = subprocess.run(["tar", "-tf", root], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {"./etc/machine-id", "./usr/lib/systemd/systemd", "./usr/sbin/sshd"} <= set(names)
    assert not [name for name in names if "ssh_host_" in name or name.startswith(("./boot/vmlinuz", "./dev/"))][1:]
    raw = tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", disk, raw], check=True)
    table = subprocess.run(["sfdisk", "--json", raw], capture_output=True, text=True, check=True).stdout
    assert '"label": "gpt"' in table
    check = subprocess.run(["e2fsck", "-fn", f"{raw}?offset={66 << 20}"], capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stdout
