"""The services a request may use, in one immutable value made by the composition root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from appliance.clock import Clock
    from appliance.config import Config
    from appliance.events import EventBus
    from appliance.model.guest import Capabilities
    from appliance.services.access import AccessService
    from appliance.services.audit import AuditLog
    from appliance.services.console import ConsoleService
    from appliance.services.directory_mappings import DirectoryMappings
    from appliance.services.guests import GuestService
    from appliance.services.image_build import ImageBuilder
    from appliance.services.images import ImageService
    from appliance.services.metrics import MetricsService
    from appliance.services.network import NetworkService
    from appliance.services.node import NodeService
    from appliance.services.storage import StorageService
    from appliance.services.tasks import TaskService
    from appliance.services.templates import TemplateService
    from appliance.state.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """Everything `web/` talks to; it decides nothing itself."""

    config: Config
    clock: Clock
    events: EventBus
    store: Store
    tasks: TaskService
    access: AccessService
    audit: AuditLog
    guests: GuestService
    storage: StorageService
    network: NetworkService
    node: NodeService
    metrics: MetricsService
    consoles: ConsoleService
    templates: TemplateService
    engines: Sequence[Capabilities] = ()
    """What the host's engines can do, as they said at the start."""
    directory_mappings: DirectoryMappings
    images: ImageService
    builder: ImageBuilder
