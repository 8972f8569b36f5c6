"""A guest with the smallest of network stacks behind a virtio network device: ARP, ping, and one TCP connection it opens.

Large segments and missing checksums are left to the device, as a guest's kernel does.
"""

from __future__ import annotations

import select
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from appliance.vmm.netdev import header as h
from tests.fakes.machine import FakeBridge
from tests.fakes.virtio_driver import DriverQueue

SYN, PSH, ACK = 2, 8, 16
_RX_BUFFERS, _RX_BYTES = 120, 1536
_HEADER = struct.Struct("<BBHHHHH")


def checksum(data: bytes) -> int:
    """RFC 1071, not inverted."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@dataclass
class NetGuest:
    """`serve` until something is so; `headers` has every virtio header that came, with its frame's length."""

    bridge: FakeBridge
    rx: DriverQueue
    tx: DriverQueue
    mac: bytes
    address: bytes
    peer: bytes
    headers: list[tuple[int, int, int, int]] = field(default_factory=list)  # flags, gso_type, gso_size, frame bytes
    received: bytearray = field(default_factory=bytearray)
    peer_mac: bytes = b"\xff" * 6
    established: bool = False

    def __post_init__(self) -> None:
        self._sequence, self._expected, self._port = 1000, 0, 0
        self._parts: list[bytes] = []
        self._missing = 0
        self._refill(_RX_BUFFERS)

    def serve(self, done: Callable[[], bool], *, timeout_s: float = 20) -> None:
        """Let the device and this guest run until `done`."""
        deadline = time.monotonic() + timeout_s
        while not done():
            assert time.monotonic() < deadline, "the guest waited in vain"
            for fd in select.select(list(self.bridge.watched), [], [], 0.05)[0]:
                if fd in self.bridge.watched:
                    self.bridge.ready(fd)
            self._take()

    # TCP

    def connect(self, port: int) -> None:
        """SYN; `established` follows."""
        self._port = port
        self._tcp(SYN, options=b"\x02\x04\x05\xb4", sequence=self._sequence)
        self._sequence += 1

    def send(self, data: bytes, *, mss: int = 1460) -> None:
        """One segment, however large."""
        self._tcp(ACK | PSH, data=data, sequence=self._sequence, mss=mss if len(data) > mss else 0)
        self._sequence += len(data)

    def _tcp(self, flags: int, *, sequence: int, options: bytes = b"", data: bytes = b"", mss: int = 0) -> None:
        length = 20 + len(options) + len(data)
        pseudo = self.address + self.peer + struct.pack(">BBH", 0, 6, length)
        segment = struct.pack(
            ">HHIIBBHHH", 40000, self._port, sequence, self._expected, (20 + len(options)) << 2, flags, 65535,
            checksum(pseudo), 0,
        )  # fmt: skip
        header = _HEADER.pack(h.NEEDS_CSUM, h.GSO_TCPV4 if mss else 0, 54 if mss else 0, mss, 34, 16, 0)
        self._emit(header, self.peer_mac, b"\x08\x00", self._ip(6, segment + options + data))

    # Frames

    def _ip(self, protocol: int, payload: bytes) -> bytes:
        fields = [0x45, 0, 20 + len(payload), 0, 0x4000, 64, protocol, 0, self.address, self.peer]
        packing = struct.Struct(">BBHHHBBH4s4s")
        fields[7] = checksum(packing.pack(*fields)) ^ 0xFFFF
        return packing.pack(*fields) + payload

    def _emit(self, header: bytes, destination: bytes, kind: bytes, payload: bytes) -> None:
        self.tx.add([header, destination + self.mac + kind, payload])
        self.tx.kick()
        self.tx.used()

    def _refill(self, count: int) -> None:
        for _ in range(count):
            self.rx.add([], [_RX_BYTES])
        if self.rx.kick_wanted():
            self.rx.kick()

    def _take(self) -> None:
        used = self.rx.used()
        for head, _ in used:
            part = self.rx.read_back(head)
            if not self._missing:
                self._parts, self._missing = [], int.from_bytes(part[10:12], "little")
            self._parts.append(part)
            self._missing -= 1
            if not self._missing:
                self._frame(b"".join(self._parts))
        assert not self._missing, "a frame's buffers were not used together"
        self._refill(len(used))

    def _frame(self, whole: bytes) -> None:
        flags, gso_type, _, gso_size, *_ = _HEADER.unpack(whole[:12])
        frame = whole[12:]
        self.headers.append((flags, gso_type, gso_size, len(frame)))
        kind, payload = frame[12:14], frame[14:]
        if kind == b"\x08\x06" and payload[24:28] == self.address and payload[7] == 1:
            self.peer_mac = frame[6:12]
            answer = payload[:6] + b"\x00\x02" + self.mac + self.address + payload[8:18]
            self._emit(bytes(12), self.peer_mac, kind, answer)
        elif kind == b"\x08\x00" and payload[16:20] == self.address:
            self.peer_mac = frame[6:12]
            body = payload[20 : int.from_bytes(payload[2:4], "big")]
            if payload[9] == 1 and body[0] == 8:
                echo = b"\0\0\0\0" + body[4:]
                echo = echo[:2] + (checksum(echo) ^ 0xFFFF).to_bytes(2, "big") + echo[4:]
                self._emit(bytes(12), self.peer_mac, kind, self._ip(1, echo))
            elif payload[9] == 6:
                self._segment(body)

    def _segment(self, body: bytes) -> None:
        sequence, flags, data = int.from_bytes(body[4:8], "big"), body[13], body[(body[12] >> 4) * 4 :]
        if flags & SYN:
            self._expected = sequence + 1
            self.established = True
            self._tcp(ACK, sequence=self._sequence)
        elif data and sequence == self._expected:
            self._expected = (self._expected + len(data)) & 0xFFFF_FFFF
            self.received += data
            self._tcp(ACK, sequence=self._sequence)
