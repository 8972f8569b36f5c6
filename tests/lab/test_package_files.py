"""The package as a file: what Debian's checker says of it, and what is in it."""

from __future__ import annotations

import subprocess

import pytest

from tests.lab import package_build
from tests.lab.package_build import Package

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def package() -> Package:
    return package_build.build()


def test_lintian_finds_no_error_that_is_not_explained(package: Package) -> None:
    argv = ["lintian", "--allow-root", "--fail-on", "error", "--tag-display-limit", "0", str(package.path)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout


def test_it_holds_nothing_of_the_machine_that_built_it(package: Package) -> None:
    listing = subprocess.run(
        ["dpkg-deb", "--contents", package.path], capture_output=True, text=True, check=True
    ).stdout
    lines = [line.split(maxsplit=5) for line in listing.splitlines()]
    assert {line[1] for line in lines} == {"root/root"}
    assert {line[0] for line in lines} <= {"-rw-r--r--", "-rwxr-xr-x", "drwxr-xr-x"}
    assert len({(line[3], line[4]) for line in lines}) == 1, "times differ: they are the commit's"
    tests = [line[5] for line in lines if "/tests/" in line[5] or line[5].endswith((".c", ".h", ".pyi"))]
    assert tests == []


def test_it_is_a_reasonable_size(package: Package) -> None:
    assert package.path.stat().st_size < 30e6
    assert package.alone is not None
    assert package.alone.stat().st_size < 45e6
