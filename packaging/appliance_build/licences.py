"""/usr/share/doc/appliance/copyright: the licences of everything that is bundled, in full."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from appliance_build.ingredients import DebianPackage
from appliance_build.run import BuildError
from appliance_build.source import Source

_NAMES = re.compile(r"(LICEN[CS]E|COPYING|NOTICE|AUTHORS)", re.I)

_HEAD = """\
Format: free text, one section for each part
Upstream-Name: appliance

This package contains the appliance and everything that it needs but glibc and programs of other packages. Each part
has its own licence; they follow, parts in the order: the appliance, CPython and libraries from Debian 12, packages from
PyPI, scripts and icons of the pages.
"""

_WITHOUT_LICENCE = """\
Copyright: the appliance's maintainers. Its source carries no licence file: no right beyond the law's is granted by this
package.
"""


def write(to: Path, *, source: Source, packages: Sequence[DebianPackage], unpacked: Path, modules: Path) -> None:
    """Write the file. Raises `BuildError` when something bundled comes without a licence."""
    parts = [
        _HEAD,
        *_product(source),
        *_debian(packages, unpacked),
        *_pypi(modules),
        *_pages(source.root / "static/vendor"),
    ]
    to.write_text("\n".join(part.rstrip() + "\n" for part in parts))


def _title(text: str) -> str:
    return f"{'=' * 100}\n{text}\n{'=' * 100}\n"


def _product(source: Source) -> Iterator[str]:
    files = sorted(path for path in source.root.iterdir() if path.is_file() and _NAMES.match(path.name))
    yield _title(f"appliance {source.version}")
    yield "\n".join(path.read_text() for path in files) or _WITHOUT_LICENCE


def _debian(packages: Sequence[DebianPackage], unpacked: Path) -> Iterator[str]:
    seen: set[str] = set()
    for package in packages:
        path = unpacked / "usr/share/doc" / package.name / "copyright"
        if package.source in seen or not path.is_file():  # a link into another package of the same source
            continue
        seen.add(package.source)
        yield _title(f"{package.source} {package.source_version} (Debian 12)")
        yield path.read_text(errors="replace")
    if missing := {package.source for package in packages} - seen:
        raise BuildError(f"no licence was found for {', '.join(sorted(missing))}")


def _pypi(modules: Path) -> Iterator[str]:
    for info in sorted(modules.glob("*.dist-info")):
        metadata = (info / "METADATA").read_text(errors="replace").partition("\n\n")[0]
        files = sorted(path for path in info.rglob("*") if path.is_file() and _NAMES.match(path.name))
        stated = re.findall(r"^License(?:-Expression)?: *(.+)$", metadata, re.M)
        stated += re.findall(r"^Classifier: (License ::.+)$", metadata, re.M)
        if not files and not stated:
            raise BuildError(f"{info.name}: neither a licence file nor a licence's name")
        yield _title(info.name.removesuffix(".dist-info").replace("-", " ") + " (PyPI)")
        yield "\n".join(
            [f"Licence: {line}" for line in dict.fromkeys(stated)]
            + [path.read_text(errors="replace") for path in files]
        )


def _pages(vendor: Path) -> Iterator[str]:
    for directory in sorted(path for path in vendor.iterdir() if path.is_dir()):
        files = sorted(path for path in directory.rglob("*") if path.is_file() and _NAMES.match(path.name))
        if not files:
            raise BuildError(f"static/vendor/{directory.name}: no licence file")
        yield _title(f"{directory.name} (in the pages)")
        for path in files:
            yield f"[{path.relative_to(directory)}]\n\n{path.read_text(errors='replace')}"
