"""The .deb: the tree, what packaging/debian holds, and the control files. deb(5), deb-control(5)."""

from __future__ import annotations

import email.utils
import gzip
import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from appliance_build import manual, tree
from appliance_build.ingredients import DebianPackage
from appliance_build.run import run
from appliance_build.source import Source

MAINTAINER_SCRIPTS = ("preinst", "postinst", "prerm", "postrm")

MAINTAINER = "The appliance's maintainers <maintainers@appliance.invalid>"

PLACES = {
    "launcher": ("usr/bin/appliance", 0o755),
    "appliance.service": ("usr/lib/systemd/system/appliance.service", 0o644),
    "appliance-guests.service": ("usr/lib/systemd/system/appliance-guests.service", 0o644),
    "tmpfiles": ("usr/lib/tmpfiles.d/appliance.conf", 0o644),
    "default": ("etc/default/appliance", 0o644),
    "issue": ("etc/issue.d/appliance.issue", 0o644),
    "completion.bash": ("usr/share/bash-completion/completions/appliance", 0o644),
    "lintian-overrides": ("usr/share/lintian/overrides/appliance", 0o644),
}
"""Where each file of packaging/debian goes."""

FILLED = "completion.bash"
"""The one of them with words of the command line in it."""

_CONTROL = "DEBIAN"


def build(root: Path, output: Path, *, source: Source, packages: Sequence[DebianPackage]) -> Path:
    """Complete `root`, which holds the tree and the copyright file, and pack it. Raises `BuildError`."""
    files = source.root / "packaging"
    words = manual.ask([root / "usr/lib/appliance" / tree.INTERPRETER, "-I", "-S", "-B"])
    for name, (place, mode) in PLACES.items():
        content = (files / "debian" / name).read_text()
        _put(root / place, (manual.fill(content, words) if name == FILLED else content).encode(), mode)
    _documentation(root, files, source, words)
    control = root / _CONTROL
    control.mkdir()
    tree.settle(root, epoch_s=source.epoch_s)  # sizes and sums are of what is packed
    (control / "md5sums").write_text(_md5sums(root))
    (control / "conffiles").write_text("".join(f"/{name}\n" for name in _content(root) if name.startswith("etc/")))
    (control / "control").write_text(
        render_control((files / "debian/control").read_text(), source.version, packages, _installed_kib(root))
    )
    for name in MAINTAINER_SCRIPTS:
        script = (files / "debian" / name).read_text().replace("@DATA_FORMAT@", str(source.data_format))
        _put(control / name, script.encode(), 0o755)
    tree.settle(root, epoch_s=source.epoch_s)
    target = output / f"appliance_{source.version}_amd64.deb"
    run(
        ["dpkg-deb", "--root-owner-group", "-Zxz", "--threads-max=1", "--build", root, target],
        env={"PATH": os.environ["PATH"], "SOURCE_DATE_EPOCH": str(source.epoch_s), "LC_ALL": "C"},
    )
    return target


def render_control(template: str, version: str, packages: Sequence[DebianPackage], installed_kib: int) -> str:
    """packaging/debian/control with what only a build knows; its comment lines left out."""
    built_using = sorted({f"{package.source} (= {package.source_version})" for package in packages})
    known = {"VERSION": version, "INSTALLED_SIZE": str(installed_kib), "BUILT_USING": ", ".join(built_using)}
    text = "".join(f"{line}\n" for line in template.splitlines() if not line.startswith("#"))
    for name, value in known.items():
        text = text.replace(f"@{name}@", value)
    return text


def _documentation(root: Path, files: Path, source: Source, words: Mapping[str, str]) -> None:
    for page in sorted((files / "man").glob("*.[18]")):
        place = root / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz"
        _put(place, _gzip(manual.fill_page(page.read_text(), words, version=source.version).encode()), 0o644)
    documentation = root / "usr/share/doc/appliance"
    _put(documentation / "CHANGELOG.md.gz", _gzip((source.root / "CHANGELOG.md").read_bytes()), 0o644)
    _put(documentation / "changelog.gz", _gzip(_changelog(source).encode()), 0o644)


def _changelog(source: Source) -> str:
    """deb-changelog(5): one entry, for this build."""
    date = email.utils.formatdate(source.epoch_s)
    return (
        f"appliance ({source.version}) unstable; urgency=medium\n\n  * Built from {source.commit}.\n"
        f"  * What changed is in CHANGELOG.md.gz.\n\n -- {MAINTAINER}  {date}\n"
    )


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, compresslevel=9, mtime=0)


def _put(path: Path, content: bytes, mode: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def _content(root: Path) -> Sequence[str]:
    names = (path.relative_to(root) for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    return sorted(str(name) for name in names if name.parts[0] != _CONTROL)


def _md5sums(root: Path) -> str:
    return "".join(
        f"{hashlib.md5((root / name).read_bytes(), usedforsecurity=False).hexdigest()}  {name}\n"
        for name in _content(root)
        if not name.startswith("etc/")
    )


def _installed_kib(root: Path) -> int:
    """deb-substvars(5), Installed-Size: files rounded up to KiB, one KiB for everything else."""
    return sum(
        (path.stat().st_size + 1023) // 1024 if path.is_file() and not path.is_symlink() else 1
        for path in root.rglob("*")
        if path.relative_to(root).parts[0] != _CONTROL
    )
