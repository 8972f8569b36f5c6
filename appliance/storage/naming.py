"""Where a directory storage keeps a volume, and what its name says. Pure; the layout and the names are PVE's.

    local:100/vm-100-disk-0.qcow2     images/100/vm-100-disk-0.qcow2          images, rootdir (raw, qcow2)
    local:101/subvol-101-disk-0.subvol  images/101/subvol-101-disk-0.subvol/  rootdir (a directory)
    local:iso/x.iso                   template/iso/x.iso
    local:vztmpl/y.tar.zst            template/cache/y.tar.zst
    local:import/z.qcow2              import/z.qcow2
    local:backup/vzdump-….tar.zst     dump/vzdump-….tar.zst
    local:snippets/s.yaml             snippets/s.yaml

Names beginning with `.tmp-` are unfinished or half removed: nothing lists them, `recover` removes them. What a name
cannot say (content, parent, notes) is in a record below `.appliance/` (records.py).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from appliance.errors import InvalidParameter
from appliance.model.guest import GUEST_ID_MAX, GUEST_ID_MIN, GuestId
from appliance.model.volume import ContentType, VolumeFormat

TEMPORARY_PREFIX: Final = ".tmp-"
IMAGES_DIRECTORY: Final = "images"
NAME_LIMIT_BYTES: Final = 200  # with the temporary prefix it must stay below NAME_MAX (255)

FILE_DIRECTORIES: Final = {
    ContentType.ISO: "template/iso",
    ContentType.VZTMPL: "template/cache",
    ContentType.IMPORT: "import",
    ContentType.BACKUP: "dump",
    ContentType.SNIPPETS: "snippets",
}
UPLOADABLE: Final = frozenset({ContentType.ISO, ContentType.VZTMPL, ContentType.IMPORT, ContentType.SNIPPETS})
_ENDINGS: Final = {
    ContentType.ISO: (".iso", ".img"),
    ContentType.VZTMPL: (".tar.gz", ".tar.xz", ".tar.zst", ".tar.bz2", ".tar"),
    ContentType.IMPORT: (".qcow2", ".raw", ".img"),
    ContentType.BACKUP: (".tar", ".tar.gz", ".tar.zst", ".tar.lzo", ".vma", ".vma.gz", ".vma.zst", ".vma.lzo"),
    ContentType.SNIPPETS: ("",),
}
_SHORT_FORMATS: Final = {".tar.gz": "tgz", ".tar.xz": "txz", ".tar.zst": "tzst", ".tar.bz2": "tbz2", ".tar": "tar"}
_DISK = re.compile(
    r"(?P<stem>(?:vm|subvol|base)-(?P<id>\d{3,9})-[A-Za-z0-9][A-Za-z0-9_.-]*)\.(?P<format>raw|qcow2|subvol)"
)
_BACKUP = re.compile(r"backup/vzdump-(?P<kind>lxc|qemu)-(?P<id>\d{3,9})-.+")
_LABEL = re.compile(r"[a-z][a-z0-9]{0,15}")
_FILE = re.compile(r"[A-Za-z0-9_+=][A-Za-z0-9_.+=@-]*")


@dataclass(frozen=True, slots=True)
class Place:
    """What a volume's name means. `path` is relative to the storage's root; `format` is PVE's word for it."""

    path: PurePosixPath
    content: ContentType | None
    """None for a guest's disk: whether it is `images` or `rootdir` is in its record."""
    format: str
    guest_id: GuestId | None = None

    @property
    def is_disk(self) -> bool:
        """Whether it belongs to a guest, as against a file anybody may use."""
        return self.guest_id is not None


def locate(name: str) -> Place:
    """Where the volume `name` (the part behind "STORAGE:") lies. Raises `InvalidParameter` for a name of no such form."""
    head, slash, rest = name.partition("/")
    if slash and head.isdigit():
        match = _DISK.fullmatch(rest)
        if match is not None and match["id"] == head and GUEST_ID_MIN <= int(head) <= GUEST_ID_MAX:
            return Place(PurePosixPath(IMAGES_DIRECTORY, head, rest), None, match["format"], GuestId(int(head)))
    elif slash and head in FILE_DIRECTORIES:
        content = ContentType(head)
        check_file_name(content, rest)
        return Place(PurePosixPath(FILE_DIRECTORIES[content], rest), content, file_format(content, rest))
    raise InvalidParameter({"volume": f"'{name}' is not the name of a volume of a directory storage"})


def backup_owner(name: str) -> tuple[str, GuestId] | None:
    """Of which kind of guest, and which, the backup `name` is; None when it is none or its name does not tell."""
    match = _BACKUP.fullmatch(name)
    if match is None or not GUEST_ID_MIN <= int(match["id"]) <= GUEST_ID_MAX:
        return None
    return match["kind"], GuestId(int(match["id"]))


def check_file_name(content: ContentType, file_name: str) -> None:
    """Raises `InvalidParameter` unless `file_name` may be stored as `content`: one path part with a known ending."""
    if content not in FILE_DIRECTORIES:
        raise InvalidParameter({"content": f"'{content}' volumes are not files by name"})
    if not _FILE.fullmatch(file_name) or len(file_name) > NAME_LIMIT_BYTES:
        raise InvalidParameter({"filename": f"'{file_name}' is not a file name (letters, digits and . _ + = @ - only)"})
    if not file_name.endswith(_ENDINGS[content]):
        raise InvalidParameter(
            {"filename": f"'{file_name}' must end in {' or '.join(_ENDINGS[content])} for '{content}'"}
        )


def file_format(content: ContentType, file_name: str) -> str:
    """PVE's `format` of a file in a listing."""
    ending = next((end for end in _ENDINGS[content] if file_name.endswith(end)), "")
    match content:
        case ContentType.ISO:
            return "iso"
        case ContentType.SNIPPETS:
            return "snippet"
        case ContentType.IMPORT:
            return "qcow2" if ending == ".qcow2" else "raw"
        case _:
            return _SHORT_FORMATS.get(ending, ending.lstrip("."))


def disk_name(guest_id: GuestId, label: str, number: int, volume_format: VolumeFormat) -> str:
    """`100/vm-100-disk-0.qcow2`, without the storage."""
    kind = "subvol" if volume_format is VolumeFormat.SUBVOL else "vm"
    return f"{guest_id}/{kind}-{guest_id}-{label}-{number}.{volume_format}"


def free_disk_name(guest_id: GuestId, label: str, volume_format: VolumeFormat, *, taken: Collection[str]) -> str:
    """The name with the lowest number that no volume of the guest has, whatever its format.

    `taken` holds names as `disk_name` makes them. Raises `InvalidParameter` for a bad label.
    """
    if not _LABEL.fullmatch(label):
        raise InvalidParameter({"label": f"'{label}' is not a short word"})
    stems = {name.rpartition("/")[2].rpartition(".")[0].partition("-")[2] for name in taken}
    number = 0
    while f"{guest_id}-{label}-{number}" in stems:
        number += 1
    return disk_name(guest_id, label, number, volume_format)
