"""The data directory's format: one number for all that is in it, so that an older appliance does not misread it.

    DATA_DIR/format     "1\\nappliance 0.5\\n": the format, and for people who wrote it

The number is raised with anything an older appliance would misunderstand: the store's schema, a document's meaning, the
layout of volumes. An older appliance then refuses to start, and the Debian package to be installed over a newer one
(packaging/debian/preinst reads the file's first line). A directory without the file has format 1. Blocks.
"""

from __future__ import annotations

import logging
from pathlib import Path

from appliance.errors import Conflict, HostError, NoSpace
from appliance.files import write_atomic

log = logging.getLogger(__name__)

FILE_NAME = "format"
FIRST = 1
_LIMIT_BYTES = 4096


def claim(data_dir: Path, known: int, *, version: str) -> None:
    """Before anything in `data_dir` is read: check its format, and write `known` down where it is older or not said.

    Raises `Conflict` when it is newer than `known`, `HostError` when the file cannot be read or is damaged. Nothing has
    changed then.
    """
    path = data_dir / FILE_NAME
    found, writer = _read(path)
    if found is not None and found > known:
        raise Conflict(
            f"data directory {data_dir}: written by {writer or 'a newer appliance'} (format {found}); this is appliance "
            f"{version}, which knows formats up to {known}: install the newer version again"
        )
    if found == known:
        return
    try:
        write_atomic(path, f"{known}\nappliance {version}\n".encode(), mode=0o644)
    except NoSpace as error:
        if (found or FIRST) != known:
            raise
        log.warning("%s", error)  # says nothing that its absence does not say: a full disk is no reason not to start


def _read(path: Path) -> tuple[int | None, str]:
    try:
        with path.open("rb") as file:
            text = file.read(_LIMIT_BYTES).decode(errors="replace")
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        raise HostError.from_os_error(error, f"read {path}") from error
    number, _, writer = text.partition("\n")
    if not number.isascii() or not number.isdigit():
        raise HostError(f"{path}: its first line is no format's number: {number[:40]!r}")
    return int(number), writer.strip()
