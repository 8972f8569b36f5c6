"""OCI images: pulled, pushed, listed, built, removed, and made the ground of containers. Tasks over `storage/oci`.

    registry ─ pull ─▶ blobs, and an archive `STORAGE:vztmpl/NAME_TAG.tar` that stands for them ─ ground ─▶ layers below a root

Each storage has a store of its own (`DirectoryBackend.images`). What nobody needs goes when an image is removed, when
somebody asks (`collect`), and some time after any change of a storage's content.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, InvalidParameter, NotFound, Unsupported, UserError
from appliance.events import EventBus, Lagged, StorageContentChanged
from appliance.model.volume import ContentType, VolumeId, VolumeInfo
from appliance.services.ports import LogLine
from appliance.services.ports.ct_trees import LayerUnpacker
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.storage.directory import DirectoryBackend
from appliance.storage.oci import archive, transfer
from appliance.storage.oci.archive import Archive, Image
from appliance.storage.oci.credentials import RegistryBook
from appliance.storage.oci.manifest import Descriptor, Platform
from appliance.storage.oci.reference import Digest, Reference
from appliance.storage.oci.registry import RegistryClient
from appliance.storage.oci.store import RECENT_S, Collected, ImageStore
from appliance.storage.oci.transfer import Progress
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end

log = logging.getLogger(__name__)

BOOK_NAME: Final = "oci-registries.json"
COLLECT_AFTER_S: Final = 30.0
_COPY_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedImage:
    """An image of a storage: the volume that stands for it, and what it says."""

    volume: VolumeInfo
    image: Image


class ImageService:
    """See the module's docstring. `architecture` is the host's, in Go's word ("amd64"), as images name it."""

    def __init__(
        self,
        storage: StorageService,
        tasks: TaskService,
        events: EventBus,
        clock: Clock,
        unpacker: LayerUnpacker,
        *,
        data_dir: Path,
        architecture: str,
    ) -> None:
        self._storage = storage
        self._tasks = tasks
        self._events = events
        self._clock = clock
        self._unpacker = unpacker
        self._scope = TaskScope("images")
        self._changed: set[str] = set()
        self._due = asyncio.Event()
        self.platform = Platform(architecture=architecture)
        self.registries = RegistryBook(data_dir / BOOK_NAME)

    def start(self) -> None:
        """Begin to collect what nobody needs."""
        self._scope.start(self._watch_changes(), name="watch storages")
        self._scope.start(self._collect_after_changes(), name="collect")

    async def close(self) -> None:
        """End what runs in the background."""
        await self._scope.close()

    # --- registries ---------------------------------------------------------------------------------------------------

    async def client(self, reference: Reference) -> RegistryClient:
        """A client of the registry of `reference`, with what is stored for it."""
        access = await to_the_end(self.registries.get, reference.registry)
        return RegistryClient(access, reference.api_host)

    async def tags(self, text: str) -> Sequence[str]:
        """The tags of a repository. Raises `NotFound`, `UserError`, `HostError`."""
        reference = Reference.parse(text)
        async with await self.client(reference) as registry:
            return await registry.tags(reference)

    async def pull(self, storage_id: str, text: str, *, file_name: str | None, user: str) -> str:
        """Start the task that fetches an image and lists it as a template; returns its UPID.

        An image that is there under the same name is replaced when the registry has another one now.
        """
        reference = Reference.parse(text)
        name = archive_name(file_name or reference.file_stem)
        backend = self._storage.backend(storage_id)
        if ContentType.VZTMPL not in backend.content_types:
            raise InvalidParameter({"storage": f"storage '{storage_id}' does not hold '{ContentType.VZTMPL}'"})

        async def work(task: TaskHandle) -> None:
            progress = Progress(log=task.log, tell=task.progress)
            async with await self.client(reference) as registry, backend.images.using():
                image = await transfer.pull(registry, backend.images, reference, self.platform, progress)
                await self.publish(backend, name, image, task.log)

        return await self._tasks.run("download", object_id=name, user=user, work=work)

    async def push(self, volume_id: VolumeId, text: str, *, user: str) -> str:
        """Start the task that sends an image to a registry; returns its UPID."""
        reference = Reference.parse(text)
        if reference.digest is not None:
            raise InvalidParameter({"reference": "an image is pushed to a tag, not to a digest"})
        backend = self._storage.backend(volume_id.storage)
        image = await self.inspect(volume_id)

        async def work(task: TaskHandle) -> None:
            progress = Progress(log=task.log, tell=task.progress)
            async with await self.client(reference) as registry, backend.images.using():
                await self._take_in(volume_id, image, backend.images)
                await transfer.push(registry, backend.images, image, reference, progress)

        return await self._tasks.run("ocipush", object_id=str(volume_id), user=user, work=work)

    # --- images -------------------------------------------------------------------------------------------------------

    async def list(self, storage_id: str | None = None) -> Sequence[ListedImage]:
        """The images of a storage, or of all that are active."""
        backends = [self._storage.backend(storage_id)] if storage_id else self._storage.backends()
        holding = [backend for backend in backends if ContentType.VZTMPL in backend.content_types]
        return [image for backend in holding for image in await self._images_of(backend)]

    async def find(self, volume_id: VolumeId) -> Image | None:
        """The image a template is; None when it is a plain one. Raises `NotFound`, `InvalidParameter`, `HostError`."""
        if not volume_id.name.startswith(f"{ContentType.VZTMPL}/") or not volume_id.name.endswith(".tar"):
            return None
        path = await self._storage.resolve_template(volume_id)
        return await to_the_end(_read, path, self.platform)

    async def inspect(self, volume_id: VolumeId) -> Image:
        """As `find`, but a plain template is refused."""
        image = await self.find(volume_id)
        if image is None:
            raise InvalidParameter({"volume": f"{volume_id} is not an OCI image"})
        return image

    def require_runnable(self, image: Image) -> None:
        """Raises `Unsupported` for an image of another system or processor than this host's."""
        config, host = image.config, self.platform
        if config.os != host.os or config.architecture not in ("", host.architecture):
            raise Unsupported(f"image {image.name}: is for {config.os}/{config.architecture}, and this host is {host}")

    async def publish(self, backend: DirectoryBackend, name: str, image: Image, log_line: LogLine) -> VolumeId:
        """Give an image, whose blobs are there, its name in a storage. The caller is using the store."""
        volume_id = VolumeId(backend.storage_id, f"{ContentType.VZTMPL}/{name}")
        try:
            before = await self.find(volume_id)
        except NotFound:
            before = None
        else:
            if before is None:
                raise Conflict(f"volume {volume_id} already exists and is not an image")
            if before.digest == image.digest:
                log_line(f"{volume_id} is up to date")
                return volume_id
        replaced = before is not None
        await to_its_end(self._put(backend, volume_id, name, image, replaced=replaced), name=f"publish {volume_id}")
        log_line(f"{'replaced' if replaced else 'stored'} {volume_id}")
        return volume_id

    async def _put(
        self, backend: DirectoryBackend, volume_id: VolumeId, name: str, image: Image, *, replaced: bool
    ) -> None:
        if replaced:
            await backend.delete(volume_id)
        await backend.receive(ContentType.VZTMPL, name, _once(archive.write(image)), checksum=None)
        said = f"{image.name}@{image.digest}"
        await backend.annotate(volume_id, size_bytes=image.manifest.size_bytes, notes=said)

    async def take_archive(self, path: Path, backend: DirectoryBackend, *, name: str) -> Image:
        """Bring the image of an OCI archive, a file, into a storage under `name`. The caller is using the store."""
        image = await to_the_end(_read, path, self.platform)
        if image is None:
            raise InvalidParameter({"archive": f"{path.name} is not an OCI image"})
        for blob in (image.manifest.config, *image.manifest.layers):
            async with backend.images.only_one(blob.digest):
                await to_the_end(_import_blob, path, backend.images, blob)
        await to_the_end(backend.images.blobs.sync)
        return replace(image, name=name)

    async def remove(self, volume_id: VolumeId, *, user: str) -> str:
        """Start the task that removes an image and what only it needed; returns its UPID."""
        await self.inspect(volume_id)
        backend = self._storage.backend(volume_id.storage)

        async def work(task: TaskHandle) -> None:
            await backend.delete(volume_id)
            task.log(f"removed volume {volume_id}")
            if backend.images.in_use:
                task.log("other images are being fetched or used just now: what only this one needed goes later")
            else:
                _tell(task.log, await self._collect(backend, older_than_s=0.0))

        return await self._tasks.run("imgdel", object_id=str(volume_id), user=user, work=work)

    async def collect(self, storage_id: str, *, user: str) -> str:
        """Start the task that removes what no image and no container needs; returns its UPID."""
        backend = self._storage.backend(storage_id)

        async def work(task: TaskHandle) -> None:
            if backend.images.in_use:
                task.log("waiting for the images that are being fetched or used just now")
            _tell(task.log, await self._collect(backend, older_than_s=0.0))

        return await self._tasks.run("ocigc", object_id=storage_id, user=user, work=work)

    # --- the ground of containers -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def ground(
        self, volume_id: VolumeId, image: Image, backend: DirectoryBackend, log_line: LogLine
    ) -> AsyncIterator[Sequence[str]]:
        """The layers of an image on a storage, the topmost first and relative to it, unpacked where they are not yet.

        They stay meanwhile, and for as long as the record of a volume names them.
        """
        source = self._storage.backend(volume_id.storage)
        async with AsyncExitStack() as held:
            for store in {id(each): each for each in (source.images, backend.images)}.values():
                await held.enter_async_context(store.using())
            await self._unpack(volume_id, image, source.images, backend.images, log_line)
            trees = [backend.images.layers.tree(each) for each in reversed(image.chain_ids)]
            yield [str(tree.relative_to(backend.root)) for tree in trees]

    async def copy_into(
        self, target: VolumeId, volume_id: VolumeId, image: Image, log_line: LogLine, *, path: str = "/"
    ) -> None:
        """Copy what the image's layers show at `path` into the empty volume `target`. Raises `NoSpace`, `HostError`."""
        backend = self._storage.backend(volume_id.storage)
        opened = await self._storage.open(target)
        async with self.ground(volume_id, image, backend, log_line) as layers:
            if await self._unpacker.copy_layers(opened, [backend.root / layer for layer in layers], path=path):
                log_line(f"copied {path} of the image to {target}")

    async def _unpack(
        self, volume_id: VolumeId, image: Image, source: ImageStore, target: ImageStore, log_line: LogLine
    ) -> None:
        """Unpack the layers that are not there, each over those below it; all of them appear once all are durable."""
        if not image.chain_ids:
            raise InvalidParameter({"ostemplate": f"{volume_id}: the image has no layers"})
        async with target.only_one(image.chain_ids[-1]), target.layers.making(image.chain_ids) as making:
            for number, (layer, diff_id) in enumerate(zip(image.manifest.layers, image.config.diff_ids, strict=True)):
                tree = await to_the_end(making.begin, number)
                if tree is None:
                    continue
                await self._take_in(volume_id, image, source, only=layer)
                await self._unpacker.unpack_layer(
                    tree,
                    source.blobs.path(layer.digest),
                    compression=layer.compression,
                    diff_id=str(diff_id),
                    lowers=making.below(number),
                    log=log_line,
                )

    async def _take_in(
        self, volume_id: VolumeId, image: Image, store: ImageStore, *, only: Descriptor | None = None
    ) -> None:
        """Bring blobs that are in an uploaded archive alone into the store, verified. Raises `NotFound` naming one."""
        blobs = (only,) if only is not None else (image.manifest.config, *image.manifest.layers)
        missing = [each for each in blobs if not await store.has_blob(each.digest, each.size_bytes)]
        if not missing:
            return
        path = await self._storage.resolve_template(volume_id)
        for blob in missing:
            async with store.only_one(blob.digest):
                await to_the_end(_import_blob, path, store, blob)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _images_of(self, backend: DirectoryBackend) -> Sequence[ListedImage]:
        found = []
        for info in await backend.list(ContentType.VZTMPL):
            try:
                image = await self.find(info.volume_id)
            except UserError as error:  # removed meanwhile, or no image that could be used
                log.debug("%s is not listed as an image: %s", info.volume_id, error)
                continue
            if image is not None:
                found.append(ListedImage(volume=info, image=image))
        return found

    async def _collect(self, backend: DirectoryBackend, *, older_than_s: float) -> Collected:
        """An archive or a record that cannot be read ends it: what it names is not known."""
        store = backend.images
        async with store.alone():
            images = [each.image for each in await self._images_of(backend)]
            blobs = {blob.digest for each in images for blob in (each.manifest.config, *each.manifest.layers)}
            layers = {chain_id for each in images for chain_id in each.chain_ids}
            layers |= {
                found for layer in await backend.layers_in_use() if (found := store.layers.named(layer)) is not None
            }
            return await to_the_end(store.collect, blobs=blobs, layers=layers, older_than_s=older_than_s)

    async def _watch_changes(self) -> None:
        with self._events.subscribe() as events:
            async for event in events:
                match event:
                    case StorageContentChanged():
                        self._changed.add(event.storage)
                    case Lagged():
                        self._changed.update(backend.storage_id for backend in self._storage.backends())
                    case _:
                        continue
                self._due.set()

    async def _collect_after_changes(self) -> None:
        """Some time after a storage's content has changed (or the appliance has started), look what is still needed."""
        self._changed.update(backend.storage_id for backend in self._storage.backends())
        while True:
            await self._clock.sleep(COLLECT_AFTER_S)
            self._due.clear()
            changed, self._changed = self._changed, set()
            for storage_id in changed:
                await self._collect_quietly(storage_id)
            await self._due.wait()

    async def _collect_quietly(self, storage_id: str) -> None:
        try:
            backend = self._storage.backend(storage_id)
            if (
                backend.images.in_use
            ):  # what uses it ends with a change of the storage, mostly; if not, the next one counts
                return
            collected = await self._collect(backend, older_than_s=RECENT_S)
        except ApplianceError as error:
            log.debug("storage %s: images are not collected: %s", storage_id, error)
            return
        if collected.blobs or collected.layers:
            log.info("storage %s: %s", storage_id, _said(collected))


def shared_bytes(images: Iterable[ListedImage]) -> Mapping[VolumeId, int]:
    """How much of each image, as it is transferred, others on the same storage have too: its removal frees the rest. Pure."""
    blobs = {each.volume.volume_id: _blobs(each.image) for each in images}
    needed = Counter((volume_id.storage, digest) for volume_id, found in blobs.items() for digest in found)
    return {
        volume_id: sum(size for digest, size in found.items() if needed[volume_id.storage, digest] > 1)
        for volume_id, found in blobs.items()
    }


def _blobs(image: Image) -> Mapping[Digest, int]:
    return {each.digest: each.size_bytes for each in (image.manifest.config, *image.manifest.layers)}


def archive_name(text: str) -> str:
    """The file an image is stored as. Raises `InvalidParameter`."""
    stem = text.removesuffix(".tar")
    if not stem or "/" in stem or len(stem) > 180:
        raise InvalidParameter({"filename": f"'{text[:100]}' is not a file name"})
    return f"{stem}.tar"


def _read(path: Path, platform: Platform) -> Image | None:
    """Blocking. A tar file that is no image layout is a plain template."""
    try:
        opened = Archive(path)
    except InvalidParameter:
        return None
    with opened:
        return opened.image(platform) if opened.is_layout else None


def _import_blob(path: Path, store: ImageStore, blob: Descriptor) -> None:
    """Blocking."""
    if store.blobs.size(blob.digest) == blob.size_bytes:
        return
    with Archive(path) as opened:
        file = opened.open_blob(blob.digest)
        if file is None:
            raise NotFound(f"{path.name}: blob {blob.digest}")
        writer = store.blobs.writer(blob.digest, blob.size_bytes)
        try:
            writer.restart()
            while chunk := file.read(_COPY_BYTES):
                writer.write(chunk)
            writer.publish()
        finally:
            writer.close()


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data


def _said(collected: Collected) -> str:
    return f"removed {collected.blobs} blobs and {collected.layers} layers, {collected.freed_bytes} bytes"


def _tell(log_line: LogLine, collected: Collected) -> None:
    log_line(_said(collected))
