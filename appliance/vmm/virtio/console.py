"""The console device (virtio 1.2 §5.3): ports, each a two-way byte stream, as terminals or as named channels.

    queue 0, 1          port 0: to the guest, from the guest
    queue 2, 3          control: to the guest, from the guest                              §5.3.6.2
    queue 2n+2, 2n+3    port n

Port 0 is a terminal (`hvc0`), what a driver without MULTIPORT knows; when none is wanted the ports begin with 1. A named
port is `/dev/virtio-ports/NAME` in a Linux guest; its agent opens and closes it, which the host is told.

    DEVICE_READY ->            the driver is there
              <- DEVICE_ADD    for each port
    PORT_READY ->              for each port
              <- CONSOLE_PORT, RESIZE, PORT_NAME, PORT_OPEN
    PORT_OPEN ->               somebody in the guest has opened it, or closed it

Nobody waits for the other. What the guest says goes to the port's `sink` at once, which bounds what it keeps. What the
host types waits in `INCOMING_BYTES`, and `receive` takes no more than there is room for. What is to be said on the
control queue is one entry for each port and kind of event, however slowly it is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Final

import msgspec

from appliance.errors import GuestFault, Unsupported
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.virtio.consts import DeviceId, bits
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain

F_SIZE: Final = 0
F_MULTIPORT: Final = 1
F_EMERG_WRITE: Final = 2

CONTROL_TO_GUEST, CONTROL_FROM_GUEST = 2, 3
QUEUE_SIZE: Final = 64
MAX_PORTS: Final = 31

INCOMING_BYTES: Final = 64 << 10
WRITE_BYTES: Final = 1 << 20  # one buffer of the guest's: Linux splices a pipe's content at once, at most this
TURN_BYTES: Final = 1 << 20  # taken from a port before others on the loop get their turn

_CONFIG = struct.Struct("<HHII")  # cols, rows, max_nr_ports, emerg_wr
_EMERG_WRITE = 8
_CONTROL = struct.Struct("<IHH")  # port, event, value
_SIZE = struct.Struct("<HH")  # cols, rows; Linux before 6.15 had them the other way round


class Event(IntEnum):
    """§5.3.6.2."""

    DEVICE_READY = 0
    DEVICE_ADD = 1
    DEVICE_REMOVE = 2
    PORT_READY = 3
    CONSOLE_PORT = 4
    RESIZE = 5
    PORT_OPEN = 6
    PORT_NAME = 7


@dataclass(frozen=True, slots=True)
class PortOptions:
    """`console`: a terminal; otherwise a channel that the guest finds by `name` ("org.qemu.guest_agent.0")."""

    name: str = ""
    console: bool = False


class PortState(msgspec.Struct, forbid_unknown_fields=True):
    """Part of `ConsoleState`."""

    guest_open: bool
    host_open: bool
    ready: bool
    columns: int
    rows: int
    incoming: bytes


class ConsoleState(State):
    """Version 1. `pending`: (port, event, value) not yet said on the control queue."""

    version: int
    ports: list[PortState]
    pending: list[tuple[int, int, int]]


class ConsolePort:
    """One port. All may be called from any thread; callbacks come with no lock held, `sink` on any thread, others on the loop.

    `sink` takes what the guest says, and never blocks; without one it is dropped. `on_room`: after `receive` has taken less
    than it was given, there is room. `on_open`: the guest has opened (True) or closed the port.
    """

    def __init__(self, device: VirtioConsole, number: int, options: PortOptions) -> None:
        self.number = number
        self.options = options
        self.sink: Callable[[bytes], None] | None = None
        self.on_room: Callable[[], None] | None = None
        self.on_open: Callable[[bool], None] | None = None
        self.guest_open = False
        self.host_open = True
        self.ready = False  # the driver knows it
        self.columns, self.rows = 80, 24
        self.incoming = bytearray()
        self.refused = False
        self._device = device

    @property
    def to_guest(self) -> int:
        """Its queue."""
        return 2 * self.number + 2 if self.number else 0

    @property
    def from_guest(self) -> int:
        return self.to_guest + 1

    def receive(self, data: bytes) -> int:
        """Bytes for the guest. How many were taken: none while the machine is paused or the guest has not opened the port;
        after fewer than all `on_room` is called when there is room."""
        return self._device.type_into(self, data)

    def resize(self, columns: int, rows: int) -> None:
        """The terminal has this size now."""
        self._device.resize(self, columns, rows)

    def set_open(self, host_open: bool) -> None:
        """Whether somebody on the host listens: the guest reads an end of file otherwise."""
        self._device.set_open(self, host_open)


class VirtioConsole(VirtioDevice):
    """`ports` are numbered as they stand; the first may be a terminal only, else numbers begin with 1."""

    device_id = DeviceId.CONSOLE
    device_state_type = ConsoleState

    def __init__(self, name: str, context: DeviceContext, *, ports: Sequence[PortOptions]) -> None:
        first = 0 if ports and ports[0].console else 1
        count = first + len(ports)
        if not ports or count > MAX_PORTS:
            raise ValueError(f"{name}: {len(ports)} ports")
        sizes = [QUEUE_SIZE] * (2 * (count + 1))
        super().__init__(name, context, queue_sizes=sizes, features=bits(F_SIZE, F_MULTIPORT, F_EMERG_WRITE))
        self.ports = [ConsolePort(self, first + place, options) for place, options in enumerate(ports)]
        self._by_number = {port.number: port for port in self.ports}
        self._max_ports = count
        self._pending: dict[tuple[int, Event], int] = {}
        self._taken_bytes = 0

    # Configuration, §5.3.4

    def read_config(self, offset: int, size: int) -> int:
        first = self.ports[0]
        config = _CONFIG.pack(first.columns, first.rows, self._max_ports, 0)
        return int.from_bytes(config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        """A character at any time, also of a guest in need (§5.3.5.1)."""
        port = self._by_number.get(0)
        if offset == _EMERG_WRITE and port is not None and port.sink is not None:
            port.sink(bytes([value & 0xFF]))

    # The driver

    def activate(self) -> None:
        if not self.has(F_MULTIPORT) and (port := self._by_number.get(0)):
            self._opened(port, True)  # nobody will say so

    def deactivate(self) -> None:
        self._pending = {}
        for port in self.ports:
            port.ready = False
            port.incoming.clear()
            self._opened(port, False)

    def on_kick(self, index: int) -> None:
        if index == CONTROL_FROM_GUEST:
            self.serve(index, self._control)
        elif index == CONTROL_TO_GUEST:
            self.serve(index, self._say, ready=lambda: bool(self._pending))
        elif port := self._by_number.get(index // 2 - 1 if index > 1 else 0):
            self._serve_port(port, index)

    def _serve_port(self, port: ConsolePort, index: int) -> None:
        if index == port.from_guest:
            self._taken_bytes = 0
            self.serve(index, partial(self._hear, port), ready=lambda: self._taken_bytes < TURN_BYTES)
            if self._taken_bytes >= TURN_BYTES:
                self.kick(index)
            return
        self.serve(index, partial(self._type, port), ready=lambda: bool(port.incoming))
        with self.lock:
            tell = port.refused and len(port.incoming) < INCOMING_BYTES
            port.refused = port.refused and not tell
        if tell and port.on_room is not None:
            port.on_room()

    def _hear(self, port: ConsolePort, chain: Chain) -> int:
        if chain.readable_bytes > WRITE_BYTES:
            raise GuestFault(f"{self.label}: port {port.number}: {chain.readable_bytes} bytes at once")
        self._taken_bytes += max(chain.readable_bytes, 1)
        said = chain.read(WRITE_BYTES)
        if said and port.sink is not None:
            port.sink(said)
        return 0

    def _type(self, port: ConsolePort, chain: Chain) -> int:
        with self.lock:
            written = chain.write(bytes(port.incoming[: chain.writable_bytes]))
            del port.incoming[:written]
            return written

    # Control, §5.3.6.2

    def _control(self, chain: Chain) -> int:
        message = chain.read(_CONTROL.size)
        if len(message) == _CONTROL.size:
            number, event, value = _CONTROL.unpack(message)
            with self.lock:
                self._told(number, event, value)
        return 0

    def _told(self, number: int, event: int, value: int) -> None:
        port = self._by_number.get(number)
        match event:
            case Event.DEVICE_READY if value:
                for each in self.ports:
                    self._pend(each, Event.DEVICE_ADD)
            case Event.DEVICE_READY:
                self.context.note(f"{self.label}: the driver could not set itself up")
            case Event.PORT_READY if port is not None and value:
                port.ready = True
                self._introduce(port)
            case Event.PORT_OPEN if port is not None:
                self._opened(port, bool(value))

    def _introduce(self, port: ConsolePort) -> None:
        if port.options.console:
            self._pend(port, Event.CONSOLE_PORT, 1)
            self._pend(port, Event.RESIZE)
        if port.options.name:
            self._pend(port, Event.PORT_NAME, 1)
        self._pend(port, Event.PORT_OPEN, int(port.host_open))

    def _pend(self, port: ConsolePort, event: Event, value: int = 0) -> None:
        self._pending[port.number, event] = value
        self.kick(CONTROL_TO_GUEST)

    def _say(self, chain: Chain) -> int:
        with self.lock:
            if not self._pending:  # the driver was reset meanwhile
                return 0
            (number, event), value = next(iter(self._pending.items()))
            del self._pending[number, event]
            port = self._by_number[number]
            message = _CONTROL.pack(number, event, value)
            if event is Event.RESIZE:
                message += _SIZE.pack(port.columns, port.rows)
            elif event is Event.PORT_NAME:
                message += port.options.name.encode()
        return chain.write(message)

    def _opened(self, port: ConsolePort, guest_open: bool) -> None:
        """The lock is held."""
        if port.guest_open == guest_open:
            return
        port.guest_open = guest_open
        port.incoming.clear()
        self.context.bridge.post(partial(self._tell_opened, port, guest_open))

    def _tell_opened(self, port: ConsolePort, guest_open: bool) -> None:
        if port.on_open is not None:
            port.on_open(guest_open)
        with self.lock:
            tell, port.refused = port.refused and guest_open, port.refused and not guest_open
        if tell and port.on_room is not None:
            port.on_room()

    # The host, through a port

    def type_into(self, port: ConsolePort, data: bytes) -> int:
        """`ConsolePort.receive`."""
        with self.lock:
            open_now = port.guest_open and self.live and not self._paused
            taken = min(len(data), INCOMING_BYTES - len(port.incoming)) if open_now else 0
            port.incoming += data[:taken]
            port.refused = port.refused or taken < len(data)
        if taken:
            self.kick(port.to_guest)
        return taken

    def resize(self, port: ConsolePort, columns: int, rows: int) -> None:
        """`ConsolePort.resize`."""
        with self.lock:
            port.columns, port.rows = min(max(columns, 1), 0xFFFF), min(max(rows, 1), 0xFFFF)
            if port.ready and port.options.console:
                self._pend(port, Event.RESIZE)
            if port is self.ports[0] and self.has(F_SIZE):
                self.config_changed()

    def set_open(self, port: ConsolePort, host_open: bool) -> None:
        """`ConsolePort.set_open`."""
        with self.lock:
            if port.host_open != host_open:
                port.host_open = host_open
                if port.ready:
                    self._pend(port, Event.PORT_OPEN, int(host_open))

    # State

    def save_device(self) -> State | None:
        ports = [
            PortState(port.guest_open, port.host_open, port.ready, port.columns, port.rows, bytes(port.incoming))
            for port in self.ports
        ]
        return ConsoleState(1, ports, [(number, event, value) for (number, event), value in self._pending.items()])

    def restore_device(self, state: State) -> None:
        assert isinstance(state, ConsoleState)
        if state.version != 1 or len(state.ports) != len(self.ports):
            raise Unsupported(f"{self.label}: saved state of a console with other ports")
        for port, saved in zip(self.ports, state.ports, strict=True):
            port.guest_open, port.host_open, port.ready = saved.guest_open, saved.host_open, saved.ready
            port.columns, port.rows = saved.columns, saved.rows
            port.incoming = bytearray(saved.incoming[:INCOMING_BYTES])
        self._pending = {
            (number, Event(event)): value
            for number, event, value in state.pending
            if number in self._by_number and event in Event.__members__.values()
        }
