"""Building an image from a Dockerfile: buildah, where it is installed, in directories of its own that go with the task.

    context (tar, uploaded) ─ confined unpacking ─▶ directory ─ buildah bud ─▶ OCI archive ─▶ blobs, and a volume

What a Dockerfile's RUN does, it does as root of this host within a change of root only: building is for who may administer the
host (THREAT_MODEL.md). Base images are fetched by buildah, with the credentials that are stored for their registries.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePosixPath
from typing import Final

from appliance import command
from appliance.errors import ApplianceError, HostError, InvalidParameter, TooLarge, Unsupported
from appliance.files import write_atomic
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.services.images import ImageService, archive_name
from appliance.services.ports.ct_trees import CtProvisioner
from appliance.services.storage import StorageService
from appliance.services.tasks import TaskHandle, TaskService
from appliance.storage.oci.credentials import RegistryBook, Transport
from appliance.storage.oci.reference import Reference
from appliance.tasks import to_its_end
from appliance.threads import to_the_end

log = logging.getLogger(__name__)

PROGRAM: Final = "buildah"
CONTEXT_LIMIT_BYTES: Final = 4 << 30
BUILD_LIMIT_S: Final = 6 * 3600.0
CLEAN_LIMIT_S: Final = 120.0
UPLOAD_TIMEOUT_S: Final = 24 * 3600.0
DIRECTORY: Final = "builds"


class ImageBuilder:
    """See the module's docstring."""

    def __init__(
        self,
        images: ImageService,
        storage: StorageService,
        tasks: TaskService,
        provisioner: CtProvisioner,
        *,
        data_dir: Path,
    ) -> None:
        self._images = images
        self._storage = storage
        self._tasks = tasks
        self._provisioner = provisioner
        self._directory = data_dir / DIRECTORY

    async def start(self) -> None:
        """Remove what builds that were cut off have left."""
        if await asyncio.to_thread(self._directory.is_dir):
            for place in await asyncio.to_thread(lambda: list(self._directory.iterdir())):
                try:
                    await self._clean(place)
                except ApplianceError as error:
                    log.error("builds: what %s has left: %s", place.name, error)

    async def build(
        self, storage_id: str, text: str, chunks: AsyncIterator[bytes], *, dockerfile: str, user: str
    ) -> str:
        """Take the context, build in a task and list the result as `text` says; returns the UPID when the context has come.

        Raises `Unsupported` where buildah is not installed, `InvalidParameter`; what goes wrong later is the task's status.
        """
        if await asyncio.to_thread(shutil.which, PROGRAM) is None:
            raise Unsupported(f"building images needs {PROGRAM}, which is not installed here (apt install {PROGRAM})")
        reference = Reference.parse(text, name="tag")
        name = archive_name(reference.file_stem)
        backend = self._storage.backend(storage_id)
        path = PurePosixPath(dockerfile)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise InvalidParameter({"dockerfile": "is not a path within the context"})
        received = asyncio.Event()

        async def work(task: TaskHandle) -> None:
            place = await asyncio.to_thread(self._make_place)
            try:
                try:
                    await _receive(chunks, place / "context.tar")
                finally:
                    received.set()
                await self._unpack(place, task.log)
                image = await self._run(place, dockerfile, str(reference), task.log)
                async with backend.images.using():
                    made = await self._images.take_archive(image, backend, name=str(reference))
                    await self._images.publish(backend, name, made, task.log)
            finally:
                await to_its_end(self._clean(place), name=f"clean {place.name}")

        upid = await self._tasks.run("ocibuild", object_id=name, user=user, work=work)
        try:
            async with asyncio.timeout(UPLOAD_TIMEOUT_S):
                await received.wait()
        except (asyncio.CancelledError, TimeoutError):
            await asyncio.shield(self._tasks.cancel(upid))
            raise
        return upid

    # --- inside -------------------------------------------------------------------------------------------------------

    def _make_place(self) -> Path:
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            place = Path(tempfile.mkdtemp(prefix="build-", dir=self._directory))
            for name in ("context", "root", "runroot"):
                (place / name).mkdir()
            return place
        except OSError as error:
            raise HostError.from_os_error(error, f"make a directory below {self._directory}") from error

    async def _unpack(self, place: Path, tell: Callable[[str], None]) -> None:
        tree = OpenedVolume(
            volume_id=None, path=place / "context", format=VolumeFormat.SUBVOL, size_bytes=CONTEXT_LIMIT_BYTES
        )
        await self._provisioner.unpack(tree, place / "context.tar", log=tell)
        await to_the_end((place / "context.tar").unlink)

    async def _run(self, place: Path, dockerfile: str, tag: str, tell: Callable[[str], None]) -> Path:
        """The OCI archive that buildah makes."""
        if not await asyncio.to_thread((place / "context" / dockerfile).is_file):
            raise InvalidParameter({"dockerfile": f"the context holds no file {dockerfile}"})
        auth = await asyncio.to_thread(_write_access, place, self._images.registries)
        base = [PROGRAM, "--root", str(place / "root"), "--runroot", str(place / "runroot"), "--storage-driver", "vfs"]
        local, result = "localhost/appliance-build:latest", place / "image.tar"
        build = ["bud", "--isolation", "chroot", "--format", "oci", "--layers=false", "--authfile", str(auth)]
        build += ["--file", str(place / "context" / dockerfile), "--label", f"org.opencontainers.image.ref.name={tag}"]
        env = {"REGISTRIES_CONFIG_PATH": str(place / "registries.conf"), "TMPDIR": str(place)}
        lines = _Lines(tell)
        await command.run(
            [*base, *build, "--tag", local, str(place / "context")],
            timeout_s=BUILD_LIMIT_S,
            env=env,
            on_output=lines.add,
        )
        lines.end()
        push = ["push", "--quiet", "--format", "oci", local, f"oci-archive:{result}"]
        await command.run([*base, *push], timeout_s=BUILD_LIMIT_S, env=env)
        return result

    async def _clean(self, place: Path) -> None:
        """Remove a build's directories, and what buildah may have left mounted in them."""
        if await asyncio.to_thread(shutil.which, PROGRAM) is not None and await asyncio.to_thread(
            (place / "root/vfs").is_dir
        ):
            base = [PROGRAM, "--root", str(place / "root"), "--runroot", str(place / "runroot"), "--storage-driver"]
            await command.run([*base, "vfs", "rm", "--all"], timeout_s=CLEAN_LIMIT_S, check=False)
        await to_the_end(_remove, place)


class _Lines:
    """Output in pieces, told in lines."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._log = tell
        self._rest = b""

    def add(self, chunk: bytes) -> None:
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        for line in whole:
            self._log(line.decode(errors="replace").rstrip("\r")[:2000])

    def end(self) -> None:
        if self._rest:
            self._log(self._rest.decode(errors="replace")[:2000])


async def _receive(chunks: AsyncIterator[bytes], target: Path) -> None:
    size = 0
    file = await to_the_end(target.open, "xb")
    try:
        async for chunk in chunks:
            size += len(chunk)
            if size > CONTEXT_LIMIT_BYTES:
                raise TooLarge(f"the context is larger than {CONTEXT_LIMIT_BYTES} bytes")
            await to_the_end(file.write, chunk)
    except OSError as error:
        raise HostError.from_os_error(error, f"write {target}") from error
    finally:
        await to_the_end(file.close)


def _write_access(place: Path, book: RegistryBook) -> Path:
    """Credentials and transports as buildah reads them (containers-auth.json(5), registries.conf(5)); the former's path."""
    known = book.all()
    auths = {
        each.registry: {"auth": base64.b64encode(f"{each.username}:{each.password}".encode()).decode()}
        for each in known
        if each.username
    }
    path = place / "auth.json"
    write_atomic(path, json.dumps({"auths": auths}).encode(), mode=0o600)
    lines = ['unqualified-search-registries = ["docker.io"]']
    for each in known:
        if each.transport is not Transport.VERIFIED:
            lines += ["[[registry]]", f'location = "{each.registry}"', "insecure = true"]
    write_atomic(place / "registries.conf", "\n".join([*lines, ""]).encode(), mode=0o600)
    return path


def _remove(place: Path) -> None:
    """Layers hold what only root may remove; nothing is mounted there any more, or it stays with an error."""
    device = place.parent.stat().st_dev
    for directory, names, _ in os.walk(place):
        for name in names:
            path = Path(directory, name)
            if not path.is_symlink() and path.lstat().st_dev != device:
                raise HostError(f"{path}: still mounted, not removed")
    shutil.rmtree(place, ignore_errors=True)
