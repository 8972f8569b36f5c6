"""Name servers that a DHCP server told the host for a container: written inside, where the container has none of its own.

Where the host asks by DHCP nothing inside hears the answer. What the answer says of name servers goes into the container's
`/etc/resolv.conf` when it comes, when it changes, and after each start; `nameserver` in the configuration is preferred.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from appliance.errors import ApplianceError
from appliance.model.guest import GuestId
from appliance.services.applications import is_application
from appliance.services.guest_runtime import GuestRuntime
from appliance.services.ports.network import NetworkBackend
from appliance.services.ports.running_guest import RunningGuest
from appliance.tasks import TaskScope

log = logging.getLogger(__name__)


@runtime_checkable
class ResolvingContainer(Protocol):
    """The part of a running container that takes name servers."""

    async def renew_resolver(self, servers: Sequence[str], search_domain: str) -> None:
        """Have names resolved by `servers`. Raises `ApplianceError`."""


class LearnedResolvers:
    """See the module's docstring. `find` is the guest with this id, None when there is none."""

    def __init__(
        self, network: NetworkBackend, scope: TaskScope, find: Callable[[GuestId], GuestRuntime | None]
    ) -> None:
        self._network, self._scope, self._find = network, scope, find
        self._due: set[GuestId] = set()
        self._writing: set[GuestId] = set()
        network.on_learned(self._heard)

    def started(self, guest: GuestRuntime, running: RunningGuest) -> None:
        """A guest runs, started or found."""
        if isinstance(running, ResolvingContainer):
            self._heard(guest.guest_id)

    def _heard(self, guest_id: GuestId) -> None:
        self._due.add(guest_id)
        if guest_id not in self._writing:
            self._writing.add(guest_id)
            self._scope.start(self._write(guest_id), name=f"name servers of ct {guest_id}")

    async def _write(self, guest_id: GuestId) -> None:
        """One writer a guest, so that the last word is the newest."""
        try:
            while guest_id in self._due:
                self._due.discard(guest_id)
                await self._tell(guest_id)
        finally:
            self._writing.discard(guest_id)

    async def _tell(self, guest_id: GuestId) -> None:
        guest, servers = self._find(guest_id), self._network.learned_resolvers(guest_id)
        running: object = guest.running if guest is not None else None
        if guest is None or not servers or not isinstance(running, ResolvingContainer):
            return  # one that is starting is told once it runs
        config = guest.stored.record.config
        unmanaged = config.get("ostype") == "unmanaged" and not is_application(guest)
        if config.get("nameserver") or unmanaged:
            return
        try:
            await running.renew_resolver(servers, config.get("searchdomain", ""))
        except ApplianceError as error:
            log.warning("%s: its DHCP server's name servers %s are not set: %s", guest.label, ", ".join(servers), error)
        else:
            guest.tell(f"names are resolved by {', '.join(servers)}, as the DHCP server says")
