"""The socket device (virtio 1.2 §5.10): streams between programs of the guest and of the host, without a network.

    queue 0 (rx)     to the guest      \\ vsock.host, on UNIX sockets; or vhost-vsock, on the host's AF_VSOCK
    queue 1 (tx)     from the guest    /
    queue 2 (event)  ours: "the transport was reset", after a restore

The two ways look different to programs of the host, so the choice is made by who configures: with a `socket_path` the
streams are UNIX sockets there, on every host; without one they are the kernel's, and a host without vhost-vsock refuses.
Streams do not survive saving: the guest hears of it and its programs connect anew (§5.10.6.7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.kernel.vhost import VhostVsock
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.vhost.backend import DataPlane, VhostVsockBackend
from appliance.vmm.vhost.rings import kernel_features
from appliance.vmm.vhost.vsock import F_SEQPACKET, RING_FEATURES, VhostVsockPlane
from appliance.vmm.virtio.consts import DeviceId, bits
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain
from appliance.vmm.vsock.host import VsockHost
from appliance.vmm.vsock.packet import EVENT_TRANSPORT_RESET, FIRST_GUEST_CID, LAST_GUEST_CID

RX, TX, EVENT = 0, 1, 2
QUEUE_SIZES: Final = (256, 256, 16)
F_STREAM, F_NO_IMPLIED_STREAM = 0, 2  # §5.10.3
VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class VsockOptions:
    """See above. `data_plane` may only demand what follows from `socket_path`."""

    guest_cid: int
    socket_path: Path | None = None
    data_plane: DataPlane = DataPlane.AUTO


class VsockState(State):
    """Streams are not saved; `reset_due`: the guest has not heard yet of the last loss."""

    version: int
    reset_due: bool


class VirtioVsock(VirtioDevice):
    """Clients may connect from the beginning; they are turned away until the guest's driver is there."""

    device_id = DeviceId.VSOCK
    device_state_type = VsockState

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        *,
        options: VsockOptions,
        open_vhost: Callable[[str], VhostVsockBackend] = VhostVsock,
    ) -> None:
        """Works on the file system: not on the loop. Raises `Unsupported` without a path on a host without vhost-vsock,
        `HostError` when the path cannot be listened on, `ValueError` for impossible options."""
        if not FIRST_GUEST_CID <= options.guest_cid <= LAST_GUEST_CID:
            raise ValueError(f"{name}: CID {options.guest_cid} is reserved")
        offload = options.socket_path is None
        if options.data_plane not in (DataPlane.AUTO, DataPlane.OFFLOAD if offload else DataPlane.PYTHON):
            raise ValueError(f"{name}: {options.data_plane} with socket path {options.socket_path}")
        label = f"{context.label}: {name}"
        own = _kernels_own(open_vhost, label) if offload else bits(F_STREAM, F_NO_IMPLIED_STREAM)
        super().__init__(name, context, queue_sizes=QUEUE_SIZES, features=own)
        self._cid = options.guest_cid
        self._reset_due = False
        self._vhost = VhostVsockPlane(self, options.guest_cid, open_vhost) if offload else None
        self._host: VsockHost | None = None
        if options.socket_path is not None:
            try:
                self._host = self._listening(options.socket_path)
            except HostError:
                super().close()
                raise

    def _listening(self, path: Path) -> VsockHost:
        host = VsockHost(
            path,
            guest_cid=self._cid,
            rx=self.queues[RX],
            bridge=self.context.bridge,
            lock=self.lock,
            label=self.label,
            ready=self._sockets_ready,
            run=self._with_rings,
        )
        host.poller.watch(wanted=True)
        return host

    @property
    def data_plane(self) -> DataPlane:
        """Who serves the streams."""
        return DataPlane.PYTHON if self._vhost is None else DataPlane.OFFLOAD

    @property
    def connections(self) -> int:
        """How many there are, those in the making included; what vhost-vsock has is not known."""
        return 0 if self._host is None else self._host.count

    def read_config(self, offset: int, size: int) -> int:
        """§5.10.4: guest_cid, 64 bits."""
        return int.from_bytes(self._cid.to_bytes(8, "little")[offset : offset + size], "little")

    # Life

    def activate(self) -> None:
        if self._host is not None:
            self._open_host(self._host)
        if self._vhost is not None and not self._paused:
            self._vhost.start()

    def _open_host(self, host: VsockHost) -> None:
        host.guest_takes_streams = self.has(F_STREAM) or not self.has(F_NO_IMPLIED_STREAM)
        host.open()

    def deactivate(self) -> None:
        self._drop()

    def broken(self, reason: str) -> None:
        with self.lock:
            super().broken(reason)
            self._drop()

    def _drop(self) -> None:
        self._reset_due = False
        if self._host is not None:
            self._host.drop_all()
        if self._vhost is not None:
            try:
                self._vhost.stop()
            except HostError as error:  # the queues are of no use any more anyway
                self.context.note(f"{self.name}: {error}")

    def pause(self) -> None:
        with self.lock:
            if self._host is not None:
                self._host.poller.watch(wanted=False)
            if self._vhost is not None:
                self._vhost.stop()
                self._reset_due |= self.live
            super().pause()

    def resume(self) -> None:
        with self.lock:
            super().resume()
            if self._host is not None:
                self._host.poller.watch(wanted=True)
                if self.live:
                    self._open_host(self._host)
            if self._vhost is not None and self.live:
                self._vhost.start()

    def save_device(self) -> State:
        return VsockState(version=VERSION, reset_due=self._reset_due)

    def restore_device(self, state: State) -> None:
        if not isinstance(state, VsockState) or state.version != VERSION:
            raise Unsupported(f"{self.label}: saved state of another version")
        self._reset_due = self.live

    def close(self) -> None:
        with self.lock:
            super().close()
            if self._host is not None:
                self._host.close()
            if self._vhost is not None:
                self._vhost.stop()

    def call_changed(self, index: int) -> None:
        with self.lock:
            if self._vhost is not None:
                self._vhost.call_changed(index)

    # On the loop

    def on_kick(self, index: int) -> None:
        with self.lock:
            if index == EVENT:
                self._tell_reset()
            elif self._host is not None:
                self._serve_host(self._host, index)

    def _serve_host(self, host: VsockHost, index: int) -> None:
        """A kick of either queue: packets while there is room for replies, then what the guest has room for."""

        def packets() -> None:
            if index == TX and not host.full:
                self.serve(TX, self._packet)

        self._round(host, packets)

    def _round(self, host: VsockHost, work: Callable[[], None]) -> None:
        """`work`, what it has brought about for the guest, the interrupt; and packets that waited for room."""
        waited = host.full
        try:
            work()
            waited |= host.full
            host.pump()
        finally:
            self.queues[RX].flush()
        if waited and not host.full:
            self.kick(TX)

    def _packet(self, chain: Chain) -> int:
        if self._host is not None:
            self._host.packet(chain)
        return 0

    def _with_rings(self, work: Callable[[], None]) -> None:
        """What a socket or a timer has begun."""
        with self.lock:
            host = self._host
            if host is not None:
                self.guard(lambda: self._round(host, work))

    def _sockets_ready(self) -> None:
        """Without a driver there are no streams, only clients to be turned away and closed ones to be written out."""
        with self.lock:
            host = self._host
            if host is None:
                return
            if self._paused:
                host.poller.watch(wanted=False)
            elif self.live:
                self._with_rings(host.poller.dispatch)
            else:
                host.poller.dispatch()

    def _tell_reset(self) -> None:
        """§5.10.6.7, once the guest has given a buffer for it."""
        queue = self.queues[EVENT]
        while self._reset_due:
            chain = queue.pop()
            if chain is not None:
                self._reset_due = False
                queue.push(chain, chain.write(EVENT_TRANSPORT_RESET.to_bytes(4, "little")))
            elif not queue.enable_kicks():
                break
        queue.flush()


def _kernels_own(open_vhost: Callable[[str], VhostVsockBackend], label: str) -> int:
    """The feature bits of its own that vhost-vsock offers."""
    known = kernel_features(open_vhost, label)
    if known is None or RING_FEATURES & ~known:
        raise Unsupported(f"{label}: this host has no vhost-vsock, or an old one, and no socket path is set")
    return known & bits(F_SEQPACKET)
