"""A whole Debian on the native machine, as people have it: from its disk image through SeaBIOS and GRUB, by the API.

One guest lives through this module: two processors, its data moved by the storage daemon, vhost-net and vhost-vsock. What
runs in it is started by its guest agent, which is thereby tried.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from proxmoxer import ResourceException

from tests.demo.terminal import Terminal
from tests.lab.appliance import DATA_DIR, LabAppliance
from tests.lab.conftest import in_loop
from tests.lab.host import LabHost
from tests.lab.recipe import GUEST_DISK

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

VM = 200
BOOT_S, AGENT_S, STEP_S = 600.0, 240.0, 120.0


@dataclass(frozen=True, slots=True)
class Debian:
    """The guest as the API has it."""

    appliance: LabAppliance
    api: Any

    @property
    def host(self) -> LabHost:
        return self.appliance.host

    @property
    def vm(self) -> Any:
        return self.api.nodes(self.host.name).qemu(VM)

    def done(self, upid: str) -> None:
        self.appliance.finish(self.api, upid)

    def terminal(self) -> Terminal:
        ticket, _ = self.api.get_tokens()
        headers = {"Cookie": f"PVEAuthCookie={ticket}"}
        port = self.host.api_port
        return Terminal(self.vm, node=self.host.name, path=f"qemu/{VM}", port=port, auth=headers)

    def boot(self) -> None:
        """Start it and wait for the login."""
        self.done(self.vm.status.start.post())
        with self.terminal() as terminal:
            terminal.wait_for("GRUB|Booting", timeout_s=BOOT_S)
            terminal.wait_for("login:", timeout_s=BOOT_S)

    def await_agent(self) -> None:
        """It answers."""
        until("the guest agent answers", lambda: self._ping(), timeout_s=AGENT_S)

    def _ping(self) -> bool:
        try:
            self.vm.agent.ping.post()
        except ResourceException as error:
            if "not running" not in str(error):
                raise
            return False
        return True

    def run(self, *command: str, status: int = 0) -> str:
        """A program in the guest; its output."""
        pid = self.vm.agent.exec.post(command=list(command))["pid"]
        ended: dict[str, Any] = {}

        def has_ended() -> bool:
            ended.update(self.vm.agent("exec-status").get(pid=pid))
            return bool(ended["exited"])

        until(f"{command} ends", has_ended, timeout_s=STEP_S)
        assert ended["exitcode"] == status, ended
        return str(ended.get("out-data", ""))

    def shell(self, script: str) -> str:
        return self.run("/bin/sh", "-ec", script).strip()

    def boot_id(self) -> str:
        return self.shell("cat /proc/sys/kernel/random/boot_id")

    def in_host(self, script: str) -> str:
        return in_loop(self.host.shell(script, timeout_s=STEP_S))

    def gateway(self) -> str:
        """Its way out, once it has been told by DHCP: some time after its agent answers."""
        told: list[str] = []

        def has_a_route() -> bool:
            told[:] = self.shell("ip -4 route show default").split()[2:3]
            return bool(told)

        until("it has a default route", has_a_route)
        return told[0]


def until(what: str, holds: Callable[[], bool], *, timeout_s: float = STEP_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {timeout_s:g} s"
        time.sleep(1.0)


@pytest.fixture(scope="module")
def appliance(vmm_host: LabHost) -> Iterator[LabAppliance]:
    running = LabAppliance(vmm_host)
    in_loop(running.start())
    yield running
    in_loop(running.stop())


@pytest.fixture(scope="module")
def debian(appliance: LabAppliance) -> Iterator[Debian]:
    """Booted to its login, its agent answering."""
    guest = Debian(appliance, appliance.api())
    guest.done(
        guest.api.nodes(guest.host.name).qemu.post(
            vmid=VM, name="debian", engine="native", cores=2, memory=768, cpu="host", serial0="socket", vga="none",
            agent=1, vsock=1, dataplane="offload", virtio0="local:2,format=qcow2", boot="order=virtio0",
            net0="virtio,bridge=vmbr0", rng0="source=/dev/urandom",
        )
    )  # fmt: skip
    guest.in_host(f"cp {GUEST_DISK} $(find {DATA_DIR} -name vm-{VM}-disk-0.qcow2)")
    guest.boot()
    guest.await_agent()
    yield guest
    guest.done(guest.vm.status.stop.post())
    guest.done(guest.vm.delete())


def test_it_runs_in_the_appliance_and_its_data_does_not(debian: Debian) -> None:
    status = debian.vm.status.current.get()
    assert status["status"] == "running"
    assert str(status["pid"]) == debian.in_host("systemctl show -P MainPID appliance.service").strip()
    assert "qemu-system" not in debian.in_host("ps -A -o args")
    assert debian.shell("nproc") == "2"
    start = next(row["upid"] for row in debian.api.nodes(debian.host.name).tasks.get(vmid=VM, typefilter="qmstart"))
    told = [row["t"] for row in debian.api.nodes(debian.host.name).tasks(start).log.get()]
    planes = {"virtio0: data plane: vhost-user", "net0: data plane: offload", "vsock: data plane: offload"}
    assert planes <= set(told)


def test_its_agent_tells_reads_writes_and_freezes(debian: Debian) -> None:
    assert debian.vm.agent("get-osinfo").get()["result"]["id"] == "debian"
    text = "written by the agent\n"
    debian.vm.agent("file-write").post(file="/root/agent.txt", content=text)
    assert debian.vm.agent("file-read").get(file="/root/agent.txt")["content"] == text
    assert debian.shell("cat /root/agent.txt") == text.strip()
    assert debian.vm.agent("fsfreeze-status").post()["result"] == "thawed"
    assert debian.vm.agent("fsfreeze-freeze").post()["result"] >= 1
    assert debian.vm.agent("fsfreeze-status").post()["result"] == "frozen"
    assert debian.vm.agent("fsfreeze-thaw").post()["result"] >= 1
    assert debian.run("/bin/false", status=1) == ""


def test_it_is_on_the_bridge(debian: Debian) -> None:
    def address() -> str:
        interfaces = debian.vm.agent("network-get-interfaces").get()["result"]
        found = [
            each["ip-address"]
            for interface in interfaces if interface["name"] != "lo"
            for each in interface.get("ip-addresses", []) if each["ip-address-type"] == "ipv4"
        ]  # fmt: skip
        return found[0] if found else ""

    until("it has an address by DHCP", lambda: bool(address()))
    assert "2 received" in debian.in_host(f"ping -c 2 -W 30 {address()}")
    gateway = debian.in_host("ip -4 -br addr show vmbr0 | tr -s ' ' | cut -d' ' -f3 | cut -d/ -f1").strip()
    assert "2 received" in debian.shell(f"ping -c 2 -W 30 {gateway}")


def test_a_program_of_the_host_talks_to_one_of_the_guest_by_vsock(debian: Debian) -> None:
    serve = (
        "import socket; s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.bind((socket.VMADDR_CID_ANY, 7000));"
        "s.listen(); c, _ = s.accept(); c.sendall(c.recv(100).upper()); c.close()"
    )
    debian.shell(f"python3 -c '{serve}' </dev/null >/dev/null 2>&1 &")
    talk = (
        f"import socket; s = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM); s.connect(({VM}, 7000));"
        "s.sendall(b'across'); print(s.recv(100).decode())"
    )
    assert debian.in_host(f'for n in 1 2 3 4 5 6 7 8 9; do python3 -c "{talk}" && break; sleep 1; done') == "ACROSS"


def test_disks_and_nics_come_and_go_as_its_configuration_does(debian: Debian) -> None:
    debian.vm.config.put(virtio1="local:1,format=raw", net1="virtio,bridge=vmbr0")
    until("its disk is there", lambda: "vdb" in debian.shell("ls /sys/block"))
    assert debian.shell("blockdev --getsize64 /dev/vdb") == str(1 << 30)
    before = debian.shell("ls /sys/class/net | wc -l")
    debian.shell("mkfs.ext4 -q /dev/vdb && mount /dev/vdb /mnt && echo kept >/mnt/file && umount /mnt")
    debian.done(debian.vm.resize.put(disk="virtio1", size="+1G"))
    until("its disk has grown", lambda: debian.shell("blockdev --getsize64 /dev/vdb") == str(2 << 30))
    debian.vm.config.put(delete="virtio1,net1")
    assert "vdb" not in debian.shell("ls /sys/block")
    assert int(debian.shell("ls /sys/class/net | wc -l")) == int(before) - 1
    assert "unused0" in debian.vm.config.get()
    debian.vm.config.put(virtio2=debian.vm.config.get()["unused0"])
    until("its disk is there again", lambda: "vdb" in debian.shell("ls /sys/block"))
    assert debian.shell("mount /dev/vdb /mnt && cat /mnt/file && umount /mnt") == "kept"
    debian.vm.unlink.put(idlist="virtio2", force=1)
    assert not {"unused0", "virtio2"} & debian.vm.config.get().keys()


def test_a_restart_from_inside_is_one_and_what_was_synced_is_there(debian: Debian) -> None:
    boot = debian.boot_id()
    pid = debian.vm.status.current.get()["pid"]
    debian.shell("echo synced >/root/synced; sync")
    debian.vm.agent.exec.post(command=["systemctl", "reboot"])  # nobody is left to tell how it ended

    def is_another() -> bool:
        try:
            return debian.boot_id() != boot
        except ResourceException:  # its agent is not running
            return False

    until("it has started again", is_another, timeout_s=BOOT_S)
    assert debian.vm.status.current.get()["pid"] == pid
    assert debian.shell("cat /root/synced") == "synced"


def test_a_restart_of_the_appliance_is_a_pause_to_it(debian: Debian) -> None:
    debian.await_agent()
    boot, gateway = debian.boot_id(), debian.gateway()
    debian.shell("(while :; do date +%s >>/run/ticks; sleep 0.5; done) </dev/null >/dev/null 2>&1 &")
    in_loop(debian.appliance.stop())
    in_loop(debian.appliance.start())
    debian.await_agent()
    assert debian.boot_id() == boot
    told, now = int(debian.shell("date +%s")), int(debian.in_host("date +%s"))
    assert abs(told - now) <= 10
    ticks = [int(line) for line in debian.shell("cat /run/ticks").split()]
    assert max(after - before for before, after in pairwise(ticks)) >= 2, "it was saved meanwhile"
    assert gateway in debian.shell("ip -4 route show default"), "its link went down meanwhile"
    assert "2 received" in debian.shell(f"ping -c 2 -W 30 {gateway}")


def test_an_orderly_shutdown_ends_it_by_its_agent_and_by_the_power_button(debian: Debian) -> None:
    debian.done(debian.vm.status.shutdown.post(timeout=180))
    assert debian.vm.status.current.get()["status"] == "stopped"
    debian.vm.config.put(agent=0, cores=1, dataplane="auto", delete="rng0")
    debian.boot()
    debian.done(debian.vm.status.shutdown.post(timeout=240))  # no agent: the power button
    journal = debian.in_host("journalctl -u appliance.service --no-pager")
    assert f"vm {VM}: stopping -> stopped (the guest powered off)" in journal
