"""/nodes/{node}/qemu: virtual machines. What both kinds of guests share is in the guest_* modules; here is the rest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from appliance import cloud_init
from appliance.errors import Conflict, NotFound
from appliance.model.guest import GuestKind
from appliance.services import guest_config
from appliance.web.api import (
    guest_agent_commands,
    guest_configuration,
    guest_creation,
    guest_moves,
    guest_power,
    guest_snapshots,
)
from appliance.web.api.guest_params import AUDIT, stored_config
from appliance.web.api.guest_rows import PendingRow
from appliance.web.registry import Allow, Call, GuestParams, Resource

api = Resource()

guest_creation.declare(api, GuestKind.QEMU)
guest_creation.declare_for_vms(api)
guest_power.declare(api, GuestKind.QEMU)
guest_power.declare_for_vms(api)
guest_configuration.declare(api, GuestKind.QEMU)
guest_snapshots.declare(api, GuestKind.QEMU)
guest_moves.declare(api, GuestKind.QEMU)
guest_configuration.declare_for_vms(api)
guest_agent_commands.declare(api)

_CLOUD_INIT_KEYS = frozenset(
    {"ciuser", "cipassword", "citype", "ciupgrade", "nameserver", "searchdomain", "sshkeys", "name"}
)
FILES = {"user": "user-data", "network": "network-config", "meta": "meta-data"}


class DumpParams(GuestParams, kw_only=True):
    """Which file of the cloud-init drive."""

    type: Literal["user", "network", "meta"]


@api.get("/nodes/{node}/qemu/{vmid}/cloudinit", summary="The cloud-init settings of a VM", allow=AUDIT,
         returns=list[PendingRow])  # fmt: skip
async def read_cloud_init(call: Call, params: GuestParams) -> list[PendingRow]:
    """Never pending: the drive is written anew at each start."""
    config = guest_config.masked(stored_config(call, GuestKind.QEMU, params.vmid)[0])
    shown = sorted(key for key in config if key in _CLOUD_INIT_KEYS or key.startswith("ipconfig"))
    return [PendingRow(key=key, value=config[key]) for key in shown]


@api.put("/nodes/{node}/qemu/{vmid}/cloudinit", summary="Write the cloud-init drive of a VM anew",
         allow=Allow("/vms/{vmid}", "VM.Config.Cloudinit"))  # fmt: skip
async def write_cloud_init(call: Call, params: GuestParams) -> None:
    """The drive is always written when the VM starts, so there is nothing left to do; refused when it has none."""
    config, _ = stored_config(call, GuestKind.QEMU, params.vmid)
    _check_has_drive(params.vmid, config)


@api.get("/nodes/{node}/qemu/{vmid}/cloudinit/dump", summary="What a VM's cloud-init drive says", allow=AUDIT,
         returns=str)  # fmt: skip
async def dump_cloud_init(call: Call, params: DumpParams) -> str:
    """The text of one file, as the next start writes it; the password's hash is masked."""
    config, _ = stored_config(call, GuestKind.QEMU, params.vmid)
    return cloud_init_files(params.vmid, config)[params.type]


def cloud_init_files(vmid: int, config: Mapping[str, str]) -> Mapping[str, str]:
    """The files of a VM's drive by their types, as the next start writes them, without secrets. Raises `Conflict`, `NotFound`."""
    _check_has_drive(vmid, config)
    spec = guest_config.to_vm_spec(vmid, guest_config.masked(config))
    if spec.cloud_init is None:
        raise NotFound(f"vm {vmid}: cloud-init drive")
    files = cloud_init.render(spec.cloud_init, hostname=spec.name, nics=spec.nics)
    return {kind: files[name].decode() for kind, name in FILES.items()}


def _check_has_drive(vmid: int, config: Mapping[str, str]) -> None:
    if not any(disk.is_cloudinit and not disk.is_unused for disk in guest_config.disks(GuestKind.QEMU, config)):
        raise Conflict(f"vm {vmid}: no cloud-init drive configured")
