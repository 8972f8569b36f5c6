"""The driver of a guest's socket device: packets as the test wants them, right or wrong."""

from __future__ import annotations

from dataclasses import dataclass

from appliance.vmm.virtio.vsock import RX, TX, VirtioVsock
from appliance.vmm.vsock.packet import HEADER_BYTES, HOST_CID, TYPE_STREAM, Header, Op
from tests.fakes.virtio_driver import DriverQueue, settle

CID, PORT, WINDOW = 42, 1024, 1 << 16


@dataclass
class VsockGuest:
    """The guest's vsock driver: `packet` sends, `take` is what came since the last time."""

    device: VirtioVsock
    queues: list[DriverQueue]
    rx_bytes: int = 4096
    refills: bool = True

    def buffers(self, count: int) -> None:
        for _ in range(count):
            self.queues[RX].add([], [self.rx_bytes])
        self.queues[RX].kick()

    def packet(self, op: int, *, port: int = 52, data: bytes = b"", **fields: int) -> None:
        values = {
            "src_cid": CID, "dst_cid": HOST_CID, "src_port": PORT, "dst_port": port, "len": len(data),
            "type": TYPE_STREAM, "op": op, "flags": 0, "buf_alloc": WINDOW, "fwd_cnt": 0,
        } | fields  # fmt: skip
        header = Header(**values).pack()
        self.queues[TX].add([header, data] if data else [header])
        self.queues[TX].kick()
        self.queues[TX].used()

    def take(self) -> list[tuple[Header, bytes]]:
        settle(self.device.context.bridge)  # type: ignore[arg-type]
        found = []
        for head, written in self.queues[RX].used():
            whole = self.queues[RX].read_back(head)
            header = Header.unpack(whole[:HEADER_BYTES])
            assert header.len == written - HEADER_BYTES
            assert (header.src_cid, header.dst_cid) == (HOST_CID, CID) or header.op == Op.RST
            found.append((header, whole[HEADER_BYTES:]))
        if self.refills:
            self.buffers(len(found))
        return found

    def ops(self) -> list[int]:
        return [header.op for header, _ in self.take()]

    def one(self) -> Header:
        ((header, _),) = self.take()
        return header
