"""The container engine: fulfils ports.GuestEngine[CtSpec, CtResources] and, with `provisioner`, ports.CtProvisioner. On the loop.

A start, in order (threads in brackets):
    1 shim started, and with it the runtime, which waits for its configuration; meanwhile [user and network namespaces made],
      then the NICs in there; volumes opened, then [mounted with mapped ids, interior configured]
    2 with config.json the runtime creates the container in these namespaces, its init waits
    3 [record.json, systemd's cgroup handed over]
    4 with the NICs there too, runtime start: init runs
Any failure or cancellation in between removes all of it again, in reverse (`_remove`), which is idempotent and needs no
memory of the start: the same code clears what a killed appliance left.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath

from appliance.clock import Clock
from appliance.ct import (
    apparmor,
    application,
    applog,
    confinement,
    devices,
    host,
    hostpath,
    interior,
    limits,
    oci,
    pieces,
    provision,
    records,
    remains,
    rootfs,
    runtime,
    shim,
)
from appliance.ct.host import Places
from appliance.ct.outcome import outcome
from appliance.ct.provisioner import Provisioner
from appliance.ct.records import CtRecord, VolumeRecord
from appliance.ct.running import CtParts, RunningCt, StateCallback
from appliance.errors import ApplianceError, Conflict, HostError, Unsupported
from appliance.kernel.cgroups import CgroupLayout
from appliance.model.application import Application
from appliance.model.guest import (
    Capabilities,
    CtResources,
    CtSpec,
    GuestId,
    GuestState,
    IoLimit,
    MountKind,
)
from appliance.model.volume import OpenedVolume
from appliance.tasks import TaskScope, to_its_end
from appliance.threads import to_the_end

logger = logging.getLogger(__name__)

NAME = "oci"
PIDS_LIMIT = 16_384
MEMORY_MIN_MIB = 16
FEATURES = frozenset({"nesting", "keyctl", "fuse", "mknod", "force_rw_sys"})


class CtEngine:
    """Containers by an OCI runtime and conmon. `run_dir` must not outlive a boot and holds one directory a container.

    Control groups are `appliance/ct-ID` in every tree (see `host.Places`).
    """

    def __init__(
        self, run_dir: Path, data_dir: Path, scope: TaskScope, clock: Clock, *, pids_limit: int = PIDS_LIMIT
    ) -> None:
        self._scope = scope
        self._clock = clock
        self._pids_limit = pids_limit
        self._places = Places(run_dir, CgroupLayout({}, None))
        self._facts: oci.HostFacts | None = None
        self._runtime: runtime.OciRuntime | None = None
        self._capabilities = Capabilities(engine=NAME, version="", missing={"start": "not probed yet"})
        self.logs = applog.AppLogs(data_dir / applog.DIRECTORY, lambda guest_id: self._places.bundle(guest_id) / "ctl")
        self._maps = rootfs.IdMaps()
        self._running: dict[GuestId, RunningCt] = {}
        self._busy: set[GuestId] = set()
        self.provisioner = Provisioner(self._bundle_of)

    @property
    def name(self) -> str:
        return NAME

    @property
    def architecture(self) -> str:
        """What containers are made of here: "amd64", "arm64"."""
        return host.architecture()

    # --- what this host can -------------------------------------------------------------------------------------------

    async def probe(self) -> Capabilities:
        """Choose the runtime by trying it, and remove what dead containers of an earlier appliance left."""
        self._places, facts = await asyncio.to_thread(self._look_at_host)
        profile, without_apparmor = await apparmor.load()
        self._facts = facts = replace(facts, apparmor_profile=profile)
        chosen, missing = await runtime.choose(self._places, facts)
        if chosen is not None:
            self._facts = facts = replace(facts, mounts_at_root_only=chosen.mounts_at_root_only)
        available = {"start", "console", "exec", "pause", "stats", *FEATURES}
        if not await asyncio.to_thread(shim.installed):
            missing[shim.PROGRAM] = "not installed"
            chosen = None
        elif profile:
            available.add("apparmor")
        if chosen is None:
            available = set()
            missing["start"] = "; ".join(f"{program}: {why}" for program, why in missing.items()) or "no OCI runtime"
        elif facts.lxcfs_files:
            available.add("lxcfs")
        else:
            missing["lxcfs"] = f"not mounted at {host.LXCFS}: containers see the host's /proc/meminfo"
        if without_apparmor:
            missing["apparmor"] = without_apparmor
        self._runtime = chosen
        version = chosen.version if chosen else ""
        self._capabilities = Capabilities(engine=NAME, version=version, available=frozenset(available), missing=missing)
        if chosen is not None:
            await self.recover()
        return self._capabilities

    def refuse(self, spec: CtSpec) -> Sequence[str]:
        if not self._capabilities.usable:
            return [self._capabilities.missing.get("start", "the engine is not usable")]
        reasons = []
        if spec.arch != host.architecture():
            reasons.append(f"architecture {spec.arch} does not run on a host that is {host.architecture()}")
        if unknown := spec.features - FEATURES:
            reasons.append(f"unknown features: {', '.join(sorted(unknown))}")
        if spec.memory_mib and spec.memory_mib < MEMORY_MIN_MIB:
            reasons.append(f"memory must be at least {MEMORY_MIN_MIB} MiB")
        if spec.application is not None and not spec.command:
            reasons.append("the image names no program: set entrypoint")
        for mount in spec.mounts:
            path = PurePosixPath(mount.path)
            if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
                reasons.append(f"{mount.slot}: {mount.path!r} is not a path inside the container")
        if strange := spec.security.dropped - frozenset(confinement.CAPABILITIES):
            reasons.append(f"security: unknown capabilities: {', '.join(sorted(strange))}")
        if spec.security.apparmor not in ("default", "unconfined") and "apparmor" in self._capabilities.missing:
            reasons.append(f"security: AppArmor profile: {self._capabilities.missing['apparmor']}")
        return reasons

    # --- start and adopt ----------------------------------------------------------------------------------------------

    async def start(
        self, spec: CtSpec, resources: CtResources, *, on_state: StateCallback, log: provision.LogLine
    ) -> RunningCt:
        """See the module's docstring. Raises `Conflict` when it runs, `Unsupported`, `HostError`, `GuestFault`."""
        if reasons := self.refuse(spec):
            raise Unsupported(f"ct {spec.guest_id}: {'; '.join(reasons)}")
        if spec.guest_id in self._running or spec.guest_id in self._busy:
            raise Conflict(f"ct {spec.guest_id}: already running")
        self._busy.add(spec.guest_id)
        try:
            with self._places.cgroup_parent.hold():  # the runtime makes a group below it
                if not await asyncio.to_thread(self._is_free, spec.guest_id):
                    raise Conflict(f"ct {spec.guest_id}: already running")
                try:
                    return await self._launch(spec, resources, on_state, log)
                except BaseException:
                    await to_its_end(self._remove_quietly(spec.guest_id), name=f"undo the start of ct {spec.guest_id}")
                    raise
        except BaseException:
            # Only here: nothing may be awaited once a container runs, or a cancellation would lose it.
            await to_its_end(self._remove_unused_parent(), name="remove the unused parent")
            raise
        finally:
            self._busy.discard(spec.guest_id)

    async def _launch(
        self, spec: CtSpec, resources: CtResources, on_state: StateCallback, log: provision.LogLine
    ) -> RunningCt:
        assert self._runtime is not None
        bundle, container = self._places.bundle(spec.guest_id), str(spec.guest_id)
        if not await asyncio.to_thread(pieces.make_bundle, bundle, spec):
            await self._remove(spec.guest_id)
            await asyncio.to_thread(pieces.make_bundle, bundle, spec)
        terminal, log_file = True, None
        if spec.application is not None:
            terminal = spec.application.terminal
            log_file = await asyncio.to_thread(applog.begin, self.logs.directory, spec.guest_id, bundle)
        with contextlib.ExitStack() as namespaces, contextlib.ExitStack() as processes:
            volumes: dict[str, VolumeRecord] = {}
            connecting: list[asyncio.Task[ApplianceError | None]] = []

            async def connect(path: Path) -> None:
                await resources.connect(path)

            async def configure() -> dict[str, object]:
                network, config = await to_the_end(self._configure, spec, bundle, namespaces)
                connecting.append(
                    self._scope.start(outcome(partial(connect, network)), name=f"network of ct {spec.guest_id}")
                )
                return config

            async def attach() -> None:
                opened = await resources.open()
                volumes.update(await to_the_end(self._attach_volumes, spec, opened, bundle, log))

            async def prepare() -> bytes:
                # both are over when this is, cancelled or not; of the two only `open` can be cut short
                config, failure = await asyncio.gather(configure(), attach(), return_exceptions=True)
                for each in (config, failure):
                    if isinstance(each, BaseException):
                        raise each
                assert isinstance(config, dict)
                if spec.application is not None:
                    config = await to_the_end(application.prepare, spec, bundle, config)
                return json.dumps(config).encode()

            try:
                init = await shim.create(
                    self._runtime,
                    container,
                    bundle,
                    prepare=prepare,
                    scope=self._scope,
                    terminal=terminal,
                    log=log_file,
                )
                record = await to_the_end(self._register, spec, init, volumes, processes, log)
                for failure in await asyncio.gather(*connecting):
                    if failure is not None:
                        raise failure
            finally:
                for task in connecting:
                    task.cancel()
                    await to_its_end(asyncio.wait((task,)), name=f"end of the network of ct {spec.guest_id}")
            await self._runtime.start(container)
            processes.pop_all()
        return self._take(record[0], record[1], GuestState.RUNNING, on_state, spec.application)

    async def adopt(self, spec: CtSpec, *, on_state: StateCallback) -> RunningCt | None:
        if spec.guest_id in self._running:
            return self._running[spec.guest_id]
        bundle = self._places.bundle(spec.guest_id)
        record = await asyncio.to_thread(records.load, bundle)
        fds = await asyncio.to_thread(pieces.open_processes, record) if record is not None else None
        if record is None or fds is None:
            if await asyncio.to_thread(bundle.exists):
                await self._remove(spec.guest_id)
                await self._remove_unused_parent()
            return None
        frozen = await asyncio.to_thread(self._places.cgroup(spec.guest_id).frozen)
        state = GuestState.PAUSED if frozen else GuestState.RUNNING
        return self._take(record, fds, state, on_state, spec.application)

    async def running_ids(self) -> Sequence[GuestId]:
        return await asyncio.to_thread(
            lambda: [each for each in self._places.known_ids() if remains.is_alive(self._places.bundle(each))]
        )

    async def recover(self) -> Sequence[GuestId]:
        """Remove what containers that no longer run have left; returns whose remains they were."""
        known = await asyncio.to_thread(self._places.known_ids)
        removed = []
        for guest_id in known:
            if guest_id in self._busy or guest_id in self._running:
                continue
            if not await asyncio.to_thread(remains.is_alive, self._places.bundle(guest_id)):
                await self._remove_quietly(guest_id)
                removed.append(guest_id)
        await self._remove_unused_parent()
        return removed

    async def close(self) -> None:
        for running in list(self._running.values()):
            await running.detach()
        self._running.clear()
        await asyncio.to_thread(self._maps.close)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _bundle_of(self, guest_id: GuestId) -> Path | None:
        """The directory of a container that runs here."""
        return self._places.bundle(guest_id) if guest_id in self._running else None

    def _take(
        self,
        record: CtRecord,
        fds: tuple[int, int],
        state: GuestState,
        on_state: StateCallback,
        made_of: Application | None,
    ) -> RunningCt:
        guest_id = GuestId(record.guest_id)
        program = runtime.OciRuntime(Path(record.runtime), self._places.runtime_state)
        parts = CtParts(
            record=record,
            bundle=self._places.bundle(guest_id),
            container=str(guest_id),
            cgroup=self._places.cgroup(guest_id),
            runtime=program,
            init_fd=fds[0],
            shim_fd=fds[1],
            pids_limit=self._pids_limit,
            application=made_of,
        )

        async def remove() -> None:
            try:
                await self._remove(guest_id)
            finally:
                self._running.pop(guest_id, None)
                await self._remove_unused_parent()

        running = RunningCt(parts, state=state, on_state=on_state, remove=remove, scope=self._scope)
        self._running[guest_id] = running
        return running

    def _look_at_host(self) -> tuple[Places, oci.HostFacts]:
        places = Places(self._places.run_dir, CgroupLayout.detect())
        host.make_directories(places)
        return places, host.facts(places.layout, pids_limit=self._pids_limit)

    def _is_free(self, guest_id: GuestId) -> bool:
        """Whether nothing runs as `guest_id`; in a thread, with the parent cgroup held."""
        self._places.cgroup_parent.settle()
        return not remains.is_alive(self._places.bundle(guest_id))

    def _configure(self, spec: CtSpec, bundle: Path, held: contextlib.ExitStack) -> tuple[Path, dict[str, object]]:
        """Namespaces and devices, in a thread. Tells where the network namespace is, until `held` lets go of it, and what
        config.json shall be."""
        assert self._facts is not None
        joined = pieces.make_namespaces(spec, held)
        cgroup = self._places.cgroup(spec.guest_id).path
        config = oci.container_config(
            spec,
            host=self._facts,
            bundle=bundle,
            cgroup=cgroup,
            joined=joined,
            device_rules=devices.make(spec, bundle),
        )
        return joined["network"], config

    def _attach_volumes(
        self, spec: CtSpec, opened_volumes: Mapping[str, OpenedVolume], bundle: Path, log: provision.LogLine
    ) -> dict[str, VolumeRecord]:
        """Mount what the container will see; in a thread."""
        ids = {"id_base": spec.id_base, "id_count": spec.id_count}
        surroundings = host.surroundings()

        configure = (
            None if spec.application is not None else partial(interior.write, spec=spec, surroundings=surroundings)
        )
        volumes: dict[str, VolumeRecord] = {}
        for mount in (spec.root, *spec.mounts):
            about = f"ct {spec.guest_id}: {mount.slot}"
            if mount.kind is MountKind.HOST_PATH:
                hostpath.attach(mount, bundle / mount.slot, about=about, maps=self._maps, **ids)
            if mount.kind is not MountKind.VOLUME:
                continue
            opened = opened_volumes.get(mount.slot)
            if opened is None:
                raise HostError(f"{about}: volume {mount.volume} was not opened")
            volumes[mount.slot] = rootfs.attach(
                opened,
                bundle / mount.slot,
                about=about,
                maps=self._maps,
                options=mount.options,
                configure=configure if mount is spec.root else None,
                id_base=spec.id_base,
                id_count=spec.id_count,
            )
            if volumes[mount.slot].device is None and (idle := mount.options & rootfs.FILE_SYSTEM_OPTIONS):
                log(f"{mount.slot}: {', '.join(sorted(idle))}: no effect, its storage has no file system for it alone")
        return volumes

    def _register(
        self,
        spec: CtSpec,
        init: int,
        volumes: dict[str, VolumeRecord],
        held: contextlib.ExitStack,
        log: provision.LogLine,
    ) -> tuple[CtRecord, tuple[int, int]]:
        """With the container created: write its record and take hold of its processes (init, shim), in a thread."""
        assert self._runtime is not None
        bundle = self._places.bundle(spec.guest_id)
        init_process, shim_process = shim.identities(str(spec.guest_id), init, bundle)
        record = CtRecord(
            guest_id=spec.guest_id,
            runtime=str(self._runtime.program),
            started_at=self._clock.now(),
            init=init_process,
            shim=shim_process,
            id_base=spec.id_base,
            id_count=spec.id_count,
            volumes=volumes,
        )
        records.save(bundle, records.NAME, record.encode())
        self._places.cgroup(spec.guest_id).delegate(record.id_base)
        if spec.io_limit != IoLimit():
            self._limit_io(spec, volumes, log)
        fds = pieces.open_processes(record)
        if fds is None:
            raise HostError(f"ct {spec.guest_id}: ended while it was being created")
        for fd in fds:
            held.callback(os.close, fd)
        return record, fds

    def _limit_io(self, spec: CtSpec, volumes: Mapping[str, VolumeRecord], log: provision.LogLine) -> None:
        failed = limits.apply(
            self._places.cgroup(spec.guest_id), spec, ("iolimit",), pids_limit=self._pids_limit, volumes=volumes
        )
        for key, reason in failed.items():
            log(f"{key}: {reason}")

    async def _remove(self, guest_id: GuestId) -> None:
        """Remove all there is of a container, whoever made it. Raises `HostError`, `TimedOut` naming what stays."""
        await asyncio.to_thread(shim.kill_leftover, self._places.bundle(guest_id))
        if self._runtime is not None:
            await self._runtime.delete(str(guest_id))
        await asyncio.to_thread(remains.clear, self._places.bundle(guest_id), self._places.cgroup(guest_id))

    async def _remove_unused_parent(self) -> None:
        """Remove the parent cgroup when no guest needs it."""
        await asyncio.to_thread(self._places.cgroup_parent.remove, self._places.layout)

    async def _remove_quietly(self, guest_id: GuestId) -> None:
        try:
            await self._remove(guest_id)
        except ApplianceError as error:
            logger.error("ct %d: removing what is left of it: %s", guest_id, error)
