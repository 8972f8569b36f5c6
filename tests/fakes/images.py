"""OCI images without layers on a disk: described, listed, pulled and removed at once. Registries are a real book.

What was asked is kept in `calls`: ("pull", "local", "registry.example.com/app:1").
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace

from appliance.errors import InvalidParameter
from appliance.events import EventBus, StorageContentChanged
from appliance.model.application import HealthCheck
from appliance.model.volume import ContentType, VolumeId, VolumeInfo
from appliance.services.images import ListedImage, archive_name
from appliance.storage.oci import manifest
from appliance.storage.oci.archive import Image
from appliance.storage.oci.credentials import RegistryBook
from appliance.storage.oci.manifest import Descriptor, ImageConfig, Manifest
from appliance.storage.oci.reference import Digest, Reference
from tests.fakes.services import FakeTasks

MIB = 1 << 20


def describe(name: str, layers: Sequence[str], config: ImageConfig | None = None) -> Image:
    """An image whose layers are named by words; the same word is the same layer, of a megabyte a letter."""
    made = [
        Descriptor(media_type=manifest.OCI_MANIFEST, digest=Digest.of(word.encode()), size_bytes=len(word) * MIB)
        for word in layers
    ]
    document = f"{name} {layers}".encode()
    own = Descriptor(media_type=manifest.OCI_CONFIG, digest=Digest.of(b"config" + document), size_bytes=0)
    return Image(
        name=name,
        digest=Digest.of(document),
        document=document,
        manifest=Manifest(media_type=manifest.OCI_MANIFEST, config=own, layers=tuple(made)),
        config_document=b"",
        config=config or ImageConfig(architecture="amd64", os="linux", diff_ids=(), command=("/bin/sh",)),
    )


def web_server(text: str = "fine") -> ImageConfig:
    """What an image of a web server says of its processes; `text` stands wherever a stranger writes text."""
    return ImageConfig(
        architecture="amd64", os="linux", diff_ids=(), entrypoint=("/docker-entrypoint.sh",),
        command=("nginx", "-g", "daemon off;"), environment={"NGINX_VERSION": "1.27.0", "SAID": text}, user="nginx",
        working_directory="/srv", exposed_ports=("80/tcp", "443/tcp"), volumes=("/data",), labels={"said": text},
        stop_signal="SIGQUIT",
        health=HealthCheck(command=("/bin/sh", "-c", "curl -f localhost"), interval_s=10.0, retries=4),
        created="2026-05-02T10:00:00Z",
    )  # fmt: skip


class FakeImages:
    """Fulfils what the resources and pages of images use of `ImageService`."""

    def __init__(self, tasks: FakeTasks, events: EventBus, directory: Path) -> None:
        self._tasks = tasks
        self._events = events
        self.registries = RegistryBook(directory / "oci-registries.json")
        self.known: dict[VolumeId, Image] = {}
        self.calls: list[tuple[str, ...]] = []

    def add(self, file_name: str, image: Image) -> VolumeId:
        """List an image on `local`."""
        volume_id = VolumeId("local", f"{ContentType.VZTMPL}/{file_name}")
        self.known[volume_id] = image
        self._events.publish(StorageContentChanged(storage="local"))
        return volume_id

    async def find(self, volume_id: VolumeId) -> Image | None:
        return self.known.get(volume_id)

    async def inspect(self, volume_id: VolumeId) -> Image:
        image = await self.find(volume_id)
        if image is None:
            raise InvalidParameter({"volume": f"{volume_id} is not an OCI image"})
        return image

    async def list(self, storage_id: str | None = None) -> Sequence[ListedImage]:
        return [
            ListedImage(
                volume=VolumeInfo(
                    volume_id=volume_id, content=ContentType.VZTMPL, format="tar", created_at=1.7e9,
                    size_bytes=image.manifest.size_bytes, used_bytes=4096, guest_id=None,
                ),
                image=image,
            )
            for volume_id, image in self.known.items()
        ]  # fmt: skip

    async def tags(self, text: str) -> Sequence[str]:
        Reference.parse(text)
        return ["1", "2", "latest"]

    async def pull(self, storage_id: str, text: str, *, file_name: str | None, user: str) -> str:
        reference = Reference.parse(text)
        name = archive_name(file_name or reference.file_stem)

        async def work(task: SimpleNamespace) -> None:
            self.calls.append(("pull", storage_id, text))
            self.add(name, describe(str(reference), ["base", "pulled"], web_server()))

        return await self._tasks.run("download", object_id=name, user=user, work=work)

    async def push(self, volume_id: VolumeId, text: str, *, user: str) -> str:
        return await self._tell("ocipush", user, "push", str(volume_id), text)

    async def remove(self, volume_id: VolumeId, *, user: str) -> str:
        await self.inspect(volume_id)
        del self.known[volume_id]
        self._events.publish(StorageContentChanged(storage="local"))
        return await self._tell("imgdel", user, "remove", str(volume_id))

    async def collect(self, storage_id: str, *, user: str) -> str:
        return await self._tell("ocigc", user, "collect", storage_id)

    async def _tell(self, kind: str, user: str, *call: str) -> str:
        async def work(task: SimpleNamespace) -> None:
            self.calls.append(call)

        return await self._tasks.run(kind, object_id=re.sub(r"[^\w.-]", "-", call[1]), user=user, work=work)


class FakeBuilder:
    """Takes a build's context, and remembers it: tag, Dockerfile, bytes."""

    def __init__(self, tasks: FakeTasks) -> None:
        self._tasks = tasks
        self.built: list[tuple[str, str, bytes]] = []

    async def build(
        self, storage_id: str, text: str, chunks: AsyncIterator[bytes], *, dockerfile: str, user: str
    ) -> str:
        data = b"".join([chunk async for chunk in chunks])

        async def work(task: SimpleNamespace) -> None:
            self.built.append((text, dockerfile, data))

        return await self._tasks.run("ocibuild", object_id=re.sub(r"[^\w.-]", "-", text), user=user, work=work)
