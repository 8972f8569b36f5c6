"""Guest configuration: PVE's flat keys and property strings on one side, typed specifications on the other. Pure.

    request --parse--> texts in normal form --plan_update / create_config--> texts to store
    stored texts --to_vm_spec / to_ct_spec--> what an engine starts        --masked--> what a client may read

`values` and `formats` check single values, `property_string` the comma-separated ones; `vm_schema`, `vm_devices` and
`ct_schema` are the tables of every key of PVE 9; `volumes` and `disks` say which volume a disk means and what is still
to be made; `boot` the boot order; `whole` checks what must fit together; `privileges` who may change what. No I/O
anywhere (a clear password is hashed by libcrypt: hash it before, in a thread).
"""

from appliance.services.guest_config import conf_text
from appliance.services.guest_config.boot import boot_order
from appliance.services.guest_config.changes import (
    UpdatePlan,
    check_digest,
    clone_config,
    create_config,
    fill_macs,
    free_unused_slot,
    name_key,
    plan_update,
)
from appliance.services.guest_config.ct_spec import to_ct_spec
from appliance.services.guest_config.disks import (
    DiskConfig,
    disks,
    is_disk_slot,
    owned_volumes,
    parse_disk,
    print_disk,
    referenced_volumes,
)
from appliance.services.guest_config.figures import disk_bytes
from appliance.services.guest_config.formats import ssh_key_lines
from appliance.services.guest_config.live import Attach, Detach, LivePlan, SetLink, Step, hotplug_kinds, live_plan
from appliance.services.guest_config.parsing import (
    applied_live,
    digest,
    key_table,
    masked,
    parse,
    parse_one,
    print_one,
)
from appliance.services.guest_config.passwords import PASSWORD_MASK, as_password_hash, hash_password
from appliance.services.guest_config.pending import Pending, pending, revert
from appliance.services.guest_config.privileges import (
    SYSTEM,
    Requirement,
    bridge_requirements,
    copy_requirements,
    required,
    restored_over,
    space_requirement,
    volume_requirement,
)
from appliance.services.guest_config.property_string import PropertySchema
from appliance.services.guest_config.sizes import format_size, parse_size, resize_target
from appliance.services.guest_config.snapshots import rolled_back, snapshot_config, snapshot_volumes
from appliance.services.guest_config.vm_spec import boot_slots, to_vm_spec
from appliance.services.guest_config.volumes import (
    Allocate,
    CloudInitDrive,
    EmptyTray,
    Existing,
    HostPath,
    Import,
    VolumeRef,
    parse_volume,
)
from appliance.services.guest_config.whole import check

__all__ = [
    "PASSWORD_MASK",
    "SYSTEM",
    "Allocate",
    "Attach",
    "CloudInitDrive",
    "Detach",
    "DiskConfig",
    "EmptyTray",
    "Existing",
    "HostPath",
    "Import",
    "LivePlan",
    "Pending",
    "PropertySchema",
    "Requirement",
    "SetLink",
    "Step",
    "UpdatePlan",
    "VolumeRef",
    "applied_live",
    "as_password_hash",
    "boot_order",
    "boot_slots",
    "bridge_requirements",
    "check",
    "check_digest",
    "clone_config",
    "conf_text",
    "copy_requirements",
    "create_config",
    "digest",
    "disk_bytes",
    "disks",
    "fill_macs",
    "format_size",
    "free_unused_slot",
    "hash_password",
    "hotplug_kinds",
    "is_disk_slot",
    "key_table",
    "live_plan",
    "masked",
    "name_key",
    "owned_volumes",
    "parse",
    "parse_disk",
    "parse_one",
    "parse_size",
    "parse_volume",
    "pending",
    "plan_update",
    "print_disk",
    "print_one",
    "referenced_volumes",
    "required",
    "resize_target",
    "restored_over",
    "revert",
    "rolled_back",
    "snapshot_config",
    "snapshot_volumes",
    "space_requirement",
    "ssh_key_lines",
    "to_ct_spec",
    "to_vm_spec",
    "volume_requirement",
]  # fmt: skip
