"""What backups are called, what their notes say, and which of them are kept. Pure.

vzdump-lxc-101-2026_11_29-12_30_59.tar.zst       PVE's names; the time is the host's local time
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance.errors import InvalidParameter
from appliance.model.guest import GuestKind
from appliance.model.volume import VolumeInfo

ENDINGS: Mapping[str, str] = {"zstd": ".tar.zst", "gzip": ".tar.gz", "": ".tar"}
KEEP_WORDS = ("keep-all", "keep-last", "keep-hourly", "keep-daily", "keep-weekly", "keep-monthly", "keep-yearly")
_NAME = re.compile(
    r"backup/vzdump-(?P<kind>lxc|qemu)-(?P<id>\d+)-(?P<time>\d{4}_\d\d_\d\d-\d\d_\d\d_\d\d)\.(?P<ending>.+)"
)
_TIME = "%Y_%m_%d-%H_%M_%S"
_NOTE_LIMIT = 1024

_PERIODS: Mapping[str, Callable[[float], str]] = {
    "keep-hourly": lambda when: time.strftime("%Y/%m/%d/%H", time.localtime(when)),
    "keep-daily": lambda when: time.strftime("%Y/%m/%d", time.localtime(when)),
    "keep-weekly": lambda when: time.strftime("%G/%V", time.localtime(when)),
    "keep-monthly": lambda when: time.strftime("%Y/%m", time.localtime(when)),
    "keep-yearly": lambda when: time.strftime("%Y", time.localtime(when)),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """A backup by its name. `made_at` in epoch seconds."""

    kind: GuestKind
    guest_id: int
    made_at: float


def file_name(kind: GuestKind, guest_id: int, when: float, compress: str) -> str:
    """Of a new backup."""
    return f"vzdump-{kind}-{guest_id}-{time.strftime(_TIME, time.localtime(when))}{ENDINGS[compress]}"


def parse(name: str) -> Backup | None:
    """What a volume's name says; None when it is no name of a backup."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    try:
        made_at = time.mktime(time.strptime(match["time"], _TIME))
    except (ValueError, OverflowError):
        return None
    return Backup(kind=GuestKind(match["kind"]), guest_id=int(match["id"]), made_at=made_at)


def notes(template: str, *, guest_id: int, name: str, node: str, cluster: str = "") -> str:
    """A template with `{{guestname}}`, `{{vmid}}`, `{{node}}`, `{{cluster}}` and PVE's escapes filled in."""
    values = {"guestname": name, "vmid": str(guest_id), "node": node, "cluster": cluster}
    text = template[:_NOTE_LIMIT].replace("\\n", "\n").replace("\\\\", "\\")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values.get(match[1], match[0]), text)


def parse_keep(text: str) -> dict[str, int]:
    """PVE's `prune-backups`: "keep-last=3,keep-daily=7". Raises `InvalidParameter`. Empty: everything is kept."""
    keep: dict[str, int] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        word, equals, number = part.partition("=")
        if word not in KEEP_WORDS or not equals or not number.isdecimal() or len(number) > 6:
            raise InvalidParameter(
                {"prune-backups": f"'{part[:40]}' is not one of {', '.join(KEEP_WORDS)} with a number"}
            )
        keep[word] = int(number)
    if keep.get("keep-all") and len(keep) > 1:
        raise InvalidParameter({"prune-backups": "keep-all goes with no other"})
    return {} if keep.get("keep-all") else {word: number for word, number in keep.items() if number}


def marks(backups: Iterable[VolumeInfo], keep: Mapping[str, int]) -> list[tuple[VolumeInfo, str]]:
    """("keep" | "remove" | "protected" | "renamed") for each, newest first; each guest's are counted alone.

    As PVE does it: `keep-last` takes the newest; then each period keeps the newest of as many of its spans as asked for,
    spans that hold a backup kept already do not count. Without any rule everything is kept.
    """
    of_guest: dict[tuple[GuestKind, int], list[tuple[VolumeInfo, float]]] = {}
    result: list[tuple[VolumeInfo, str]] = []
    for info in backups:
        backup = parse(info.volume_id.name)
        if backup is None:
            result.append((info, "renamed"))
        elif info.protected:
            result.append((info, "protected"))
        else:
            of_guest.setdefault((backup.kind, backup.guest_id), []).append((info, backup.made_at))
    for group in of_guest.values():
        result += _marks(sorted(group, key=lambda each: each[1], reverse=True), keep)
    return sorted(result, key=lambda each: each[0].volume_id.name, reverse=True)


def _marks(newest_first: Sequence[tuple[VolumeInfo, float]], keep: Mapping[str, int]) -> list[tuple[VolumeInfo, str]]:
    if not keep:
        return [(info, "keep") for info, _ in newest_first]
    kept: set[str] = {info.volume_id.name for info, _ in newest_first[: keep.get("keep-last", 0)]}
    for word, span_of in _PERIODS.items():
        left = keep.get(word, 0)
        covered = {span_of(when) for info, when in newest_first if info.volume_id.name in kept}
        for info, when in newest_first:
            span = span_of(when)
            if left and span not in covered:
                covered.add(span)
                kept.add(info.volume_id.name)
                left -= 1
    return [(info, "keep" if info.volume_id.name in kept else "remove") for info, _ in newest_first]
