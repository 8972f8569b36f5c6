"""The network device (virtio 1.2 §5.1): queue pairs on a tap, a control queue, the link's state.

    queue 2n      receive     cable ──> guest     netdev.receive  \\ or both by vhost-net (vhost.net)
    queue 2n + 1  transmit    guest ──> cable     netdev.transmit /
    queue 2N      control     netdev.control, netdev.filter; N is 1 unless VIRTIO_NET_F_MQ is negotiated

Who serves the queue pairs ("the data plane") is decided at each start: vhost-net where it is there, allowed, and the link
is up; else we. With vhost-net MAC and VLAN filters have no effect and statistics stand still: both are best effort, and
the tap has counters of its own. The control queue is served in the machine's pool, because a tap's settings wait for the
kernel's lock on network devices.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.kernel.vhost import VhostNet
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.netdev import control
from appliance.vmm.netdev import features as f
from appliance.vmm.netdev.backend import NetBackend, NetStatistics
from appliance.vmm.netdev.control import ControlClass, ControlRequest
from appliance.vmm.netdev.filter import ReceiveFilter
from appliance.vmm.netdev.header import SegmentTypes
from appliance.vmm.netdev.receive import Fed, Receiver
from appliance.vmm.netdev.state import NetState
from appliance.vmm.netdev.transmit import Transmitter
from appliance.vmm.vhost.backend import DataPlane, VhostNetBackend
from appliance.vmm.vhost.net import RING_FEATURES, VhostNetPlane
from appliance.vmm.vhost.rings import kernel_features
from appliance.vmm.virtio.bulk import BulkQueue
from appliance.vmm.virtio.consts import DeviceId
from appliance.vmm.virtio.device import VirtioDevice
from appliance.vmm.virtio.queue import Chain

RX_SIZE: Final = 1024  # with 1.5 KiB buffers, room for two dozen segmented frames of 64 KiB
TX_SIZE: Final = 256
CONTROL_SIZE: Final = 64
MAX_PAIRS: Final = 64

STATUS_LINK_UP, STATUS_ANNOUNCE = 1, 2  # §5.1.4
_CONFIG = struct.Struct("<6sHHH")  # mac, status, max_virtqueue_pairs, mtu


@dataclass(frozen=True, slots=True, kw_only=True)
class NetOptions:
    """`mac` is six bytes, unicast. `mtu` is told to the guest when given: 68 to 65535."""

    mac: bytes
    mtu: int | None = None
    link_up: bool = True
    data_plane: DataPlane = DataPlane.AUTO


class VirtioNet(VirtioDevice):
    """A network card on `cable`, which is closed with it."""

    device_id = DeviceId.NET
    device_state_type = NetState
    queue_type = BulkQueue

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        *,
        cable: NetBackend,
        options: NetOptions,
        open_vhost: Callable[[str], VhostNetBackend] = VhostNet,
    ) -> None:
        """Raises `Unsupported` when vhost-net is demanded and is not there, `ValueError` for impossible options."""
        if len(options.mac) != 6 or options.mac[0] & 1 or not 1 <= cable.pairs <= MAX_PAIRS:
            raise ValueError(f"{name}: address {options.mac.hex(':')}, {cable.pairs} queue pairs")
        if options.mtu is not None and not 68 <= options.mtu <= 65535:
            raise ValueError(f"{name}: MTU {options.mtu}")
        offload = _can_offload(options.data_plane, open_vhost, f"{context.label}: {name}")
        super().__init__(
            name,
            context,
            queue_sizes=[RX_SIZE, TX_SIZE] * cable.pairs + [CONTROL_SIZE],
            features=f.offered(cable.offloads, pairs=cable.pairs, mtu=options.mtu),
        )
        self.statistics = NetStatistics()
        self.link_up = options.link_up
        self._cable = cable
        self._options = options
        self._vhost = VhostNetPlane(self, cable, open_vhost) if offload else None
        bulk = [queue for queue in self.queues if isinstance(queue, BulkQueue)]  # which all are
        self._receivers = [Receiver(bulk[2 * pair], cable, pair, self.statistics) for pair in range(cable.pairs)]
        self._transmitters = [
            Transmitter(bulk[2 * pair + 1], cable, pair, self.statistics) for pair in range(cable.pairs)
        ]
        self._plane: DataPlane | None = None  # None: nobody serves the pairs
        self._cables_watched: set[int] = set()
        self._starved: set[int] = set()  # pairs whose guest has given too few buffers
        self._gone: set[int] = set()  # pairs whose cable cannot be read any more
        self._controlling = self._control_again = False
        self._power_on()

    def _power_on(self) -> None:
        self._filter = ReceiveFilter(self._options.mac)
        self._pairs = 1
        self._offloads = 0
        self._announce = False

    @property
    def data_plane(self) -> DataPlane:
        """Who serves the queue pairs, or would: `PYTHON` or `OFFLOAD`."""
        return self._plane or self._plane_wanted()

    # Configuration, §5.1.4

    def read_config(self, offset: int, size: int) -> int:
        status = STATUS_LINK_UP * self.link_up | STATUS_ANNOUNCE * self._announce
        packed = _CONFIG.pack(self._filter.mac, status, self._cable.pairs, self._options.mtu or 0)
        return int.from_bytes(packed[offset : offset + size], "little")

    def set_link(self, *, up: bool) -> None:
        """Plug or pull the cable. On the loop. What the guest sends meanwhile, and what comes for it, is dropped."""
        with self.lock:
            if up == self.link_up:
                return
            self.link_up = up
            self._tell_pairs()
            if self._plane is not None and self._plane != self._plane_wanted():
                self._stop_plane()
                self._start_plane()
        self.config_changed()

    def announce(self) -> None:
        """Have the guest tell its neighbours where it is now, after a migration; if its driver can (§5.1.6.5.4)."""
        with self.lock:
            if not (self.live and self.link_up and self.has(f.F_GUEST_ANNOUNCE)):
                return
            self._announce = True
        self.config_changed()

    # Life

    def accepts(self, features: int) -> bool:
        return f.consistent(features)

    def activate(self) -> None:
        self._power_on()
        self._starved.clear()
        if self.has(f.F_CTRL_VLAN):
            self._filter = ReceiveFilter(self._options.mac, vlans=frozenset())
        self._offloads = f.guest_offloads(self.negotiated)
        for receiver in self._receivers:
            receiver.reset()
        self._set_cable()
        self._tell_pairs()
        if not self._paused:
            self._start_plane()

    def deactivate(self) -> None:
        try:
            self._stop_plane()
        except HostError as error:  # the queues are reset anyway
            self.context.note(f"{self.name}: {error}")
        self._power_on()

    def broken(self, reason: str) -> None:
        with self.lock:
            super().broken(reason)
            try:
                self._stop_plane()
            except HostError as error:  # nothing is served any more anyway
                self.context.note(f"{self.name}: {error}")

    def pause(self) -> None:
        with self.lock:
            self._stop_plane()
            super().pause()

    def resume(self) -> None:
        with self.lock:
            super().resume()
            if self.live:
                self._start_plane()

    def busy(self) -> bool:
        return self._controlling

    def close(self) -> None:
        super().close()
        self._cable.close()

    def save_device(self) -> State:
        return NetState.of(self._filter, pairs=self._pairs, offloads=self._offloads, announce=self._announce)

    def restore_device(self, state: State) -> None:
        if not isinstance(state, NetState):
            raise Unsupported(f"{self.label}: saved state of another device")
        self._filter = state.filter(self.label)
        if not 1 <= state.pairs <= self._cable.pairs or state.offloads & ~f.guest_offloads(self.negotiated):
            raise Unsupported(f"{self.label}: saved state: {state.pairs} pairs, offloads {state.offloads:#x}")
        self._pairs, self._offloads, self._announce = state.pairs, state.offloads, state.announce
        if self.live:
            self._set_cable()
            self._tell_pairs()

    # The data plane. The lock is held.

    def _plane_wanted(self) -> DataPlane:
        return DataPlane.OFFLOAD if self._vhost is not None and self.link_up else DataPlane.PYTHON

    def _start_plane(self) -> None:
        """Raises `HostError` when vhost-net is demanded and will not; without a demand we take its place."""
        self._plane = self._plane_wanted()
        if self._plane == DataPlane.OFFLOAD and self._vhost is not None:
            try:
                self._vhost.start(self._pairs)
            except HostError as error:
                if self._options.data_plane == DataPlane.OFFLOAD:
                    self._plane = None
                    raise
                self.context.note(f"{self.name}: without vhost-net: {error}")
                self._vhost, self._plane = None, DataPlane.PYTHON
        if self._plane == DataPlane.PYTHON:
            self._watch_cables()

    def _stop_plane(self) -> None:
        """Nobody touches the pairs' memory when this has returned, but for an `on_kick` or a frame under way."""
        plane, self._plane = self._plane, None
        self._watch_cables()
        if plane == DataPlane.OFFLOAD and self._vhost is not None:
            self._vhost.stop()

    def _watch_cables(self) -> None:
        """Watch the pairs in use whose guest has room, and no others."""
        wanted = set(range(self._pairs)) - self._starved - self._gone if self._plane == DataPlane.PYTHON else set()
        for pair in self._cables_watched - wanted:
            self.context.bridge.unwatch(self._cable.fileno(pair))
        for pair in wanted - self._cables_watched:
            self.context.bridge.watch(self._cable.fileno(pair), partial(self._arrived, pair))
        self._cables_watched = wanted

    def _set_cable(self) -> None:
        """Tell the tap; one that has gone is told in vain, and drops what it is given."""
        try:
            self._cable.set_offload(f.tap_offload(self._offloads))
            self._cable.use_pairs(self._pairs)
        except HostError as error:
            self.context.note(f"{self.name}: {error}")

    def _tell_pairs(self) -> None:
        types = SegmentTypes(self.negotiated)
        for receiver, transmitter in zip(self._receivers, self._transmitters, strict=True):
            receiver.filter = self._filter if self.link_up else None
            receiver.mergeable = self.has(f.F_MRG_RXBUF)
            receiver.checksums = self.has(f.F_GUEST_CSUM)
            receiver.mtu = self._options.mtu if self.has(f.F_MTU) else None
            transmitter.types, transmitter.link_up = types, self.link_up

    def call_changed(self, index: int) -> None:
        with self.lock:
            if self._vhost is not None:
                self._vhost.call_changed(index)

    # On the loop

    def on_kick(self, index: int) -> None:
        if index == self._control_index:
            self._control_kicked()
        elif index < 2 * self._cable.pairs and self._plane == DataPlane.PYTHON:
            if index & 1:
                if self._transmitters[index // 2].run():
                    self.kick(index)
            elif index // 2 in self._starved:
                self._receive(index // 2)

    def _arrived(self, pair: int) -> None:
        """The cable has frames."""
        with self.lock:
            if pair not in self._cables_watched:  # a vCPU's `watch` may have come to the loop after our `unwatch`
                self.context.bridge.unwatch(self._cable.fileno(pair))
                return
        self.guard(partial(self._receive, pair))

    def _receive(self, pair: int) -> None:
        fed = self._receivers[pair].run()
        if fed == Fed.GONE:
            self.context.note(f"{self.name}: the cable has gone")
        if fed == Fed.ENOUGH and pair not in self._starved:
            return  # as it was
        with self.lock:
            self._starved.discard(pair)
            if fed != Fed.ENOUGH:
                (self._starved if fed == Fed.STARVED else self._gone).add(pair)
            self._watch_cables()

    # The control queue, §5.1.6.5, in the pool

    @property
    def _control_index(self) -> int:
        return 2 * self._cable.pairs if self.has(f.F_MQ) else 2

    def _control_kicked(self) -> None:
        with self.lock:
            if self._controlling:
                self._control_again = True
                return
            self._controlling = True
        self.context.bridge.submit(self._control)

    def _control(self) -> None:
        try:
            self.guard(lambda: self.serve(self._control_index, self._answer))
        finally:
            with self.lock:
                self._controlling = False
                again, self._control_again = self._control_again, False
            if again:
                self.kick(self._control_index)

    def _answer(self, chain: Chain) -> int:
        request = control.read_request(chain)
        done = request is not None and self._obey(request)
        return chain.write(bytes([control.OK if done else control.ERROR]))

    def _obey(self, request: ControlRequest) -> bool:
        """Whether it could be done. A class whose feature was not negotiated cannot."""
        data = request.data
        match request.kind, request.command:
            case ControlClass.RX, command if self.has(f.F_CTRL_RX):
                return self._set_filter(self._filter.with_mode(command, data))
            case ControlClass.MAC, control.MAC_TABLE_SET if self.has(f.F_CTRL_RX):
                return self._set_filter(self._filter.with_table(data))
            case ControlClass.MAC, control.MAC_ADDR_SET if self.has(f.F_CTRL_MAC_ADDR):
                return self._set_filter(self._filter.with_mac(data))
            case ControlClass.VLAN, control.VLAN_ADD | control.VLAN_DEL if self.has(f.F_CTRL_VLAN):
                return self._set_filter(self._filter.with_vlan(data, added=request.command == control.VLAN_ADD))
            case ControlClass.ANNOUNCE, control.ANNOUNCE_ACK if self.has(f.F_GUEST_ANNOUNCE):
                self._announce = False
                return True
            case ControlClass.MQ, control.MQ_VQ_PAIRS_SET if self.has(f.F_MQ):
                return self._use_pairs(control.number(data, 2))
            case ControlClass.GUEST_OFFLOADS, control.GUEST_OFFLOADS_SET if self.has(f.F_CTRL_GUEST_OFFLOADS):
                return self._use_offloads(control.number(data, 8))
        return False

    def _set_filter(self, wanted: ReceiveFilter | None) -> bool:
        if wanted is None:
            return False
        with self.lock:
            self._filter = wanted
            self._tell_pairs()
        return True

    def _use_pairs(self, count: int | None) -> bool:
        """§5.1.6.5.5: the driver has configured these queues before."""
        if count is None or not 1 <= count <= self._cable.pairs:
            return False
        if not all(queue.enabled for queue in self.queues[: 2 * count]):
            return False
        try:
            self._cable.use_pairs(count)
            with self.lock:
                self._pairs = count
                if self._plane == DataPlane.OFFLOAD and self._vhost is not None:
                    self._vhost.stop(keep=count)
                    self._vhost.start(count)
                self._starved = {pair for pair in self._starved if pair < count}
                self._watch_cables()
        except HostError as error:
            self.context.note(f"{self.name}: {count} queue pairs: {error}")
            return False
        return True

    def _use_offloads(self, offloads: int | None) -> bool:
        """§5.1.6.5.6: any of those negotiated."""
        if offloads is None or offloads & ~f.guest_offloads(self.negotiated):
            return False
        try:
            self._cable.set_offload(f.tap_offload(offloads))
        except HostError as error:
            self.context.note(f"{self.name}: {error}")
            return False
        self._offloads = offloads
        return True


def _can_offload(wanted: DataPlane, open_vhost: Callable[[str], VhostNetBackend], label: str) -> bool:
    if wanted == DataPlane.PYTHON:
        return False
    known = kernel_features(open_vhost, label)
    fit = known is not None and not RING_FEATURES & ~known
    if not fit and wanted == DataPlane.OFFLOAD:
        raise Unsupported(f"{label}: this host has no vhost-net, or an old one")
    return fit
