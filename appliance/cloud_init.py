"""The cloud-init drive: NoCloud's three files (cloudinit.readthedocs.io, "NoCloud") on an ISO 9660 image named cidata.

The files are written as JSON, which is YAML: no value can end its own string. Rendering is pure; the ISO is made in a
thread. Names and addresses follow what PVE writes, so that images prepared for it behave the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import ipaddress
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from appliance.command import run
from appliance.errors import HostError
from appliance.lazy import LazyModule
from appliance.model.guest import CloudInitSpec, NicSpec
from appliance.model.volume import OpenedVolume, VolumeFormat
from appliance.threads import to_the_end

if TYPE_CHECKING:
    import pycdlib
else:
    pycdlib = LazyModule("pycdlib")

LABEL = "cidata"
_IMG_TIMEOUT_S = 30.0
_ISO_NAMES = {"meta-data": "/META.;1", "user-data": "/USER.;1", "network-config": "/NETWORK.;1"}


def render(spec: CloudInitSpec, *, hostname: str, nics: Sequence[NicSpec]) -> dict[str, bytes]:
    """The three files by name. The instance-id changes with the content, which makes cloud-init run again."""
    user = "#cloud-config\n" + _dump(user_data(spec, hostname=hostname))
    network = _dump(network_config(spec, nics))
    instance = hashlib.sha1((user + network).encode(), usedforsecurity=False).hexdigest()
    meta = _dump({"instance-id": instance, "local-hostname": hostname})
    return {"meta-data": meta.encode(), "user-data": user.encode(), "network-config": network.encode()}


def user_data(spec: CloudInitSpec, *, hostname: str) -> dict[str, Any]:
    """cloud-config: the host's name, the default user's name, password hash and keys."""
    data: dict[str, Any] = {"hostname": hostname, "manage_etc_hosts": True}
    if spec.search_domain:
        data["fqdn"] = f"{hostname}.{spec.search_domain.split()[0]}"
    if spec.user:
        data["user"] = spec.user
        if spec.user == "root":
            data["disable_root"] = False
    if spec.password_hash:
        data["password"] = spec.password_hash
    if spec.ssh_keys:
        data["ssh_authorized_keys"] = list(spec.ssh_keys)
    data["chpasswd"] = {"expire": False}
    if spec.user != "root":
        data["users"] = ["default"]
    data["package_upgrade"] = spec.upgrade
    return data


def network_config(spec: CloudInitSpec, nics: Sequence[NicSpec]) -> dict[str, Any]:
    """Version 2 (netplan's form): one entry for each NIC with an address configuration, found by its MAC address."""
    ethernets: dict[str, Any] = {}
    for nic in nics:
        index = int(nic.slot.removeprefix("net"))
        if index in spec.ip_configs:
            ethernets[f"eth{index}"] = _interface(spec, nic, f"eth{index}", spec.ip_configs[index])
    return {"version": 2, "ethernets": ethernets}


def _interface(spec: CloudInitSpec, nic: NicSpec, name: str, ip_config: str) -> dict[str, Any]:
    wanted = dict(part.split("=", 1) for part in ip_config.split(",") if "=" in part)
    entry: dict[str, Any] = {"match": {"macaddress": nic.mac.lower()}, "set-name": name}
    addresses: list[str] = []
    for key, dhcp in (("ip", "dhcp4"), ("ip6", "dhcp6")):
        match wanted.get(key, ""):
            case "":
                continue
            case "dhcp":
                entry[dhcp] = True
            case "auto":
                entry["accept-ra"] = True
            case address:
                addresses.append(str(ipaddress.ip_interface(address)))
    gateways = [(wanted.get("gw"), "0.0.0.0/0"), (wanted.get("gw6"), "::/0")]
    routes = [{"to": default, "via": gateway} for gateway, default in gateways if gateway]
    names = {"addresses": _words(spec.nameserver), "search": _words(spec.search_domain)}
    names = {key: words for key, words in names.items() if words}
    extra = {"addresses": addresses, "routes": routes, "nameservers": names, "mtu": nic.mtu}
    return entry | {key: value for key, value in extra.items() if value}


def make_iso(files: Mapping[str, bytes]) -> bytes:
    """Blocking (some milliseconds). The ISO 9660 image with Joliet and Rock Ridge names."""
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, joliet=3, rock_ridge="1.09", vol_ident=LABEL)
    for name, content in files.items():
        iso.add_fp(io.BytesIO(content), len(content), _ISO_NAMES[name], rr_name=name, joliet_path=f"/{name}")
    image = io.BytesIO()
    iso.write_fp(image)
    iso.close()
    return image.getvalue()


async def write_drive(volume: OpenedVolume, files: Mapping[str, bytes]) -> None:
    """Put the files onto a cloud-init volume, whatever it held. Raises `HostError` (`NoSpace`)."""
    image = await asyncio.to_thread(make_iso, files)
    if len(image) > volume.size_bytes:
        raise HostError(f"cloud-init drive {volume.path}: {len(image)} bytes do not fit into {volume.size_bytes}")
    try:
        if volume.format is VolumeFormat.RAW:
            await to_the_end(_write_in_place, volume.path, image)
        else:
            await _write_converted(volume, image)
    except OSError as error:
        raise HostError.from_os_error(error, f"write cloud-init drive {volume.path}") from error


def _write_in_place(path: Path, image: bytes) -> None:
    with path.open("r+b") as file:
        file.write(image)


async def _write_converted(volume: OpenedVolume, image: bytes) -> None:
    # a file of no name: it holds a password's hash, and nothing that interrupts us may leave it behind
    source = os.memfd_create("cidata", os.MFD_CLOEXEC)
    try:
        await to_the_end(_fill, source, image)
        from_file = f"/dev/fd/{source}"
        argv = ["qemu-img", "convert", "-n", "-f", "raw", "-O", volume.format.value, from_file, str(volume.path)]
        await run(argv, timeout_s=_IMG_TIMEOUT_S, pass_fds=(source,))
    finally:
        os.close(source)


def _fill(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb", closefd=False) as file:
        file.write(data)


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[\s,;]+", text) if word]


def _dump(value: object) -> str:
    return json.dumps(value, indent=1) + "\n"
