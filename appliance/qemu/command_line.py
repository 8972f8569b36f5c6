"""VmSpec + VmResources + Launch -> the argument vector of one QEMU. Pure: no file is looked at, nothing is guessed.

Order: identity, machine and processor, memory, firmware, monitor, drives, other devices, the user's own arguments.
QEMU starts with the vCPUs stopped (-S); the engine lets them go when everything about the VM is on record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from appliance.model.guest import VmResources, VmSpec
from appliance.qemu.capabilities import SANDBOX
from appliance.qemu.cpu import cpu_argument
from appliance.qemu.devices import Devices, device_arguments, has_display
from appliance.qemu.drives import drive_arguments, vars_node
from appliance.qemu.launch import VIRT, Launch, board_of, machine_name
from appliance.qemu.options import as_json, as_list
from appliance.qemu.process import QMP_FD

_TCG_CACHE_MIB = 256  # of translated code; QEMU's default is a gigabyte a guest


def build(spec: VmSpec, resources: VmResources, launch: Launch) -> list[str]:
    """The argv. Raises `HostError` for a disk or NIC without its resource; `spec` has passed `refusal.reasons`."""
    devices = Devices(spec)
    return [
        launch.emulator.binary,
        *_identity(spec, launch),
        *_machine(spec, launch),
        *_firmware(launch),
        *_monitor(launch),
        *_direct_boot(spec, resources),
        *drive_arguments(spec, resources, launch, devices),
        *device_arguments(spec, resources, launch, devices),
        *spec.extra_args,
    ]


def _identity(spec: VmSpec, launch: Launch) -> Iterator[str]:
    yield from ("-name", as_list("", {"guest": f"vm {spec.guest_id} {spec.name}", "debug-threads": "on"})[1:])
    yield from ("-uuid", spec.uuid)
    yield from ("-pidfile", str(launch.paths.pid))
    yield from ("-msg", "timestamp=on")
    yield from ("-no-user-config", "-nodefaults", "-S")
    if launch.emulator.sandbox:
        yield from ("-sandbox", SANDBOX)
    # A guest that panics decides itself what follows (kernel.panic=10 restarts it); we are told either way.
    yield from ("-action", "panic=none")
    if spec.watchdog:
        yield from ("-action", f"watchdog={spec.watchdog}")


def _machine(spec: VmSpec, launch: Launch) -> Iterator[str]:
    board = board_of(spec.machine, spec.arch)
    serial_only = board != VIRT and not has_display(spec) and 0 in spec.serials
    options: Mapping[str, object] = {
        "memory-backend": None if spec.memory_backing.numa else "ram",
        "pflash0": "pflash0" if launch.vars else None,
        "pflash1": "pflash1" if launch.vars else None,
        "acpi": None if spec.acpi else "off",
        "graphics": "off" if serial_only else None,  # SeaBIOS then talks on serial0
        "gic-version": ("max" if launch.accelerator == "tcg" else "host") if board == VIRT else None,
    }
    yield from ("-machine", as_list(machine_name(spec.machine, spec.arch), options))
    if launch.accelerator == "kvm":
        yield from ("-accel", "kvm")
    else:
        # x86 promises a stronger memory order than other hosts keep: its vCPUs then share one thread there
        thread = "multi" if spec.arch != "x86_64" or launch.facts.host_arch == "x86_64" else "single"
        yield from ("-accel", as_list("tcg", {"thread": thread, "tb-size": _TCG_CACHE_MIB}))
    yield from ("-cpu", cpu_argument(spec, launch.accelerator))
    maximum = max(spec.sockets * spec.cores, spec.vcpus)
    topology = {"sockets": spec.sockets, "cores": maximum // spec.sockets, "threads": 1, "maxcpus": maximum}
    yield from ("-smp", as_list(f"cpus={spec.vcpus}", topology))
    yield from ("-m", str(spec.memory_mib))
    yield from _memory(spec, launch)
    is_x86 = spec.arch == "x86_64"
    clock = {"base": "localtime" if spec.local_time else "utc", "driftfix": "slew" if is_x86 else None}
    yield from ("-rtc", as_list("clock=host", clock))
    if launch.accelerator == "kvm" and is_x86:
        yield from ("-global", "kvm-pit.lost_tick_policy=discard")
    if spec.boot_order:
        yield from ("-boot", "strict=on")


def _memory(spec: VmSpec, launch: Launch) -> Iterator[str]:
    """One object, or one for each NUMA node. A memfd can be shared: with virtiofsd."""
    kind: dict[str, object] = {"share": True}
    if launch.hugepages_kib:
        kind |= {"hugetlb": True, "hugetlbsize": launch.hugepages_kib << 10, "prealloc": True}
    elif spec.memory_backing.prealloc:
        kind |= {"prealloc": True}

    def made(name: str, memory_mib: int, **more: object) -> str:
        return as_json({"qom-type": "memory-backend-memfd", "id": name, "size": memory_mib << 20, **kind, **more})

    if not spec.memory_backing.numa:
        yield from ("-object", made("ram", spec.memory_mib))
    for node in spec.memory_backing.numa:
        name = f"ram-node{node.index}"
        host = {"host-nodes": list(node.host_nodes), "policy": node.policy} if node.policy else {}
        yield from ("-object", made(name, node.memory_mib, **host))
        cpus = "".join(f",cpus={cpu}" for cpu in node.cpus)
        yield from ("-numa", f"node,nodeid={node.index}{cpus},memdev={name}")


def _firmware(launch: Launch) -> Iterator[str]:
    if launch.vars is None or launch.emulator.firmware is None:
        return
    code = {"driver": "file", "filename": str(launch.emulator.firmware.code), "read-only": True}
    yield from ("-blockdev", as_json({"driver": "raw", "node-name": "pflash0", "read-only": True, "file": code}))
    yield from ("-blockdev", as_json(vars_node(launch.vars)))


def _direct_boot(spec: VmSpec, resources: VmResources) -> Iterator[str]:
    if "kernel" not in resources.disks:
        return
    yield from ("-kernel", str(resources.disks["kernel"].path))
    if "initrd" in resources.disks:
        yield from ("-initrd", str(resources.disks["initrd"].path))
    if spec.cmdline:
        yield from ("-append", spec.cmdline)


def _monitor(launch: Launch) -> Iterator[str]:
    yield from ("-chardev", f"socket,id=chardev-qmp,fd={QMP_FD},server=on,wait=off")
    yield from ("-mon", "chardev=chardev-qmp,mode=control")
