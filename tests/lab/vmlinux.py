"""The ELF kernel inside of a bzImage: booting it spares a nested guest the decompression.

The real-mode header says where the payload lies (Documentation/x86/boot.rst: setup_sects 0x1f1, "HdrS" 0x202,
payload_offset 0x248, payload_length 0x24c); its first bytes say how it is compressed (lib/decompress.c).
"""

from __future__ import annotations

import ctypes
import lzma
import struct
import subprocess
import zlib
from typing import Final

LZ4_LEGACY_MAGIC: Final = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES = 8 << 20  # the legacy frame's only block size (lz4_Frame_format.md, "Legacy frame")
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_XZ_MAGIC = b"\xfd7zXZ\0"
_GZIP_MAGIC = b"\x1f\x8b"
_ELF_MAGIC = b"\x7fELF"
_ZSTD_TIMEOUT_S = 60.0


def extract(image: bytes) -> bytes:
    """The `vmlinux` of a bzImage. Raises `ValueError` when `image` is none, or holds something else."""
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise ValueError("not a bzImage: no setup header")
    protected = (image[0x1F1] or 4) * 512 + 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[protected + offset : protected + offset + length]
    kernel = _decompress(payload)
    if not kernel.startswith(_ELF_MAGIC):
        raise ValueError("the payload of the bzImage is no ELF file")
    return kernel


def _decompress(payload: bytes) -> bytes:
    """All but gzip are followed by the decompressed size, four bytes that belong to no frame (scripts/Makefile.lib)."""
    if payload.startswith(LZ4_LEGACY_MAGIC):
        return _decompress_lz4(payload[:-4])
    if payload.startswith(_ZSTD_MAGIC):
        argv = ["zstd", "--decompress", "--stdout", "--quiet"]
        return subprocess.run(
            argv, input=payload[:-4], stdout=subprocess.PIPE, check=True, timeout=_ZSTD_TIMEOUT_S
        ).stdout
    if payload.startswith(_XZ_MAGIC):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(_GZIP_MAGIC):
        return zlib.decompressobj(31).decompress(payload)
    raise ValueError(f"the payload of the bzImage is compressed in an unknown way: {payload[:6].hex()}")


def _decompress_lz4(frame: bytes) -> bytes:
    # every Debian has this library: systemd's depends on it
    library = ctypes.CDLL("liblz4.so.1")
    buffer = ctypes.create_string_buffer(_LZ4_BLOCK_BYTES)
    output, at = [], len(LZ4_LEGACY_MAGIC)
    while at + 4 <= len(frame):
        (size,) = struct.unpack_from("<I", frame, at)
        block = frame[at + 4 : at + 4 + size]
        # SAFETY: both buffers live across the call; LZ4_decompress_safe reads and writes within the sizes given.
        written = library.LZ4_decompress_safe(block, buffer, len(block), _LZ4_BLOCK_BYTES)
        if written < 0 or len(block) != size:
            raise ValueError("the payload of the bzImage is damaged")
        output.append(buffer.raw[:written])
        at += 4 + size
    return b"".join(output)
