"""The volume that stands for an image: an OCI image layout as a tar file (image-spec image-layout.md), listed as a template.

What we write holds the manifest and the configuration alone; the layers are in the storage's content-addressed store,
shared with every other image. What people upload (`skopeo copy … oci-archive:`) holds the layers too: they are taken into
the store, verified, when a container is made of it. Blocking; the file is a stranger's.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from appliance.errors import HostError, InvalidParameter, NotFound
from appliance.storage.oci import manifest
from appliance.storage.oci.manifest import Descriptor, ImageConfig, Manifest, Platform
from appliance.storage.oci.reference import Digest

REFERENCE_NAME: Final = "org.opencontainers.image.ref.name"
SOURCE_NAME: Final = "io.containerd.image.name"
_LAYOUT: Final = b'{"imageLayoutVersion":"1.0.0"}'
_MEMBERS_LIMIT: Final = 4096
_OF_LAYOUT: Final = frozenset({"oci-layout", "index.json", "blobs", "manifest.json", "repositories"})
_OTHERS_LIMIT: Final = 64
"""Entries no image layout has (the standard allows some) before it is none: a root's first thousands are not read for that."""
_INDEX_LIMIT_BYTES: Final = 1 << 20
_DEPTH_LIMIT: Final = 3
_READ_LIMIT_BYTES: Final = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """An image's documents. `name` is what it was pulled as, "" where the archive does not say."""

    name: str
    digest: Digest
    document: bytes
    manifest: Manifest
    config_document: bytes
    config: ImageConfig

    @property
    def chain_ids(self) -> tuple[Digest, ...]:
        """Of its layers, the lowest first."""
        return manifest.chain_ids(self.config.diff_ids)


def write(image: Image) -> bytes:
    """The thin archive of an image."""
    entry = {
        "mediaType": image.manifest.media_type,
        "digest": str(image.digest),
        "size": len(image.document),
        "annotations": {REFERENCE_NAME: image.name.rpartition(":")[2], SOURCE_NAME: image.name},
    }
    index = {"schemaVersion": 2, "mediaType": manifest.OCI_INDEX, "manifests": [entry]}
    members = {
        "oci-layout": _LAYOUT,
        "index.json": json.dumps(index).encode(),
        _member(image.digest): image.document,
        _member(image.manifest.config.digest): image.config_document,
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o644
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


class Archive:
    """An archive that is open. Use as a context manager; raises `InvalidParameter` for what is no image layout."""

    def __init__(self, path: Path) -> None:
        self._about = path.name
        try:
            self._file = path.open("rb")
        except FileNotFoundError as error:
            raise NotFound(f"image {path.name}") from error
        except OSError as error:
            raise HostError.from_os_error(error, f"open {path.name}") from error
        try:
            self._tar = tarfile.open(fileobj=_Bounded(self._file), mode="r:")  # noqa: SIM115  closed by close
            self._members = dict(self._named())
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            self._file.close()
            raise InvalidParameter({"ostemplate": f"{path.name} is not an OCI archive"}) from error
        except InvalidParameter:
            self._file.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._tar.close()
        self._file.close()

    @property
    def is_layout(self) -> bool:
        """Whether it is an image layout at all."""
        return "oci-layout" in self._members and "index.json" in self._members

    def image(self, platform: Platform) -> Image:
        """The image for a platform."""
        entry, name = self._entry(platform)
        for _ in range(_DEPTH_LIMIT):
            document = self._document(entry.digest, manifest.MANIFEST_LIMIT_BYTES)
            parsed = manifest.parse_document(document, self._about)
            if isinstance(parsed, Manifest):
                config = self._document(parsed.config.digest, manifest.CONFIG_LIMIT_BYTES)
                return Image(
                    name=name,
                    digest=entry.digest,
                    document=document,
                    manifest=parsed,
                    config_document=config,
                    config=manifest.parse_config(config, parsed, self._about),
                )
            entry = manifest.choose(parsed, platform, self._about)
        raise InvalidParameter({"ostemplate": f"{self._about}: indices within indices"})

    def open_blob(self, digest: Digest) -> IO[bytes] | None:
        """A blob's bytes, which prove nothing until they are hashed; None when the archive does not hold it."""
        member = self._members.get(_member(digest))
        return self._tar.extractfile(member) if member is not None and member.isreg() else None

    def _named(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        others = 0
        for count, member in enumerate(self._tar):
            name = member.name.removeprefix("./")
            others += name.split("/")[0] not in _OF_LAYOUT
            if others > _OTHERS_LIMIT:
                raise InvalidParameter({"ostemplate": f"{self._about} is not an OCI archive"})
            if count >= _MEMBERS_LIMIT:
                raise InvalidParameter({"ostemplate": f"{self._about}: more than {_MEMBERS_LIMIT} entries"})
            yield name, member

    def _entry(self, platform: Platform) -> tuple[Descriptor, str]:
        """The archive's only image, or the one for the platform where there are several."""
        data = self._read("index.json", _INDEX_LIMIT_BYTES)
        images = manifest.parse_document(data, self._about)
        if isinstance(images, Manifest) or not images:
            raise InvalidParameter({"ostemplate": f"{self._about}: index.json lists no image"})
        chosen = images[0][1] if len(images) == 1 else manifest.choose(images, platform, self._about)
        return chosen, _name_in(data, chosen.digest)

    def _document(self, digest: Digest, limit_bytes: int) -> bytes:
        data = self._read(_member(digest), limit_bytes)
        if digest.algorithm == "sha256" and Digest.of(data) != digest:
            raise InvalidParameter({"ostemplate": f"{self._about}: blob {digest} has another digest"})
        return data

    def _read(self, name: str, limit_bytes: int) -> bytes:
        member = self._members.get(name)
        file = self._tar.extractfile(member) if member is not None and member.isreg() else None
        if member is None or file is None:
            raise InvalidParameter({"ostemplate": f"{self._about}: {name} is missing"})
        if member.size > limit_bytes:
            raise InvalidParameter({"ostemplate": f"{self._about}: {name} is larger than {limit_bytes} bytes"})
        return file.read()


class _Bounded(io.RawIOBase):
    """A file of which nobody reads much at once: tarfile takes an extended header into memory whole, whatever its size."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._inner = file

    def read(self, size: int = -1, /) -> bytes:
        if not 0 <= size <= _READ_LIMIT_BYTES:
            raise ValueError(f"a header of {size} bytes")
        return self._inner.read(size)

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._inner.seek(offset, whence)

    def tell(self) -> int:
        return self._inner.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


def _member(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def _name_in(index: bytes, digest: Digest) -> str:
    for entry in json.loads(index).get("manifests", []):
        notes = entry.get("annotations") if isinstance(entry, dict) else None
        if isinstance(notes, dict) and entry.get("digest") == str(digest):
            return str(notes.get(SOURCE_NAME) or notes.get(REFERENCE_NAME) or "")[:512]
    return ""
