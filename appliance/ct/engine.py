"""The container engine: fulfils ports.GuestEngine[CtSpec, CtResources] and ports.CtProvisioner. On the loop.

A start, in order (threads in brackets):
    1 [volumes mounted with mapped ids, interior configured, config.json]
    2 shim started; the runtime creates the container: its namespaces exist, its init waits
    3 NICs moved into its network namespace, and at the same time [record.json, systemd's cgroup handed over]
    4 runtime start: init runs
Any failure or cancellation in between removes all of it again, in reverse (`_remove`), which is idempotent and needs no
memory of the start: the same code clears what a killed appliance left.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import platform
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from appliance.clock import Clock
from appliance.ct import confinement, interior, oci, provision, records, rootfs, runtime, shim
from appliance.ct.cgroups import Cgroup, CgroupLayout
from appliance.ct.records import CtRecord, VolumeRecord
from appliance.ct.running import CtParts, RunningCt, StateCallback
from appliance.errors import ApplianceError, Conflict, HostError, Unsupported
from appliance.kernel import pidfd
from appliance.model.guest import Capabilities, CtCredentials, CtResources, CtSpec, GuestId, GuestState
from appliance.model.volume import OpenedVolume
from appliance.tasks import TaskScope

logger = logging.getLogger(__name__)

NAME = "oci"
PIDS_LIMIT = 16_384
MEMORY_MIN_MIB = 16
FEATURES = frozenset({"nesting", "keyctl", "fuse"})
_DEFAULT_RUN_DIR = Path("/run/appliance")
_LXCFS = Path("/var/lib/lxcfs")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_RESOLVER = Path("/etc/resolv.conf")


class CtEngine:
    """Containers by an OCI runtime and conmon. `run_dir` must not outlive a boot and holds one directory a container.

    Control groups are `appliance/ct-ID` in every tree (`appliance-TAG/…` for other run directories than the default).
    """

    def __init__(
        self, run_dir: Path, data_dir: Path, scope: TaskScope, clock: Clock, *, pids_limit: int = PIDS_LIMIT
    ) -> None:
        self._run_dir = run_dir
        self._directory = run_dir / "ct"
        self._scope = scope
        self._clock = clock
        self._pids_limit = pids_limit
        tag = hashlib.sha256(bytes(run_dir)).hexdigest()[:8]
        self._cgroup_parent = "appliance" if run_dir == _DEFAULT_RUN_DIR else f"appliance-{tag}"
        self._layout = CgroupLayout({}, None)
        self._facts: oci.HostFacts | None = None
        self._runtime: runtime.OciRuntime | None = None
        self._capabilities = Capabilities(engine=NAME, version="", missing={"start": "not probed yet"})
        self._maps = rootfs.IdMaps()
        self._running: dict[GuestId, RunningCt] = {}
        self._busy: set[GuestId] = set()

    @property
    def name(self) -> str:
        return NAME

    # --- what this host can -------------------------------------------------------------------------------------------

    async def probe(self) -> Capabilities:
        """Choose the runtime by trying it, and remove what dead containers of an earlier appliance left."""
        self._layout, facts = await asyncio.to_thread(self._look_at_host)
        self._facts = facts
        chosen, missing = await runtime.choose(self._layout, facts, self._directory, cgroup_parent=self._cgroup_parent)
        available = {"start", "console", "exec", "pause", "stats", *FEATURES}
        if not shim.installed():
            missing[shim.PROGRAM] = "not installed"
            chosen = None
        if chosen is None:
            available = set()
            missing["start"] = "; ".join(f"{program}: {why}" for program, why in missing.items()) or "no OCI runtime"
        elif facts.lxcfs_files:
            available.add("lxcfs")
        else:
            missing["lxcfs"] = f"not mounted at {_LXCFS}: containers see the host's /proc/meminfo"
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
        host_arch = _ARCHITECTURES.get(platform.machine(), platform.machine())
        if spec.arch != host_arch:
            reasons.append(f"architecture {spec.arch} does not run on a host that is {host_arch}")
        if unknown := spec.features - FEATURES:
            reasons.append(f"unknown features: {', '.join(sorted(unknown))}")
        if spec.memory_mib and spec.memory_mib < MEMORY_MIN_MIB:
            reasons.append(f"memory must be at least {MEMORY_MIN_MIB} MiB")
        for mount in spec.mounts:
            path = PurePosixPath(mount.path)
            if not path.is_absolute() or ".." in path.parts or path == PurePosixPath("/"):
                reasons.append(f"{mount.slot}: {mount.path!r} is not a path inside the container")
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
            try:
                return await self._launch(spec, resources, on_state)
            except BaseException:
                await asyncio.shield(self._scope.start(self._remove_quietly(spec.guest_id), name="undo start"))
                raise
        finally:
            self._busy.discard(spec.guest_id)

    async def _launch(self, spec: CtSpec, resources: CtResources, on_state: StateCallback) -> RunningCt:
        assert self._runtime is not None
        bundle, container = self._bundle(spec.guest_id), str(spec.guest_id)
        if await asyncio.to_thread(_is_alive, bundle):
            raise Conflict(f"ct {spec.guest_id}: already running")
        if await asyncio.to_thread(bundle.exists):
            await self._remove(spec.guest_id)
        volumes = await asyncio.to_thread(self._prepare, spec, resources, bundle)
        init, shim_process = await shim.create(self._runtime, container, bundle)
        record = CtRecord(
            guest_id=spec.guest_id,
            runtime=str(self._runtime.program),
            started_at=self._clock.now(),
            init=init,
            shim=shim_process,
            id_base=spec.id_base,
            id_count=spec.id_count,
            volumes=volumes,
        )
        registered = self._scope.start(asyncio.to_thread(self._register, record), name=f"register ct {spec.guest_id}")
        try:
            await resources.connect(init.pid)
            fds = await asyncio.shield(registered)
        except BaseException:
            await asyncio.shield(_close_when_done(registered))
            raise
        if fds is None:
            raise HostError(f"ct {spec.guest_id}: ended while it was being created")
        try:
            await self._runtime.start(container)
        except BaseException:
            _close(fds)
            raise
        return self._take(record, fds, GuestState.RUNNING, on_state)

    async def adopt(self, spec: CtSpec, *, on_state: StateCallback) -> RunningCt | None:
        if spec.guest_id in self._running:
            return self._running[spec.guest_id]
        bundle = self._bundle(spec.guest_id)
        record = await asyncio.to_thread(records.load, bundle)
        fds = await asyncio.to_thread(_open_processes, record) if record is not None else None
        if record is None or fds is None:
            if await asyncio.to_thread(bundle.exists):
                await self._remove(spec.guest_id)
            return None
        frozen = await asyncio.to_thread(self._cgroup(spec.guest_id).frozen)
        return self._take(record, fds, GuestState.PAUSED if frozen else GuestState.RUNNING, on_state)

    async def running_ids(self) -> Sequence[GuestId]:
        return await asyncio.to_thread(
            lambda: sorted(guest_id for guest_id in self._known_ids() if _is_alive(self._bundle(guest_id)))
        )

    async def recover(self) -> Sequence[GuestId]:
        """Remove what containers that no longer run have left; returns whose remains they were."""
        known = await asyncio.to_thread(self._known_ids)
        removed = []
        for guest_id in known:
            if guest_id in self._busy or guest_id in self._running:
                continue
            if not await asyncio.to_thread(_is_alive, self._bundle(guest_id)):
                await self._remove_quietly(guest_id)
                removed.append(guest_id)
        return removed

    async def populate(
        self,
        root: OpenedVolume,
        template: Path,
        *,
        id_base: int,
        credentials: CtCredentials,
        log: provision.LogLine,
    ) -> None:
        """See ports.CtProvisioner. `id_base` does not matter to the content: ids on volumes are the container's own."""
        await provision.populate(root, template, credentials=credentials, log=log)

    async def close(self) -> None:
        for running in list(self._running.values()):
            await running.detach()
        self._running.clear()
        await asyncio.to_thread(self._maps.close)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _take(self, record: CtRecord, fds: tuple[int, int], state: GuestState, on_state: StateCallback) -> RunningCt:
        guest_id = GuestId(record.guest_id)
        program = runtime.OciRuntime(Path(record.runtime), self._directory / "runtime")
        parts = CtParts(
            record=record,
            bundle=self._bundle(guest_id),
            container=str(guest_id),
            cgroup=self._cgroup(guest_id),
            runtime=program,
            init_fd=fds[0],
            shim_fd=fds[1],
        )

        async def remove() -> None:
            try:
                await self._remove(guest_id)
            finally:
                self._running.pop(guest_id, None)

        running = RunningCt(parts, state=state, on_state=on_state, remove=remove, scope=self._scope)
        self._running[guest_id] = running
        return running

    def _look_at_host(self) -> tuple[CgroupLayout, oci.HostFacts]:
        self._directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        for directory in (self._run_dir, self._directory):  # the container's root, a stranger here, passes through
            directory.chmod(directory.stat().st_mode | 0o011)
        layout = CgroupLayout.detect()
        status = Path("/proc/self/status").read_text()
        mask = next(line.split()[1] for line in status.splitlines() if line.startswith("CapPrm:"))
        present = _LXCFS.is_mount()
        lxcfs = {
            name: _LXCFS / "proc" / name for name in oci.LXCFS_FILES if present and (_LXCFS / "proc" / name).exists()
        }
        facts = oci.HostFacts(
            cgroup2=layout.pure_v2,
            swap_limit=layout.limits_swap,
            lxcfs_files=lxcfs,
            permitted_capabilities=confinement.parse_capability_mask(mask),
            pids_limit=self._pids_limit,
        )
        return layout, facts

    def _prepare(self, spec: CtSpec, resources: CtResources, bundle: Path) -> dict[str, VolumeRecord]:
        """Everything before the shim, in a thread."""
        assert self._facts is not None
        bundle.mkdir(mode=0o711 if spec.id_base else 0o700)
        cgroup = self._cgroup(spec.guest_id).path
        config = oci.container_config(spec, host=self._facts, bundle=bundle, cgroup=cgroup)
        records.save(bundle, "config.json", json.dumps(config).encode())
        resolver = _RESOLVER.read_text() if _RESOLVER.exists() else ""
        volumes: dict[str, VolumeRecord] = {}
        for mount in (spec.root, *spec.mounts):
            opened = resources.volumes.get(mount.slot)
            if opened is None:
                raise HostError(f"ct {spec.guest_id}: {mount.slot}: volume {mount.volume} was not opened")
            volumes[mount.slot] = rootfs.attach(
                opened,
                bundle / mount.slot,
                about=f"ct {spec.guest_id}: {mount.slot}",
                id_base=spec.id_base,
                id_count=spec.id_count,
                maps=self._maps,
                configure=(lambda tree: interior.write(tree, spec, resolver)) if mount is spec.root else None,
            )
        return volumes

    def _register(self, record: CtRecord) -> tuple[int, int] | None:
        """With the container created: write its record and take hold of its processes, in a thread."""
        guest_id = GuestId(record.guest_id)
        records.save(self._bundle(guest_id), records.NAME, record.encode())
        self._cgroup(guest_id).delegate(record.id_base)
        return _open_processes(record)

    async def _remove(self, guest_id: GuestId) -> None:
        """Remove all there is of a container, whoever made it. Raises `HostError`, `TimedOut` naming what stays."""
        if self._runtime is not None:
            await self._runtime.delete(str(guest_id))
        alone = not (self._busy | self._running.keys()) - {guest_id}
        await asyncio.to_thread(self._clear, guest_id, alone=alone)

    async def _remove_quietly(self, guest_id: GuestId) -> None:
        try:
            await self._remove(guest_id)
        except ApplianceError as error:
            logger.error("ct %d: removing what is left of it: %s", guest_id, error)

    def _clear(self, guest_id: GuestId, *, alone: bool) -> None:
        bundle, cgroup = self._bundle(guest_id), self._cgroup(guest_id)
        record = records.load(bundle)
        shim.kill_leftover(bundle)
        cgroup.kill()
        cgroup.remove()
        if alone:
            cgroup.remove_parent()
        if record is not None:
            rootfs.undo_shifts(record.volumes, bundle, id_base=record.id_base, id_count=record.id_count)
        rootfs.detach_all(bundle)
        _remove_bundle(bundle)

    def _known_ids(self) -> list[GuestId]:
        if not self._directory.is_dir():
            return []
        return [GuestId(int(entry.name)) for entry in self._directory.iterdir() if entry.name.isdigit()]

    def _bundle(self, guest_id: GuestId) -> Path:
        return self._directory / str(guest_id)

    def _cgroup(self, guest_id: GuestId) -> Cgroup:
        return Cgroup(self._layout, self._cgroup_parent, f"ct-{guest_id}")


def _open_processes(record: CtRecord) -> tuple[int, int] | None:
    """Pidfds of init and shim, or None when either has ended."""
    init_fd = pidfd.pidfd_open(record.init)
    if init_fd is None:
        return None
    shim_fd = pidfd.pidfd_open(record.shim)
    if shim_fd is None:
        os.close(init_fd)
        return None
    return init_fd, shim_fd


async def _close_when_done(registered: asyncio.Task[tuple[int, int] | None]) -> None:
    fds = await registered
    if fds is not None:
        _close(fds)


def _close(fds: tuple[int, int]) -> None:
    for fd in fds:
        os.close(fd)


def _is_alive(bundle: Path) -> bool:
    record = records.load(bundle)
    return record is not None and record.alive


def _remove_bundle(bundle: Path) -> None:
    """Remove a directory of plain files and empty mount points. Never descends: a mount point that is not empty is
    somebody's data, and stays with an error."""
    try:
        for entry in list(os.scandir(bundle)):
            if entry.is_dir(follow_symlinks=False):
                Path(entry.path).rmdir()
            else:
                Path(entry.path).unlink()
        bundle.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        raise HostError.from_os_error(error, f"remove {bundle}") from error
