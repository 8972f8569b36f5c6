"""The disk (virtio 1.2 §5.2), served by a back end: QEMU's storage daemon for images we do not read ourselves, or for
speed. Its configuration and its features are the back end's, within what the disk in Python has as well (`virtio.blk`), so
that a saved machine may go on with either.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance.errors import HostError, Unsupported
from appliance.vmm.block import layout as b
from appliance.vmm.block.backend import SECTOR
from appliance.vmm.block.layout import BlkState
from appliance.vmm.device import DeviceContext, State
from appliance.vmm.vhost_user.client import VhostUserClient
from appliance.vmm.vhost_user.device import Served, VhostUserDevice
from appliance.vmm.vhost_user.messages import ProtocolFeature
from appliance.vmm.vhost_user.process import Helper
from appliance.vmm.virtio.consts import DeviceId, bits

QUEUE_SIZE: Final = 128
_CAPACITY = struct.Struct("<Q")
_FEATURES = (b.F_SEG_MAX, b.F_BLK_SIZE, b.F_FLUSH, b.F_TOPOLOGY, b.F_CONFIG_WCE, b.F_WRITE_ZEROES)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserBlkOptions:
    """`writeback`: the disk has a write cache that the guest must flush. `discard`: it may give space back."""

    queues: int = 1
    writeback: bool = True
    discard: bool = False
    read_only: bool = False


class VhostUserBlk(VhostUserDevice):
    """A disk behind `helper`. `grow` makes the image larger there; it blocks, and raises `HostError`."""

    device_id = DeviceId.BLOCK
    device_state_type = BlkState

    def __init__(
        self,
        name: str,
        context: DeviceContext,
        *,
        helper: Helper,
        client: VhostUserClient,
        grow: Callable[[int], None],
        options: UserBlkOptions | None = None,
    ) -> None:
        """Blocking: asks the back end for its configuration. Raises `HostError`, and then `helper` and `client` are still
        the caller's."""
        self._options = options = options or UserBlkOptions()
        if not client.can(ProtocolFeature.CONFIG):
            raise HostError(f"{context.label}: {name}: the back end tells no configuration")
        try:
            self._config = client.get_config(b.CONFIG_BYTES)
            queues = min(options.queues, client.queue_count())
        except OSError as error:
            raise HostError.from_os_error(error, f"{context.label}: {name}") from error
        self._grow = grow
        self._writeback = options.writeback
        super().__init__(
            name,
            context,
            helper=helper,
            client=client,
            served=Served(
                queue_sizes=[QUEUE_SIZE] * queues,
                features=_offered(options, queues),
                reconnects=True,
                can_log=client.can(ProtocolFeature.LOG_SHMFD),
            ),
        )

    @property
    def size_bytes(self) -> int:
        """Of the disk."""
        return int(_CAPACITY.unpack_from(self._config)[0]) * SECTOR

    def read_config(self, offset: int, size: int) -> int:
        packed = bytearray(self._config)
        packed[b.WRITEBACK_AT] = self._writeback
        packed[b.QUEUES_AT : b.QUEUES_AT + 2] = len(self.queues).to_bytes(2, "little")
        return int.from_bytes(packed[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset == b.WRITEBACK_AT and size == 1 and self.has(b.F_CONFIG_WCE):
            self._writeback = bool(value & 1)
            self.settings_changed()

    def resize(self, size_bytes: int) -> None:
        """Blocking. Make the disk larger and tell the guest. Raises `HostError`, `Unsupported` to shrink it."""
        if size_bytes < self.size_bytes:
            raise Unsupported(f"{self.label}: {self.size_bytes} bytes cannot become {size_bytes}")
        self._grow(size_bytes)
        # the back end need not tell its new configuration (QEMU 7.2 does not), but checks requests against the new size
        self._config = _CAPACITY.pack(size_bytes // SECTOR) + self._config[_CAPACITY.size :]
        self.config_changed()

    def activate(self) -> None:
        if not self.has(b.F_FLUSH):  # the driver trusts every write it has been told of, §5.2.5.2
            self._writeback = False
        super().activate()

    def deactivate(self) -> None:
        self._writeback = self._options.writeback
        super().deactivate()

    def configure(self, client: VhostUserClient) -> None:
        """The write cache: never one that the guest was not promised."""
        if client.features >> b.F_CONFIG_WCE & 1:
            client.set_config(b.WRITEBACK_AT, bytes([self._writeback and self._options.writeback]))

    def save_device(self) -> State:
        super().save_device()
        return BlkState(version=b.STATE_VERSION, writeback=self._writeback)

    def restore_device(self, state: State) -> None:
        if not isinstance(state, BlkState) or state.version > b.STATE_VERSION:
            raise Unsupported(f"{self.label}: saved state of another version")
        if any(queue.save().in_flight for queue in self.queues):
            raise Unsupported(f"{self.label}: saved with requests that only the disk in Python can take up")
        self._writeback = state.writeback


def _offered(options: UserBlkOptions, queues: int) -> int:
    features = list(_FEATURES)
    if queues > 1:
        features.append(b.F_MQ)
    if options.read_only:
        features.remove(b.F_WRITE_ZEROES)
        return bits(*features, b.F_RO)
    return bits(*features, b.F_DISCARD) if options.discard else bits(*features)
