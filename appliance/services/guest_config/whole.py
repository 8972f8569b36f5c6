"""Whether a configuration as a whole makes a guest."""

from __future__ import annotations

from collections.abc import Mapping

from appliance.model.guest import GuestKind
from appliance.services.guest_config.ct_spec import to_ct_spec
from appliance.services.guest_config.vm_spec import to_vm_spec


def check(kind: GuestKind, guest_id: int, config: Mapping[str, str]) -> None:
    """Raises `InvalidParameter` naming the keys that do not fit together, as a start would."""
    if kind is GuestKind.QEMU:
        to_vm_spec(guest_id, config)
    else:
        to_ct_spec(guest_id, config, id_base=0, id_count=65_536)
