"""Unpacked layers, below `DIRECTORY/layers/ALGORITHM-HEX/fs`, named by the chain they end (image-spec "Layer ChainID").

A layer is unpacked once, over whatever stands on it, and never changed: every container's root is an overlay of these
directories. It appears by one rename, after its file system has been synced; what a crash left has another name and is
removed by `prepare`. Blocking, but for `make`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator
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

    async def make(self, chain_id: Digest, fill: Callable[[Path], Awaitable[None]]) -> None:
        """Let `fill` unpack into an empty directory, and publish that. Nothing is left after an error."""
        temporary = self.directory / f"{_TEMPORARY}{secrets.token_hex(4)}-{chain_id.hex[:16]}"
        try:
            await to_the_end(self._begin, temporary)
            await fill(temporary / TREE)
            await command.run(["sync", "--file-system", str(temporary)], timeout_s=_SYNC_LIMIT_S)
            await to_the_end(self._publish, temporary, chain_id)
        except BaseException:
            await to_its_end(to_the_end(_remove, temporary), name=f"remove {temporary.name}")
            raise

    def _begin(self, temporary: Path) -> None:
        headroom.require(self.directory, f"unpack a layer into {self.directory}")
        try:
            (temporary / TREE).mkdir(parents=True, mode=0o755)
            (temporary / TREE).chmod(0o755)
        except OSError as error:
            raise HostError.from_os_error(error, f"mkdir {temporary}") from error

    def _publish(self, temporary: Path, chain_id: Digest) -> None:
        final = self.directory / _name(chain_id)
        try:
            if final.exists():  # made by somebody else meanwhile: the same
                trees.remove_tree(temporary)
                return
            temporary.rename(final)
            sync_directory(self.directory)
        except OSError as error:
            raise HostError.from_os_error(error, f"publish layer {chain_id}") from error

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


def _name(chain_id: Digest) -> str:
    return f"{chain_id.algorithm}-{chain_id.hex}"


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        trees.remove_tree(path)
