"""Creating, cloning and destroying guests, and undoing or finishing what a crash interrupted.

The record comes first and goes last. It reserves the VMID (and a container's id range) by transaction before the task
starts, marked `busy`; whatever happens then, either the whole guest is there, or record, volumes, pool membership and
permissions are gone again. The new guest's lock is held from the reservation to the end of the task: who asks something
of it meanwhile waits.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

from appliance.clock import Clock
from appliance.errors import ApplianceError, Conflict, InvalidParameter
from appliance.events import EventBus, GuestListChanged
from appliance.model.guest import CtCredentials, GuestId, GuestKind, GuestState
from appliance.model.volume import OpenedVolume, VolumeFormat, VolumeId
from appliance.services import guest_config, lifecycle, snapshot_records
from appliance.services.access import AccessService
from appliance.services.guest_config import Existing, applications
from appliance.services.guest_inventory import GuestInventory
from appliance.services.guest_records import GuestRecord
from appliance.services.guest_runner import GuestRunner
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.guest_volumes import GuestVolumes, Made, owned
from appliance.services.images import ImageService
from appliance.services.ports.ct_trees import CtProvisioner
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.storage.oci.archive import Image
from appliance.tasks import to_its_end

log = logging.getLogger(__name__)

Build = Callable[[GuestRuntime, TaskHandle], Awaitable[None]]
"""Makes a reserved guest whole."""


class GuestCreation:
    """See the module's docstring."""

    def __init__(
        self,
        *,
        inventory: GuestInventory,
        runner: GuestRunner,
        volumes: GuestVolumes,
        access: AccessService,
        storage: StorageService,
        provisioner: CtProvisioner,
        tasks: TaskService,
        events: EventBus,
        clock: Clock,
        node: str,
        images: ImageService | None = None,
    ) -> None:
        self._images = images
        self._inventory = inventory
        self._runner = runner
        self._volumes = volumes
        self._access = access
        self._storage = storage
        self._provisioner = provisioner
        self._tasks = tasks
        self._events = events
        self._clock = clock
        self._node = node

    async def create(
        self,
        kind: GuestKind,
        guest_id: int,
        params: Mapping[str, object],
        *,
        user: str,
        start: bool = False,
        pool: str | None = None,
        template: str | None = None,
        password: str | None = None,
        ssh_keys: Sequence[str] = (),
    ) -> str:
        """Check everything that can be checked, reserve the VMID, and make the guest in a task. Returns its UPID."""
        parsed = await asyncio.to_thread(guest_config.parse, kind, params)
        image, lost = await self._image(template), list[str]()
        if image is not None:
            parsed, lost = with_image(image, parsed)
            parsed |= applications.image_mounts(image.config.volumes, parsed)
        config = guest_config.create_config(
            kind,
            guest_id,
            guest_config.fill_macs(kind, parsed, self._inventory.mac_source()),
            new_uuid=uuid.uuid4,
            now=self._clock.now(),
        )
        archive: VolumeId | None = None
        credentials = CtCredentials(ssh_keys=tuple(ssh_keys))
        if kind is GuestKind.LXC:
            if not template:
                raise InvalidParameter({"ostemplate": "property is missing and it is not optional"})
            archive = VolumeId.parse(template)
            await self._storage.resolve_template(archive)
            if password:
                hashed = await asyncio.to_thread(_hash, password)
                credentials = CtCredentials(password_hash=hashed, ssh_keys=tuple(ssh_keys))
            config.setdefault("rootfs", "local:4")
        if image is not None and credentials != CtCredentials():
            lost.append("an application container has no logins: password and keys are not used")
        guest_config.check(kind, guest_id, config)

        async def build(guest: GuestRuntime, task: TaskHandle) -> None:
            for line in lost:
                task.warn(line)
            await self.publish_made(guest, await self._make(guest, config, archive, image, credentials, task))
            if start:
                await self._runner.launch(guest, task.log)

        return await self.begin(kind, GuestId(guest_id), config, build, task_kind="create", pool=pool, user=user)

    async def clone(
        self,
        kind: GuestKind,
        guest_id: int,
        *,
        new_id: int,
        name: str | None = None,
        description: str | None = None,
        full: bool = True,
        storage: str | None = None,
        pool: str | None = None,
        user: str,
        snapshot: str = "",
    ) -> str:
        """A copy under a new VMID. A linked clone is of a template, or of a container's `snapshot`; a running guest cannot be
        cloned, but its snapshots can. Returns the UPID."""
        source = self._inventory.get(guest_id, kind)
        self._inventory.require_unlocked(source)
        if not full and not snapshot and not self._inventory.summary(source).template:
            raise Conflict(f"{source.label}: linked clones are made of templates and of containers' snapshots")
        if not full and snapshot and kind is GuestKind.QEMU:
            raise Conflict(f"{source.label}: a clone of a machine's snapshot, which is inside its disks, is a full one")
        described = {} if description is None else guest_config.parse(kind, {"description": description})
        config = self._clone_config(source, snapshot, name) | described
        # the original's disks are not the clone's: until it has its own, the record names none
        reserved = {key: value for key, value in config.items() if not guest_config.is_disk_slot(kind, key)}

        async def build(guest: GuestRuntime, task: TaskHandle) -> None:
            async with source.hold(f"clone to {new_id}", log=task.log):
                self._inventory.require_unlocked(source)
                if source.state is not GuestState.STOPPED and not snapshot:
                    raise Conflict(f"{source.label} is running: shut it down before it is cloned, or clone a snapshot")
                config = self._clone_config(source, snapshot, name) | described  # it may have changed while we waited
                made = await self._volumes.clone(
                    kind, GuestId(new_id), config, full=full, storage=storage, log_line=task.log, snapshot=snapshot
                )
                await self.publish_made(guest, made)

        return await self.begin(
            kind, GuestId(new_id), reserved, build, task_kind="clone", pool=pool, user=user, object_id=source.guest_id
        )

    async def destroy(
        self, kind: GuestKind, guest_id: int, *, user: str, unreferenced: bool = False, skip_lock: bool = False
    ) -> str:
        """Remove a stopped guest, its volumes, its pool membership and the permissions on it. Returns the UPID.

        With `unreferenced`, volumes that carry its id and are named by no configuration go, too.
        """
        guest = self._inventory.get(guest_id, kind)
        self._check_destroyable(guest, skip_lock=skip_lock)

        async def work(task: TaskHandle) -> None:
            async with guest.hold(f"destroy by {user}", log=task.log, unfinished=True):
                self._check_destroyable(guest, skip_lock=skip_lock)
                if guest.stored.record.busy == "create":  # undoing it has failed
                    await self._undo(guest)
                    return
                config = self._with_kept(guest)
                if unreferenced:
                    config = await self._with_unreferenced(guest, config)
                await self._volumes.check_removable(owned(guest.kind, guest.guest_id, config))
                await self._inventory.table.replace(guest.stored, busy="destroy", config=config, snapshots={})
                await self._finish_destroy(guest, task.log)

        return await self._tasks.run(
            lifecycle.task_type(lifecycle.Action.DESTROY, kind), object_id=str(guest_id), user=user, work=work
        )

    async def recover(self) -> None:
        """Undo creations and finish removals that a crash interrupted. Called before guests are adopted."""
        for guest in list(self._inventory):
            record = guest.stored.record
            try:
                if record.busy == "create":
                    log.warning("%s: its creation was interrupted, undoing it", guest.label)
                    await self._undo(guest)
                elif record.busy == "destroy":
                    log.warning("%s: its removal was interrupted, finishing it", guest.label)
                    await self._finish_destroy(guest, log.info)
            except ApplianceError as error:
                log.error("%s: %s", guest.label, error)

    # --- inside -------------------------------------------------------------------------------------------------------

    async def _image(self, template: str | None) -> Image | None:
        """The image a template is; None for a plain one."""
        if self._images is None or not template:
            return None
        image = await self._images.find(VolumeId.parse(template))
        if image is not None:
            self._images.require_runnable(image)
        return image

    def _clone_config(self, source: GuestRuntime, snapshot: str, name: str | None) -> dict[str, str]:
        config = source.stored.record.config
        if snapshot:
            config = snapshot_records.whole(source, snapshot).config
        return guest_config.clone_config(
            source.kind,
            source.guest_id,
            config,
            name=guest_config.parse(source.kind, {guest_config.name_key(source.kind): name}).popitem()[1]
            if name
            else None,
            new_uuid=uuid.uuid4,
            new_mac=self._inventory.mac_source(),
            now=self._clock.now(),
        )

    def _check_destroyable(self, guest: GuestRuntime, *, skip_lock: bool) -> None:
        self._inventory.require_unlocked(guest, skip=skip_lock)
        lifecycle.require(lifecycle.Action.DESTROY, guest.kind, guest.guest_id, guest.state)
        if self._inventory.summary(guest).protection:
            raise Conflict(f"can't remove {guest.label} - protection mode enabled")

    async def begin(
        self,
        kind: GuestKind,
        guest_id: GuestId,
        config: Mapping[str, str],
        build: Build,
        *,
        task_kind: str,
        pool: str | None,
        user: str,
        object_id: GuestId | None = None,
    ) -> str:
        """Reserve the VMID for `config` and let a task `build` the guest; returns its UPID. Undone if anything fails."""

        async def begin() -> str:
            guest = await self._reserve(kind, guest_id, config)
            held = AsyncExitStack()
            await held.enter_async_context(guest.lock.hold("create"))

            async def work(task: TaskHandle) -> None:
                async with held:
                    try:
                        await build(guest, task)
                    except BaseException:
                        if guest.stored.record.busy:
                            await to_its_end(self._undo(guest), name=f"undo the creation of {guest.label}")
                        raise

            try:
                if pool:
                    await self._access.set_pool(guest_id, pool)
                return await self._tasks.run(
                    lifecycle.task_type(task_kind, kind), object_id=str(object_id or guest_id), user=user, work=work
                )
            except ApplianceError:  # nothing was started
                async with held:
                    await self._undo(guest)
                raise

        return await to_its_end(begin(), name=f"begin to create {kind.prefix} {guest_id}")

    async def _reserve(self, kind: GuestKind, guest_id: GuestId, config: Mapping[str, str]) -> GuestRuntime:
        foreign = [str(volume) for volume in await self._volumes.of_guest(guest_id)]
        record = GuestRecord(
            guest_id=guest_id,
            kind=kind.value,
            node=self._node,
            config=dict(config),
            created_at=self._clock.now(),
            busy="create",
            foreign_volumes=foreign,
        )
        own_ids = kind is GuestKind.LXC and config.get("unprivileged") == "1"
        guest = self._inventory.add(await self._inventory.table.insert(record, own_id_range=own_ids))
        self._tell(guest, exists=True)
        return guest

    async def _make(
        self,
        guest: GuestRuntime,
        config: Mapping[str, str],
        archive: VolumeId | None,
        image: Image | None,
        credentials: CtCredentials,
        task: TaskHandle,
    ) -> Made:
        in_use = self._inventory.volumes_of_others(guest.guest_id)
        make = partial(self._volumes.make, guest.kind, guest.guest_id, config, in_use=in_use, log_line=task.log)
        if archive is None:
            return await make()
        if image is not None and self._images is not None:
            return await self._make_of_image(self._images, archive, image, config, make, task)
        template = await self._storage.resolve_template(archive)
        storage = self._volumes.root_storage(config)
        if storage is not None:

            async def fill(path: Path) -> None:
                layer = OpenedVolume(volume_id=None, path=path, format=VolumeFormat.SUBVOL, size_bytes=0)
                await self._provisioner.unpack(layer, template, log=task.log)

            async with storage.layer(template, fill) as base:
                if base:
                    made = await make(root_base=base)
                    root = await self._volumes.open_root(made.config)
                    await self._provisioner.personalise(root, credentials=credentials)
                    return made
        made = await make()
        await self._provisioner.populate(
            await self._volumes.open_root(made.config),
            template,
            id_base=guest.stored.record.id_base,
            credentials=credentials,
            log=task.log,
        )
        return made

    async def _make_of_image(
        self,
        images: ImageService,
        archive: VolumeId,
        image: Image,
        config: Mapping[str, str],
        make: Callable[..., Awaitable[Made]],
        task: TaskHandle,
    ) -> Made:
        """A root over the image's layers; where it has a size, or its storage cannot share layers, a copy of them."""
        storage = self._volumes.root_storage(config)
        if storage is not None and storage.shares_layers:
            async with images.ground(archive, image, storage, task.log) as layers:
                made = await make(root_layers=layers)
        else:
            made = await make()
        for disk in guest_config.disks(GuestKind.LXC, made.config):
            # a volume that is new begins with what the image has in its place
            if not isinstance(disk.volume, Existing) or disk.volume.volume_id not in made.volumes:
                continue
            path = "/" if disk.slot == "rootfs" else disk.options["mp"]
            if path != "/" or storage is None or not storage.shares_layers:
                await images.copy_into(disk.volume.volume_id, archive, image, task.log, path=path)
        return made

    async def publish_made(self, guest: GuestRuntime, made: Made) -> None:
        """The guest is whole: its configuration names its volumes, and nothing undoes it any more."""
        await self._inventory.table.replace(guest.stored, config=made.config, busy="", foreign_volumes=[])
        self._tell(guest, exists=True)

    async def _undo(self, guest: GuestRuntime) -> None:
        foreign = {VolumeId.parse(text) for text in guest.stored.record.foreign_volumes}
        ours = [volume for volume in await self._volumes.of_guest(guest.guest_id) if volume not in foreign]
        for problem in await self._volumes.remove(ours, log.debug):
            log.error("%s: undoing its creation: %s", guest.label, problem)
        await self._forget(guest)

    def _with_kept(self, guest: GuestRuntime) -> dict[str, str]:
        """The configuration with the volumes that only snapshots name, as unused ones: they go with the guest, too."""
        config = dict(guest.stored.record.config)
        own = set(owned(guest.kind, guest.guest_id, config))
        for kept in guest.stored.record.snapshots.values():
            for volume in owned(guest.kind, guest.guest_id, kept.config):
                if volume not in own:
                    config[guest_config.free_unused_slot(config)] = str(volume)
                    own.add(volume)
        return config

    async def _with_unreferenced(self, guest: GuestRuntime, config: dict[str, str]) -> dict[str, str]:
        """`config` with the volumes of this guest's id that no configuration names, as unused ones."""
        own = set(owned(guest.kind, guest.guest_id, config))
        for volume in await self._volumes.of_guest(guest.guest_id):
            if volume not in own | self._inventory.volumes_of_others(guest.guest_id):
                config[guest_config.free_unused_slot(config)] = str(volume)
        return config

    async def _finish_destroy(self, guest: GuestRuntime, log_line: Callable[[str], None]) -> None:
        config = guest.stored.record.config
        if problems := await self._volumes.remove(owned(guest.kind, guest.guest_id, config), log_line):
            await self._inventory.table.replace(guest.stored, busy="")
            raise Conflict(f"{guest.label} stays: {'; '.join(problems)}")
        await to_its_end(self._forget(guest), name=f"forget {guest.label}")

    async def _forget(self, guest: GuestRuntime) -> None:
        # permissions first: after a crash in between they are missing, never waiting for the next guest of this id
        await self._access.forget_guest(guest.guest_id)
        await self._inventory.table.remove(guest.stored)
        self._inventory.drop(guest.guest_id)
        self._tell(guest, exists=False)

    def _tell(self, guest: GuestRuntime, *, exists: bool) -> None:
        self._events.publish(GuestListChanged(guest_id=guest.guest_id, kind=guest.kind, exists=exists))


def with_image(image: Image, parsed: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """A request's keys with those its image sets where the request does not, and what of the image cannot be kept."""
    config = image.config
    keys, lost = applications.image_keys(
        image=f"{image.name}@{image.digest}",
        entrypoint=config.entrypoint,
        command=config.command,
        environment=config.environment,
        user=config.user,
        working_directory=config.working_directory,
        stop_signal=config.stop_signal,
        health=config.health,
        labels=config.labels,
        given=parsed.keys(),
    )
    merged = applications.merged_environment(keys.get("env", ""), parsed.get("env", ""))
    return {**keys, **parsed, "env": merged, applications.IMAGE_KEY: keys[applications.IMAGE_KEY]}, lost


def _hash(password: str) -> str:
    try:
        return guest_config.hash_password(password)
    except ValueError as error:
        raise InvalidParameter({"password": str(error)}) from error
