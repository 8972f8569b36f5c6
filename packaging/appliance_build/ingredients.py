"""What is bundled and where it comes from: Debian 12's archive and PyPI, each through its ordinary client.

Debian's packages are fetched by an apt of our own, with its own lists, from the host's mirror: a build on Debian 13
bundles Debian 12's CPython, too. Wheels are those of requirements.lock, by hash.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from appliance.storage.recipes import apt_sources
from appliance_build.run import BuildError, run

PYTHON = "3.11"
"""Debian 12's. Its binary needs glibc 2.36 at most, so that it runs on every later Debian."""

PLATFORM = "x86_64-manylinux_2_36"

_CODENAME = "bookworm"

DEBIAN_PACKAGES: Mapping[str, str] = {
    "python3.11-minimal": "the interpreter",
    "libpython3.11-minimal": "the standard library's first part",
    "libpython3.11-stdlib": "the standard library's second part",
    "libbz2-1.0": "_bz2",
    "libexpat1": "the interpreter",
    "libffi8": "_ctypes",
    "liblzma5": "_lzma",
    "libsqlite3-0": "_sqlite3",
    "libssl3": "_ssl, _hashlib",
    "libuuid1": "_uuid",
    "zlib1g": "the interpreter",
}


@dataclass(frozen=True, slots=True)
class DebianPackage:
    """A fetched package; `source` and `source_version` are for Built-Using."""

    name: str
    path: Path
    source: str
    source_version: str


def fetch_debian(work: Path) -> Sequence[DebianPackage]:
    """The packages' files below `work`, sorted by name. Raises `BuildError`, `Unsupported`."""
    sources, files = work / "sources.list.d", work / "debs"
    for directory in (sources, files, work / "lists/partial", work / "archives/partial"):
        directory.mkdir(parents=True, exist_ok=True)
    hosts = apt_sources.read_host()
    moved = apt_sources.move(hosts, host_codename=apt_sources.host_codename(), codename=_CODENAME)
    (sources / "debian.sources").write_text(moved)
    (work / "status").touch()
    settings = {
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Dir::Etc::SourceList": "/dev/null",
        "Dir::Etc::SourceParts": str(sources),
        "Dir::State::Lists": str(work / "lists"),
        "Dir::State::status": str(work / "status"),
        "Dir::Cache": str(work),
        "Dir::Cache::Archives": str(work / "archives"),
        "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled": "false",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    run([*apt, "update"])
    for old in files.glob("*.deb"):
        old.unlink()
    run([*apt, "download", *DEBIAN_PACKAGES], cwd=files)
    return sorted((_read(path) for path in files.glob("*.deb")), key=lambda package: package.name)


def _read(path: Path) -> DebianPackage:
    wanted = "--showformat=${Package}\n${source:Package}\n${source:Version}\n"
    name, source, version = run(["dpkg-deb", "--show", wanted, path]).decode().split()
    return DebianPackage(name=name, path=path, source=source, source_version=version)


def runtime_lock(lock: str) -> str:
    """Those blocks of requirements.lock that the product needs; the `# via` lines tell who asked for what.

    Raises `BuildError` when nothing is left: the lock's annotations are missing then.
    """
    blocks = dict[str, str]()
    parents = dict[str, set[str]]()
    for block in re.split(r"\n(?=\S)", lock.strip()):
        name = re.match(r"[A-Za-z0-9._-]+", block)
        if name is not None and not block.startswith("#"):
            blocks[name[0]] = block
            parents[name[0]] = set(re.findall(r"^ +#(?: via)? +(\S.*)$", block, re.M))
    needed = {"appliance (pyproject.toml)"}
    while more := {name for name, by in parents.items() if by & needed} - needed:
        needed |= more
    chosen = [block for name, block in sorted(blocks.items()) if name in needed]
    if not chosen:
        raise BuildError("requirements.lock tells of no package that the product needs; renew it: ./dev lock")
    return "\n".join(chosen) + "\n"


def install_wheels(uv: Path, lock: str, work: Path, to: Path) -> None:
    """Unpack the wheels into `to`, for the bundled Python and not the host's. Raises `BuildError`."""
    chosen = work / "runtime.lock"
    chosen.write_text(runtime_lock(lock))
    run([
        uv, "pip", "install", "--quiet", "--target", to, "--require-hashes", "--no-deps", "--only-binary", ":all:",
        "--no-compile-bytecode", "--link-mode", "copy",
        "--python-version", PYTHON, "--python-platform", PLATFORM, "-r", chosen,
    ])  # fmt: skip
