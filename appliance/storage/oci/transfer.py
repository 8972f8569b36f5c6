"""Images from a registry into a store, and back. On the loop; hashing and files in threads.

Blobs that are there already, of whatever image, are not fetched. A transfer that is cut off goes on where it was, up to
`ATTEMPTS` times without progress, and so does the next pull. Of each blob no byte more than promised is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from appliance.errors import HostError, InvalidParameter, NoSpace, TimedOut, TooManyRequests
from appliance.storage.oci import manifest
from appliance.storage.oci.archive import Image
from appliance.storage.oci.blobs import BlobWriter
from appliance.storage.oci.manifest import Descriptor, Manifest, Platform
from appliance.storage.oci.reference import Digest, Reference
from appliance.storage.oci.registry import RegistryClient
from appliance.storage.oci.store import ImageStore
from appliance.threads import to_the_end

PARALLEL: Final = 6
ATTEMPTS: Final = 4
RETRY_S: Final = 0.25
_WRITE_BYTES: Final = 1 << 20
_INDEX_DEPTH: Final = 2


@dataclass(slots=True)
class Progress:
    """Tells how much of a transfer is done; `tell` gets the share, `log` lines for people."""

    log: Callable[[str], None]
    tell: Callable[[float], None]
    total_bytes: int = 0
    done_bytes: int = 0
    _last: float = field(default=-1.0)

    def add(self, size_bytes: int) -> None:
        """So much more is done (or, negative, must be done again)."""
        self.done_bytes += size_bytes
        share = self.done_bytes / self.total_bytes if self.total_bytes else 1.0
        if abs(share - self._last) >= 0.01:
            self._last = share
            self.tell(share)


async def resolve(client: RegistryClient, reference: Reference, platform: Platform) -> tuple[bytes, Manifest, Digest]:
    """The manifest of an image for a platform, through an index where there is one."""
    about, asked = str(reference), reference
    for _ in range(_INDEX_DEPTH + 1):
        document, digest = await client.manifest(asked)
        parsed = manifest.parse_document(document, about)
        if isinstance(parsed, Manifest):
            return document, parsed, digest
        asked = reference.at(manifest.choose(parsed, platform, about).digest)
    raise InvalidParameter({"reference": f"{about}: indices within indices"})


async def pull(
    client: RegistryClient, store: ImageStore, reference: Reference, platform: Platform, progress: Progress
) -> Image:
    """Bring every blob of an image into the store. The caller is `using` the store until the image has a name."""
    document, parsed, digest = await resolve(client, reference, platform)
    progress.log(f"{reference}: {platform}, {digest}, {len(parsed.layers)} layers, {parsed.size_bytes} bytes")
    await fetch(client, store, reference, parsed.config)
    config_document = await to_the_end(store.blobs.read, parsed.config.digest, manifest.CONFIG_LIMIT_BYTES)
    config = manifest.parse_config(config_document, parsed, str(reference))
    for layer in parsed.layers:
        _ = layer.compression  # refused before anything large is fetched
    progress.total_bytes = parsed.size_bytes
    progress.add(parsed.config.size_bytes)
    slots = asyncio.Semaphore(PARALLEL)

    async def one(layer: Descriptor) -> None:
        async with slots:
            had = await fetch(client, store, reference, layer, progress)
            progress.log(f"{layer.digest}: {'is there already' if had else f'{layer.size_bytes} bytes'}")

    await _all_or_none([one(layer) for layer in {each.digest: each for each in parsed.layers}.values()])
    await to_the_end(store.blobs.sync)
    return Image(
        name=str(reference),
        digest=digest,
        document=document,
        manifest=parsed,
        config_document=config_document,
        config=config,
    )


async def fetch(
    client: RegistryClient,
    store: ImageStore,
    reference: Reference,
    blob: Descriptor,
    progress: Progress | None = None,
) -> bool:
    """Bring one blob into the store; whether it was there already."""
    tell = progress.add if progress is not None else _nobody
    async with store.only_one(blob.digest):
        if await store.has_blob(blob.digest, blob.size_bytes):
            tell(blob.size_bytes)
            return True
        writer = store.blobs.writer(blob.digest, blob.size_bytes)
        try:
            tell(await to_the_end(writer.resume))
            await _receive(client, reference, blob, writer, tell)
            await to_the_end(writer.publish)
        finally:
            writer.close()
    return False


async def _receive(
    client: RegistryClient, reference: Reference, blob: Descriptor, writer: BlobWriter, tell: Callable[[int], None]
) -> None:
    """Until the blob is complete, over as many answers as it takes; each must bring something."""
    about, failures = f"blob {blob.digest}", 0
    while not writer.complete:
        before = writer.received
        try:
            async with client.blob(reference, blob.digest, start=writer.received, about=about) as body:
                if body.start != writer.received:
                    tell(-writer.received)
                    await to_the_end(writer.restart)
                async for chunk in _batched(body.chunks):
                    await to_the_end(writer.write, chunk)
                    tell(len(chunk))
            if not writer.complete:
                raise HostError(f"{about}: ended after {writer.received} of {blob.size_bytes} bytes")
        except (HostError, TooManyRequests) as error:
            failures = 0 if writer.received > before else failures + 1
            if failures >= ATTEMPTS or isinstance(error, NoSpace | TimedOut):
                raise
            wait_s = error.retry_after_s if isinstance(error, TooManyRequests) else RETRY_S * 2**failures
            await asyncio.sleep(min(wait_s, 30.0))


async def _batched(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Few large pieces: each costs a visit to a thread."""
    held = bytearray()
    try:
        async for chunk in chunks:
            held += chunk
            if len(held) >= _WRITE_BYTES:
                yield bytes(held)
                held.clear()
    except HostError:  # cut off: what has come is not fetched again
        if held:
            yield bytes(held)
        raise
    if held:
        yield bytes(held)


async def push(
    client: RegistryClient, store: ImageStore, image: Image, reference: Reference, progress: Progress
) -> None:
    """Send an image: the blobs the registry lacks, then the manifest that names them."""
    progress.total_bytes = image.manifest.size_bytes
    slots = asyncio.Semaphore(PARALLEL)
    blobs = {each.digest: each for each in (image.manifest.config, *image.manifest.layers)}

    async def one(blob: Descriptor) -> None:
        async with slots:
            if await client.has_blob(reference, blob.digest):
                progress.log(f"{blob.digest}: is there already")
            else:
                await client.upload_blob(reference, blob.digest, blob.size_bytes, store.blobs.stream(blob.digest))
                progress.log(f"{blob.digest}: {blob.size_bytes} bytes")
            progress.add(blob.size_bytes)

    await _all_or_none([one(blob) for blob in blobs.values()])
    await client.put_manifest(reference, image.document, image.manifest.media_type)
    progress.log(f"{reference}: {image.digest}")


async def _all_or_none(works: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Run all; the first failure ends the others, and is the one that is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _nobody(_: int) -> None:
    """Nobody listens."""
