"""The phases of a host's life with the package: each a fixture of the module, made once, from the one before it.

bare → installed → used → upgraded → rebooted → cut → removed → purged
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from proxmoxer import ResourceException

from tests.e2e.busybox import write_template
from tests.lab import image, package_build
from tests.lab.conftest import started_host
from tests.lab.host import LabHost
from tests.lab.image import HostImage
from tests.lab.package_build import Package
from tests.lab.packaged import DATA_DIR, PackagedHost, in_loop
from tests.lab.variants import BARE

NATIVE, QEMU, CT = 100, 102, 101
MEMORY_MIB: Final = 64
GUESTS = {f"qemu/{NATIVE}", f"qemu/{QEMU}", f"lxc/{CT}"}
CMDLINE = "console=ttyS0 quiet panic=-1"
LIST_FILES: Final = "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /run -prune -o -print"


WRITE_S: Final = 12.0


@dataclass(slots=True)
class Life:
    """The host, and what was seen along the way."""

    bare: PackagedHost
    package: Package
    later: Package
    files: set[str] = field(default_factory=set)
    users: str = ""
    links: str = ""
    seen: dict[str, Any] = field(default_factory=dict)
    token: str = ""


@pytest.fixture(scope="module")
def bare_image() -> HostImage:
    return in_loop(image.build(print, BARE))


@pytest.fixture(scope="module")
def package(bare_image: HostImage) -> Package:
    """Asked for after the image: other modules have it built meanwhile."""
    return package_build.build()


@pytest.fixture(scope="module")
def life(bare_image: HostImage, package: Package, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Life]:
    """A bare host, before anything is installed."""
    later = package_build.later(package, tmp_path_factory.mktemp("later"))
    with started_host(LabHost(bare_image)) as host:
        bare = PackagedHost(host)
        found = Life(bare, package, later)
        bare.apt("update")
        found.files = set(bare.sh(LIST_FILES).splitlines())
        found.users = bare.sh("cat /etc/passwd")
        found.links = bare.sh("ls /sys/class/net")
        found.seen["python"] = bare.sh("ls /usr/bin/python3* /opt/appliance 2>/dev/null || true")
        yield found


@pytest.fixture(scope="module")
def installed(life: Life) -> Life:
    bare = life.bare
    life.seen["install_s"] = bare.install(life.package)
    bare.wait_until_serving()
    bare.trust()
    bare.password = bare.sh(f"cat {DATA_DIR}/admin-password")
    return life


@pytest.fixture(scope="module")
def used(installed: Life, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """A native machine, one in QEMU and a container, made through the API and started."""
    bare, scratch = installed.bare, tmp_path_factory.mktemp("used")
    api = bare.api()
    node = bare.node(api)
    template = write_template(scratch / "busybox_1_amd64.tar.gz")
    for name in ("vmlinux", "initramfs"):
        in_loop(bare.host.get(f"/opt/guest/{name}", scratch))
        (scratch / name).rename(scratch / f"{name}.img")
    files = [("vztmpl", template), ("iso", scratch / "vmlinux.img"), ("iso", scratch / "initramfs.img")]
    for content, path in files:
        with path.open("rb") as file:
            bare.finish(api, node.storage("local").upload.post(content=content, filename=file))
    machine: dict[str, Any] = {
        "memory": 256, "cores": 1, "serial0": "socket", "vga": "none", "cpu": "host", "onboot": 1,
        "kernel": "local:iso/vmlinux.img", "initrd": "local:iso/initramfs.img", "cmdline": CMDLINE,
        "virtio0": "local:1,format=raw", "net0": "virtio,bridge=vmbr0",
    }  # fmt: skip
    upids = [
        node.qemu.post(vmid=NATIVE, name="native", engine="native", **machine),
        node.qemu.post(vmid=QEMU, name="qemu", engine="qemu", cpulimit=0.5, **machine),
        node.lxc.post(
            vmid=CT, hostname="ct", ostemplate=f"local:vztmpl/{template.name}", rootfs="local:0.1", memory=MEMORY_MIB,
            swap=0, cores=1, onboot=1, net0="name=eth0,bridge=vmbr0,ip=manual",
        ),
    ]  # fmt: skip
    bare.finish_all(api, upids)
    bare.finish_all(api, [node(path).status.start.post() for path in sorted(GUESTS)])
    return installed


@pytest.fixture(scope="module")
def upgraded(used: Life) -> Life:
    bare = used.bare
    api = bare.api()
    bare.sh("sed -i 's/^APPLIANCE_OPTIONS=.*/APPLIANCE_OPTIONS=\"--log-format plain\"/' /etc/default/appliance")
    used.seen["outside"] = bare.processes("[q]emu-system-x86_64"), bare.processes("[c]onmon"), ct_init(bare)
    used.seen["uptimes"] = {path: bare.state(api, path)["uptime"] for path in GUESTS}
    used.seen["pid"] = bare.main_pid()
    used.seen["upgrade_s"] = bare.install(used.later)
    bare.wait_until_serving()
    return used


def ct_init(bare: PackagedHost) -> str:
    """The container's first process, with its start time."""
    return bare.sh(f"p=$(head -1 /sys/fs/cgroup/appliance/ct-{CT}/cgroup.procs); cut -d' ' -f1,22 /proc/$p/stat")


@pytest.fixture(scope="module")
def rebooted(upgraded: Life) -> Life:
    """An orderly shutdown, and a start without AppArmor."""
    bare = upgraded.bare
    api = bare.api()
    node = bare.node(api)
    if bare.state(api, f"qemu/{NATIVE}")["status"] != "running":  # the watchdog ended it with its process
        bare.finish(api, node.qemu(NATIVE).status.start.post())
    node.qemu(QEMU).config.put(onboot=0)
    for path in GUESTS:
        node(path).config.put(startup="down=5")  # nothing in these guests hears the power button
    in_loop(bare.host.power_off(timeout_s=240))
    bare.host.kernel_arguments = ("apparmor=0",)
    in_loop(bare.host.start())
    bare.wait_until_serving()
    upgraded.seen["last_boot"] = bare.sh(
        "journalctl -b -1 -u appliance -u appliance-guests --no-pager -o cat | tail -80"
    )
    return upgraded


class Writer(threading.Thread):
    """Changes one guest's configuration over and over, and notes what the appliance has acknowledged."""

    def __init__(self, bare: PackagedHost, path: str, key: str) -> None:
        super().__init__(name=f"writer {path}", daemon=True)
        self.path, self.key = path, key
        self.acknowledged, self.sent = "", ""
        self._guest = bare.node(bare.api())(path)
        self.stopped = threading.Event()

    def run(self) -> None:
        number = 0
        with contextlib.suppress(OSError, ResourceException):
            while not self.stopped.is_set():
                number += 1
                self.sent = f"written {number}"
                self._guest.config.put(**{self.key: self.sent})
                self.acknowledged = self.sent


@pytest.fixture(scope="module")
def cut(rebooted: Life) -> Life:
    """The host loses its power while three clients write."""
    bare = rebooted.bare
    writers = [Writer(bare, path, "description") for path in sorted(GUESTS)]
    for writer in writers:
        writer.start()
    time.sleep(WRITE_S)
    in_loop(bare.host.power_off_hard())
    for writer in writers:
        writer.stopped.set()
        writer.join(150)
    rebooted.seen["writers"] = {writer.path: (writer.acknowledged, writer.sent) for writer in writers}
    in_loop(bare.host.start())
    bare.wait_until_serving()
    return rebooted


@pytest.fixture(scope="module")
def removed(cut: Life) -> Life:
    bare = cut.bare
    api = bare.api()
    node = bare.node(api)
    bare.finish(api, node.qemu(QEMU).status.start.post())
    bare.finish(api, node.qemu(NATIVE).status.stop.post())
    cut.seen["outside"] = bare.processes("[q]emu-system-x86_64"), ct_init(bare)
    bare.apt("remove appliance")
    return cut


@pytest.fixture(scope="module")
def purged(removed: Life) -> Life:
    """Installed again, which finds its guests; these are stopped; then all of it goes."""
    bare = removed.bare
    bare.install(removed.later)
    bare.wait_until_serving()
    api = bare.api()
    removed.seen["found_again"] = {path: bare.state(api, path)["status"] for path in GUESTS}
    removed.seen["still"] = bare.processes("[q]emu-system-x86_64"), ct_init(bare)
    node = bare.node(api)
    bare.finish_all(api, [node(path).status.stop.post() for path in (f"qemu/{QEMU}", f"lxc/{CT}")])
    bare.apt("purge appliance")
    return removed


def wait_for_states(bare: PackagedHost, api: Any, wanted: dict[str, str]) -> None:
    deadline = time.monotonic() + 120
    while (now := {path: bare.state(api, path)["status"] for path in wanted}) != wanted:
        assert time.monotonic() < deadline, f"{now}, not {wanted}:\n{bare.journal()}"
        time.sleep(2)
