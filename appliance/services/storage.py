"""Storages: their configurations in the store, a backend for each, and the tasks that change their content.

    storage/ID (store) ─▶ StorageConfig ─▶ DirectoryBackend ─▶ files        a storage that cannot be used has a `problem`

Uploads and downloads end in `VolumeBackend.receive`: a file appears whole or not at all. Which volume a guest uses is
the guest service's knowledge, not ours.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import msgspec

from appliance.errors import ApplianceError, Conflict, HostError, InvalidParameter, NotFound, Unsupported
from appliance.events import EventBus, StorageContentChanged
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, OpenedVolume, StorageUsage, VolumeId, VolumeInfo
from appliance.services import storage_config
from appliance.services.download import Download, open_download
from appliance.services.storage_config import DEFAULT_STORAGE, StorageConfig, StorageDocument
from appliance.services.tasks import TaskHandle, TaskService
from appliance.state.documents import Documents, Stored
from appliance.state.store import Store
from appliance.storage.directory import DirectoryBackend
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)

USAGE_LIFE_S: Final = 10.0
USAGE_TIMEOUT_S: Final = 5.0
UPLOAD_TIMEOUT_S: Final = 24 * 3600.0
PROGRESS_BYTES: Final = 16 << 20


class StorageService:
    """See the module's docstring. `node` is this node's name; storages restricted to other nodes are not active."""

    def __init__(self, store: Store, events: EventBus, tasks: TaskService, *, node: str, data_dir: Path) -> None:
        self._store = store
        self._documents = Documents(store, "storage/", StorageDocument)
        self._events = events
        self._tasks = tasks
        self._node = node
        self._data_dir = data_dir
        self._configs: dict[str, StorageConfig] = {}
        self._stored: dict[str, Stored[StorageDocument]] = {}
        self._backends: dict[str, DirectoryBackend] = {}
        self._usage: dict[str, tuple[float, StorageUsage]] = {}
        self._measuring: set[str] = set()
        self._changing = asyncio.Lock()  # one change at a time: each looks at all storages before it makes one active
        self._scope = TaskScope("storage")

    async def start(self) -> None:
        """Read the configurations (making `local` at first start) and recover each storage. A bad one is only marked."""
        stored, _ = await self._documents.all()
        if not stored:
            await self._store.txn([], [self._documents.put(DEFAULT_STORAGE, StorageDocument())])
            stored, _ = await self._documents.all()
        for one in stored:
            await self._activate(one)
            if self._configs[one.id].active:
                await self._measure(one.id)

    async def close(self) -> None:
        """End background measuring."""
        await self._scope.close()

    @property
    def data_dir(self) -> Path:
        """The appliance's data directory, below which `local` lies."""
        return self._data_dir

    # --- storages -----------------------------------------------------------------------------------------------------

    def storages(self) -> Sequence[StorageConfig]:
        """All storages, in the order of their names."""
        return [self._configs[name] for name in sorted(self._configs)]

    def storage(self, storage_id: str) -> StorageConfig:
        """Raises `NotFound`."""
        config = self._configs.get(storage_id)
        if config is None:
            raise NotFound(f"storage '{storage_id}'")
        return config

    def backends(self) -> Sequence[DirectoryBackend]:
        """The backends of all active storages."""
        return [self._backends[name] for name in sorted(self._configs) if self._configs[name].active]

    def backend(self, storage_id: str) -> DirectoryBackend:
        """The backend. Raises `NotFound`, and `Conflict` for a storage that is disabled or cannot be used now."""
        config = self.storage(storage_id)
        if not config.enabled:
            raise Conflict(f"storage '{storage_id}' is disabled")
        if config.problem:
            raise Conflict(f"storage '{storage_id}' is not active: {config.problem}")
        return self._backends[storage_id]

    async def create_storage(self, storage_id: str, document: StorageDocument) -> StorageConfig:
        """Raises `Conflict` when the name exists, `InvalidParameter`, `Unsupported`, `HostError` (not usable)."""
        async with self._changing:
            return await self._create_storage(storage_id, document)

    async def _create_storage(self, storage_id: str, document: StorageDocument) -> StorageConfig:
        storage_config.check_id(storage_id)
        if document.type not in storage_config.SUPPORTED_TYPES:
            raise Unsupported(f"storage '{storage_id}': type '{document.type}' is not supported by this appliance")
        others = {f"storage '{other.storage_id}'": other.path for other in self._configs.values()}
        others["the appliance's own data"] = self._data_dir
        storage_config.check_path(document.path, others=others)
        if storage_id in self._configs:
            raise Conflict(f"storage '{storage_id}' already exists")
        backend = None if document.disable else await self._try(storage_id, document)
        result = await self._store.txn(
            [self._documents.unchanged(storage_id, None)], [self._documents.put(storage_id, document)]
        )
        if not result.succeeded:
            raise Conflict(f"storage '{storage_id}' already exists")
        if backend is not None:
            self._backends[storage_id] = backend
        return await self._reload(storage_id)

    async def update_storage(
        self, storage_id: str, changes: Mapping[str, object], *, digest: str | None = None
    ) -> StorageConfig:
        """Change fields of the document. Raises `NotFound`, `Conflict` (stale digest), `InvalidParameter`."""
        async with self._changing:
            return await self._update_storage(storage_id, changes, digest)

    async def _update_storage(
        self, storage_id: str, changes: Mapping[str, object], digest: str | None
    ) -> StorageConfig:
        self.storage(storage_id)
        before = self._stored[storage_id]
        if digest and digest != before.value.digest():
            raise Conflict(f"storage '{storage_id}' has changed meanwhile (digest differs)")
        document = msgspec.structs.replace(before.value, **changes)
        result = await self._store.txn(
            [self._documents.unchanged(storage_id, before)], [self._documents.put(storage_id, document)]
        )
        if not result.succeeded:
            raise Conflict(f"storage '{storage_id}' has changed meanwhile")
        return await self._reload(storage_id)

    async def delete_storage(self, storage_id: str) -> None:
        """Forget a storage; its files stay. Raises `NotFound`, `Conflict` while guests have volumes on it."""
        async with self._changing:
            await self._delete_storage(storage_id)

    async def _delete_storage(self, storage_id: str) -> None:
        config = self.storage(storage_id)
        if config.active:
            held = [
                info
                for info in await self.backend(storage_id).list()
                if info.guest_id is not None and info.content is not ContentType.BACKUP
            ]
            if held:
                raise Conflict(f"storage '{storage_id}' holds {len(held)} volumes of guests")
        await self._store.txn([], [self._documents.delete(storage_id)])
        for table in (self._configs, self._stored, self._backends, self._usage):
            table.pop(storage_id, None)
        self._events.publish(StorageContentChanged(storage=storage_id))

    # --- content ------------------------------------------------------------------------------------------------------

    async def open(self, volume: str | VolumeId) -> OpenedVolume:
        """Check a volume and describe it for an engine. Raises `NotFound`, `InvalidParameter`, `Conflict`."""
        volume_id = VolumeId.parse(volume) if isinstance(volume, str) else volume
        return await self.backend(volume_id.storage).open(volume_id)

    async def resolve_template(self, volume: str | VolumeId) -> Path:
        """The file of a container template. Raises `NotFound`, `InvalidParameter` when it is something else."""
        volume_id = VolumeId.parse(volume) if isinstance(volume, str) else volume
        info = await self.backend(volume_id.storage).info(volume_id)
        if info.content is not ContentType.VZTMPL:
            raise InvalidParameter({"ostemplate": f"{volume_id} is not a container template"})
        return (await self.open(volume_id)).path

    async def content(
        self, storage_id: str, content: ContentType | None = None, guest_id: int | None = None
    ) -> Sequence[VolumeInfo]:
        """Volumes of one storage. Raises `NotFound`, `Conflict`."""
        owner = None if guest_id is None else GuestId(guest_id)
        return await self.backend(storage_id).list(content, owner)

    def cached_usage(self, storage_id: str) -> StorageUsage | None:
        """The last measured usage, at once; an old or missing one is measured in the background. None: not known yet."""
        when, usage = self._usage.get(storage_id, (float("-inf"), None))
        loop = asyncio.get_running_loop()
        if loop.time() - when > USAGE_LIFE_S and storage_id not in self._measuring and self.storage(storage_id).active:
            self._measuring.add(storage_id)
            self._scope.start(self._measure(storage_id), name=f"measure {storage_id}")
        return usage

    async def usage(self, storage_id: str) -> StorageUsage:
        """The usage now. Raises `NotFound`, `Conflict`, `HostError`."""
        usage = await self.backend(storage_id).usage()
        self._usage[storage_id] = (asyncio.get_running_loop().time(), usage)
        return usage

    async def _measure(self, storage_id: str) -> None:
        try:
            async with asyncio.timeout(USAGE_TIMEOUT_S):
                await self.usage(storage_id)
        except (HostError, Conflict, NotFound, TimeoutError) as error:
            log.warning("storage %s: its usage could not be measured: %s", storage_id, error)
        finally:
            self._measuring.discard(storage_id)

    async def delete_volume(self, volume_id: VolumeId, *, user: str) -> str:
        """Start the task that removes a volume; returns its UPID. Raises `NotFound`, `Conflict` at once if it can."""
        info = await self.backend(volume_id.storage).info(volume_id)
        if info.protected:
            raise Conflict(f"volume {volume_id}: is protected")

        async def work(task: TaskHandle) -> None:
            await self.backend(volume_id.storage).delete(volume_id)
            task.log(f"removed volume {volume_id}")

        return await self._tasks.run("imgdel", object_id=str(volume_id), user=user, work=work)

    async def upload(
        self,
        storage_id: str,
        content: ContentType,
        name: str,
        chunks: AsyncIterator[bytes],
        *,
        checksum: tuple[str, str] | None,
        user: str,
    ) -> str:
        """Store a stream in a task and return its UPID when the stream has been read to its end, or given up.

        What is wrong with the name is raised at once; what goes wrong later is the task's status, and no file is left.
        Cancelling the caller (the client has gone) cancels the task.
        """
        backend = await self._writable(storage_id, content, name)

        async def work(task: TaskHandle) -> None:
            task.log(f"receiving {name} for {storage_id}")
            volume_id = await backend.receive(content, name, chunks, checksum=checksum)
            task.log(f"stored {volume_id}")

        upid = await self._tasks.run("imgcopy", object_id=storage_id, user=user, work=work)
        try:
            await self._tasks.wait(upid, timeout_s=UPLOAD_TIMEOUT_S)
        except asyncio.CancelledError:
            await asyncio.shield(self._tasks.cancel(upid))
            raise
        return upid

    async def download_url(
        self,
        storage_id: str,
        content: ContentType,
        name: str,
        url: str,
        *,
        checksum: tuple[str, str] | None,
        verify_certificates: bool = True,
        user: str,
    ) -> str:
        """Start the task that fetches `url` into a storage; returns its UPID. The name is checked at once."""
        backend = await self._writable(storage_id, content, name)

        async def work(task: TaskHandle) -> None:
            task.log(f"downloading {url} to {storage_id}:{content}/{name}")
            async with open_download(url, verify_certificates=verify_certificates) as download:
                volume_id = await backend.receive(content, name, _told(download, task), checksum=checksum)
            task.log(f"stored {volume_id}")

        return await self._tasks.run("download", object_id=name, user=user, work=work)

    async def _writable(self, storage_id: str, content: ContentType, name: str) -> DirectoryBackend:
        backend = self.backend(storage_id)
        await backend.check_receivable(content, name)
        return backend

    # --- inside -------------------------------------------------------------------------------------------------------

    def _path(self, storage_id: str, document: StorageDocument) -> Path:
        return Path(document.path) if document.path else self._data_dir / "storage" / storage_id

    async def _reload(self, storage_id: str) -> StorageConfig:
        stored = await self._documents.get(storage_id)
        if stored is None:
            raise NotFound(f"storage '{storage_id}'")
        await self._activate(stored)
        self._events.publish(StorageContentChanged(storage=storage_id))
        return self._configs[storage_id]

    async def _activate(self, stored: Stored[StorageDocument]) -> None:
        storage_id, document = stored.id, stored.value
        config = StorageConfig(
            storage_id=storage_id,
            kind=document.type,
            path=self._path(storage_id, document),
            content_types=frozenset(document.content),
            document=document,
        )
        self._stored[storage_id] = stored
        try:
            if storage_id in self._backends:  # operations may be under way on it: never recover it again
                self._backends[storage_id].limit_content(config.content_types)
                await self._check_place(storage_id, document)
            elif not document.disable:
                self._backends[storage_id] = await self._try(storage_id, document)
        except ApplianceError as error:
            log.warning("storage %s: cannot be used: %s", storage_id, error)
            config = replace(config, problem=str(error))
        self._configs[storage_id] = config

    async def _check_place(self, storage_id: str, document: StorageDocument) -> None:
        if document.nodes and self._node not in document.nodes:
            raise Conflict(f"storage '{storage_id}' is not for node {self._node}")
        path = self._path(storage_id, document)
        if document.is_mountpoint and not await asyncio.to_thread(path.is_mount):
            raise Conflict(f"storage '{storage_id}': nothing is mounted at {path}")

    async def _try(self, storage_id: str, document: StorageDocument) -> DirectoryBackend:
        path = self._path(storage_id, document)
        await self._check_place(storage_id, document)
        backend = DirectoryBackend(
            storage_id,
            path,
            content_types=frozenset(document.content),
            on_change=lambda: self._events.publish(StorageContentChanged(storage=storage_id)),
        )
        for line in await backend.recover():
            log.info("storage %s: %s", storage_id, line)
        return backend


async def _told(download: Download, task: TaskHandle) -> AsyncIterator[bytes]:
    done, told = 0, 0
    async for chunk in download.chunks:
        done += len(chunk)
        if download.size_bytes:
            task.progress(done / download.size_bytes)
        if done - told >= PROGRESS_BYTES:
            told = done
            share = f" ({100 * done // download.size_bytes} %)" if download.size_bytes else ""
            task.log(f"{done >> 20} MiB{share}")
        yield chunk
