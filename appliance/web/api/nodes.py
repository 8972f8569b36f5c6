"""/nodes: this node, its figures and facts. One node until there is a cluster."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from appliance.errors import Unsupported
from appliance.services import host_facts
from appliance.services.node import NodeStatus
from appliance.version import PVE_API_VERSION, VERSION
from appliance.web.api.version import VERSION_REPLY, Version
from appliance.web.registry import LOGGED_IN, Allow, Call, NodeParams, Resource

api = Resource()

SYS_AUDIT = Allow("/nodes/{node}", "Sys.Audit")


class NodeRow(msgspec.Struct, kw_only=True):
    """A node; figures are left out for callers without Sys.Audit on it."""

    node: str
    id: str
    status: Literal["unknown", "online", "offline"] = "online"
    type: str = "node"
    level: str = ""
    ssl_fingerprint: str | None = None
    cpu: float | None = None
    maxcpu: int | None = None
    mem: int | None = None
    maxmem: int | None = None
    disk: int | None = None
    maxdisk: int | None = None
    uptime: int | None = None


class BootInfo(msgspec.Struct, kw_only=True):
    """How the host was booted."""

    mode: Literal["efi", "legacy-bios"]
    secureboot: bool | None = None


class CpuReply(msgspec.Struct, kw_only=True):
    """The host's processors."""

    model: str
    sockets: int
    cores: int
    cpus: int
    mhz: str
    flags: str
    hvm: str
    user_hz: int = 100


class KernelReply(msgspec.Struct, kw_only=True):
    """The running kernel."""

    sysname: str
    release: str
    version: str
    machine: str


class Amounts(msgspec.Struct, kw_only=True):
    """Sizes in bytes."""

    total: int
    used: int
    free: int
    available: int | None = None
    avail: int | None = None


class StatusReply(msgspec.Struct, kw_only=True):
    """The node now. `cpu` and `wait` are ratios of all processors; `loadavg` are strings, as Proxmox VE has them."""

    cpu: float
    wait: float
    idle: int = 0
    loadavg: list[str]
    uptime: int
    memory: Amounts
    swap: Amounts
    rootfs: Amounts
    cpuinfo: CpuReply
    current_kernel: KernelReply = msgspec.field(name="current-kernel")
    kversion: str
    boot_info: BootInfo = msgspec.field(name="boot-info")
    pveversion: str


class PowerParams(NodeParams, kw_only=True):
    """What to do with the host."""

    command: Literal["reboot", "shutdown"]


class Time(msgspec.Struct, kw_only=True):
    """`time` is epoch seconds; `localtime` the same with the zone's offset added."""

    time: int
    localtime: int
    timezone: str


class Dns(msgspec.Struct, kw_only=True):
    """The host's resolver."""

    search: str | None = None
    dns1: str | None = None
    dns2: str | None = None
    dns3: str | None = None


class Subscription(msgspec.Struct, kw_only=True):
    """There is nothing to subscribe to."""

    status: Literal["notfound"] = "notfound"
    message: str = "There is no subscription key: this appliance needs none"


class CertificateRow(msgspec.Struct, kw_only=True):
    """One certificate of this appliance."""

    filename: str
    fingerprint: str
    subject: str
    issuer: str
    notbefore: int
    notafter: int
    san: list[str]
    public_key_type: str = msgspec.field(name="public-key-type")
    public_key_bits: int = msgspec.field(name="public-key-bits")
    pem: str


@api.get("/nodes", summary="The nodes", allow=LOGGED_IN, returns=list[NodeRow])
async def list_nodes(call: Call) -> list[NodeRow]:
    """This one. Figures need Sys.Audit on the node."""
    row = NodeRow(node=call.node, id=f"node/{call.node}")
    if call.has(f"/nodes/{call.node}", "Sys.Audit"):
        status = await call.services.node.status()
        row.cpu, row.maxcpu = status.cpu_ratio, status.cpu_count
        row.mem, row.maxmem = status.memory_used_bytes, status.memory_total_bytes
        row.disk, row.maxdisk = status.rootfs_used_bytes, status.rootfs_total_bytes
        row.uptime = int(status.uptime_s)
    for certificate in await _certificates(call):
        if certificate.filename == "pve-ssl.pem":
            row.ssl_fingerprint = certificate.fingerprint
    return [row]


@api.get("/nodes/{node}/status", summary="Figures of the node", allow=SYS_AUDIT, returns=StatusReply)
async def read_status(call: Call, params: NodeParams) -> StatusReply:
    """At most two seconds old."""
    return status_reply(await call.services.node.status())


def status_reply(status: NodeStatus) -> StatusReply:
    """The API's form of the node's figures."""
    host, cpu = status.host, status.host.cpu
    kernel = host.kernel
    return StatusReply(
        cpu=status.cpu_ratio,
        wait=status.iowait_ratio,
        loadavg=[f"{value:.2f}" for value in status.load],
        uptime=int(status.uptime_s),
        memory=Amounts(
            total=status.memory_total_bytes,
            used=status.memory_used_bytes,
            free=status.memory_free_bytes,
            available=status.memory_available_bytes,
        ),
        swap=Amounts(
            total=status.swap_total_bytes,
            used=status.swap_used_bytes,
            free=status.swap_total_bytes - status.swap_used_bytes,
        ),
        rootfs=Amounts(
            total=status.rootfs_total_bytes,
            used=status.rootfs_used_bytes,
            free=status.rootfs_total_bytes - status.rootfs_used_bytes,
            avail=status.rootfs_available_bytes,
        ),
        cpuinfo=CpuReply(
            model=cpu.model,
            sockets=cpu.sockets,
            cores=cpu.cores,
            cpus=cpu.cpus,
            mhz=f"{cpu.mhz:.3f}",
            flags=cpu.flags,
            hvm=str(int(cpu.hvm)),
        ),
        current_kernel=KernelReply(
            sysname=kernel.sysname, release=kernel.release, version=kernel.version, machine=kernel.machine
        ),
        kversion=f"{kernel.sysname} {kernel.release} {kernel.version}",
        boot_info=BootInfo(mode="efi", secureboot=host.secure_boot)
        if host.boot_mode == "efi"
        else BootInfo(mode="legacy-bios"),
        pveversion=f"pve-manager/{PVE_API_VERSION}/appliance-{VERSION}",
    )


@api.post("/nodes/{node}/status", summary="Reboot or shut down the host", allow=Allow("/nodes/{node}", "Sys.PowerMgmt"))
async def change_power(call: Call, params: PowerParams) -> None:
    """Refused: the host is rebooted from its own console, after its guests have been shut down."""
    text = "is not offered through the API, as running guests would not be shut down first"
    raise Unsupported(f"node {call.node}: {params.command} {text}; stop the guests and use the host's own command")


@api.get("/nodes/{node}/version", summary="Version of the API on this node", allow=LOGGED_IN, returns=Version)
async def read_version(call: Call, params: NodeParams) -> Version:
    """The same as /version."""
    return VERSION_REPLY


@api.get("/nodes/{node}/time", summary="Time and time zone of the node", allow=SYS_AUDIT, returns=Time)
async def read_time(call: Call, params: NodeParams) -> Time:
    """By the host's clock."""
    now = call.services.clock.now()
    zone, offset_s = await asyncio.to_thread(lambda: (host_facts.read_timezone(), host_facts.utc_offset_s(now)))
    return Time(time=int(now), localtime=int(now) + offset_s, timezone=zone)


@api.get("/nodes/{node}/dns", summary="The host's resolver", allow=SYS_AUDIT, returns=Dns)
async def read_dns(call: Call, params: NodeParams) -> Dns:
    """From /etc/resolv.conf; at most three servers."""
    resolver = await asyncio.to_thread(host_facts.read_resolver)
    servers = [*resolver.servers, None, None, None]
    return Dns(search=resolver.search or None, dns1=servers[0], dns2=servers[1], dns3=servers[2])


@api.get("/nodes/{node}/subscription", summary="State of the subscription", allow=LOGGED_IN, returns=Subscription)
async def read_subscription(call: Call, params: NodeParams) -> Subscription:
    """Always "notfound": there is none, and none is needed."""
    return Subscription()


@api.get("/nodes/{node}/certificates/info", summary="Certificates of the appliance", allow=LOGGED_IN,
         returns=list[CertificateRow])  # fmt: skip
async def list_certificates(call: Call, params: NodeParams) -> list[CertificateRow]:
    """The certificate authority's and the server's, under the file names Proxmox VE uses."""
    return [
        CertificateRow(
            filename=each.filename,
            fingerprint=each.fingerprint,
            subject=each.subject,
            issuer=each.issuer,
            notbefore=each.not_before,
            notafter=each.not_after,
            san=list(each.names),
            public_key_type=each.key_type,
            public_key_bits=each.key_bits,
            pem=each.pem,
        )
        for each in await _certificates(call)
    ]


async def _certificates(call: Call) -> list[host_facts.Certificate]:
    return list(await asyncio.to_thread(host_facts.read_certificates, call.services.config.data_dir / "pki"))
