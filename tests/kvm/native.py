"""A guest of the native engine on the real /dev/kvm, and its serial console."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from appliance.clock import SystemClock
from appliance.model.guest import ExitReason, GuestState, VmResources, VmSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.tasks import TaskScope
from appliance.vmm.console import Attachment
from appliance.vmm.engine import NativeEngine
from appliance.vmm.vm import NativeVm

DEADLINE_S = 200.0  # from the opening of a console: the processor may be emulated here, and a test's own limit is 240


def raw(path: Path) -> OpenedVolume:
    """A raw image as the services open it."""
    return OpenedVolume(volume_id=None, path=path, format=VolumeFormat.RAW, size_bytes=path.stat().st_size)


@asynccontextmanager
async def native_engine(directory: Path) -> AsyncIterator[NativeEngine]:
    """One that has been probed; what it has saved is in `directory`."""
    scope = TaskScope("test")
    engine = NativeEngine(directory / "run", directory / "data", scope, SystemClock())
    await engine.probe()
    try:
        yield engine
    finally:
        await engine.close()
        await scope.close()


@asynccontextmanager
async def native_vm(engine: NativeEngine, spec: VmSpec, disks: Mapping[str, Path]) -> AsyncIterator[NativeVm]:
    """Started, and stopped in the end."""
    volumes = {slot: raw(path) for slot, path in disks.items()}
    vm = await engine.start(
        spec, VmResources(disks=volumes), on_state=lambda state, reason: None, log=lambda line: None
    )
    try:
        yield vm
    finally:
        if vm.state is not GuestState.STOPPED:
            await vm.stop()


class Console:
    """A serial console, read for what is waited for."""

    def __init__(self, attachment: Attachment) -> None:
        self._attachment = attachment
        self._said = attachment.history()
        self._seen = 0
        self._deadline = asyncio.get_running_loop().time() + DEADLINE_S

    @classmethod
    async def of(cls, vm: NativeVm, name: str = "serial0") -> Console:
        """With what was said before."""
        return cls(await vm.open_console(name))

    async def until(self, text: bytes) -> None:
        """`text` has been said since the last one that was waited for."""
        try:
            async with asyncio.timeout_at(self._deadline):
                while (found := self._said.find(text, self._seen)) < 0:
                    await self._read()
        except TimeoutError as error:
            raise AssertionError(f"{text!r} was not said in {DEADLINE_S:g} s, but: {self._said[-900:]!r}") from error
        self._seen = found + len(text)

    async def end(self, vm: NativeVm) -> ExitReason:
        """How the machine ended; what it says meanwhile is read."""
        try:
            async with asyncio.timeout_at(self._deadline):
                while data := await self._attachment.read():
                    self._said += data
                return await vm.wait()
        except TimeoutError as error:
            raise AssertionError(f"it did not end in {DEADLINE_S:g} s, but said: {self._said[-900:]!r}") from error

    async def _read(self) -> None:
        data = await self._attachment.read()
        assert data, f"the console ended: {self._said[-900:]!r}"
        self._said += data

    async def type(self, text: bytes) -> None:
        await self._attachment.write(text)

    async def close(self) -> None:
        await self._attachment.close()
