"""The addresses guests have by DHCP on the managed bridge, as the lists show them: read again every 10 s."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from appliance.clock import Clock
from appliance.errors import ApplianceError
from appliance.services.ports.network import NetworkBackend

log = logging.getLogger(__name__)

ROUND_S = 10.0


class GuestAddresses:
    """Run `watch` for as long as it shall know."""

    def __init__(self, network: NetworkBackend, clock: Clock) -> None:
        self._network = network
        self._clock = clock
        self._leases: Mapping[str, str] = {}

    def of(self, macs: Iterable[str]) -> tuple[str, ...]:
        """The addresses that belong to these MACs (upper case), in their order."""
        return tuple(self._leases[mac] for mac in macs if mac in self._leases)

    async def watch(self) -> None:
        """Read them, again and again. Until cancelled."""
        while True:
            try:
                self._leases = await self._network.leases()
            except ApplianceError as error:
                log.debug("addresses of guests: %s", error)
            await self._clock.sleep(ROUND_S)
