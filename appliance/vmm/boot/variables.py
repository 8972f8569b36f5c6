"""OVMF's variables: a flash chip whose content is a file. Experimental: no UEFI guest has run on it yet (docs/lab.md says why).

    array mode    the guest reads the chip through a memory slot; what it writes is a command, and an exit
    other modes   every access is an exit (`pflash`)
Each change goes to the file at once, in the vCPU's thread and into the host's page cache, and is on the medium soon after:
the pool flushes, and `give_back` at the latest. A blank file begins as the firmware's template; without a file the
variables are forgotten with the machine.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.vmm.block.image_lock import lock_image
from appliance.vmm.boot.pflash import Pflash
from appliance.vmm.device import DeviceContext
from appliance.vmm.display.framebuffer import SlotMemory

_BLANK_CHECK_BYTES: Final = 1 << 16


class VariablesFile:
    """The first `size` bytes of a raw volume, held alone. Blocking."""

    def __init__(self, path: Path, template: bytes) -> None:
        """Raises `Conflict` when another has it, `Unsupported` when it is too small, `HostError`."""
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise HostError.from_os_error(error, f"EFI disk {path}") from error
        try:
            lock_image(self._fd, path, read_only=False)
            self.content = self._load(template)
        except OSError as error:
            self.close()
            raise HostError.from_os_error(error, f"EFI disk {path}") from error
        except BaseException:
            self.close()
            raise

    def _load(self, template: bytes) -> bytes:
        if os.fstat(self._fd).st_size < len(template):
            raise Unsupported(f"EFI disk {self.path}: the firmware needs {len(template)} bytes")
        if not any(os.pread(self._fd, _BLANK_CHECK_BYTES, 0)):
            os.pwrite(self._fd, template, 0)
            os.fdatasync(self._fd)
        return os.pread(self._fd, len(template), 0)

    def write(self, offset: int, data: bytes) -> None:
        """`OSError`."""
        os.pwrite(self._fd, data, offset)

    def flush(self) -> None:
        """`OSError`."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Harmless when done twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class VariablesFlash(Pflash):
    """The chip. Any thread, as `Pflash`."""

    def __init__(
        self, name: str, context: DeviceContext, base: int, template: bytes, *, file: VariablesFile | None
    ) -> None:
        """`file` is closed with it. Raises `HostError`."""
        content = file.content if file is not None else template
        super().__init__(name, context, base, content, writable=True, on_change=self._changed_at, on_array=self._show)
        self._base, self._file, self._flushing = base, file, False
        self._memory = SlotMemory(self.label, context, len(content), read_only=True)
        self._memory.store(0, content)
        self._show(True)

    def _show(self, array: bool) -> None:
        if array:
            self._memory.show(self._base)
        else:
            self._memory.hide()

    def _changed_at(self, offset: int, length: int) -> None:
        with self.lock:
            data = bytes(self.content[offset : offset + length])
            self._memory.store(offset, data)
            if self._file is None:
                return
            try:
                self._file.write(offset, data)
            except OSError as error:
                self.context.note(f"{self.name}: {self._file.path}: the variables are not kept: {error.strerror}")
            wanted, self._flushing = not self._flushing, True
        if wanted:
            self.context.bridge.submit(self._flush)

    def _flush(self) -> None:
        """In the pool."""
        with self.lock:
            self._flushing = False
            file = self._file
        if file is None:
            return
        try:
            file.flush()
        except OSError as error:
            self.context.note(f"{self.name}: {file.path}: {error.strerror}")

    def close(self) -> None:
        super().close()
        self._memory.hide()

    def give_back(self) -> None:
        self._flush()
        with self.lock:
            file, self._file = self._file, None
        if file is not None:
            file.close()
