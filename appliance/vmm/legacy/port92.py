"""System control port A, 0x92: the fast A20 gate and the fast reset (IBM PS/2 technical reference).

A20 is a bit that reads back as it was written, here and in the 8042; memory does not wrap whatever it says, as KVM has no
A20 mask. Software turns it on and goes on; nothing current relies on it being off.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, MachineRequest, State
from appliance.vmm.legacy.port_device import PortDevice

FAST_RESET, FAST_A20 = 0x01, 0x02


@dataclass(slots=True)
class A20Gate:
    """The one gate that both doors move."""

    enabled: bool = True


class Port92State(State):
    version: int = 1
    value: int = 0
    a20: bool = True


class Port92(PortDevice):
    """`a20` is shared with the 8042."""

    def __init__(self, name: str, context: DeviceContext, *, a20: A20Gate) -> None:
        super().__init__(name, context)
        self._a20 = a20
        self._value = 0
        self.claim_bytes(layout.PORT_A20, 1, self.read_port, self.write_port)

    def read_port(self, _offset: int) -> int:
        with self.lock:
            return self._value | (FAST_A20 if self._a20.enabled else 0)

    def write_port(self, _offset: int, value: int) -> None:
        """The reset bit counts as it rises."""
        with self.lock:
            rises = value & ~self._value & FAST_RESET
            self._value = value & ~FAST_A20
            self._a20.enabled = bool(value & FAST_A20)
        if rises:
            self.context.request(MachineRequest.RESET, "the guest wrote to port 0x92")

    def reset(self) -> None:
        with self.lock:
            self._value = 0
            self._a20.enabled = True

    def save(self) -> Port92State:
        with self.lock:
            return Port92State(value=self._value, a20=self._a20.enabled)

    def restore(self, state: State) -> None:
        mine = self.own_state(state, Port92State, version=1)
        with self.lock:
            self._value, self._a20.enabled = mine.value & 0xFF & ~FAST_A20, mine.a20

    @property
    def state_type(self) -> type[State]:
        return Port92State
