"""The calls that existing clients make, one row each, in an order in which they make sense.

The clients are proxmoxer's tools, Ansible's community.proxmox with its inventory, Terraform's bpg/proxmox and Proxmox VE's
own pages. A row is their method, path and parameters, and the fields they read with the JSON types they decode: whole
numbers, 0 or 1, texts. More fields are allowed, other types are not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.e2e.bad_input.client import Client, Reply
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VM, CT, VM_COPY, CT_COPY, REFUSED = 745, 746, 747, 748, 749
TASK_LIMIT_S = 60.0
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGxwYXJzZXIga2V5IGZvciB0ZXN0cyBvbmx5IDEyMzQ1 me@here"
UPID = re.compile(r"UPID:[^:]+:[0-9A-F]{8}:[0-9A-F]{8}:[0-9A-F]{8}:[^:]+:[^:]*:[^:]+:")

Shape = Any
"""A predicate, a literal, a mapping of fields ("name?" may be absent), or a list of one shape, for lists not empty."""


def number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def flag(value: object) -> bool:
    return whole(value) and value in (0, 1)


def text(value: object) -> bool:
    return isinstance(value, str)


def filled(value: object) -> bool:
    return isinstance(value, str) and value != ""


def whole_or_text(value: object) -> bool:
    return whole(value) or (isinstance(value, str) and value.isdecimal())


def upid(value: object) -> bool:
    return isinstance(value, str) and UPID.fullmatch(value) is not None


def none_or_upid(value: object) -> bool:
    return value is None or upid(value)


def any_list(value: object) -> bool:
    return isinstance(value, list)


def like(pattern: str) -> Callable[[object], bool]:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value) is not None


def mismatch(value: object, shape: Shape, where: str = "data") -> str:
    """What is wrong first, "" when nothing is."""
    match shape:
        case Mapping():
            if not isinstance(value, dict):
                return f"{where}: no object: {value!r}"
            for name, inner in shape.items():
                key = name.removesuffix("?")
                if key not in value and name == key:
                    return f"{where}: {key} is missing"
                if key in value and (found := mismatch(value[key], inner, f"{where}.{key}")):
                    return found
            return ""
        case [inner]:
            if not isinstance(value, list) or not value:
                return f"{where}: no list with entries: {value!r}"
            return next((found for i, row in enumerate(value) if (found := mismatch(row, inner, f"{where}[{i}]"))), "")
        case _ if callable(shape):
            return "" if shape(value) else f"{where}: not {getattr(shape, '__name__', 'as wanted')}: {value!r}"
    return "" if value == shape else f"{where}: {value!r} instead of {shape!r}"


@dataclass(frozen=True)
class Row:
    """One call. `{node}`, `{bridge}`, `{template}`, `{upid}` (of the last task) and `{digest}` are filled in."""

    verb: str
    path: str
    params: Mapping[str, object] = field(default_factory=dict)
    gives: Shape = None
    status: int = 200
    says: str = ""
    """For refusals: what the reason phrase holds; clients know errors by these words."""
    ends: str = "OK"
    """How the task ends that the reply names."""
    runs_on: bool = False
    """The task is not waited for."""

    def __str__(self) -> str:
        named = ",".join(f"{name}={value}" for name, value in self.params.items())[:60]
        return f"{self.verb} {self.path} {named}".strip()


RESOURCE = {"id": filled, "type": filled}
GUEST = RESOURCE | {
    "vmid": whole, "node": filled, "name": filled, "status": filled, "cpu": number, "maxcpu": number, "mem": whole,
    "maxmem": whole, "disk": whole, "maxdisk": whole, "netin": whole, "netout": whole, "diskread": whole,
    "diskwrite": whole, "uptime": whole, "template": flag, "tags?": text, "pool?": text, "lock?": text, "hastate?": text,
}  # fmt: skip
NODE = {
    "node": filled, "status": "online", "cpu": number, "maxcpu": whole, "mem": whole, "maxmem": whole, "disk": whole,
    "maxdisk": whole, "uptime": whole, "level": text,
}  # fmt: skip
USED = {"total": whole, "used": whole, "free": whole}
TASK = {
    "upid": upid, "id": text, "type": filled, "user": filled, "node": filled, "pid": whole, "pstart": whole,
    "starttime": whole, "endtime?": whole, "status?": filled,
}  # fmt: skip
LISTED = {
    "vmid": whole, "name": filled, "status": filled, "cpus": number, "maxmem": whole, "maxdisk": whole, "uptime": whole,
    "tags?": text, "template?": flag,
}  # fmt: skip
CURRENT = LISTED | {"ha": {"managed": flag}, "lock?": text, "pid?": whole}
DIGEST = like(r"[0-9a-f]{40}")
VERSION = {"version": like(r"\d+\.\d+(\.\d+)?"), "release": like(r"\d+\.\d+"), "repoid": filled}
LOGIN = {
    "ticket": like(r"PVE:.+"),
    "CSRFPreventionToken": filled,
    "username": "admin@pve",
    "cap": {"vms": {"VM.Audit": 1}},
}
SNAPSHOT = {"name": filled, "description": text}
PROXY = {"port": whole_or_text, "ticket": filled, "upid": upid, "user": filled}

CLUSTER = [
    Row("GET", "/version", gives=VERSION),
    Row("GET", "/cluster/status", gives=[
        {"type": "node", "id": filled, "name": filled, "nodeid": whole, "ip": filled, "online": 1, "local": 1, "level": text}
    ]),
    Row("GET", "/cluster/nextid", gives=whole_or_text),
    Row("GET", "/cluster/nextid", {"vmid": VM}, gives=str(VM)),
    Row("PUT", "/cluster/options", {"next-id": "lower=750,upper=760", "keyboard": "de", "migration": "type=insecure"}),
    Row("GET", "/cluster/nextid", gives="750"),
    Row("GET", "/cluster/options", gives={"keyboard": "de", "next-id": filled, "console": filled, "mac_prefix": filled}),
    Row("PUT", "/cluster/options", {"delete": "next-id,keyboard,migration"}),
    Row("GET", "/cluster/resources", gives=[RESOURCE]),
    Row("GET", "/cluster/resources", {"type": "node"}, gives=[RESOURCE | NODE]),
    Row("GET", "/cluster/resources", {"type": "storage"}, gives=[RESOURCE | {
        "storage": "local", "node": filled, "plugintype": "dir", "content": filled, "shared": 0, "status": "available",
        "disk": whole, "maxdisk": whole,
    }]),
    Row("GET", "/cluster/resources", {"type": "sdn"}, gives=any_list),
    Row("GET", "/nodes", gives=[NODE | {"ssl_fingerprint": like(r"([0-9A-F]{2}:){31}[0-9A-F]{2}")}]),
    Row("GET", "/nodes/{node}/status", gives={
        "cpuinfo": {"cpus": whole, "cores": whole, "sockets": whole, "model": filled},
        "memory": USED, "swap": USED, "rootfs": USED | {"avail": whole}, "loadavg": [text], "uptime": whole,
        "pveversion": filled, "current-kernel": {"release": filled}, "cpu": number,
    }),
    Row("POST", "/nodes/{node}/status", {"command": "fly"}, status=400, says="verification failed"),
    Row("GET", "/nodes/{node}/version", gives=VERSION),
    Row("GET", "/nodes/{node}/network", gives=any_list),
    Row("GET", "/nodes/{node}/network", {"type": "any_bridge"}, gives=[
        {"iface": filled, "type": "bridge", "method": filled, "active?": flag, "autostart?": flag, "address?": filled,
         "cidr?": filled, "bridge_ports?": text, "priority?": whole}
    ]),
]  # fmt: skip

ACCESS = [
    Row("GET", "/access/domains", gives=[{"realm": filled, "type": filled, "comment?": text, "tfa?": text, "default?": flag}]),
    Row("POST", "/access/users", {"userid": "ci@pve", "password": "a good password", "enable": 1, "expire": 0,
                                  "email": "ci@example.org", "comment": "pipeline"}),
    Row("GET", "/access/users", gives=[{"userid": filled, "enable": flag, "expire": whole, "comment?": text}]),
    Row("GET", "/access/users/ci@pve", gives={"enable": 1, "expire": 0, "email": filled, "comment": "pipeline"}),
    Row("PUT", "/access/acl", {"path": "/", "roles": "PVEAuditor", "users": "ci@pve", "propagate": 1}),
    Row("GET", "/access/acl", gives=[{"path": filled, "roleid": filled, "type": filled, "ugid": filled, "propagate": flag}]),
    Row("POST", "/access/users/ci@pve/token/one", {"privsep": 0, "expire": 0, "comment": "t"}, gives={
        "full-tokenid": "ci@pve!one", "value": like(r"[0-9a-f-]{36}"), "info": {"privsep": whole_or_text}}),
    Row("GET", "/access/users/ci@pve/token", gives=[{"tokenid": "one", "privsep": flag, "expire": whole}]),
    Row("GET", "/access/users/ci@pve/token/one", gives={"privsep": flag, "expire": whole, "comment": "t"}),
    Row("DELETE", "/access/users/ci@pve/token/one"),
    Row("GET", "/access/permissions", {"path": "/", "userid": "ci@pve"}, gives={"/": {"VM.Audit": 1}}),
    Row("PUT", "/access/acl", {"path": "/", "roles": "PVEAuditor", "users": "ci@pve", "delete": 1}),
    Row("POST", "/access/roles", {"roleid": "Ops", "privs": "VM.PowerMgmt,VM.Audit"}),
    Row("GET", "/access/roles", gives=[{"roleid": filled, "privs": text, "special?": flag}]),
    Row("GET", "/access/roles/Ops", gives={"VM.PowerMgmt": 1}),
    Row("DELETE", "/access/roles/Ops"),
    Row("POST", "/access/groups", {"groupid": "ops", "comment": "c"}),
    Row("GET", "/access/groups", gives=[{"groupid": filled, "comment?": text}]),
    Row("GET", "/access/groups/ops", gives={"members": any_list, "comment": "c"}),
    Row("DELETE", "/access/groups/ops"),
    Row("DELETE", "/access/users/ci@pve"),
    Row("GET", "/access/users/ci@pve", status=404, says="does not exist"),
    Row("POST", "/pools", {"poolid": "prod", "comment": "c"}),
    Row("GET", "/pools", gives=[{"poolid": "prod", "comment": "c"}]),
    Row("GET", "/pools", {"poolid": "prod"}, gives=[{"poolid": "prod", "members": any_list}]),
]  # fmt: skip

STORAGE = [
    Row("GET", "/storage", gives=[{"storage": filled, "type": "dir", "content": filled, "path?": filled, "digest": DIGEST}]),
    Row("GET", "/storage/local", gives={"storage": "local", "type": "dir", "content": filled, "digest": DIGEST}),
    Row("GET", "/nodes/{node}/storage", gives=[
        {"storage": filled, "type": "dir", "content": filled, "active": 1, "enabled": 1, "shared": 0, "avail": whole,
         "total": whole, "used": whole}
    ]),
    Row("GET", "/nodes/{node}/storage/local/status", gives={
        "type": "dir", "content": filled, "active": 1, "enabled": 1, "shared": 0, "avail": whole, "total": whole, "used": whole}),
    Row("POST", "/nodes/{node}/storage/local/download-url", {
        "url": "http://127.0.0.1:1/x.iso", "content": "iso", "filename": "x.iso", "verify-certificates": 0,
    }, gives=upid, ends="~."),
    Row("GET", "/nodes/{node}/storage/local/content", {"content": "vztmpl"}, gives=[
        {"volid": "{template}", "content": "vztmpl", "format": filled, "size": whole, "ctime": whole, "vmid?": whole_or_text}
    ]),
    Row("GET", "/nodes/{node}/aplinfo", gives=[{"template": filled, "type?": filled, "package": filled, "section": filled}]),
    Row("POST", "/nodes/{node}/aplinfo", {"storage": "local", "template": "no-such-one"}, status=404, says="does not exist"),
    Row("GET", "/nodes/{node}/storage/nowhere/status", status=404, says="does not exist"),
]  # fmt: skip

NEW_VM = {
    "vmid": VM, "name": "tf", "memory": 64, "cores": 1, "sockets": 1, "cpu": "qemu64", "ostype": "l26", "bios": "seabios",
    "machine": "q35", "agent": "enabled=1,type=virtio", "scsihw": "virtio-scsi-pci", "scsi0": "local:0.01,discard=on",
    "ide2": "local:cloudinit", "net0": "virtio,bridge={bridge},firewall=0", "ipconfig0": "ip=10.9.9.9/24,gw=10.9.9.1",
    "ciuser": "me", "sshkeys": quote(KEY, safe=""), "nameserver": "9.9.9.9", "boot": "order=scsi0;net0", "serial0": "socket",
    "onboot": 0, "tags": "a;b", "description": "made by a test", "pool": "prod", "numa": 0, "kvm": 1, "tablet": 1,
}  # fmt: skip
VM_CONFIG = {
    "name": "tf", "memory": whole_or_text, "cores": whole, "sockets": whole, "cpu": text, "ostype": "l26",
    "agent": text, "scsi0": like(r"local:\S+,discard=on,\S*size=\S+"), "ide2": like(r"local:\S+,media=cdrom\S*"),
    "net0": like(r"virtio=([0-9A-F]{2}:){5}[0-9A-F]{2},bridge=\S+"), "ipconfig0": filled, "boot": "order=scsi0;net0",
    "onboot": 0, "tags": "a;b", "description": text, "digest": DIGEST, "sshkeys": quote(KEY, safe=""), "smbios1": filled,
    "vmgenid": filled, "meta": filled, "numa?": flag, "tablet?": flag,
}  # fmt: skip
VMS = [
    Row("POST", "/nodes/{node}/qemu", NEW_VM, gives=upid),
    Row("POST", "/nodes/{node}/qemu", {"vmid": VM, "memory": 32}, status=409, says="already exists"),
    Row("GET", "/cluster/resources", {"type": "vm"}, gives=[GUEST | {"pool": "prod", "tags": "a;b"}]),
    Row("GET", "/pools", {"poolid": "prod"}, gives=[{"members": [{"id": f"qemu/{VM}", "type": "qemu", "vmid": VM}]}]),
    Row("GET", "/nodes/{node}/qemu", {"full": 1}, gives=[LISTED]),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/config", {"current": 1}, gives=VM_CONFIG),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/pending", gives=[{"key": filled, "value?": lambda value: True}]),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/config", {"cores": 2, "delete": "nameserver"}, gives=upid),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/config", {"cores": 2, "background_delay": 5}),
    Row("PUT", f"/nodes/{{node}}/qemu/{VM}/config", {"onboot": 1, "delete": "description", "digest": "{digest}"}),
    Row("PUT", f"/nodes/{{node}}/qemu/{VM}/config", {"onboot": 0, "digest": "0" * 40}, status=409, says="modified"),
    Row("PUT", f"/nodes/{{node}}/qemu/{VM}/cloudinit"),
    Row("PUT", f"/nodes/{{node}}/qemu/{VM}/resize", {"disk": "scsi0", "size": "+6M"}, gives=upid),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/status/current", gives=CURRENT | {"status": "stopped", "qmpstatus": "stopped",
                                                                         "agent?": flag, "vmid": VM}),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/start", {"timeout": 60}, gives=upid),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/status/current", gives=CURRENT | {"status": "running", "qmpstatus": "running",
                                                                         "pid": whole}),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/agent/network-get-interfaces", status=500, says="QEMU guest agent is not running"),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/agent/ping", status=500, says="QEMU guest agent is not running"),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/vncproxy", {"websocket": 1, "generate-password": 1}, gives=PROXY | {
        "cert": like(r"(?s)-----BEGIN CERTIFICATE-----.*"), "password": filled}, runs_on=True),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/termproxy", {"serial": "serial0"}, gives=PROXY, runs_on=True),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/suspend", gives=upid),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/status/current", gives={"status": "running", "qmpstatus": "paused"}),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/resume", gives=upid),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/reset", gives=upid),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/snapshot", gives=[SNAPSHOT | {"name": "current"}]),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/shutdown", {"timeout": 1, "forceStop": 1}, gives=upid),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/stop", {"timeout": 10, "overrule-shutdown": 1}, gives=upid),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/reboot", {"timeout": 1}, gives=upid, ends="~not running"),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/clone", {"newid": VM_COPY, "name": "tf-copy", "full": 1, "target": "{node}",
                                                    "storage": "local"}, gives=upid),
    Row("POST", f"/nodes/{{node}}/qemu/{VM_COPY}/template", gives=upid),
    Row("GET", f"/nodes/{{node}}/qemu/{VM_COPY}/config", gives={"template": 1, "name": "tf-copy"}),
    Row("GET", "/nodes/{node}/storage/local/content", {"content": "images", "vmid": VM}, gives=[
        {"volid": filled, "content": "images", "format": filled, "size": whole, "vmid": VM, "used?": whole, "parent?": filled}
    ]),
    Row("DELETE", f"/nodes/{{node}}/qemu/{VM_COPY}", {"purge": 1, "destroy-unreferenced-disks": 1}, gives=upid),
    Row("DELETE", f"/nodes/{{node}}/qemu/{VM}", {"purge": 1, "skiplock": 0}, gives=upid),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/config", status=404, says="does not exist"),
    Row("GET", f"/nodes/{{node}}/qemu/{VM}/status/current", status=404, says="does not exist"),
    Row("POST", f"/nodes/{{node}}/qemu/{VM}/status/start", status=404, says="does not exist"),
    Row("POST", "/nodes/{node}/qemu", {"vmid": REFUSED, "memory": "x"}, status=400, says="verification failed"),
]  # fmt: skip

NEW_CT = {
    "vmid": CT, "ostemplate": "{template}", "hostname": "tf", "rootfs": "local:0.1", "memory": 64, "swap": 0, "cores": 1,
    "net0": "name=eth0,bridge={bridge},ip=10.9.9.10/24,gw=10.9.9.1", "unprivileged": 1, "features": "nesting=1",
    "ostype": "unmanaged", "onboot": 0, "tags": "c", "description": "made by a test", "pool": "prod", "start": 0,
}  # fmt: skip
CTS = [
    Row("POST", "/nodes/{node}/lxc", NEW_CT, gives=upid),
    Row("GET", "/nodes/{node}/lxc", gives=[LISTED | {"maxswap": whole}]),
    Row("GET", f"/nodes/{{node}}/lxc/{CT}/config", gives={
        "hostname": "tf", "memory": whole, "swap": whole, "cores": whole, "rootfs": like(r"local:\S+,size=\S+"),
        "net0": like(r"name=eth0,\S*hwaddr=\S+\S*"), "unprivileged": 1, "features": "nesting=1", "onboot": 0, "digest": DIGEST,
        "ostype": "unmanaged", "arch": filled, "tags": "c", "description": text, "lxc?": any_list,
    }),
    Row("PUT", f"/nodes/{{node}}/lxc/{CT}/config", {"cores": 2, "delete": "description", "digest": "{digest}"}),
    Row("POST", f"/nodes/{{node}}/lxc/{CT}/status/start", gives=upid),
    Row("GET", f"/nodes/{{node}}/lxc/{CT}/status/current", gives=CURRENT | {"status": "running", "maxswap": whole, "vmid": CT}),
    Row("GET", f"/nodes/{{node}}/lxc/{CT}/interfaces", gives=[
        {"name": filled, "hwaddr": like(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}"), "inet?": filled, "inet6?": filled,
         "ip-addresses?": any_list}
    ]),
    Row("POST", f"/nodes/{{node}}/lxc/{CT}/termproxy", gives=PROXY, runs_on=True),
    Row("POST", f"/nodes/{{node}}/lxc/{CT}/vncproxy", {"websocket": 1}, status=501, says="use termproxy"),
    Row("GET", f"/nodes/{{node}}/lxc/{CT}/snapshot", gives=[SNAPSHOT | {"name": "current"}]),
    Row("POST", f"/nodes/{{node}}/lxc/{CT}/status/shutdown", {"timeout": 20, "forceStop": 1}, gives=upid),
    Row("PUT", f"/nodes/{{node}}/lxc/{CT}/resize", {"disk": "rootfs", "size": "+20M"}, gives=upid),
    Row("POST", f"/nodes/{{node}}/lxc/{CT}/clone", {"newid": CT_COPY, "hostname": "copy", "full": 1}, gives=upid),
    Row("DELETE", f"/nodes/{{node}}/lxc/{CT_COPY}", {"purge": 1, "force": 0}, gives=upid),
    Row("DELETE", f"/nodes/{{node}}/lxc/{CT}", {"purge": 1}, gives=upid),
    Row("GET", f"/nodes/{{node}}/lxc/{CT}/config", status=404, says="does not exist"),
    Row("DELETE", "/pools", {"poolid": "prod"}),
]  # fmt: skip

TASKS = [
    Row("GET", "/nodes/{node}/tasks", {
        "vmid": CT, "limit": 2, "start": 0, "errors": 0, "source": "all", "typefilter": "vzdestroy", "userfilter": "admin@pve",
        "since": 1, "until": 4_000_000_000, "statusfilter": "ok",
    }, gives=[TASK | {"status": "OK", "id": str(CT), "type": "vzdestroy"}]),
    Row("GET", "/cluster/tasks", gives=[TASK]),
    Row("GET", "/nodes/{node}/tasks/{upid}/status", gives=TASK | {"status": "stopped", "exitstatus": "OK"}),
    Row("GET", "/nodes/{node}/tasks/{upid}/log", {"start": 0, "limit": 500}, gives=[{"n": whole, "t": text}]),
    Row("DELETE", "/nodes/{node}/tasks/{upid}"),
    Row("POST", "/nodes/{node}/termproxy", gives=PROXY, runs_on=True),
    Row("POST", "/nodes/{node}/vncproxy", {"websocket": 1}, status=501, says="use termproxy"),
    Row("DELETE", "/nodes/{node}/storage/local/content/{template}", {"delay": 5}, gives=none_or_upid),
    Row("DELETE", "/nodes/{node}/storage/local/content/{template}", status=404, says="does not exist"),
]  # fmt: skip

ROWS = [*CLUSTER, *ACCESS, *STORAGE, *VMS, *CTS, *TASKS]


class Clients:
    """One client of all, and what it has learned so far."""

    def __init__(self, appliance: Appliance, template: str) -> None:
        self.appliance, self.api, self.http = appliance, appliance.api(), Client(appliance)
        self.known = {
            "node": self.http.node,
            "bridge": appliance.bridge,
            "template": template,
            "digest": "",
            "upid": "",
        }

    def make(self, row: Row) -> Reply:
        """Send a row as proxmoxer and bpg do: forms, quoted path parts."""
        form = {name: self._filled(value) for name, value in row.params.items()}
        path = "/".join(quote(self._filled(part), safe="") for part in row.path.split("/"))
        return self.http.call(row.verb, path, **{"params" if row.verb in ("GET", "DELETE") else "data": form})

    def expected(self, row: Row) -> Shape:
        """The row's shape with the template's name."""
        match row.gives:
            case [{"volid": "{template}"} as shape]:
                return [shape | {"volid": self.known["template"]}]
        return row.gives

    def learn(self, data: object) -> None:
        if upid(data):
            self.known["upid"] = str(data)
        if isinstance(data, dict) and "digest" in data:
            self.known["digest"] = str(data["digest"])

    def ending(self, task: str) -> str:
        try:
            return self.appliance.finish(self.api, task, limit_s=TASK_LIMIT_S)
        except TaskFailed as error:
            return str(error).partition("\n")[0]

    def refresh_digest(self, row: Row) -> None:
        if row.params.get("digest") == "{digest}":
            self.learn(self.http.call("GET", row.path).body["data"])

    def _filled(self, value: object) -> str:
        shown = str(value)
        for name, known in self.known.items():
            shown = shown.replace(f"{{{name}}}", known)
        return shown


@pytest.fixture(scope="module")
def clients(appliance: Appliance, busybox_template: Path) -> Clients:
    template = appliance.upload(appliance.api(), busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")
    return Clients(appliance, template)


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_clients_call_gives_what_it_reads(clients: Clients, row: Row) -> None:
    clients.refresh_digest(row)
    reply = clients.make(row)
    assert reply.status == row.status, reply.text
    if row.status != 200:
        assert row.says in reply.reason, "clients read the reason phrase"
        assert reply.body["data"] is None
        return
    data = reply.body["data"]
    assert not mismatch(data, clients.expected(row)), mismatch(data, clients.expected(row))
    clients.learn(data)
    if upid(data) and not row.runs_on:
        ending = clients.ending(str(data))
        assert re.search(row.ends[1:], ending) if row.ends[0] == "~" else ending == row.ends, ending


def test_a_login_is_renewed_with_its_own_ticket(clients: Clients) -> None:
    form = {"username": "admin@pve", "password": clients.appliance.password}
    first = clients.http.call("POST", "/access/ticket", data=form).body["data"]
    assert not mismatch(first, LOGIN), mismatch(first, LOGIN)
    second = clients.http.call("POST", "/access/ticket", data={**form, "password": first["ticket"]}).body["data"]
    assert not mismatch(second, LOGIN), mismatch(second, LOGIN)
    parts = {"username": "admin", "realm": "pve", "password": clients.appliance.password, "new-format": 1}
    assert not mismatch(clients.http.call("POST", "/access/ticket", json=parts).body["data"], LOGIN)
