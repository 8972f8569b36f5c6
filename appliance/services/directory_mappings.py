"""Directories of nodes under one name, which guests share by virtio-fs: PVE's `/cluster/mapping/dir`.

`mapping/dir/ID` in the store:

    "home": node=a,path=/srv/home   node=b,path=/tank/home        the guest says `dirid=home` and does not know where

Whoever may change a mapping (Mapping.Modify) decides which directories of a host guests may write to. Directories of the
system and the appliance's own are refused.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound
from appliance.services import digests
from appliance.services.storage_config import is_of_the_system
from appliance.state.documents import Documents, Stored
from appliance.state.store import Store

ROWS_LIMIT: Final = 100
DESCRIPTION_LIMIT: Final = 4096
PATH_LIMIT: Final = 500
TAG_BYTES: Final = 36  # a mapping's name is the tag by which the guest mounts it: virtio 1.2 §5.11.4
_ID: Final = re.compile(r"[A-Za-z][A-Za-z0-9_-]+")
_NODE: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


class DirectoryMapping(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The stored form: a path for each node that has the directory."""

    description: str = ""
    paths: dict[str, str] = {}

    @property
    def rows(self) -> list[str]:
        """As PVE writes them."""
        return [f"node={node},path={path}" for node, path in sorted(self.paths.items())]

    def digest(self) -> str:
        """Changes with every change."""
        return digests.digest(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingChange:
    """What a client wants changed; None leaves it."""

    description: str | None = None
    paths: Mapping[str, str] | None = None
    delete: Sequence[str] = ()


class DirectoryMappings:
    """All of them. `node` is this node's name; nothing below `data_dir` is ever shared."""

    def __init__(self, store: Store, *, node: str, data_dir: Path) -> None:
        self._store, self._node, self._data_dir = store, node, data_dir.absolute()
        self._documents = Documents(store, "mapping/dir/", DirectoryMapping)

    async def all(self) -> Sequence[Stored[DirectoryMapping]]:
        """In the order of their names."""
        return (await self._documents.all())[0]

    async def get(self, name: str) -> DirectoryMapping:
        """Raises `NotFound`."""
        return (await self._stored(name)).value

    async def create(self, name: str, *, description: str, paths: Mapping[str, str]) -> None:
        """Raises `Conflict` when there is one of that name, `InvalidParameter`."""
        check_id(name)
        made = DirectoryMapping(description=_described(description), paths=self._checked(paths))
        done = await self._store.txn([self._documents.unchanged(name, None)], [self._documents.put(name, made)])
        if not done.succeeded:
            raise Conflict(f"directory mapping '{name}' already exists")

    async def update(self, name: str, change: MappingChange, *, digest: str = "") -> None:
        """Raises `NotFound`, `Conflict` (changed meanwhile), `InvalidParameter`."""
        before = await self._stored(name)
        if digest and digest != before.value.digest():
            raise Conflict(f"directory mapping '{name}' has changed meanwhile (digest differs)")
        if unknown := [each for each in change.delete if each != "description"]:
            raise InvalidParameter({"delete": f"'{unknown[0][:40]}' cannot be deleted"})
        value = before.value
        if change.delete:
            value = msgspec.structs.replace(value, description="")
        if change.description is not None:
            value = msgspec.structs.replace(value, description=_described(change.description))
        if change.paths is not None:
            value = msgspec.structs.replace(value, paths=self._checked(change.paths))
        done = await self._store.txn([self._documents.unchanged(name, before)], [self._documents.put(name, value)])
        if not done.succeeded:
            raise Conflict(f"directory mapping '{name}' has changed meanwhile")

    async def delete(self, name: str) -> None:
        """Guests that name it do not start any more; those that run keep their directory. Raises `NotFound`."""
        stored = await self._stored(name)
        await self._store.txn([self._documents.unchanged(name, stored)], [self._documents.delete(name)])

    async def directory(self, name: str) -> Path:
        """The directory on this node, for a guest. Raises `NotFound`, `HostError` when it cannot be used."""
        mapping = await self.get(name)
        if problem := await self.problem(mapping, self._node):
            raise HostError(f"directory mapping '{name}': {problem}")
        return Path(mapping.paths[self._node])

    async def problem(self, mapping: DirectoryMapping, node: str) -> str:
        """Why it cannot be used on `node`; "" when it can. Other nodes' directories cannot be looked at from here."""
        path = mapping.paths.get(node)
        if path is None:
            return f"there is no directory for node {node}"
        if node != self._node:
            return ""
        return await asyncio.to_thread(_problem, Path(path))

    async def _stored(self, name: str) -> Stored[DirectoryMapping]:
        stored = await self._documents.get(name) if _ID.fullmatch(name) else None
        if stored is None:
            raise NotFound(f"directory mapping '{name[:100]}'")
        return stored

    def _checked(self, paths: Mapping[str, str]) -> dict[str, str]:
        if not 0 < len(paths) <= ROWS_LIMIT:
            raise InvalidParameter(
                {"map": f"1 to {ROWS_LIMIT} entries of the form node=NAME,path=DIRECTORY are needed"}
            )
        for node, path in paths.items():
            if not _NODE.fullmatch(node):
                raise InvalidParameter({"map": f"'{node[:64]}' is not a node's name"})
            if problem := self._forbidden(path):
                raise InvalidParameter({"map": problem})
        return {node: str(PurePosixPath(path)) for node, path in paths.items()}

    def _forbidden(self, path: str) -> str:
        pure = PurePosixPath(path)
        if not pure.is_absolute() or ".." in pure.parts or len(path) > PATH_LIMIT or not path.isprintable():
            return f"'{path[:100]}' is not an absolute path"
        if "," in path or ";" in path:
            return f"'{path[:100]}': a comma or semicolon cannot be in a mapped path"
        if pure == PurePosixPath("/") or is_of_the_system(pure):
            return f"'{pure}' belongs to the system"
        if pure.is_relative_to(self._data_dir) or self._data_dir.is_relative_to(pure):
            return f"'{pure}' overlaps with the appliance's own data"
        return ""


def check_id(name: str) -> None:
    """Raises `InvalidParameter` unless `name` can be a mapping's, and a tag."""
    if not _ID.fullmatch(name) or len(name) > TAG_BYTES:
        raise InvalidParameter(
            {
                "id": f"'{name[:40]}' is not a mapping's name: a letter, then letters, digits, '-' and '_', 2 to {TAG_BYTES}"
            }
        )


def parse_rows(rows: Sequence[str]) -> dict[str, str]:
    """`node=NAME,path=DIRECTORY` for each node. A list that came as one string has lost where its rows begin: a row ends
    where a word comes again. Raises `InvalidParameter`."""
    found: list[dict[str, str]] = [{}]
    for part in (part for row in rows for part in row.split(",") if part):
        key, equals, value = part.partition("=")
        if not equals or key not in ("node", "path"):
            raise InvalidParameter({"map": f"'{part[:60]}' is neither node=NAME nor path=DIRECTORY"})
        if key in found[-1]:
            found.append({})
        found[-1][key] = value
    paths: dict[str, str] = {}
    for row in found:
        if set(row) != {"node", "path"}:
            raise InvalidParameter({"map": "each entry is node=NAME,path=DIRECTORY"})
        if row["node"] in paths:
            raise InvalidParameter({"map": f"node '{row['node'][:64]}' is given twice"})
        paths[row["node"]] = row["path"]
    return paths


def _described(text: str) -> str:
    if len(text) > DESCRIPTION_LIMIT:
        raise InvalidParameter({"description": f"value may only be {DESCRIPTION_LIMIT} characters long"})
    return text


def _problem(path: Path) -> str:
    """Blocking."""
    try:
        if path.resolve(strict=True) != path:
            return f"{path} leads elsewhere through a symbolic link"
        return "" if path.is_dir() else f"{path} is not a directory"
    except OSError as error:
        return f"{path}: {error.strerror}"
