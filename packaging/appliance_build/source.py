"""The repository at HEAD: its version, its time, its files. What is not committed is not in the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from appliance_build.run import BuildError, run, say

SHIPPED = ("appliance", "templates", "static", "packaging", "requirements.lock", "CHANGELOG.md")


@dataclass(frozen=True, slots=True)
class Source:
    """One commit, exported."""

    root: Path
    version: str
    commit: str
    epoch_s: int
    """The commit's time: SOURCE_DATE_EPOCH of everything that is built from it."""
    data_format: int
    """Which data directories it reads: `appliance/version.py`."""


def export(repository: Path, to: Path, *, version: str = "") -> Source:
    """Write the files of HEAD that a build needs below `to`. `version` instead of git's. Raises `BuildError`."""
    git = ("git", "-C", repository)
    if run([*git, "status", "--porcelain", "--untracked-files=no", "--", *SHIPPED]):
        say("changes that are not committed are not in the package")
    present = [name for name in SHIPPED if run([*git, "ls-tree", "HEAD", "--", name])]
    to.mkdir(parents=True)
    run(["tar", "-x", "-C", to], stdin=run([*git, "archive", "--format=tar", "HEAD", "--", *present]))
    epoch_s = int(run([*git, "log", "-1", "--format=%ct"]))
    return Source(
        root=to,
        version=version or _version(repository),
        commit=run([*git, "rev-parse", "HEAD"]).decode().strip(),
        epoch_s=epoch_s,
        data_format=_data_format(to),
    )


def _data_format(root: Path) -> int:
    match = re.search(r"^DATA_FORMAT = (\d+)$", (root / "appliance/version.py").read_text(), re.M)
    if match is None:
        raise BuildError("appliance/version.py: no line DATA_FORMAT = …")
    return int(match[1])


def _version(repository: Path) -> str:
    git = ("git", "-C", repository)
    try:
        described = run([*git, "describe", "--tags", "--match", "v[0-9]*"]).decode().strip()
    except BuildError:  # no tag yet
        count, commit = (run([*git, *words]).decode().strip() for words in _COUNT_AND_HASH)
        return f"0.{count}+{commit}"
    return from_tag(described)


_COUNT_AND_HASH = (("rev-list", "--count", "HEAD"), ("rev-parse", "--short=7", "HEAD"))


def from_tag(described: str) -> str:
    """`v1.2` -> `1.2`; `v1.2-5-gabc1234` -> `1.2+5.gabc1234`: later than 1.2, earlier than 1.2.1 (deb-version(7)).

    A pre-release's hyphen becomes `~`, which sorts before nothing: `v1.2-rc1` -> `1.2~rc1`.
    """
    match = re.fullmatch(r"v(?P<tag>.+?)(?:-(?P<count>\d+)-(?P<commit>g[0-9a-f]+))?", described)
    if match is None:
        raise BuildError(f"git describe answers {described!r}, which is no version")
    version = match["tag"].replace("-", "~")
    return f"{version}+{match['count']}.{match['commit']}" if match["count"] else version
