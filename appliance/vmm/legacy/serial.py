"""A serial port: the National Semiconductor 16550A of the PC, with its FIFOs (PC16550D datasheet, June 1995).

The line is infinitely fast: what the guest transmits has left at once, so THRE and TEMT are always set and a byte waits in
the receiver FIFO no longer than the guest lets it. The character time-out (datasheet §8.5) therefore is no delay: less
than the trigger level in the FIFO is a time-out indication from the start.

    guest --THR--> outgoing (bounded, newest dropped) --loop--> sink
    guest <--RBR-- FIFO of 16 <-- incoming (bounded) <-- receive(data) -> bytes taken; on_room() when there is room again

vCPU threads enter through the ports, the loop through `receive` and `send_break`. `sink` and `on_room` are called on the
loop without the lock. As on a PC the interrupt reaches its line only while the driver sets OUT2 (§8.6; the PC/AT wiring).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from appliance.vmm import layout
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.legacy.port_device import PortDevice

# Registers by offset (§8.0, table III)
DATA, IER, IIR_FCR, LCR, MCR, LSR, MSR, SCR = range(8)

IER_RDA, IER_THRE, IER_LSR, IER_MSR = 0x01, 0x02, 0x04, 0x08
IIR_NONE, IIR_LSR, IIR_RDA, IIR_TIMEOUT, IIR_THRE, IIR_MSR = 0x01, 0x06, 0x04, 0x0C, 0x02, 0x00
IIR_FIFO_ENABLED = 0xC0
FCR_ENABLE, FCR_CLEAR_RX, FCR_CLEAR_TX, FCR_TRIGGER = 0x01, 0x02, 0x04, 0xC0
LCR_DLAB = 0x80
MCR_DTR, MCR_RTS, MCR_OUT1, MCR_OUT2, MCR_LOOP = 0x01, 0x02, 0x04, 0x08, 0x10
LSR_DR, LSR_OE, LSR_PE, LSR_FE, LSR_BI, LSR_THRE, LSR_TEMT, LSR_FIFO_ERROR = 1, 2, 4, 8, 0x10, 0x20, 0x40, 0x80
MSR_CTS, MSR_DSR, MSR_RI, MSR_DCD = 0x10, 0x20, 0x40, 0x80
MSR_TERI = 0x04

FIFO_BYTES = 16
TRIGGER_LEVELS = (1, 4, 8, 14)
INCOMING_BYTES = 4096
OUTGOING_BYTES = 65536

_MSR_CONNECTED = MSR_DCD | MSR_DSR | MSR_CTS  # the other end is there, and ready
_IDENTIFIED = (IIR_LSR, IIR_RDA, IIR_TIMEOUT, IIR_THRE, IIR_MSR)

Sink = Callable[[bytes], None]


class SerialState(State):
    version: int = 1
    ier: int = 0
    fcr: int = 0
    lcr: int = 0
    mcr: int = 0
    msr: int = _MSR_CONNECTED
    scr: int = 0
    divisor: int = 1
    overrun: bool = False
    thre_pending: bool = False
    fifo: list[int] = []  # noqa: RUF012 - msgspec copies it; byte | LSR error bits << 8
    incoming: bytes = b""


class SerialPort(PortDevice):
    """COM1 to COM4 by `index`. `sink` takes what the guest says; without one it is dropped."""

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        index: int,
        *,
        sink: Sink | None = None,
        on_room: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(name, context)
        self.sink = sink
        self.on_room = on_room
        self._line = context.interrupts.line(layout.GSI_COM[index])
        self._paused = self._raised = False
        self._outgoing = bytearray()
        self._flush_posted = False
        self._refused = False  # `receive` took less than it was given
        self._power_on()
        self.claim_bytes(layout.PORT_COM[index], 8, self.read_register, self.write_register)

    def _power_on(self) -> None:
        self._ier = self._fcr = self._lcr = self._scr = 0
        self._mcr = 0
        self._msr = _MSR_CONNECTED
        self._divisor = 12  # 9600 baud
        self._overrun = self._thre_pending = False
        self._fifo: deque[int] = deque()
        self._incoming: deque[int] = deque()

    # --- the other end of the line: any thread -------------------------------------------------------------------

    def receive(self, data: bytes) -> int:
        """Bytes for the guest. How many were taken; after fewer than all, `on_room` is called when there is room."""
        with self.lock:
            room = 0 if self._paused else INCOMING_BYTES - len(self._incoming)
            taken = min(room, len(data))
            self._incoming.extend(data[:taken])
            self._refused = self._refused or taken < len(data)
            self._refill()
            self._update_line()
            return taken

    def send_break(self) -> None:
        """The line is held low for a while: Linux' SysRq. Dropped while the FIFO is full."""
        with self.lock:
            if not self._paused and len(self._fifo) < FIFO_BYTES:
                self._fifo.append(LSR_BI << 8)
                self._update_line()

    # --- registers: vCPU threads ---------------------------------------------------------------------------------

    def read_register(self, offset: int) -> int:
        """§8.0; DLAB turns the first two into the divisor latch."""
        with self.lock:
            match offset:
                case 0 if self._lcr & LCR_DLAB:
                    return self._divisor & 0xFF
                case 0:
                    return self._take()
                case 1:
                    return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
                case 2:
                    return self._identify()
                case 3:
                    return self._lcr
                case 4:
                    return self._mcr
                case 5:
                    return self._line_status()
                case 6:
                    return self._modem_status()
                case _:
                    return self._scr

    def write_register(self, offset: int, value: int) -> None:
        with self.lock:
            match offset:
                case 0 if self._lcr & LCR_DLAB:
                    self._divisor = self._divisor & 0xFF00 | value
                case 0:
                    self._transmit(value)
                case 1 if self._lcr & LCR_DLAB:
                    self._divisor = self._divisor & 0xFF | value << 8
                case 1:
                    self._enable_interrupts(value & 0x0F)
                case 2:
                    self._control_fifo(value)
                case 3:
                    self._lcr = value
                case 4:
                    self._mcr = value & 0x1F
                    self._set_modem_inputs()
                    self._refill()
                case 7:
                    self._scr = value
                case _:
                    pass  # LSR is for the factory's tests; MSR is written by none
            self._update_line()

    def _take(self) -> int:
        """RBR (§8.0)."""
        value = self._fifo.popleft() & 0xFF if self._fifo else 0
        self._refill()
        self._update_line()
        return value

    def _transmit(self, value: int) -> None:
        """THR. The byte has left before the next instruction, so the holding register is empty anew."""
        if self._mcr & MCR_LOOP:
            if len(self._fifo) < (FIFO_BYTES if self._fcr & FCR_ENABLE else 1):
                self._fifo.append(value)
            else:
                self._overrun = True
        else:
            self._send(value)
        self._thre_pending = True

    def _send(self, value: int) -> None:
        if self.sink is None or len(self._outgoing) >= OUTGOING_BYTES:
            return
        self._outgoing.append(value)
        if not self._flush_posted and not self._paused:
            self._flush_posted = True
            self.context.bridge.post(self.flush)

    def _enable_interrupts(self, enabled: int) -> None:
        """IER (§8.7). Enabling THRE with an empty holding register is an interrupt: Linux tests for that (THRE test)."""
        if enabled & ~self._ier & IER_THRE:
            self._thre_pending = True
        self._ier = enabled

    def _control_fifo(self, value: int) -> None:
        """FCR (§8.5): turning the FIFOs on or off clears them; the other bits count only while they are on."""
        if (value ^ self._fcr) & FCR_ENABLE or value & FCR_CLEAR_RX:
            self._fifo.clear()
        self._fcr = value & (FCR_ENABLE | FCR_TRIGGER) if value & FCR_ENABLE else 0
        self._refill()

    def _line_status(self) -> int:
        """LSR (§8.4). Reading ends the overrun and the error of the byte at the top."""
        status = LSR_THRE | LSR_TEMT
        if self._fifo:
            status |= LSR_DR | self._fifo[0] >> 8
            self._fifo[0] &= 0xFF
            if any(each >> 8 for each in self._fifo) or status & (LSR_BI | LSR_FE | LSR_PE):
                status |= LSR_FIFO_ERROR if self._fcr & FCR_ENABLE else 0
        if self._overrun:
            status |= LSR_OE
            self._overrun = False
        self._update_line()
        return status

    def _modem_status(self) -> int:
        """MSR (§8.9): the low half says what has changed since it was read last."""
        status = self._msr
        self._msr &= 0xF0
        self._update_line()
        return status

    def _set_modem_inputs(self) -> None:
        """In loopback the four outputs of MCR are the four inputs (§8.6)."""
        inputs = _MSR_CONNECTED
        if self._mcr & MCR_LOOP:
            wires = ((MCR_RTS, MSR_CTS), (MCR_DTR, MSR_DSR), (MCR_OUT1, MSR_RI), (MCR_OUT2, MSR_DCD))
            inputs = sum(to for came_from, to in wires if self._mcr & came_from)
        changed = (inputs ^ self._msr) & 0xF0
        deltas = changed >> 4 & ~MSR_TERI
        if self._msr & ~inputs & MSR_RI:  # the ring indicator's is its trailing edge only
            deltas |= MSR_TERI
        self._msr = inputs | self._msr & 0x0F | deltas

    # --- interrupts ----------------------------------------------------------------------------------------------

    def _pending(self) -> int:
        """The most urgent interrupt that is enabled (§8.6, table IV), or IIR_NONE."""
        if self._ier & IER_LSR and (self._overrun or (self._fifo and self._fifo[0] >> 8)):
            return IIR_LSR
        if self._ier & IER_RDA and self._fifo:
            trigger = TRIGGER_LEVELS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1
            return IIR_RDA if len(self._fifo) >= trigger else IIR_TIMEOUT
        if self._ier & IER_THRE and self._thre_pending:
            return IIR_THRE
        if self._ier & IER_MSR and self._msr & 0x0F:
            return IIR_MSR
        return IIR_NONE

    def _identify(self) -> int:
        """IIR. Reading it is what acknowledges THRE."""
        found = self._pending()
        if found == IIR_THRE:
            self._thre_pending = False
            self._update_line()
        return found | (IIR_FIFO_ENABLED if self._fcr & FCR_ENABLE else 0)

    def _update_line(self) -> None:
        """After every access, so the line is only told what it does not know: a guest prints byte by byte."""
        raised = self._pending() != IIR_NONE and bool(self._mcr & MCR_OUT2)
        if raised != self._raised and not self._paused:
            self._raised = raised
            self._line.set(asserted=raised)

    # --- queues --------------------------------------------------------------------------------------------------

    def _refill(self) -> None:
        """Move what has come over the line into the FIFO; in loopback the line is cut off."""
        if self._paused or self._mcr & MCR_LOOP:
            return
        room = (FIFO_BYTES if self._fcr & FCR_ENABLE else 1) - len(self._fifo)
        for _ in range(min(room, len(self._incoming))):
            self._fifo.append(self._incoming.popleft())
        if self._refused and len(self._incoming) <= INCOMING_BYTES // 2:
            self._refused = False
            self.context.bridge.post(self._tell_room)

    def _tell_room(self) -> None:
        if self.on_room is not None:
            self.on_room()

    def flush(self) -> None:
        """On the loop: hand over what the guest has said."""
        with self.lock:
            data, self._outgoing = bytes(self._outgoing), bytearray()
            self._flush_posted = False
        if data and self.sink is not None:
            self.sink(data)

    # --- life ----------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """What the guest has said stays said; what waited for it is gone."""
        with self.lock:
            self._power_on()
            self._raised = False
            self._line.set(asserted=False)
            self._refill()

    def pause(self) -> None:
        self._paused = True
        self.flush()

    def resume(self) -> None:
        with self.lock:
            self._paused = False
            self._refill()
            self._update_line()

    def save(self) -> SerialState:
        with self.lock:
            return SerialState(
                ier=self._ier,
                fcr=self._fcr,
                lcr=self._lcr,
                mcr=self._mcr,
                msr=self._msr,
                scr=self._scr,
                divisor=self._divisor,
                overrun=self._overrun,
                thre_pending=self._thre_pending,
                fifo=list(self._fifo),
                incoming=bytes(self._incoming),
            )

    def restore(self, state: State) -> None:
        mine = self.own_state(state, SerialState, version=1)
        with self.lock:
            self._ier, self._fcr, self._lcr, self._mcr = mine.ier & 0x0F, mine.fcr & 0xC1, mine.lcr, mine.mcr & 0x1F
            self._msr, self._scr, self._divisor = mine.msr, mine.scr, mine.divisor
            self._overrun, self._thre_pending = mine.overrun, mine.thre_pending
            self._fifo = deque(mine.fifo[:FIFO_BYTES])
            self._incoming = deque(mine.incoming[:INCOMING_BYTES])
            self._update_line()

    @property
    def state_type(self) -> type[State]:
        return SerialState

    def close(self) -> None:
        """The guest's last words still reach the sink."""
        super().close()
        self.flush()
        self.sink = self.on_room = None
