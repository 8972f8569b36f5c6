"""From a VM's configuration texts to the `VmSpec` an engine starts from. Defaults are PVE's.

Rules that concern several keys are checked here: memory and balloon, vCPUs, boot devices, firmware disk, architecture.
"""

from __future__ import annotations

import shlex
import uuid
from collections.abc import Iterable, Mapping

from appliance.errors import InvalidParameter
from appliance.model.guest import CloudInitSpec, GuestId, GuestKind, NicSpec, VmDisk, VmShare, VmSpec
from appliance.services.guest_config.boot import boot_order
from appliance.services.guest_config.disks import DiskConfig, disks
from appliance.services.guest_config.formats import decode, ssh_key_lines
from appliance.services.guest_config.memory_spec import memory_backing
from appliance.services.guest_config.parsing import parse_one
from appliance.services.guest_config.values import NOT_SUPPORTED, is_true
from appliance.services.guest_config.vm_schema import VM_KEYS
from appliance.services.guest_config.volumes import EmptyTray, Existing, HostPath, Memory

_UUID_SPACE = uuid.UUID("3b5f0f6e-6f0e-4d43-9a6c-6f6a0c5d9f10")  # for machines without an smbios1 UUID
_MACHINES = {"pc": "i440fx", "q35": "q35", "virt": "virt"}
VCPUS_LIMIT = 8192


def to_vm_spec(guest_id: int, config: Mapping[str, str]) -> VmSpec:
    """The machine that `config` (stored texts, as `parse` made them) describes. Raises `InvalidParameter`.

    Works before allocation too, to check a request as a whole: a disk still to be made has `STORAGE:new` as volume.
    """
    arch = _text(config, "arch")
    sockets = int(config.get("sockets") or _text(config, "smp"))
    cores = int(_text(config, "cores"))
    memory_mib = memory(config)
    found = {disk.slot: disk for disk in disks(GuestKind.QEMU, config) if not disk.is_unused}
    machine = _machine(config, arch)
    cpu = _part(config, "cpu")
    has_cloudinit = any(disk.is_cloudinit for disk in found.values())
    return VmSpec(
        guest_id=GuestId(guest_id),
        name=config.get("name", f"VM{guest_id}"),
        uuid=_part(config, "smbios1").get("uuid") or str(uuid.uuid5(_UUID_SPACE, str(guest_id))),
        engine="" if _text(config, "engine") == "auto" else config["engine"],
        arch=arch,
        machine=machine,
        firmware=_firmware(config, arch),
        accelerator="auto" if is_true(_text(config, "kvm")) else "tcg",
        cpu_model=cpu.get("cputype", "kvm64" if arch == "x86_64" else ""),
        cpu_flags=tuple(flag for flag in cpu.get("flags", "").split(";") if flag),
        sockets=sockets,
        cores=cores,
        vcpus=_vcpus(config, sockets * cores),
        cpu_limit=float(_text(config, "cpulimit")),
        cpu_units=int(_text(config, "cpuunits")),
        memory_mib=memory_mib,
        balloon_min_mib=_balloon(config, memory_mib),
        memory_backing=memory_backing(config, memory_mib=memory_mib, sockets=sockets, cores=cores),
        shares=_shares(config),
        disks=tuple(_disk(disk) for disk in found.values() if disk.slot != "efidisk0"),
        efi_disk=_disk(found["efidisk0"]) if "efidisk0" in found else None,
        scsi_controller=_text(config, "scsihw"),
        nics=tuple(_nic(config, slot, told_by_cloud_init=has_cloudinit) for slot in _slots(config, "net")),
        serials=tuple(int(slot[len("serial") :]) for slot in _slots(config, "serial")),
        display=_part(config, "vga").get("type", "std"),
        # as PVE does: devices of the order that are gone are passed over
        boot_order=tuple(slot for slot in _boot_slots(config, found.values()) if slot in config),
        rng="rng0" in config,
        agent=is_true(_part(config, "agent").get("enabled", "0")),
        acpi=is_true(_text(config, "acpi")),
        tablet=is_true(_text(config, "tablet")),
        local_time=is_true(config.get("localtime", "1" if _text(config, "ostype").startswith("w") else "0")),
        os_type=_text(config, "ostype"),
        keyboard=config.get("keyboard", ""),
        cloud_init=_cloud_init(config) if has_cloudinit else None,
        extra_args=_extra_args(config),
        kernel=config.get("kernel", ""),
        initrd=config.get("initrd", ""),
        cmdline=config.get("cmdline", ""),
        data_plane=_text(config, "dataplane"),
        vsock=is_true(_text(config, "vsock")),
        watchdog=_part(config, "watchdog").get("action", "reset") if config.get("watchdog") else "",
    )


def boot_slots(config: Mapping[str, str]) -> tuple[str, ...]:
    """The boot order in slots. Raises `InvalidParameter` for a disk text that cannot be read."""
    return _boot_slots(config, [disk for disk in disks(GuestKind.QEMU, config) if not disk.is_unused])


def _boot_slots(config: Mapping[str, str], in_order: Iterable[DiskConfig]) -> tuple[str, ...]:
    found = [disk for disk in in_order if disk.slot != "efidisk0"]
    return boot_order(
        config.get("boot", ""),
        bootdisk=config.get("bootdisk", ""),
        disks=[disk.slot for disk in found if not disk.is_cdrom],
        cdroms=[disk.slot for disk in found if disk.is_cdrom and not disk.is_cloudinit],
        nics=_slots(config, "net"),
    )


def memory(config: Mapping[str, str]) -> int:
    """Memory in MiB."""
    return int(_part(config, "memory").get("current", "512"))


def _text(config: Mapping[str, str], name: str) -> str:
    return config.get(name) or VM_KEYS.default(name)


def _part(config: Mapping[str, str], name: str) -> dict[str, str]:
    return parse_one(GuestKind.QEMU, name, config[name]) if config.get(name) else {}


def _slots(config: Mapping[str, str], family: str) -> list[str]:
    names = (name for name in config if name.startswith(family) and name[len(family) :].isdecimal())
    return sorted(names, key=lambda name: int(name[len(family) :]))


def _machine(config: Mapping[str, str], arch: str) -> str:
    default = "pc" if arch == "x86_64" else "virt"
    machine = _part(config, "machine").get("type", default)
    if (machine == "virt") != (arch == "aarch64"):
        raise InvalidParameter({"machine": f"machine type '{machine}' does not exist for arch '{arch}'"})
    return _MACHINES[machine]


def _firmware(config: Mapping[str, str], arch: str) -> str:
    firmware = config.get("bios") or ("seabios" if arch == "x86_64" else "ovmf")
    if arch == "aarch64" and firmware != "ovmf":
        raise InvalidParameter({"bios": "arch 'aarch64' needs bios 'ovmf'"})
    return firmware


def _vcpus(config: Mapping[str, str], most: int) -> int:
    if most > VCPUS_LIMIT:
        raise InvalidParameter({"cores": f"sockets * cores is {most}, at most {VCPUS_LIMIT} are possible"})
    vcpus = int(config.get("vcpus") or most)
    if vcpus > most:
        raise InvalidParameter({"vcpus": f"MAX {most} vcpus allowed per VM (sockets * cores)"})
    return vcpus


def _balloon(config: Mapping[str, str], memory_mib: int) -> int | None:
    balloon = int(config.get("balloon") or memory_mib)
    if balloon > memory_mib:
        raise InvalidParameter(
            {"balloon": f"balloon value too large (must be smaller than assigned memory {memory_mib})"}
        )
    return balloon or None


def _disk(disk: DiskConfig) -> VmDisk:
    match disk.volume:
        case Existing(volume_id):
            volume: str | None = str(volume_id)
        case EmptyTray():
            volume = None
        case HostPath() | Memory():
            raise InvalidParameter({disk.slot: "a disk is a volume of a storage"})
        case request:
            volume = f"{request.storage}:new"
    options = disk.options
    return VmDisk(
        slot=disk.slot,
        volume=volume,
        cdrom=disk.is_cdrom,
        cloudinit=disk.is_cloudinit,
        cache=options.get("cache", "none"),
        discard=options.get("discard") == "on",
        ssd=is_true(options.get("ssd", "0")),
        iothread=is_true(options.get("iothread", "0")),
        read_only=disk.is_cdrom or is_true(options.get("ro", "0")),
        serial=decode(options.get("serial", "")),
        size_bytes=disk.size_bytes,
        aio=options.get("aio", ""),
    )


def _nic(config: Mapping[str, str], slot: str, *, told_by_cloud_init: bool) -> NicSpec:
    """`ip` is what the guest is told by its cloud-init drive; without one `ipconfigN` reaches nobody."""
    ip_config = f"ipconfig{slot[len('net') :]}"
    addresses = _part(config, ip_config) if told_by_cloud_init else {}
    values = parse_one(GuestKind.QEMU, slot, config[slot])
    rate = values.get("rate", "0")
    if "bridge" not in values:
        raise InvalidParameter({slot: f"a bridge is needed: user-mode networking is {NOT_SUPPORTED}"})
    return NicSpec(
        slot=slot,
        model=values["model"],
        mac=values.get("macaddr", ""),
        bridge=values["bridge"],
        firewall=is_true(values.get("firewall", "0")),
        vlan=int(values["tag"]) if "tag" in values else None,
        rate_mbyte_s=float(rate) if float(rate) > 0 else None,
        mtu=int(values["mtu"]) if "mtu" in values else None,
        link_down=is_true(values.get("link_down", "0")),
        queues=max(1, int(values.get("queues", "1"))),
        ip=addresses.get("ip", ""),
        gateway=addresses.get("gw", ""),
        ip6=addresses.get("ip6", ""),
        gateway6=addresses.get("gw6", ""),
    )


def _shares(config: Mapping[str, str]) -> tuple[VmShare, ...]:
    found: dict[str, VmShare] = {}
    for slot in _slots(config, "virtiofs"):
        values = parse_one(GuestKind.QEMU, slot, config[slot])
        acl = is_true(values.get("expose-acl", "0"))
        share = VmShare(
            slot=slot,
            mapping=values["dirid"],
            cache=values.get("cache", "auto"),
            direct_io=is_true(values.get("direct-io", "0")),
            acl=acl,
            xattr=acl or is_true(values.get("expose-xattr", "0")),
        )
        if share.mapping in found:  # the guest could not tell them apart
            raise InvalidParameter({slot: f"'{share.mapping}' is shared as {found[share.mapping].slot} already"})
        found[share.mapping] = share
    return tuple(found.values())


def _cloud_init(config: Mapping[str, str]) -> CloudInitSpec:
    return CloudInitSpec(
        user=config.get("ciuser", ""),
        password_hash=config.get("cipassword", ""),
        ssh_keys=ssh_key_lines(decode(config.get("sshkeys", ""))),
        ip_configs={int(slot[len("ipconfig") :]): config[slot] for slot in _slots(config, "ipconfig")},
        nameserver=config.get("nameserver", ""),
        search_domain=config.get("searchdomain", ""),
        upgrade=is_true(_text(config, "ciupgrade")),
    )


def _extra_args(config: Mapping[str, str]) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(config.get("args", "")))
    except ValueError as error:
        raise InvalidParameter({"args": f"cannot be split into arguments: {error}"}) from error
