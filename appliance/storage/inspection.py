"""Looks at the files of a directory storage: sizes, formats, and whether an image may be shown to QEMU. Blocks.

Files are opened without following links and without waiting for the writer of a FIFO.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.model.volume import ContentType
from appliance.storage import naming, qcow2_header
from appliance.storage.records import Records

_CHAIN_LIMIT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the file system and the image's own header say."""

    size_bytes: int
    used_bytes: int
    created_at: float
    backing_file: str = ""
    problem: str = ""
    """Why the image is unsound; "" when it is not."""


def measure(path: Path, image_format: str) -> Measured:
    """Measure one volume. Raises `FileNotFoundError` when there is none, `InvalidParameter` for another kind of file."""
    if image_format == "subvol":
        status = path.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise InvalidParameter({"volume": f"{path.name} is not a directory"})
        return Measured(size_bytes=0, used_bytes=0, created_at=status.st_mtime)
    fd = _open_regular(path)
    try:
        status = os.fstat(fd)
        used = status.st_blocks * 512
        if image_format != "qcow2":
            return Measured(size_bytes=status.st_size, used_bytes=used, created_at=status.st_mtime)
        head = os.pread(fd, qcow2_header.READ_BYTES, 0)
    finally:
        os.close(fd)
    try:
        header = qcow2_header.parse(head)
    except qcow2_header.BadImage as error:
        return Measured(size_bytes=0, used_bytes=used, created_at=status.st_mtime, problem=str(error))
    return Measured(
        size_bytes=header.size_bytes,
        used_bytes=used,
        created_at=status.st_mtime,
        backing_file=header.backing_file,
        problem=qcow2_header.refusal(header, backing_allowed=True) or _format_problem(header),
    )


def check_image(root: Path, records: Records, name: str) -> Measured:
    """Measure the disk or file `name` and make sure that QEMU may open it, with all it stands on.

    A backing file is allowed only where it is the parent our record names, given by the relative path we write. Raises
    `NotFound`, `InvalidParameter` saying what is wrong, `HostError`.
    """
    top: Measured | None = None
    for _ in range(_CHAIN_LIMIT):
        place = naming.locate(name)
        try:
            measured = measure(root / place.path, place.format)
        except FileNotFoundError as error:
            raise NotFound(f"volume '{name}'") from error
        except OSError as error:
            raise HostError.from_os_error(error, f"open volume {name}") from error
        if measured.problem:
            raise InvalidParameter({"volume": f"{name}: {measured.problem}"})
        top = top or measured
        if not measured.backing_file:
            return top
        parent = records.get(name).parent
        if not parent or measured.backing_file != backing_path(name, parent):
            shown = measured.backing_file[:100]
            raise InvalidParameter({"volume": f"{name}: it refers to the backing file {shown!r} (refused)"})
        name = parent
    raise InvalidParameter({"volume": f"{name}: more than {_CHAIN_LIMIT} images stand on each other"})


def backing_path(name: str, parent: str) -> str:
    """How the linked clone `name` refers to `parent`: relative, so that the storage may be moved."""
    assert naming.locate(name).is_disk
    path = naming.locate(parent).path  # images/ID/FILE, as the clone's own: one directory up, and down again
    return f"../{path.parent.name}/{path.name}"


def disks(root: Path, guest_id: int | None = None) -> Iterator[str]:
    """Names of all disks (of one guest)."""
    images = root / naming.IMAGES_DIRECTORY
    directories = [images / str(guest_id)] if guest_id is not None else sorted(_entries(images))
    for directory in directories:
        for path in sorted(_entries(directory)):
            name = f"{directory.name}/{path.name}"
            if _is_named(name) and not path.is_symlink():
                yield name


def files(root: Path, content: ContentType) -> Iterator[str]:
    """Names of all files of one content type."""
    for path in sorted(_entries(root / naming.FILE_DIRECTORIES[content])):
        name = f"{content}/{path.name}"
        if _is_named(name) and path.is_file() and not path.is_symlink():
            yield name


def temporaries(root: Path) -> Iterator[Path]:
    """What interrupted operations left under a temporary name."""
    images = root / naming.IMAGES_DIRECTORY
    directories = [*_entries(images), *(root / directory for directory in naming.FILE_DIRECTORIES.values())]
    for directory in directories:
        yield from (path for path in _entries(directory) if path.name.startswith(naming.TEMPORARY_PREFIX))


def is_attached(path: Path) -> bool:
    """Whether a loop device of this host stands on the file: a running container has its file system mounted."""
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if backing.read_text().rstrip("\n") == str(path.resolve()):
                return True
        except OSError:  # detached meanwhile
            continue
    return False


def _open_regular(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise InvalidParameter({"volume": f"{path.name} is not a regular file"})
    return fd


def _format_problem(header: qcow2_header.Qcow2Header) -> str:
    if header.backing_file and header.backing_format not in ("raw", "qcow2"):
        return "it does not say which format its backing file has"
    return ""


def _entries(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_named(name: str) -> bool:
    try:
        naming.locate(name)
    except InvalidParameter:
        return False
    return True
