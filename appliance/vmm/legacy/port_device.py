"""What the devices at fixed ports share: claiming ports, and refusing a saved state that is not theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from appliance.errors import Unsupported
from appliance.vmm.bus import Bus, BusHandler, BusRange, Bytewise
from appliance.vmm.device import Device, DeviceContext, State

StateT = TypeVar("StateT", bound=State)


@dataclass(frozen=True, slots=True)
class ByteHandler(Bytewise):
    """A range of byte-wide registers told as two functions of (offset) and (offset, value)."""

    on_read: Callable[[int], int]
    on_write: Callable[[int, int], None]

    def read_byte(self, offset: int) -> int:
        return self.on_read(offset)

    def write_byte(self, offset: int, value: int) -> None:
        self.on_write(offset, value)


class PortDevice(Device):
    """A device at fixed ports. Subclasses `claim` in `__init__`; `close` gives all back."""

    def __init__(self, name: str, context: DeviceContext) -> None:
        super().__init__(name, context)
        self._claimed: list[tuple[Bus, BusRange]] = []

    def claim(self, port: int, length: int, handler: BusHandler) -> None:
        """Answer at these ports. Raises `Conflict` when another device does, and gives back what was claimed before."""
        try:
            self._claimed.append((self.context.ports, self.context.ports.add(port, length, handler, name=self.name)))
        except Exception:
            self._give_back()
            raise

    def claim_bytes(
        self, port: int, length: int, on_read: Callable[[int], int], on_write: Callable[[int, int], None]
    ) -> None:
        """The same for byte-wide registers."""
        self.claim(port, length, ByteHandler(on_read, on_write))

    def close(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        claimed, self._claimed = self._claimed, []
        for bus, each in reversed(claimed):
            bus.remove(each)

    def own_state(self, state: State, kind: type[StateT], *, version: int) -> StateT:
        """`own_state` of this device."""
        return own_state(self, state, kind, version=version)


def own_state(device: Device, state: State, kind: type[StateT], *, version: int) -> StateT:
    """`state` as the device's own. Raises `Unsupported` for another kind or a newer version."""
    if not isinstance(state, kind):
        raise Unsupported(f"{device.label}: a saved {type(state).__name__} is not its state")
    found: int = getattr(state, "version", 0)
    if not 1 <= found <= version:
        raise Unsupported(f"{device.label}: saved state version {found}, this build knows up to {version}")
    return state
