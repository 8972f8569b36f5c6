"""Unpacked layers, below `DIRECTORY/layers/ALGORITHM-HEX/fs`, named by the chain they end (image-spec "Layer ChainID").

A layer is unpacked once, over whatever stands on it, and never changed: every container's root is an overlay of these
directories. It appears by one rename, after its file system has been synced; what a crash left has another name and is
removed by `prepare`. Blocking, but for `make`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from appliance import command
from appliance.errors import HostError
from appliance.files import sync_directory
from appliance.storage import headroom, trees
from appliance.storage.oci.reference import Digest
from appliance.tasks import to_its_end
from appliance.threads import to_the_end

TREE: Final = "fs"
_TEMPORARY: Final = ".tmp-"
_SYNC_LIMIT_S: Final = 600.0


class LayerStore:
    """The unpacked layers of one storage."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "layers"

    def prepare(self) -> int:
        """Make the directory and remove remains; how many. Raises `OSError`."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        remains = [path for path in self.directory.iterdir() if path.name.startswith(_TEMPORARY)]
        for path in remains:
            trees.remove_tree(path)
        return len(remains)

    def tree(self, chain_id: Digest) -> Path:
        """Where the layer's files are, or would be."""
        return self.directory / _name(chain_id) / TREE

    def has(self, chain_id: Digest) -> bool:
        """Whether it is unpacked."""
        return self.tree(chain_id).is_dir()

    @asynccontextmanager
    async def making(self, chain: Sequence[Digest]) -> AsyncIterator[Making]:
        """Make the layers of `chain`, the lowest first, that are missing; what has been begun is published at the end.

        After an error nothing is. Two who make the same at the same time do no harm: the first to publish stays.
        """
        making = Making(self, chain)
        try:
            yield making
            if making.begun:
                await command.run(["sync", "--file-system", str(self.directory)], timeout_s=_SYNC_LIMIT_S)
                await to_the_end(making.publish)
        finally:
            await to_its_end(to_the_end(making.remove), name="remove unfinished layers")

    def all(self) -> Iterator[Digest]:
        """Every layer there is."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.directory) as entries:
            for entry in entries:
                with contextlib.suppress(ValueError):
                    yield Digest.parse(entry.name.replace("-", ":", 1))

    def used_bytes(self, chain_id: Digest) -> int:
        """What it occupies; counted, which takes time."""
        return trees.tree_bytes(self.tree(chain_id))

    def named(self, path: str) -> Digest | None:
        """The layer whose tree has this path, relative to the storage or absolute; None when it is none of ours."""
        parts = Path(path).parts
        if len(parts) < 3 or parts[-1] != TREE or parts[-3] != self.directory.name:
            return None
        with contextlib.suppress(ValueError):
            return Digest.parse(parts[-2].replace("-", ":", 1))
        return None

    def remove(self, chain_id: Digest) -> None:
        """Remove; not an error when absent. It has no name from the first step on. Raises `HostError`."""
        aside = self.directory / f"{_TEMPORARY}{secrets.token_hex(4)}-{chain_id.hex[:16]}"
        try:
            (self.directory / _name(chain_id)).rename(aside)
            trees.remove_tree(aside)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HostError.from_os_error(error, f"remove layer {chain_id}") from error


class Making:
    """Layers being made: each is unpacked under a temporary name, over those below it, finished or not. Blocking."""

    def __init__(self, store: LayerStore, chain: Sequence[Digest]) -> None:
        self._store = store
        self._chain = chain
        self._places: dict[int, Path] = {}

    @property
    def begun(self) -> bool:
        """Whether there is anything to publish."""
        return bool(self._places)

    def begin(self, number: int) -> Path | None:
        """An empty tree for the layer; None when it is there already. Raises `HostError`, `NoSpace`."""
        chain_id, directory = self._chain[number], self._store.directory
        if self._store.has(chain_id):
            return None
        headroom.require(directory, f"unpack a layer into {directory}")
        place = directory / f"{_TEMPORARY}{secrets.token_hex(4)}-{chain_id.hex[:16]}"
        try:
            (place / TREE).mkdir(parents=True, mode=0o755)
            (place / TREE).chmod(0o755)
        except OSError as error:
            raise HostError.from_os_error(error, f"mkdir {place}") from error
        self._places[number] = place
        return place / TREE

    def below(self, number: int) -> list[Path]:
        """The trees below a layer, the nearest first."""
        return [
            self._places[each] / TREE if each in self._places else self._store.tree(self._chain[each])
            for each in reversed(range(number))
        ]

    def publish(self) -> None:
        """Give every layer its name, the lowest first. Raises `HostError`."""
        for number, place in sorted(self._places.items()):
            final = self._store.tree(self._chain[number]).parent
            try:
                if not final.exists():  # else somebody has made the same meanwhile
                    place.rename(final)
            except OSError as error:
                raise HostError.from_os_error(error, f"publish layer {self._chain[number]}") from error
        sync_directory(self._store.directory)

    def remove(self) -> None:
        """Remove what was not published."""
        for place in self._places.values():
            _remove(place)


def _name(chain_id: Digest) -> str:
    return f"{chain_id.algorithm}-{chain_id.hex}"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        trees.remove_tree(path)
