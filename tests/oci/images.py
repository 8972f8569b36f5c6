"""Small images, made as a stranger's tools would: layers as tar streams, a configuration, a manifest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from appliance.storage.oci import manifest

Entry = tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def file(
    name: str, data: bytes = b"", mode: int = 0o644, uid: int = 0, *, pax: Mapping[str, str] | None = None
) -> Entry:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid, info.mtime = len(data), mode, uid, uid, 1_700_000_000
    info.pax_headers = dict(pax or {})
    return info, data


def directory(name: str, mode: int = 0o755, uid: int = 0) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid, info.mtime = tarfile.DIRTYPE, mode, uid, uid, 1_700_000_000
    return info


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def device(name: str, major: int, minor: int) -> Entry:
    info = tarfile.TarInfo(name)
    info.type, info.devmajor, info.devminor, info.mode = tarfile.CHRTYPE, major, minor, 0o666
    return info


def layer(*entries: Entry) -> bytes:
    """A plain tar stream."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry in entries:
            info, data = entry if isinstance(entry, tuple) else (entry, b"")
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def compress(data: bytes, how: str) -> bytes:
    match how:
        case "gzip":
            return gzip.compress(data, 1, mtime=0)
        case "zstd":
            return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout
    return data


@dataclass
class TestImage:
    """An image and its blobs by digest."""

    document: bytes
    config: bytes
    blobs: dict[str, bytes] = field(default_factory=dict)

    __test__ = False

    @property
    def digest(self) -> str:
        return sha256(self.document)


def image(
    layers: Sequence[bytes], *, compression: Sequence[str] = (), config: Mapping[str, object] | None = None
) -> TestImage:
    """`compression` is "gzip", "zstd" or "" for each layer (gzip by default)."""
    how = [*compression, *["gzip"] * (len(layers) - len(compression))]
    blobs = [compress(data, each) for data, each in zip(layers, how, strict=True)]
    document = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in layers]},
        }
    ).encode()
    base = "application/vnd.oci.image.layer.v1.tar"
    descriptors = [
        {"mediaType": f"{base}+{each}" if each else base, "digest": sha256(blob), "size": len(blob)}
        for each, blob in zip(how, blobs, strict=True)
    ]
    text = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "config": {"mediaType": manifest.OCI_CONFIG, "digest": sha256(document), "size": len(document)},
            "layers": descriptors,
        }
    ).encode()
    return TestImage(text, document, {sha256(blob): blob for blob in (*blobs, document)})
