"""The build's own decisions: versions, the lock's choice, control fields. What is built is tried by ./dev lab test."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest
from appliance_build import deb, elf, ingredients, source
from appliance_build.run import BuildError

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("described", "version"),
    [
        ("v1.2", "1.2"),
        ("v1.2-5-gabc1234", "1.2+5.gabc1234"),
        ("v1.2-rc1", "1.2~rc1"),
        ("v1.2-rc1-3-gab", "1.2~rc1+3.gab"),
    ],
)
def test_the_version_follows_from_the_tag(described: str, version: str) -> None:
    assert source.from_tag(described) == version


def test_versions_sort_as_commits_follow_each_other() -> None:
    order = ["v1.2-rc1", "v1.2-rc1-3-gffffff", "v1.2", "v1.2-5-gabc1234", "v1.2-12-g0000000", "v1.2.1", "v1.3"]
    versions = [source.from_tag(described) for described in order]
    for older, newer in itertools.pairwise(versions):
        subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)


def test_what_is_no_tag_is_no_version() -> None:
    with pytest.raises(BuildError, match="no version"):
        source.from_tag("release-1")


LOCK = """\
aiohttp==3.14.5 \\
    --hash=sha256:aa
    # via
    #   appliance (pyproject.toml)
    #   prometheus-pve-exporter
attrs==25.1 \\
    --hash=sha256:bb
    # via aiohttp
pytest==9.0 \\
    --hash=sha256:cc
    # via appliance (pyproject.toml:dev)
iniconfig==2.0 \\
    --hash=sha256:dd
    # via pytest
"""


def test_only_what_the_product_needs_is_bundled() -> None:
    chosen = ingredients.runtime_lock(LOCK)
    assert re.findall(r"^(\w+)==", chosen, re.M) == ["aiohttp", "attrs"]
    assert "--hash=sha256:bb" in chosen


def test_the_repositorys_lock_yields_every_dependency_and_no_tool() -> None:
    chosen = re.findall(r"^([\w.-]+)==", ingredients.runtime_lock((ROOT / "requirements.lock").read_text()), re.M)
    assert {"aiohttp", "uvloop", "cryptography", "msgspec"} <= set(chosen)
    assert not {"pytest", "mypy", "ruff", "proxmoxer", "playwright"} & set(chosen)


def test_a_lock_without_annotations_is_refused() -> None:
    with pytest.raises(BuildError, match="dev lock"):
        ingredients.runtime_lock("aiohttp==3.14\n    --hash=sha256:aa\n")


def test_a_bundled_library_has_a_name_of_its_own() -> None:
    assert elf.own_name("libssl.so.3") == "libssl-appliance.so.3"


def control() -> dict[str, str]:
    package = ingredients.DebianPackage(name="zlib1g", path=Path("x"), source="zlib", source_version="1:1.2")
    text = deb.render_control((ROOT / "packaging/debian/control").read_text(), "1.2", [package], 99)
    return dict(re.findall(r"^([A-Za-z-]+): *(.*)$", text, re.M))


def test_control_has_what_only_the_build_knows() -> None:
    fields = control()
    assert (fields["Version"], fields["Installed-Size"]) == ("1.2", "99")
    assert fields["Built-Using"] == "zlib (= 1:1.2)"
    assert "@" not in "".join(value for name, value in fields.items() if name != "Maintainer")


def names(field: str) -> set[str]:
    return {re.split(r"[ (]", choice.strip())[0] for choice in re.split(r"[,|]", field)}


def test_the_package_asks_for_all_that_dev_installs_and_for_nothing_else() -> None:
    match = re.search(r"^RUNTIME_PACKAGES=\(([^)]*)\)", (ROOT / "dev").read_text(), re.M)
    assert match is not None
    installed = set(match[1].split())
    fields = control()
    asked = names(fields["Depends"]) | names(fields["Recommends"]) | names(fields["Suggests"])
    of_every_debian = {"libc6", "libcrypt1", "login", "passwd", "systemd", "util-linux"}
    assert installed - {"util-linux"} - asked == set(), "./dev has packages that packaging/debian/control does not name"
    where_installed = {"apparmor", "btrfs-progs", "buildah", "libnftables1"}  # used where they are; tests do without
    assert asked - installed - of_every_debian - where_installed == set(), "control has packages that ./dev lacks"


def test_what_is_recommended_is_not_also_needed() -> None:
    fields = control()
    alternatives = {"runc"}  # crun | runc, and both recommended
    assert names(fields["Depends"]) & names(fields["Recommends"]) <= alternatives
