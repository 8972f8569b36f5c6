"""Which volume a disk key means: one that exists, one to be made, a cloud-init drive, or an empty tray.

    local:100/vm-100-disk-0.qcow2     Existing          local:iso/debian.iso,media=cdrom
    local:8                           Allocate          8 GiB on storage `local` (decimals allowed)
    local:0   containers              Allocate          a directory, as large as its storage
    local:0,import-from=local:import/x.qcow2   Import   a copy of that volume
    local:cloudinit                   CloudInitDrive    generated from the ci* keys
    none   cdrom                      EmptyTray         a CD-ROM drive without a disc
    /srv/share                        HostPath          a directory or file of the host, in a container's mount point
    tmpfs                             Memory            a file system in the container's memory, likewise

Elsewhere paths on the host are refused: a volume belongs to a storage, which answers for who may use it.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from fractions import Fraction

from appliance.model.volume import VolumeId
from appliance.services.guest_config.formats import host_path, volume_id
from appliance.services.guest_config.sizes import GIB, KIB, SIZE_LIMIT_BYTES, format_size
from appliance.services.guest_config.values import NOT_SUPPORTED, shorten

_ALLOCATE = re.compile(r"([a-zA-Z][a-zA-Z0-9_.-]{0,99}):([0-9]{1,100})(\.[0-9]{1,9})?")
_CLOUDINIT_REQUEST = re.compile(r"([a-zA-Z][a-zA-Z0-9_.-]{0,99}):cloudinit")
_CLOUDINIT_VOLUME = re.compile(r"(?:[0-9]+/)?vm-[0-9]+-cloudinit(?:-[0-9]+)?(?:\.[a-z0-9]+)?")
_OWNED = re.compile(r"(?:vm|subvol|base|basevol)-([0-9]{1,9})-.+")


@dataclass(frozen=True, slots=True)
class Existing:
    """A volume by name."""

    volume_id: VolumeId

    @property
    def is_cloudinit(self) -> bool:
        """Whether it is a generated cloud-init drive."""
        return _CLOUDINIT_VOLUME.fullmatch(self.volume_id.name) is not None

    @property
    def owner(self) -> int | None:
        """The guest a disk's name says it belongs to; None for ISO images and other files."""
        match = _OWNED.fullmatch(self.volume_id.name.rpartition("/")[2])
        return int(match[1]) if match else None


@dataclass(frozen=True, slots=True)
class Allocate:
    """A new, empty volume of `size_bytes` on `storage`; of a container 0 means a directory."""

    storage: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Import:
    """A new volume on `storage` with the content of `source`."""

    storage: str
    source: VolumeId


@dataclass(frozen=True, slots=True)
class CloudInitDrive:
    """A cloud-init drive to be made on `storage`."""

    storage: str


@dataclass(frozen=True, slots=True)
class EmptyTray:
    """No volume: `none`, or `cdrom` (the host's drive in PVE, always empty here)."""


@dataclass(frozen=True, slots=True)
class HostPath:
    """A directory or file of the host, absolute and without `.` and `..`. Only in a container's mount points."""

    path: str


@dataclass(frozen=True, slots=True)
class Memory:
    """A file system in memory, empty at each start. Only in a container's mount points."""


VolumeRef = Existing | Allocate | Import | CloudInitDrive | EmptyTray | HostPath | Memory


@functools.lru_cache(maxsize=4096)  # a list of a thousand guests reads the same few thousand names again and again
def parse_volume(text: str, *, import_from: str = "", mount_point: bool = False, trees: bool = False) -> VolumeRef:
    """What `text` (the `file` or `volume` of a disk) means. Raises `ValueError`.

    `mount_point`: of a container. `trees`: size 0 asks for a directory, as containers may have.
    """
    if text in ("none", "cdrom"):
        return EmptyTray()
    if mount_point and text == "tmpfs":
        return Memory()
    if mount_point and text.startswith("/"):
        return HostPath(host_path(text))
    if text.startswith("/"):
        raise ValueError(f"'{shorten(text)}': paths on the host are {NOT_SUPPORTED}, use a volume of a storage")
    if match := _CLOUDINIT_REQUEST.fullmatch(text):
        return CloudInitDrive(match[1])
    if match := _ALLOCATE.fullmatch(text):
        size_bytes = _whole_kib(Fraction(match[2] + (match[3] or "")) * GIB)
        if trees and not size_bytes and not import_from:
            return Allocate(match[1], 0)
        return _new(match[1], size_bytes, import_from)
    if import_from:
        raise ValueError(f"import-from needs STORAGE:0 as volume, not '{shorten(text)}'")
    return Existing(VolumeId.parse(volume_id(text)))


def _whole_kib(size_bytes: Fraction) -> int:
    # PVE allocates in KiB; image formats and file systems need at least whole sectors
    return -(-size_bytes // KIB) * KIB


def _new(storage: str, size_bytes: int, import_from: str) -> VolumeRef:
    if import_from:
        return Import(storage, VolumeId.parse(volume_id(import_from)))
    if size_bytes <= 0:
        raise ValueError(f"a new volume on '{storage}' needs a size above 0 (in GiB)")
    if size_bytes > SIZE_LIMIT_BYTES:
        raise ValueError(f"a new volume may have at most {format_size(SIZE_LIMIT_BYTES)}")
    return Allocate(storage, size_bytes)


def volume_text(text: str) -> str:
    """Check of the `file` key alone (the request as a whole is checked with its `import-from`)."""
    if not text.endswith(":0"):
        parse_volume(text)
    return text


def mount_volume_text(text: str) -> str:
    """As `volume_text`, in a container's mount point."""
    if not text.endswith(":0"):
        parse_volume(text, mount_point=True)
    return text


def import_source(text: str) -> str:
    """Check of `import-from`: a volume, never a path."""
    if text.startswith("/"):
        raise ValueError(f"importing from paths on the host is {NOT_SUPPORTED}: upload to an import storage first")
    return volume_id(text)
