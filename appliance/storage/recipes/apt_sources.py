"""The host's package sources, reduced to Debian's own archive and moved to a recipe's release. Pure, but for `read_host`.

Both of apt's formats are understood: one-line (`sources.list(5)`, "ONE-LINE-STYLE FORMAT") and deb822. Which mirror a
host uses is its operator's choice: no mirror's name is known here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from appliance.errors import Unsupported

_ALIASES = ("stable", "oldstable")
_SUITE_ENDS = ("", "-updates", "-security")
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class AptSource:
    """One binary source. `signed_by` is a keyring's path, an inline key, or ""."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    signed_by: str = ""

    def render(self) -> str:
        """The source as a deb822 stanza."""
        lines = [
            "Types: deb",
            f"URIs: {' '.join(self.uris)}",
            f"Suites: {' '.join(self.suites)}",
            f"Components: {' '.join(self.components)}",
        ]
        return "\n".join(lines + ([f"Signed-By: {self.signed_by}"] if self.signed_by else [])) + "\n"


def read_host(root: Path = Path("/")) -> str:
    """The host's sources for its own release, as deb822 text; see `select`. Blocks (a few small files)."""
    identity = _read_assignments(root / "etc/os-release")
    if identity.get("ID") != "debian":
        raise Unsupported("template: recipes need a Debian host, for its apt sources")
    files = [root / "etc/apt/sources.list", *sorted((root / "etc/apt/sources.list.d").glob("*"))]
    sources = [source for path in files if path.is_file() for source in parse(path.name, path.read_text())]
    return render(sources, host_codename=identity.get("VERSION_CODENAME", ""))


def render(sources: Iterable[AptSource], *, host_codename: str, codename: str = "") -> str:
    """deb822 text of those of `sources` that are Debian's archive, for the release `codename` (default: the host's).

    Kept are entries with the component `main`, of the host's release, that no third party's key signs: the image would
    lack that key. Raises `Unsupported` when none is left.
    """
    kept: list[str] = []
    for source in sources:
        suites = tuple(
            f"{codename or host_codename}{end}"
            for suite in source.suites
            for end in _SUITE_ENDS
            if suite in {f"{start}{end}" for start in (host_codename, *_ALIASES) if start}
        )
        ours = not source.signed_by or PurePosixPath(source.signed_by).name.startswith("debian-")
        if suites and ours and "main" in source.components:
            moved = AptSource(uris=source.uris, suites=suites, components=source.components, signed_by=source.signed_by)
            if (text := moved.render()) not in kept:
                kept.append(text)
    if not kept:
        raise Unsupported("template: the host's apt sources name no Debian archive (main)")
    return "\n".join(kept)


def parse(file_name: str, text: str) -> Iterator[AptSource]:
    """The binary sources of one file; the format is told by the name's ending, as apt does. Others yield nothing."""
    if file_name.endswith(".list"):
        yield from _parse_one_line(text)
    elif file_name.endswith(".sources"):
        yield from _parse_deb822(text)


def move(text: str, *, host_codename: str, codename: str) -> str:
    """`text`, as `read_host` returned it, for another release of Debian."""
    return render(_parse_deb822(text), host_codename=host_codename, codename=codename)


def host_codename(root: Path = Path("/")) -> str:
    """The release this host runs."""
    return _read_assignments(root / "etc/os-release").get("VERSION_CODENAME", "")


def _parse_one_line(text: str) -> Iterator[AptSource]:
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match is None or match["uri"].startswith("cdrom:"):
            continue
        options = dict(part.partition("=")[::2] for part in (match["options"] or "").split())
        yield AptSource(
            uris=(match["uri"],),
            suites=(match["suite"],),
            components=tuple(match["components"].split()),
            signed_by=options.get("signed-by", ""),
        )


def _parse_deb822(text: str) -> Iterator[AptSource]:
    for block in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields = {
            match[1].lower(): match[2].strip()
            for match in re.finditer(r"^([A-Za-z-]+):(.*(?:\n[ \t].*)*)", block, re.M)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        yield AptSource(
            uris=tuple(fields.get("uris", "").split()),
            suites=tuple(fields.get("suites", "").split()),
            components=tuple(fields.get("components", "").split()),
            signed_by=fields.get("signed-by", ""),
        )


def _read_assignments(path: Path) -> Mapping[str, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {name: value.strip("\"'") for name, equals, value in (line.partition("=") for line in lines) if equals}
