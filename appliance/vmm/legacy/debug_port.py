"""The debug console of QEMU and Bochs, port 0x402: what SeaBIOS says while it starts (its PORT_QEMU_DEBUG).

Reading gives 0xe9, by which firmware knows that somebody listens. Each line goes to the guest's log, shortened and made
printable; the log limits the rate. Lines are told from vCPU threads.
"""

from __future__ import annotations

from collections.abc import Callable

from appliance.vmm import layout
from appliance.vmm.device import DeviceContext
from appliance.vmm.legacy.port_device import PortDevice

PRESENT = 0xE9
LINE_BYTES = 200


class DebugPort(PortDevice):
    """Has no state worth keeping: half a line at most. `on_line` instead of the guest's log, from vCPU threads."""

    def __init__(self, name: str, context: DeviceContext, *, on_line: Callable[[str], None] | None = None) -> None:
        super().__init__(name, context)
        self._on_line = on_line or (lambda line: context.note(f"firmware: {line}"))
        self._line = bytearray()
        self.claim_bytes(layout.PORT_DEBUG, 1, self._read, self._write)

    def _read(self, _offset: int) -> int:
        return PRESENT

    def _write(self, _offset: int, value: int) -> None:
        with self.lock:
            if value not in b"\r\n":
                self._line.append(value if 0x20 <= value < 0x7F else ord("?"))
            if value != ord("\n") and len(self._line) < LINE_BYTES:
                return
            line, self._line = self._line.decode("ascii"), bytearray()
        if line:
            self._on_line(line)

    def reset(self) -> None:
        with self.lock:
            self._line.clear()
