"""A cancelled operation leaves nothing, whichever thread was at work for it at that moment."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from appliance.errors import NotFound
from appliance.model.guest import GuestId
from appliance.model.volume import ContentType, VolumeFormat
from tests.fakes.storage import MIB, leftovers, ready_backend, stream

VM = GuestId(100)


class Gate:
    """Holds the thread that makes a system call until the test lets it go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, call: str, *, when: Callable[..., bool]) -> None:
        self.reached, self._open = threading.Event(), threading.Event()
        real = getattr(os, call)

        def gated(*arguments: object, **named: object) -> object:
            if when(*arguments) and not self._open.is_set():
                self.reached.set()
                assert self._open.wait(10)
            return real(*arguments, **named)

        monkeypatch.setattr(os, call, gated)

    async def cancel_there(self, task: asyncio.Task[object]) -> None:
        """Cancel `task` while its thread is held, then let the thread go on."""
        assert await asyncio.to_thread(self.reached.wait, 10)
        task.cancel()
        await asyncio.sleep(0.05)  # whatever the cancelled task does now, it does while the thread is still there
        self._open.set()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_an_upload_cancelled_within_a_write_keeps_its_descriptor_until_the_write_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = await ready_backend(tmp_path / "local")
    written_to: list[str] = []

    def is_the_chunk(fd: int, data: bytes) -> bool:
        if bytes(data[:6]) != b"chunk:":
            return False
        written_to.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        return True

    gate = Gate(monkeypatch, "write", when=is_the_chunk)
    chunks: AsyncIterator[bytes] = stream(b"chunk:" + bytes(MIB))
    upload = asyncio.ensure_future(local.receive(ContentType.ISO, "x.iso", chunks, checksum=None))
    await gate.cancel_there(upload)
    assert len(written_to) == 1
    assert ".tmp-" in written_to[0]
    assert leftovers(local.root) == []


async def test_a_creation_cancelled_while_it_is_published_leaves_no_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = await ready_backend(tmp_path / "local")
    gate = Gate(monkeypatch, "fsync", when=lambda fd: ".raw" in str(Path(f"/proc/self/fd/{fd}").readlink()))
    creation = local.create(VM, format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES)
    await gate.cancel_there(asyncio.ensure_future(creation))
    assert leftovers(local.root) == []
    assert await local.list() == []


async def test_a_deletion_cancelled_half_way_is_carried_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    local = await ready_backend(tmp_path / "local")
    made = await local.create(VM, format=VolumeFormat.RAW, size_bytes=MIB, content=ContentType.IMAGES)
    gate = Gate(monkeypatch, "rename", when=lambda source, _target: str(source).endswith("disk-0.raw"))
    await gate.cancel_there(asyncio.ensure_future(local.delete(made)))
    assert leftovers(local.root) == []
    with pytest.raises(NotFound):
        await local.open(made)
