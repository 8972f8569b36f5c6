"""What services need from the layers below, as Protocols. Engines fulfil them structurally and import only `model`.

Only values, file descriptors and callbacks cross these seams, so that an engine may later live in another process.
Everything here runs on the loop; engines put blocking work into threads or helper processes themselves.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from appliance.model.application import PublishedPort
from appliance.model.guest import (
    Capabilities,
    CtCredentials,
    CtTree,
    ExitReason,
    GuestId,
    GuestState,
    GuestStats,
    NicSpec,
    VmDisk,
)
from appliance.model.volume import ContentType, OpenedVolume, StorageUsage, VolumeFormat, VolumeId, VolumeInfo

SpecT = TypeVar("SpecT", contravariant=True)
ResourcesT = TypeVar("ResourcesT", contravariant=True)

LogLine = Callable[[str], None]
"""Takes one line for the task's log; never waits, never fails."""

StateCallback = Callable[[GuestState, str], None]
"""Told on the loop of each change of a running guest the engine notices by itself (paused, running, stopped, why)."""


class ConsoleSource(Protocol):
    """One attachment to a guest's console, held by the ConsoleHub for as long as the guest runs.

    Bytes are the terminal's, unchanged. Not reading is back-pressure that an engine may pass to the guest.
    """

    def history(self) -> bytes:
        """What the console said before this attachment (at most 64 KiB, the newest), from the engine's own log."""

    async def read(self) -> bytes:
        """The next bytes, at most 64 KiB; b"" when the console has ended."""

    async def write(self, data: bytes) -> None:
        """Type `data`. Raises `HostError` when the console is gone, `TimedOut` when the guest does not take it."""

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the terminal's size; ignored where the console has none."""

    async def close(self) -> None:
        """Give up the attachment; the guest goes on."""


class RunningGuest(Protocol):
    """A guest that runs. Methods raise `GuestFault` or `HostError`; all are safe to call when it has just ended."""

    @property
    def guest_id(self) -> GuestId: ...

    @property
    def pid(self) -> int:
        """The host's process id of its monitor or init."""

    @property
    def started_at(self) -> float:
        """Epoch seconds, true also after `adopt`."""

    @property
    def state(self) -> GuestState:
        """RUNNING, PAUSED or STOPPED, as the engine last saw it."""

    async def wait(self) -> ExitReason:
        """Return when nothing of it runs any more; any number of waiters."""

    async def pause(self) -> None: ...

    async def resume(self) -> None: ...

    async def shutdown(self) -> None:
        """Ask for an orderly shutdown (ACPI, SIGRTMIN+3 …) and return at once; `wait` tells when it is done."""

    async def stop(self) -> None:
        """End it by force, and return when it has ended and the engine has removed what it made for it."""

    async def reset(self) -> None:
        """Reset as by the button. Containers raise `Unsupported`."""

    def console_names(self) -> Sequence[str]:
        """ "serial0" … for VMs, "console" for containers."""

    async def open_console(self, name: str) -> ConsoleSource:
        """Attach. Raises `NotFound` for an unknown name."""

    async def open_display(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A new RFB (VNC) connection, security type None. Raises `NotFound` where the guest has no display."""

    async def stats(self) -> GuestStats: ...

    async def resize_disk(self, slot: str, size_bytes: int) -> None:
        """Tell the running guest that the disk in `slot` has grown to `size_bytes` (done after the volume has)."""

    @property
    def state_engine(self) -> str:
        """The engine's name where `snapshot_disks` can keep the machine's memory in one of its images; "" where not."""

    async def snapshot_disks(self, name: str, slots: Sequence[str], *, state_slot: str | None = None) -> None:
        """Make the snapshot `name` inside the qcow2 images in `slots`, which are open here: all or none.

        With `state_slot` the machine's memory is kept in that slot's image, too. The caller has paused it. Raises
        `Unsupported`, `HostError`. Containers have no images.
        """

    async def drop_disk_snapshots(self, name: str, slots: Sequence[str]) -> None:
        """Remove the snapshot `name` from these images; not an error where there is none."""

    async def detach(self) -> None:
        """Let go of it without stopping it: the appliance is going down, the guest is not."""


@runtime_checkable
class HotPlug(Protocol):
    """The part of a running VM whose disks and NICs come and go. All raise `HostError`, and `Conflict` when it has ended.

    A step that fails has changed nothing, but one thing: a guest that did not let go in time may do so later.
    """

    @property
    def attached(self) -> Mapping[str, VmDisk | NicSpec]:
        """The disks (with a volume) and NICs it has now, by slot, each as it was attached."""

    async def attach_disk(self, disk: VmDisk, volume: OpenedVolume) -> None:
        """Plug in a disk; the guest is told. Raises `Unsupported` where this machine cannot, `Conflict` when there is one
        in that slot already, or somebody else has its image."""

    async def detach_disk(self, slot: str) -> None:
        """Take it out: the guest is asked, and has let go of it when this returns. Raises `NotFound`, `Unsupported`,
        `TimedOut` when the guest does not let go."""

    async def attach_nic(self, nic: NicSpec, tap: str) -> None:
        """Plug in a NIC with the tap device `tap` as its cable. Raises as `attach_disk`."""

    async def detach_nic(self, slot: str) -> None:
        """As `detach_disk`; the tap is nobody's then."""

    async def set_link(self, slot: str, *, up: bool) -> None:
        """Tell the guest that the cable of a NIC was plugged in or pulled. Raises `NotFound`."""


class DiskMirror(Protocol):
    """A disk of a running VM on its way to another image, which the guest does not notice."""

    async def in_step(self, report: Callable[[float], None]) -> None:
        """Wait until both images hold the same, and will: every write goes to both from now on. `report` is told how much is
        done, 0 to 1. Raises `HostError`, `NoSpace`."""

    async def switch(self) -> bool:
        """Use the new image from now on; False when it cannot be known whether it does: both go on holding the same then,
        until `settle_mirrors`. Raises `HostError` when it still uses the old one."""


@runtime_checkable
class DiskMover(Protocol):
    """The part of a running VM whose disks move to other images."""

    def mirroring(
        self, slot: str, volume: OpenedVolume, *, bytes_per_s: int = 0
    ) -> AbstractAsyncContextManager[DiskMirror]:
        """Begin with a new image of the same size. Left before `switch` has succeeded, the disk is where it was, and the image
        nobody's. `bytes_per_s` 0 is no limit. Raises `NotFound`, `Unsupported`, `HostError`."""

    async def settle_mirrors(self, keep: Mapping[str, str]) -> Mapping[str, str]:
        """End what an earlier appliance left unfinished: switch the slots in `keep`, each to the volume named, give up all
        others. Returns by slot the path of the image each disk uses now. Raises `HostError`."""


class GuestEngine(Protocol[SpecT, ResourcesT]):
    """Starts and finds guests of one kind."""

    @property
    def name(self) -> str: ...

    async def probe(self) -> Capabilities: ...

    def refuse(self, spec: SpecT) -> Sequence[str]:
        """Why this host's engine cannot run `spec`; empty when it can. Needs `probe` before."""

    async def start(self, spec: SpecT, resources: ResourcesT, *, on_state: StateCallback, log: LogLine) -> RunningGuest:
        """Start it; returns once it executes. After an error nothing of it is left. Raises `HostError`, `Unsupported`."""

    async def adopt(self, spec: SpecT, *, on_state: StateCallback) -> RunningGuest | None:
        """Find what still runs of this guest after a restart of the appliance; None, and remains removed, if nothing."""

    async def running_ids(self) -> Sequence[GuestId]:
        """Every guest of this engine that really runs on this host, known to the store or not."""

    async def close(self) -> None:
        """Give up everything but the guests."""


class ArchivedFile(Protocol):
    """An entry of an archive. `kind`: d, f, l, h (hard link), b, c, p or v. Sizes in bytes, times in epoch seconds."""

    @property
    def path(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def size(self) -> int: ...

    @property
    def mtime(self) -> int: ...


class ArchiveReader(Protocol):
    """Looks into archives, which are hostile."""

    async def read_archived(self, archive: Path, name: str) -> bytes:
        """A small file of an archive. Raises `NotFound`, `InvalidParameter`."""

    async def archived_files(self, archive: Path) -> Sequence[ArchivedFile]:
        """All entries. Raises `InvalidParameter` for a damaged archive."""

    def stream_archived(self, archive: Path, name: str) -> AsyncGenerator[bytes, None]:
        """A regular file's content, in pieces. Raises `NotFound`, `InvalidParameter`."""


class CopyPass(Protocol):
    """Figures of one pass of a `TreeCopy`."""

    @property
    def files(self) -> int: ...

    @property
    def bytes(self) -> int: ...

    @property
    def seconds(self) -> float: ...


class TreeCopy(Protocol):
    """A copy of a tree in passes."""

    async def again(self) -> CopyPass:
        """Make the target like the source is now; only what has changed since the last pass is read. Raises `HostError`."""

    async def differences(self) -> int:
        """How many entries differ, by reading all of both."""


class CtProvisioner(ArchiveReader, Protocol):
    """The part of the container engine that writes into a new root file system. `spec` is a `CtSpec`."""

    async def populate(
        self, root: OpenedVolume, template: Path, *, id_base: int, credentials: CtCredentials, log: LogLine
    ) -> None:
        """Unpack `template` (tar, any compression) into the empty volume and set root's credentials.

        Refuses archives with absolute names, `..`, links that lead out, or devices. Raises `UserError`, `HostError`;
        the volume's content is undefined after an error (the caller deletes it).
        """

    async def unpack(self, root: OpenedVolume, template: Path, *, log: LogLine) -> None:
        """The first half of `populate`: into a layer that many containers will stand on."""

    async def personalise(self, root: OpenedVolume, *, credentials: CtCredentials) -> None:
        """The second half: root's credentials, and nothing of another machine's identity."""

    async def pack(
        self,
        guest_id: GuestId,
        trees: Sequence[CtTree],
        target: Path,
        *,
        config: str,
        exclude: Sequence[str],
        compress: str,
        log: LogLine,
    ) -> None:
        """Write an archive of `trees`, with `config` in it, to the empty file `target`. `compress`: "zstd", "gzip" or "".

        Raises `Conflict` when a tree of the running container is asked for and it does not run, `HostError`, `NoSpace`.
        """

    def copying(self, guest_id: GuestId, source: CtTree, target: OpenedVolume) -> AbstractAsyncContextManager[TreeCopy]:
        """Copy a container's tree to the volume `target`, which nobody uses; owners become the container's own ids.

        The tree of a running container stays readable until this ends, also when the container has ended meanwhile.
        """

    async def unpack_backup(
        self, root: OpenedVolume, archive: Path, *, below: str, exclude: Sequence[str], log: LogLine
    ) -> None:
        """Unpack what lies under `below` in an archive into the empty volume. Refuses what `populate` refuses."""


class LayerUnpacker(Protocol):
    """The part of the container engine that unpacks layers of images."""

    async def unpack_layer(
        self, target: Path, blob: Path, *, compression: str, diff_id: str, lowers: Sequence[Path], log: LogLine
    ) -> None:
        """Unpack `blob` ("", "gz" or "zst") into the empty directory `target`, over the trees `lowers`, nearest first.

        Refuses what `CtProvisioner.populate` refuses, another content than `diff_id`, and bombs. Raises `InvalidParameter`,
        `NoSpace`, `HostError`; the caller removes the directory then.
        """

    async def copy_layers(self, volume: OpenedVolume, lowers: Sequence[Path], *, path: str = "/") -> bool:
        """Copy what the trees `lowers`, the nearest first, show as an overlay at `path` into the empty `volume`; False when
        there is no directory.

        Raises `NoSpace`, `HostError`; the volume's content is undefined then.
        """


class LogPiece(Protocol):
    """A piece of what an application container said; `whole` when a line ends with it."""

    @property
    def time(self) -> str: ...

    @property
    def stream(self) -> str: ...

    @property
    def text(self) -> bytes: ...

    @property
    def whole(self) -> bool: ...


class LogSource(Protocol):
    """A reader of a container's log."""

    async def read(self) -> Sequence[LogPiece]:
        """What has come since; empty when nothing has. Raises `HostError`."""

    async def close(self) -> None: ...


class LogStore(Protocol):
    """The logs of application containers, kept beyond their end. Raises `HostError`."""

    def reader(self, guest_id: GuestId, tail: int | None) -> LogSource:
        """From `tail` lines before the end, or from as far back as is kept."""

    async def rotate(self, guest_id: GuestId) -> None:
        """Set a running container's log aside when it is large enough."""

    async def remove(self, guest_id: GuestId) -> None:
        """Remove a container's logs; not an error when there are none."""

    async def sweep(self, known: Collection[GuestId]) -> None:
        """Remove the logs of all but these."""


class VolumeBackend(Protocol):
    """One storage. Each operation is atomic, or cleaned up by `recover` at the next start.

    Raises `NotFound`, `Conflict`, `NoSpace`, `HostError`, `Unsupported`, always naming the volume.
    """

    @property
    def storage_id(self) -> str: ...

    @property
    def content_types(self) -> frozenset[ContentType]: ...

    async def recover(self) -> Sequence[str]:
        """Remove what interrupted operations left; returns one line for each thing removed."""

    async def create(
        self,
        guest_id: GuestId,
        *,
        format: VolumeFormat,
        size_bytes: int,
        content: ContentType,
        label: str = "disk",
        base: str = "",
        layers: Sequence[str] = (),
    ) -> VolumeId:
        """An empty volume `vm-ID-LABEL-N` (lowest free N) for a guest. `content` is IMAGES or ROOTDIR.

        ROOTDIR with RAW is an ext4 file system of that size; with SUBVOL a directory, which begins with what the layer
        `base` holds, or with what all `layers` show, the topmost first.
        """

    def layer(self, archive: Path, fill: Callable[[Path], Awaitable[None]]) -> AbstractAsyncContextManager[str]:
        """The layer of an archive for `create`, kept meanwhile; made by `fill` (into a directory) if it is not there yet.

        "" where directory volumes cannot share anything: they are filled one by one.
        """

    async def clone(
        self, source: OpenedVolume, guest_id: GuestId, *, format: VolumeFormat, full: bool, log: LogLine
    ) -> VolumeId:
        """A new volume for `guest_id` with the content of `source`; `full=False` makes a linked (copy-on-write) clone. What that
        stands on cannot be deleted before it. Raises `Unsupported` where there can be none."""

    async def resize(self, volume_id: VolumeId, size_bytes: int) -> None:
        """Grow; shrinking is refused (`InvalidParameter`). For ROOTDIR/RAW the file system grows too (offline)."""

    async def delete(self, volume_id: VolumeId) -> None: ...

    async def check_snapshot(self, volume_id: VolumeId, *, in_use: bool) -> None:
        """Raises `Unsupported` saying why there can be no snapshot of the volume. `in_use`: its guest runs (standing still
        while the snapshot is made); a qcow2 image must then be left to who has it open."""

    async def snapshot(self, volume_id: VolumeId, name: str, *, in_use: bool = False) -> None:
        """Keep the volume's present content as `name`. Raises `Conflict` when there is one, what `check_snapshot` does."""

    async def roll_back(self, volume_id: VolumeId, name: str) -> None:
        """Give the volume the content and size kept as `name`, which stays. May be repeated after an interruption."""

    async def check_snapshot_removal(self, volume_id: VolumeId, name: str) -> None:
        """Raises `Conflict` naming the linked clones that stand on it."""

    async def delete_snapshot(self, volume_id: VolumeId, name: str) -> None:
        """Forget it; not an error when there is none. Raises as `check_snapshot_removal`."""

    async def snapshots(self, volume_id: VolumeId) -> Sequence[str]:
        """The names of the volume's snapshots, sorted."""

    async def open_snapshot(self, volume_id: VolumeId, name: str) -> OpenedVolume:
        """What a snapshot holds, to be read only: `clone` copies it. Raises `NotFound`, `InvalidParameter`."""

    async def open(self, volume_id: VolumeId) -> OpenedVolume:
        """Check and describe the volume for an engine. A hostile image (external data file, backing file outside
        the storage or not written by us) raises `InvalidParameter`."""

    async def list(
        self, content: ContentType | None = None, guest_id: GuestId | None = None
    ) -> Sequence[VolumeInfo]: ...

    async def info(self, volume_id: VolumeId) -> VolumeInfo: ...

    async def usage(self) -> StorageUsage: ...

    async def receive(
        self, content: ContentType, name: str, chunks: AsyncIterator[bytes], *, checksum: tuple[str, str] | None
    ) -> VolumeId:
        """Store a stream as a file of `content` (iso, vztmpl, import, snippets). It appears only when whole and its
        (algorithm, hex digest) matches. Raises `Conflict` if the name exists, `InvalidParameter` on a mismatch."""


class NetworkBackend(Protocol):
    """Bridges and guest ports of this host. What it makes carries its mark and is found again after a restart."""

    async def check(self, nic: NicSpec) -> None:
        """Raises `NotFound` for a missing bridge, `Unsupported` for what this kernel cannot (VLAN tag …)."""

    async def plug_vm(self, guest_id: GuestId, nic: NicSpec) -> str:
        """Make (or find) the tap device of this NIC, joined to its bridge with anti-spoofing; returns its name."""

    async def plug_ct(self, guest_id: GuestId, nic: NicSpec, namespace: Path) -> None:
        """Make the veth pair, one end joined to the bridge, the other in the network `namespace` (a file) as `nic.name`."""

    def resolver(self, bridge: str) -> str:
        """The name server for guests on this bridge that do not ask by DHCP; "" where we know none."""

    def learned_resolvers(self, guest_id: GuestId) -> Sequence[str]:
        """The name servers that DHCP servers told the host for this guest; none where it asks itself, or not yet."""

    def on_learned(self, heard: Callable[[GuestId], None]) -> None:
        """Have `heard` called on the loop whenever `learned_resolvers` of a guest has changed. For one listener."""

    async def publish(self, guest_id: GuestId, wanted: Sequence[PublishedPort]) -> None:
        """Let ports of the host lead to this guest, which is plugged, until it is unplugged. Raises `Conflict` for a port that
        is taken, `Unsupported` when its address is not known here, `InvalidParameter`."""

    async def unplug(self, guest_id: GuestId) -> None:
        """Remove every port of this guest, and what it publishes; not an error when there is none."""

    async def unplug_one(self, guest_id: GuestId, slot: str) -> None:
        """Remove one port of this guest; not an error when there is none."""

    async def set_link(self, guest_id: GuestId, slot: str, *, up: bool) -> None: ...

    async def leases(self) -> Mapping[str, str]:
        """MAC (upper case) to IPv4 address of the DHCP leases on managed bridges."""

    async def counters(self, guest_id: GuestId) -> tuple[int, int]:
        """Bytes (in, out) as the guest sees them, summed over its ports; zeros when it has none."""
