"""A world with furniture, for pages: guests with figures and configurations, a storage with volumes, networks, a login.

`furnished(directory)` is `fake_services(directory)` with these in place. Some names are hostile on purpose (`HOSTILE`).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import msgspec

from appliance.errors import Conflict, NotAuthenticated, NotFound
from appliance.events import EventBus, StorageContentChanged
from appliance.model.guest import Capabilities, GuestKind, GuestState, GuestStats
from appliance.model.metrics import Point, in_order
from appliance.model.network import HostInterface
from appliance.model.volume import ContentType, StorageUsage, VolumeId, VolumeInfo
from appliance.services import storage_config
from appliance.services.login import Login
from appliance.services.network import BridgeChange
from appliance.services.node import NodeStatus
from appliance.services.node_sample import CpuInfo, HostInfo, KernelInfo
from appliance.services.storage_config import StorageConfig, StorageDocument
from appliance.services.templates import Template
from appliance.storage.recipes.recipe import RECIPES, ImageKind
from appliance.web.services import Services
from tests.fakes.backups import Entry, FakeBackups, FakeReplacements, FakeRestores
from tests.fakes.images import FakeBuilder, FakeImages, describe, web_server
from tests.fakes.services import FakeAccess, FakeTasks, World, fake_services

GIB = 1 << 30
MIB = 1 << 20
PASSWORD = "right"
CODE = "123456"
WITH_SECOND_FACTOR = "careful@pve"
HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}"


ENGINES = (
    Capabilities(engine="native", version="0.1.0", available=frozenset({"start"})),
    Capabilities(
        engine="qemu",
        version="7.2.11",
        available=frozenset({"start", "uefi"}),
        missing={"kvm": "/dev/kvm: no such file"},
    ),
    Capabilities(engine="oci", version="", missing={"start": "neither crun nor runc is installed"}),
)


class HouseAccess(FakeAccess):
    """Everybody's password is `PASSWORD`; `WITH_SECOND_FACTOR` needs `CODE` as well. `ended` are tickets logged out."""

    def __init__(self) -> None:
        super().__init__()
        self.ended: set[str] = set()

    def csrf_token(self, ticket: str) -> str:
        return f"csrf-of-{ticket}"

    def verify_ticket(self, ticket: str) -> Any:
        if ticket in self.ended:
            raise NotAuthenticated("authentication failure")
        return super().verify_ticket(ticket)

    async def login(
        self, username: str, password: str, *, otp: str | None = None, challenge: str | None = None, remote: str
    ) -> Login:
        ticket = self.ticket(username)
        if challenge is not None:
            good = challenge == f"challenge-of-{username}" and password == f"totp:{CODE}"
        else:
            good = password in (PASSWORD, ticket)
        if not good:
            raise NotAuthenticated("authentication failure")
        if username == WITH_SECOND_FACTOR and challenge is None:
            return Login(username, f"challenge-of-{username}", "", need_tfa=True)
        return Login(username, ticket, self.csrf_token(ticket))

    async def logout(self, ticket: str) -> None:
        self.ended.add(ticket)


class HouseNetwork:
    """The bridge `vmbr0`, which is the appliance's own, and an interface of the host."""

    def __init__(self) -> None:
        self.problem, self.comment, self.reapplied = "", "", 0
        self._found = [_interface("vmbr0", "bridge", "10.64.0.1/22"), _interface("eth0", "", "192.0.2.7/24")]

    def is_managed(self, name: str) -> bool:
        return name == "vmbr0"

    async def interfaces(self) -> Sequence[HostInterface]:
        return self._found

    async def interface(self, name: str) -> HostInterface:
        return next(each for each in self._found if each.name == name)

    @property
    def digest(self) -> str:
        return f"{self._found[0].addresses} {self._found[0].mtu} {self.comment}"[:40]

    async def reapply(self) -> None:
        self.reapplied += 1

    async def update_bridge(self, name: str, change: BridgeChange) -> None:
        if change.digest and change.digest != self.digest:
            raise Conflict(f"bridge {name} has changed meanwhile")
        bridge = await self.interface(name)
        self.comment = self.comment if change.comment is None else change.comment
        self._found[0] = dataclasses.replace(
            bridge,
            addresses=bridge.addresses if change.cidr is None else (change.cidr,),
            mtu=bridge.mtu if change.mtu is None else change.mtu,
        )


class HouseStorage:
    """The storage `local`, and what tests add to `documents`; their `volumes`. Changes are told as in life."""

    def __init__(self, events: EventBus, tasks: FakeTasks) -> None:
        self._events = events
        self._tasks = tasks
        self.documents: dict[str, StorageDocument] = {"local": StorageDocument()}
        self.volumes: list[VolumeInfo] = []

    def add(
        self, name: str, content: ContentType, size_bytes: int, *, guest_id: int | None = None, storage: str = "local",
        notes: str = "", protected: bool = False,
    ) -> None:  # fmt: skip
        self.volumes.append(
            VolumeInfo(
                volume_id=VolumeId(storage, name),
                content=content,
                format=name.rpartition(".")[2],
                created_at=1.7e9,
                size_bytes=size_bytes,
                used_bytes=size_bytes // 3,
                guest_id=guest_id,
                notes=notes,
                protected=protected,
            )
        )
        self._tell(storage)

    def remove(self, volume_id: VolumeId) -> None:
        self.volumes = [info for info in self.volumes if info.volume_id != volume_id]
        self._tell(volume_id.storage)

    def storages(self) -> Sequence[StorageConfig]:
        return [self.storage(name) for name in sorted(self.documents)]

    def storage(self, storage_id: str) -> StorageConfig:
        document = self.documents.get(storage_id)
        if document is None:
            raise NotFound(f"storage '{storage_id}'")
        return StorageConfig(
            storage_id=storage_id,
            kind="dir",
            path=Path(document.path or f"/var/lib/x/{storage_id}"),
            content_types=frozenset(document.content),
            document=document,
        )

    def backend(self, storage_id: str) -> Any:
        if self.storage(storage_id).document.disable:
            raise Conflict(f"storage '{storage_id}' is disabled")
        return SimpleNamespace(info=self._info, annotate=self._annotate)

    async def content(
        self, storage_id: str, content: ContentType | None = None, guest_id: int | None = None
    ) -> Sequence[VolumeInfo]:
        self.backend(storage_id)
        return [
            info
            for info in self.volumes
            if info.volume_id.storage == storage_id
            and content in (None, info.content)
            and guest_id in (None, info.guest_id)
        ]

    async def delete_volume(self, volume_id: VolumeId, *, user: str) -> str:
        if (await self._info(volume_id)).protected:
            raise Conflict(f"volume {volume_id}: is protected")

        async def work(task: object) -> None:
            self.remove(volume_id)

        return await self._tasks.run("imgdel", object_id=str(volume_id), user=user, work=work)

    def cached_usage(self, storage_id: str) -> StorageUsage | None:
        return StorageUsage(total_bytes=100 * GIB, used_bytes=37 * GIB, available_bytes=63 * GIB)

    async def usage(self, storage_id: str) -> StorageUsage:
        self.storage(storage_id)
        return StorageUsage(total_bytes=100 * GIB, used_bytes=37 * GIB, available_bytes=63 * GIB)

    async def create_storage(self, storage_id: str, document: StorageDocument) -> StorageConfig:
        if storage_id in self.documents:
            raise Conflict(f"storage '{storage_id}' already exists")
        others = {f"storage '{each.storage_id}'": each.path for each in self.storages()}
        storage_config.check_path(document.path, others=others)
        self.documents[storage_id] = document
        self._tell(storage_id)
        return self.storage(storage_id)

    async def update_storage(
        self, storage_id: str, changes: Mapping[str, object], *, digest: str | None = None
    ) -> StorageConfig:
        before = self.storage(storage_id).document
        if digest and digest != before.digest():
            raise Conflict(f"storage '{storage_id}' has changed meanwhile (digest differs)")
        self.documents[storage_id] = msgspec.structs.replace(before, **changes)
        self._tell(storage_id)
        return self.storage(storage_id)

    async def delete_storage(self, storage_id: str) -> None:
        volumes = [] if self.storage(storage_id).document.disable else await self.content(storage_id)
        held = [info for info in volumes if info.guest_id and info.content != ContentType.BACKUP]
        if held:
            raise Conflict(f"storage '{storage_id}' holds {len(held)} volumes of guests")
        del self.documents[storage_id]
        self._tell(storage_id)

    async def _info(self, volume_id: VolumeId) -> VolumeInfo:
        found = next((info for info in self.volumes if info.volume_id == volume_id), None)
        if found is None:
            raise NotFound(f"volume '{volume_id}'")
        return found

    async def _annotate(self, volume_id: VolumeId, *, notes: str | None, protected: bool | None) -> None:
        info = await self._info(volume_id)
        changed = dataclasses.replace(
            info,
            notes=info.notes if notes is None else notes,
            protected=info.protected if protected is None else protected,
        )
        self.volumes[self.volumes.index(info)] = changed
        self._tell(volume_id.storage)

    def _tell(self, storage_id: str) -> None:
        self._events.publish(StorageContentChanged(storage=storage_id))


def furnished(directory: Path) -> tuple[Services, World]:
    """See the module's docstring."""
    services, world = fake_services(directory)
    access, storage = HouseAccess(), HouseStorage(world.events, world.tasks)
    world.access = access
    world.extras.storage = storage
    world.extras.mappings = services.directory_mappings
    world.extras.backups = backups = FakeBackups(storage, world.tasks)
    vars(world.guests).update(
        backups=backups, backup_files=backups, restores=FakeRestores(backups), replacements=FakeReplacements(backups)
    )
    images = world.extras.images = FakeImages(world.tasks, world.events, directory)
    world.extras.builder = FakeBuilder(world.tasks)
    configs: dict[int, dict[str, str]] = {}
    world.extras.configs = configs

    def config(guest_id: int, kind: GuestKind | None = None) -> tuple[dict[str, str], str]:
        world.guests.get(guest_id, kind)
        return dict(configs.get(guest_id, {"cores": "2", "memory": "512"})), "0" * 40

    vars(world.guests)["config"] = config
    others: dict[str, Any] = {
        "access": access,
        "storage": storage,
        "network": HouseNetwork(),
        "node": SimpleNamespace(status=_answer(_status())),
        "engines": ENGINES,
        "images": images,
        "builder": world.extras.builder,
        "templates": SimpleNamespace(
            list=lambda: [Template(recipe=recipe, kind=kind) for recipe in RECIPES.values() for kind in ImageKind]
        ),
    }
    return dataclasses.replace(services, **others), world


def settle_in(world: World) -> None:
    """Guests, volumes and tasks as a small office has them."""
    stats = GuestStats(cpu_seconds=80, memory_bytes=700 * MIB, disk_read_bytes=9 * MIB, net_in_bytes=5 * MIB)
    web: dict[str, Any] = {
        "tags": ("web", "production"),
        "addresses": ("10.64.0.21",),
        "stats": stats,
        "cpu_ratio": 0.31,
    }
    world.guests.add(100, name="shop", state=GuestState.RUNNING, uptime_s=400_000, maxmem=2 * GIB, **web)
    ct_stats = GuestStats(memory_bytes=61 * MIB, processes=14, disk_used_bytes=900 * MIB)
    world.guests.add(
        101, GuestKind.LXC, name="dns", state=GuestState.RUNNING, uptime_s=3_900, stats=ct_stats, cpu_ratio=0.02,
        addresses=("10.64.0.22",), description="Resolver of the office.\nAsk before you restart it.",
    )  # fmt: skip
    world.guests.add(102, name="build-runner", state=GuestState.PAUSED, stats=stats, cpu_ratio=0.0, uptime_s=77)
    world.guests.add(103, GuestKind.LXC, name="staging-database-with-a-rather-long-name", tags=("staging",))
    world.guests.add(104, name="debian-12-base", template=True)
    world.extras.configs[100] = {
        "name": "shop", "cores": "2", "memory": "2048", "scsi0": "local:100/vm-100-disk-0.qcow2,size=32G",
        "net0": "virtio=BC:24:11:00:00:01,bridge=vmbr0", "boot": "order=scsi0", "serial0": "socket", "onboot": "1",
        "ide2": "local:100/vm-100-cloudinit.qcow2,media=cdrom",
    }  # fmt: skip
    storage = cast(HouseStorage, world.extras.storage)
    storage.add("100/vm-100-disk-0.qcow2", ContentType.IMAGES, 32 * GIB, guest_id=100)
    storage.add("101/vm-101-disk-0.raw", ContentType.ROOTDIR, 4 * GIB, guest_id=101)
    storage.add("iso/debian-12.7.0-amd64-netinst.iso", ContentType.ISO, 660 * MIB)
    storage.add("vztmpl/debian-12-standard_12_amd64.tar.zst", ContentType.VZTMPL, 44 * MIB)
    storage.add("import/debian-12.qcow2", ContentType.IMPORT, 2 * GIB)
    backups = cast(FakeBackups, world.extras.backups)
    backups.add(GuestKind.LXC, 101, notes="dns", days=1)
    backups.add(GuestKind.LXC, 101, notes="before the upgrade\nkeep it", protected=True, days=9)
    backups.add(GuestKind.QEMU, 100, notes="shop", days=2)
    backups.entries += [
        Entry("etc", "d"), Entry("etc/hostname", content=b"dns\n"), Entry("etc/mtab", "l"), Entry("srv", "d"),
        Entry("srv/zone.db", content=b"x" * 40_000), Entry("dev-null", "c"),
    ]  # fmt: skip
    images = cast(FakeImages, world.extras.images)
    images.add("nginx_1.27.tar", describe("docker.io/library/nginx:1.27", ["base", "nginx"], web_server()))
    images.add("redis_7.tar", describe("docker.io/library/redis:7", ["base", "redis-server"]))
    _draw_graphs(world)
    world.tasks.finish(world.tasks.begin("qmstart"))
    world.tasks.finish(world.tasks.begin("vzstart", object_id="103"), "network interface veth103i0 is gone")
    running = world.tasks.begin("download", object_id="debian-13-cloud.qcow2")
    world.tasks.logs[running] = ["fetching debian-13-cloud.qcow2", "512 MiB of 2 GiB (25 %)"]


def _draw_graphs(world: World) -> None:
    """An hour of figures that look like life."""
    now = int(time.time()) // 60 * 60
    for series, cpus, memory in (("node/testnode", 8, 32 * GIB), ("qemu/100", 2, 2 * GIB)):
        points = []
        for minute in range(60):
            wave = 0.5 + 0.35 * math.sin(minute / 7) + 0.1 * math.sin(minute * 1.7)
            values = {
                "cpu": 0.2 + 0.4 * wave, "iowait": 0.03 * wave, "loadavg": 3 * wave, "maxcpu": cpus, "memtotal": memory,
                "memused": memory * (0.5 + 0.2 * wave), "mem": memory * (0.4 + 0.2 * wave), "maxmem": memory,
                "netin": 4e6 * wave, "netout": 1e6 * (1 - wave), "diskread": 2e6 * wave * wave, "diskwrite": 9e5,
                "pressurecpusome": 12 * wave, "pressureiosome": 4 * wave, "pressurememorysome": 0.2,
            }  # fmt: skip
            points.append(Point(now - (60 - minute) * 60, in_order(series, values)))
        world.extras.metrics.points[series] = points


def _answer(value: object) -> Any:
    async def answer() -> object:
        return value

    return answer


def _interface(name: str, kind: str, address: str) -> HostInterface:
    return HostInterface(
        name=name, kind=kind, address="02:00:00:00:00:01", mtu=1500, up=True, carrier=True, owned=kind == "bridge",
        addresses=(address,),
    )  # fmt: skip


def _status() -> NodeStatus:
    host = HostInfo(
        cpu=CpuInfo(model="Some Processor 3.0 GHz", sockets=1, cores=4, cpus=8, hvm=True),
        kernel=KernelInfo(sysname="Linux", release="6.1.0-28-amd64", version="#1 SMP", machine="x86_64"),
        boot_mode="efi",
        secure_boot=False,
    )
    return NodeStatus(
        sampled_at=1.7e9, cpu_ratio=0.23, iowait_ratio=0.01, cpu_count=8, load=(1.2, 0.9, 0.7), host=host,
        memory_total_bytes=32 * GIB, memory_used_bytes=21 * GIB, memory_free_bytes=8 * GIB,
        memory_available_bytes=11 * GIB, swap_total_bytes=4 * GIB, swap_used_bytes=0, rootfs_total_bytes=200 * GIB,
        rootfs_used_bytes=167 * GIB, rootfs_available_bytes=33 * GIB, uptime_s=1_234_567, net_in_bytes_s=120_000,
        net_out_bytes_s=33_000,
    )  # fmt: skip
