"""prometheus-pve-exporter, unchanged, against a running appliance: the dashboards Proxmox VE's users already have."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import ROOT, Appliance

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

VM, CT, OFF = 735, 736, 737
START_LIMIT_S = 60.0
FIGURES_LIMIT_S = 60.0
MIB = 1 << 20


class Exporter:
    """The exporter's own process, listening on a UNIX socket."""

    def __init__(self, directory: Path, target: str, credentials: dict[str, str]) -> None:
        self._path, self._target = directory / "exporter.sock", target
        config = directory / "pve.yml"
        config.write_text(json.dumps({"default": credentials}))  # JSON is YAML
        config.chmod(0o600)
        program = Path(sys.executable).with_name("pve_exporter")
        self._log = directory / "exporter.log"
        argv = [str(program), "--config.file", str(config), "--web.listen-address", f"unix:{self._path}"]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PVE_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + START_LIMIT_S
        while "Booting worker" not in self._log.read_text():
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.05)

    def scrape(self) -> Metrics:
        """One scrape, as Prometheus does it."""
        connection = http.client.HTTPConnection("localhost", timeout=FIGURES_LIMIT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.connect(str(self._path))
            connection.request("GET", f"/pve?target={self._target}&cluster=1&node=1")
            reply = connection.getresponse()
            text = reply.read().decode()
            assert reply.status == 200, f"{text}\n{self._log.read_text()}"
        finally:
            connection.close()
        return Metrics(text)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(START_LIMIT_S)


class Metrics:
    """What one scrape said."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self._samples = [sample for family in families for sample in family.samples]

    def value(self, name: str, **labels: str) -> float:
        """The value of the one sample with these labels."""
        (value,) = [sample.value for sample in self._samples if sample.name == name and _has(sample.labels, labels)]
        return float(value)

    def labels(self, name: str, id_: str) -> dict[str, str]:
        """The labels of the one sample of this object."""
        (labels,) = [sample.labels for sample in self._samples if sample.name == name and sample.labels["id"] == id_]
        return dict(labels)

    def all_of(self, name: str, **labels: str) -> list[float]:
        return [sample.value for sample in self._samples if sample.name == name and _has(sample.labels, labels)]


def _has(labels: dict[str, str], wanted: dict[str, str]) -> bool:
    return wanted.items() <= labels.items()


@pytest.fixture(scope="module")
def guests(appliance: Appliance, busybox_template: Path) -> Iterator[str]:
    """A running VM and a running container with traffic, and a stopped VM; the node's name."""
    api = appliance.api()
    node = appliance.node(api)
    template = appliance.upload(api, busybox_template, "vztmpl", "busybox_1_amd64.tar.gz")
    net = f"bridge={appliance.bridge}"
    vm = {"name": "web", "memory": 64, "cores": 2, "scsi0": "local:0.01", "net0": f"virtio,{net}", "tags": "prod;web"}
    appliance.finish(api, node.qemu.post(vmid=VM, onboot=1, start=1, **vm))
    appliance.finish(api, node.qemu.post(vmid=OFF, name="off", memory=32, onboot=0))
    appliance.finish(
        api,
        node.lxc.post(
            vmid=CT, hostname="db", ostemplate=template, rootfs="local:0.1", memory=128, swap=0, cores=1, start=1,
            net0=f"name=eth0,{net},ip=dhcp",
        ),
    )  # fmt: skip
    with appliance.terminal(api, f"lxc/{CT}") as console:  # some traffic and some use of the processor
        console.type(
            "udhcpc -n -q -i eth0 >/dev/null; n=0; while [ $n -lt 200000 ]; do n=$((n+1)); done; echo don$((0))e\n"
        )
        console.wait_for("don0e", timeout_s=30)
    yield appliance.node_name(api)
    for guest in (node.qemu(VM), node.lxc(CT)):
        appliance.finish(api, guest.status.stop.post())


@pytest.fixture(scope="module")
def exporter(appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Logged in as its documentation says: a token of a user with the role PVEAuditor."""
    api = appliance.api()
    api.access.users.post(userid="prometheus@pve")
    api.access.acl.put(path="/", users="prometheus@pve", roles="PVEAuditor")
    token = api.access.users("prometheus@pve").token("exporter").post(privsep=0)
    credentials = {
        "user": "prometheus@pve",
        "token_name": "exporter",
        "token_value": token["value"],
        "verify_ssl": str(appliance.data_dir / "pki" / "ca.pem"),
    }
    running = Exporter(tmp_path_factory.mktemp("exporter"), f"127.0.0.1:{appliance.port}", credentials)
    yield running
    running.close()


@pytest.fixture(scope="module")
def metrics(exporter: Exporter, guests: str) -> Metrics:
    """A scrape after the figures of both guests have been taken."""
    deadline = time.monotonic() + FIGURES_LIMIT_S
    while True:
        found = exporter.scrape()
        measured = [
            found.value("pve_cpu_usage_ratio", id=f"qemu/{VM}"),
            found.value("pve_disk_usage_bytes", id=f"lxc/{CT}"),
        ]
        if all(measured):
            return found
        assert time.monotonic() < deadline, measured
        time.sleep(0.25)


def test_what_runs_is_up(metrics: Metrics, guests: str) -> None:
    up = {name: metrics.value("pve_up", id=name) for name in (f"qemu/{VM}", f"lxc/{CT}", f"qemu/{OFF}")}
    assert up == {f"qemu/{VM}": 1, f"lxc/{CT}": 1, f"qemu/{OFF}": 0}
    assert metrics.value("pve_up", id=f"node/{guests}") == 1
    assert metrics.value("pve_up", id=f"storage/{guests}/local") == 1


def test_guests_nodes_and_storages_carry_their_labels(metrics: Metrics, guests: str) -> None:
    assert metrics.labels("pve_guest_info", f"qemu/{VM}") == {
        "id": f"qemu/{VM}", "node": guests, "name": "web", "type": "qemu", "template": "0", "tags": "prod;web",
    }  # fmt: skip
    container = metrics.labels("pve_guest_info", f"lxc/{CT}")
    assert (container["name"], container["type"], container["tags"]) == ("db", "lxc", "")
    storage = metrics.labels("pve_storage_info", f"storage/{guests}/local")
    assert (storage["plugintype"], storage["storage"]) == ("dir", "local")
    assert {"images", "rootdir", "vztmpl"} <= set(storage["content"].split(","))
    assert metrics.labels("pve_node_info", f"node/{guests}")["name"] == guests
    assert len(metrics.all_of("pve_version_info")) == 1


def test_processor_and_memory_are_measured_against_their_limits(metrics: Metrics, guests: str) -> None:
    assert metrics.value("pve_cpu_usage_limit", id=f"qemu/{VM}") == 2
    assert metrics.value("pve_cpu_usage_limit", id=f"lxc/{CT}") == 1
    for name, size in ((f"qemu/{VM}", 64 * MIB), (f"lxc/{CT}", 128 * MIB)):
        assert metrics.value("pve_memory_size_bytes", id=name) == size
        assert 0 < metrics.value("pve_memory_usage_bytes", id=name) <= size
        assert 0 <= metrics.value("pve_cpu_usage_ratio", id=name) <= 1.5
        assert 0 < metrics.value("pve_uptime_seconds", id=name) < 120
    assert metrics.value("pve_uptime_seconds", id=f"qemu/{OFF}") == 0
    node = f"node/{guests}"
    assert 0 < metrics.value("pve_memory_usage_bytes", id=node) < metrics.value("pve_memory_size_bytes", id=node)
    assert metrics.value("pve_cpu_usage_limit", id=node) == os.cpu_count()
    assert 0 <= metrics.value("pve_cpu_usage_ratio", id=node) <= 1


def test_disks_and_networks_count_bytes(metrics: Metrics, guests: str) -> None:
    assert metrics.value("pve_disk_size_bytes", id=f"qemu/{VM}") >= 10 * MIB
    size = metrics.value("pve_disk_size_bytes", id=f"lxc/{CT}")
    assert 0 < metrics.value("pve_disk_usage_bytes", id=f"lxc/{CT}") < size
    assert metrics.value("pve_disk_read_bytes_total", id=f"qemu/{VM}") >= 512, "the firmware has read a boot sector"
    for direction in ("receive", "transmit"):
        counted = metrics.value(f"pve_network_{direction}_bytes_total", id=f"lxc/{CT}")
        assert counted > 500, "a DHCP exchange"
        assert metrics.value(f"pve_network_{direction}_bytes", id=f"lxc/{CT}") == counted
    for name in (f"qemu/{VM}", f"lxc/{CT}"):
        assert metrics.value("pve_disk_written_bytes_total", id=name) >= 0
    local = f"storage/{guests}/local"
    assert 0 < metrics.value("pve_disk_usage_bytes", id=local) < metrics.value("pve_disk_size_bytes", id=local)
    assert metrics.value("pve_storage_shared", id=local) == 0


def test_states_of_locks_and_availability_are_all_off(metrics: Metrics) -> None:
    for name in (f"qemu/{VM}", f"lxc/{CT}"):
        assert set(metrics.all_of("pve_lock_state", id=name)) == {0}
        assert set(metrics.all_of("pve_ha_state", id=name)) == {0}


def test_configurations_backups_and_subscription_come_from_their_own_methods(metrics: Metrics, guests: str) -> None:
    assert metrics.value("pve_onboot_status", id=f"qemu/{VM}", node=guests, type="qemu") == 1
    assert metrics.value("pve_onboot_status", id=f"qemu/{OFF}") == 0
    assert metrics.all_of("pve_onboot_status", id=f"lxc/{CT}") == [], "as Proxmox VE: only where it was set"
    assert metrics.all_of("pve_not_backed_up_total") == [3]
    assert metrics.value("pve_not_backed_up_info", id=f"lxc/{CT}") == 1
    assert metrics.value("pve_subscription_status", id=f"node/{guests}", status="notfound") == 1
    assert metrics.all_of("pve_replication_info") == []
    assert metrics.all_of("pve_qdevice_up") == []


def test_a_guest_that_stops_goes_down_in_the_next_scrape(
    appliance: Appliance, exporter: Exporter, metrics: Metrics
) -> None:
    api = appliance.api()
    appliance.finish(api, appliance.node(api).lxc(CT).status.stop.post())
    now = exporter.scrape()
    assert now.value("pve_up", id=f"lxc/{CT}") == 0
    assert now.value("pve_up", id=f"qemu/{VM}") == 1
    assert now.value("pve_memory_usage_bytes", id=f"lxc/{CT}") == 0
