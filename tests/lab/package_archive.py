"""A package archive inside of an image: what the host's apt can install without any network. apt's flat format."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

ARCHIVE_DIR: Final = "/opt/packages"
_READ_TIMEOUT_S = 30.0
_SOURCES = f"""\
Types: deb
URIs: file:{ARCHIVE_DIR}
Suites: ./
Trusted: yes
"""


def hook(packages: Sequence[str]) -> str:
    """For mmdebstrap: fetch `packages`, and what the system lacks for them, into the archive's directory."""
    install = f"apt-get --yes --download-only --no-install-recommends install {shlex.join(packages)}"
    keep = f'mkdir -p "$1{ARCHIVE_DIR}" && mv "$1"/var/cache/apt/archives/*.deb "$1{ARCHIVE_DIR}/"'
    return f'--customize-hook=rm -f "$1"/var/cache/apt/archives/*.deb; APT_CONFIG="$MMDEBSTRAP_APT_CONFIG" {install} && {keep}'


def write(root: Path) -> str:
    """Make an archive of what `hook` fetched; returns its apt source."""
    archive = root / ARCHIVE_DIR.lstrip("/")
    stanzas = [_stanza(path) for path in sorted(archive.glob("*.deb"))]
    (archive / "Packages").write_text("\n".join(stanzas))
    return _SOURCES


def _stanza(path: Path) -> str:
    argv = ["dpkg-deb", "--field", str(path)]
    control = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=_READ_TIMEOUT_S).stdout
    data = path.read_bytes()
    name = f"Filename: ./{path.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    return control.rstrip() + "\n" + name
