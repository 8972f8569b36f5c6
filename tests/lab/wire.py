"""The network between lab hosts: a learning switch in this process, with cables that can be cut.

Each host's QEMU holds one end of a socket pair, on which a datagram is an Ethernet frame (`-netdev dgram`). The switch
runs in a thread of its own, so it forwards while a test blocks, and is only this process's: no interface, no address and
no other test's traffic on the machine is involved.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
from collections import deque
from typing import Final

FRAME_LIMIT_BYTES: Final = 65536
QUEUE_LIMIT_FRAMES: Final = 1024
"""Frames that wait for a slow host; what comes after is dropped, as a real switch does."""
_BURST_FRAMES = 64
_GROUP_BIT = 1


class Port:
    """One cable's end at the switch. `qemu_end` goes to QEMU, which inherits it; close it here once QEMU has started."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.end, self.qemu_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.end.setblocking(False)
        self.waiting: deque[bytes] = deque(maxlen=QUEUE_LIMIT_FRAMES)


class Switch:
    """Ports by their host's name. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ports: dict[str, Port] = {}
        self._addresses: dict[bytes, Port] = {}
        self._cut: set[str] = set()
        self._parted: set[frozenset[str]] = set()
        self._selector = selectors.DefaultSelector()
        self._wake_end, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector.register(self._wake_end, selectors.EVENT_READ)
        self._closing = False
        self._thread = threading.Thread(target=self._forward, name="lab-wire", daemon=True)
        self._thread.start()

    def plug(self, name: str) -> Port:
        """A cable to the host `name`; one that was there before is unplugged."""
        self.unplug(name)
        port = Port(name)
        with self._lock:
            self._ports[name] = port
            self._selector.register(port.end, selectors.EVENT_READ, port)
        self._nudge()
        return port

    def unplug(self, name: str) -> None:
        """Take the cable away; nothing when there is none."""
        with self._lock:
            port = self._ports.pop(name, None)
            if port is None:
                return
            self._addresses = {address: there for address, there in self._addresses.items() if there is not port}
            self._selector.unregister(port.end)
            port.end.close()
            port.qemu_end.close()

    def cut(self, name: str) -> None:
        """Drop every frame from and to `name`; its link stays up, as behind a switch that died."""
        with self._lock:
            self._cut.add(name)

    def part(self, one: str, other: str) -> None:
        """Drop every frame between these two."""
        with self._lock:
            self._parted.add(frozenset((one, other)))

    def mend(self, name: str | None = None) -> None:
        """Take back `cut` and `part` for `name`, or for all."""
        with self._lock:
            self._cut = {cut for cut in self._cut if name not in (None, cut)}
            self._parted = {pair for pair in self._parted if name is not None and name not in pair}

    def close(self) -> None:
        """Unplug all and end the thread."""
        self._closing = True
        self._nudge()
        self._thread.join()
        for name in list(self._ports):
            self.unplug(name)
        self._selector.close()
        self._wake.close()
        self._wake_end.close()

    def _nudge(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake.send(b"x")

    def _forward(self) -> None:
        while not self._closing:
            ready = self._selector.select()
            with self._lock:
                for key, events in ready:
                    self._serve(key, events)

    def _serve(self, key: selectors.SelectorKey, events: int) -> None:
        port: Port | None = key.data
        if port is None:
            self._wake_end.recv(4096)
        elif self._ports.get(port.name) is port:  # else: unplugged meanwhile
            if events & selectors.EVENT_READ:
                self._receive(port)
            if events & selectors.EVENT_WRITE:
                self._flush(port)

    def _receive(self, port: Port) -> None:
        for _ in range(_BURST_FRAMES):
            try:
                frame = port.end.recv(FRAME_LIMIT_BYTES)
            except (BlockingIOError, ConnectionError):
                return
            if len(frame) < 14 or port.name in self._cut:
                continue
            self._addresses[frame[6:12]] = port
            known = None if frame[0] & _GROUP_BIT else self._addresses.get(frame[:6])
            for target in [known] if known else list(self._ports.values()):
                if target is not port and self._connected(port, target):
                    target.waiting.append(frame)
                    self._flush(target)

    def _connected(self, source: Port, target: Port) -> bool:
        return target.name not in self._cut and frozenset((source.name, target.name)) not in self._parted

    def _flush(self, port: Port) -> None:
        while port.waiting:
            try:
                port.end.send(port.waiting[0])
            except BlockingIOError:
                break
            except OSError:  # QEMU is gone
                port.waiting.clear()
                break
            port.waiting.popleft()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.waiting else 0)
        if self._selector.get_key(port.end).events != events:
            self._selector.modify(port.end, events, port)
