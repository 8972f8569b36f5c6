"""Finishing touches to a root directory: the recipe's files in, the builder's traces and secrets out. Blocks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from appliance.storage.recipes.recipe import FileEntry

_REMOVED: Final = (
    "etc/ssh/ssh_host_*",  # every guest makes its own
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/dpkg/dpkg.cfg.d/99mmdebstrap",
    "etc/apt/sources.list.d/*",  # written anew below its usual name
    "var/lib/apt/lists/*",
    "var/cache/apt/*",
    "var/cache/debconf/*-old",
    "var/lib/dbus/machine-id",
    "var/log/apt",
    "var/log/*.log",
    "tmp/*",
    "run/*",
    "*.old",  # second links to the same kernel
)


def finish(root: Path, files: Mapping[str, FileEntry], *, sources: str) -> None:
    """Write `files` and the package sources below `root`, and remove what must not be in an image."""
    for path in _matches(root):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    write_all(root, {**files, "etc/apt/sources.list.d/debian.sources": FileEntry(text=sources)})


def write_all(root: Path, files: Mapping[str, FileEntry]) -> None:
    """Write `files` below `root`, making directories."""
    for name, entry in files.items():
        _write(root / name, entry)


def write_file(root: Path, name: str, text: str) -> None:
    """One more file below `root`."""
    _write(root / name, FileEntry(text=text))


def _matches(root: Path) -> Iterator[Path]:
    for pattern in _REMOVED:
        yield from root.glob(pattern)


def _write(path: Path, entry: FileEntry) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if entry.link:
        path.symlink_to(entry.link)
        return
    path.write_text(entry.text)
    path.chmod(entry.mode)
