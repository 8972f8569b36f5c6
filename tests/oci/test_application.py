"""Application containers end to end: an image of umoci's making, pulled, made a guest, started through the API."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.harness import ROOT, Appliance, TaskFailed, free_port

pytestmark = [pytest.mark.host, pytest.mark.timeout(120)]

APPLETS = ("cat", "echo", "env", "false", "httpd", "id", "ip", "kill", "ls", "nc", "rm", "sh", "sleep", "touch", "true")


def run(*argv: str | Path) -> None:
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True)
    assert done.returncode == 0, f"{argv}: {done.stderr}"


def busybox_image(directory: Path) -> str:
    """An OCI layout with a busybox image of two layers, made by umoci; where it is."""
    layout, bundle = directory / "layout", directory / "bundle"
    run("umoci", "init", "--layout", layout)
    run("umoci", "new", "--image", f"{layout}:app")
    run("umoci", "unpack", "--image", f"{layout}:app", bundle)
    root = bundle / "rootfs"
    for name in ("bin", "etc", "tmp", "srv", "www"):
        (root / name).mkdir()
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for applet in APPLETS:
        (root / "bin" / applet).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\napp:x:1000:1000::/srv:/bin/sh\n")
    (root / "etc/old").write_text("hidden by the second layer\n")
    run("umoci", "repack", "--refresh-bundle", "--image", f"{layout}:app", bundle)
    (root / "etc/old").unlink()
    (root / "www/index.html").write_text("hello from inside\n")
    run("umoci", "repack", "--image", f"{layout}:app", bundle)
    config = ("--config.entrypoint", "/bin/sh", "--config.cmd", "-c", "--config.cmd", "echo started; sleep 1000")
    run("umoci", "config", "--image", f"{layout}:app", *config, "--config.env", "FROM_IMAGE=yes",
        "--config.label", "who=tests", "--config.workingdir", "/srv", "--config.volume", "/www")  # fmt: skip
    return f"oci:{layout}:app"


@pytest.fixture(scope="module")
def registry(debian_registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's registry with the image."""
    if shutil.which("umoci") is None or shutil.which("skopeo") is None:
        pytest.skip("umoci or skopeo is not installed")
    source = busybox_image(tmp_path_factory.mktemp("image"))
    run("skopeo", "--insecure-policy", "copy", "--dest-tls-verify=false", source,
        f"docker://{debian_registry}/busybox:app")  # fmt: skip
    return debian_registry


@contextmanager
def appliance_with_image(registry: str) -> Iterator[tuple[Appliance, Any]]:
    with Appliance() as appliance:
        api = appliance.api()
        api.appliance.oci.registries.post(registry=registry, transport="plain")
        pull = appliance.node(api).storage("local")("oci-registry-pull")
        appliance.finish(api, pull.post(reference=f"{registry}/busybox:app"))
        yield appliance, api


@pytest.fixture(scope="module")
def site(registry: str) -> Iterator[tuple[Appliance, Any]]:
    """An appliance with the image pulled, for the tests of this module."""
    with appliance_with_image(registry) as made:
        yield made


@pytest.fixture
def own_site(registry: str) -> Iterator[tuple[Appliance, Any]]:
    """One for a test that restarts it."""
    with appliance_with_image(registry) as made:
        yield made


def create(site: tuple[Appliance, Any], vmid: int, script: str = "", **params: object) -> Any:
    """Make a container of the image (with `script` as its program), and start it; its resource."""
    appliance, api = site
    program = {"entrypoint": f"/bin/sh -c '{script}'"} if script else {}
    node = appliance.node(api)
    made = {"ostemplate": "local:vztmpl/busybox_app.tar", "rootfs": "local:0.1", "memory": 64, **program, **params}
    appliance.finish(api, node.lxc.post(vmid=vmid, start=1, **made))
    return node.lxc(vmid)


def create_stopped(site: tuple[Appliance, Any], vmid: int, **params: object) -> Any:
    """As `create`, but not started."""
    appliance, api = site
    node = appliance.node(api)
    made = {"ostemplate": "local:vztmpl/busybox_app.tar", "rootfs": "local:0", "memory": 64, **params}
    appliance.finish(api, node.lxc.post(vmid=vmid, **made))
    return node.lxc(vmid)


def eventually(check: Callable[[], bool], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not check():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)


def status(guest: Any) -> dict[str, Any]:
    return dict(guest.status.current.get())


def logs(site: tuple[Appliance, Any], vmid: int, **query: object) -> str:
    appliance, api = site
    session, base = api._store["session"], api._store["base_url"]
    reply = session.request("GET", f"{base}/nodes/{appliance.node_name(api)}/lxc/{vmid}/logs", params=query)
    assert reply.status_code == 200, reply.text
    return str(reply.text)


def test_an_images_own_words_become_the_containers_configuration(site: tuple[Appliance, Any]) -> None:
    guest = create(site, 201, env="MINE=1")
    config = guest.config.get()
    assert config["entrypoint"] == "/bin/sh -c 'echo started; sleep 1000'"
    environment = dict(pair.split("=", 1) for pair in config["env"].split("\0"))
    assert (environment["FROM_IMAGE"], environment["MINE"]) == ("yes", "1")
    assert config["app-workdir"] == "/srv"
    assert json.loads(config["app-labels"]) == {"who": "tests"}
    assert "/busybox:app@sha256:" in config["app-image"]
    assert status(guest)["status"] == "running"


def test_how_it_ended_and_what_it_said_are_kept(site: tuple[Appliance, Any]) -> None:
    guest = create(site, 202, "echo to out; echo to err >&2; exit 42")
    eventually(lambda: status(guest)["status"] == "stopped")
    eventually(lambda: status(guest).get("exit-code") == 42)
    assert status(guest)["exit-detail"] == "the program ended with status 42"
    assert logs(site, 202, stderr=0) == "to out\n"
    assert logs(site, 202, stdout=0) == "to err\n"
    assert logs(site, 202, tail=1, stdout=0, timestamps=1).endswith(" to err\n")
    appliance, api = site
    appliance.finish(api, guest.status.start.post())
    eventually(lambda: status(guest)["status"] == "stopped")
    assert sorted(logs(site, 202).splitlines()) == ["to err", "to err", "to out", "to out"]  # of both runs


def test_a_log_is_followed_to_the_end_of_the_container(site: tuple[Appliance, Any]) -> None:
    create(site, 203, "for i in 1 2 3; do echo $i; sleep 0.4; done")
    assert logs(site, 203, follow=1) == "1\n2\n3\n"
    appliance, _ = site
    argv = [
        sys.executable,
        "-m",
        "appliance",
        "--data-dir",
        str(appliance.data_dir),
        "ct",
        "logs",
        "203",
        "--tail",
        "2",
    ]
    assert subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=30).stdout == "2\n3\n"


def test_a_log_nobody_follows_any_more_is_closed(site: tuple[Appliance, Any]) -> None:
    appliance, api = site
    create(site, 212, "echo up; sleep 60")
    argv = [sys.executable, "-m", "appliance", "--data-dir", str(appliance.data_dir), "ct", "logs", "212", "--follow"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == b"up\n"
        assert appliance.process is not None
        process = psutil.Process(appliance.process.pid)

        def is_read() -> bool:
            return any("ct-logs/212" in file.path for file in process.open_files())

        assert is_read()
        follower.kill()
    eventually(lambda: not is_read())
    appliance.finish(api, appliance.node(api).lxc(212).status.stop.post())


def test_a_failure_is_followed_by_a_start_until_the_attempts_are_used_up(site: tuple[Appliance, Any]) -> None:
    guest = create(site, 204, "echo run; exit 1", restart="on-failure,max=2")
    eventually(lambda: logs(site, 204).count("run") == 3 and status(guest)["status"] == "stopped")
    time.sleep(1)
    assert logs(site, 204).count("run") == 3
    assert (status(guest)["restarts"], status(guest)["exit-code"]) == (2, 1)
    well = create(site, 205, "echo run", restart="on-failure")
    eventually(lambda: status(well).get("exit-code") == 0)
    time.sleep(0.5)
    assert logs(site, 205) == "run\n"


def test_a_stop_is_stronger_than_a_policy(site: tuple[Appliance, Any]) -> None:
    appliance, api = site
    guest = create(site, 206, "echo run; sleep 0.1", restart="always")
    eventually(lambda: logs(site, 206).count("run") >= 3)
    appliance.finish(api, guest.status.stop.post())
    time.sleep(0.5)
    before = logs(site, 206).count("run")
    time.sleep(2)
    assert (logs(site, 206).count("run"), status(guest)["status"]) == (before, "stopped")


def test_health_is_told(site: tuple[Appliance, Any]) -> None:
    check = json.dumps({"command": ["/bin/sh", "-c", "cat /tmp/well"], "interval": 0.3, "retries": 2})
    script = "touch /tmp/well; sleep 3; rm /tmp/well; sleep 1000"
    guest = create(site, 207, script, **{"app-health": check})
    eventually(lambda: status(guest).get("health") == "healthy")
    eventually(lambda: status(guest).get("health") == "unhealthy")
    checks = guest.health.get()["checks"]
    assert checks[-1]["exit-code"] == 1
    assert "No such file" in checks[-1]["output"]


def test_containers_share_the_layers_of_their_image_and_a_size_makes_a_copy(site: tuple[Appliance, Any]) -> None:
    appliance, _ = site
    script = "ls /etc/old; cat /www/index.html; echo changed > /www/index.html"
    for vmid, root in ((208, "local:0"), (209, "local:0"), (210, "local:0.1")):
        guest = create(site, vmid, script, rootfs=root)
        eventually(lambda guest=guest: status(guest).get("exit-code") == 0)  # type: ignore[misc]
        assert "hello from inside" in logs(site, vmid, stderr=0)
        assert "No such file" in logs(site, vmid, stdout=0)
    layers = appliance.data_dir / "storage/local/.appliance/oci/layers"
    assert len(list(layers.iterdir())) == 2
    volumes = appliance.data_dir / "storage/local/images/208"
    changed, data = (next(volumes.glob(f"*-disk-{number}.subvol")) for number in (0, 1))
    mounted_over = {"hostname", "hosts", "resolv.conf"}  # empty files that the runtime makes to mount the host's on
    assert {path.name for path in changed.rglob("*") if path.is_file()} == mounted_over
    # the volume the image declares began with what the image has there
    assert [(path.name, path.read_text()) for path in data.iterdir()] == [("index.html", "changed\n")]


def fetch(address: str, port: int) -> str:
    """What the published httpd answers; "" when nobody does."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            said = b""
            while chunk := connection.recv(4096):
                said += chunk
    except OSError:
        return ""
    return said.decode()


def rules(appliance: Appliance) -> str:
    tables = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    return tables if f'"{appliance.bridge}" ip daddr 127.0.0.0/8 drop' in tables else ""


def test_a_published_port_leads_into_the_container_for_as_long_as_it_runs(own_site: tuple[Appliance, Any]) -> None:
    appliance, api = own_site
    port = free_port()
    net0 = f"name=eth0,bridge={appliance.bridge},ip=dhcp"
    script = "ip route; cat /etc/resolv.conf; exec httpd -f -p 80 -h /www"
    guest = create(own_site, 220, script, rootfs="local:0", net0=net0, **{"app-publish": f"{port}:80"})
    (inside,) = [row for row in guest.interfaces.get() if row["name"] == "eth0"]
    address = inside["inet"].partition("/")[0]  # set by the host: nothing inside asks for one
    eventually(lambda: "hello from inside" in fetch(address, 80))
    assert "hello from inside" in fetch("127.0.0.1", port)
    gateway = next(row["address"] for row in appliance.node(api).network.get() if row["iface"] == appliance.bridge)
    said = logs(own_site, 220)
    assert f"default via {gateway} dev eth0" in said
    assert f"nameserver {gateway}" in said
    assert "hello from inside" in fetch(gateway, port)

    other = create_stopped(own_site, 221, net0=net0, **{"app-publish": f"{port}:80"})
    with pytest.raises(TaskFailed, match=f"port {port}/tcp is published by ct 220 already"):
        appliance.finish(api, other.status.start.post())
    taken = create_stopped(own_site, 222, net0=net0, **{"app-publish": f"{appliance.port}:80"})
    with pytest.raises(TaskFailed, match=f"port {appliance.port}/tcp is in use on this host"):
        appliance.finish(api, taken.status.start.post())

    appliance.kill()
    assert "hello from inside" in fetch("127.0.0.1", port)  # while the appliance is away
    appliance.start()
    assert "hello from inside" in fetch("127.0.0.1", port)
    api = appliance.api()
    appliance.finish(api, appliance.node(api).lxc(220).status.stop.post())
    assert fetch("127.0.0.1", port) == ""
    assert rules(appliance) == ""
    for vmid in (220, 221, 222):
        appliance.finish(api, appliance.node(api).lxc(vmid).delete())


def test_a_policy_is_kept_over_a_restart_of_the_appliance(own_site: tuple[Appliance, Any]) -> None:
    appliance, api = own_site
    create(own_site, 223, "echo run; sleep 2; exit 0", restart="always")
    create(own_site, 224, "sleep 1; exit 9", restart="no")
    appliance.kill()
    time.sleep(3)
    appliance.start()
    api = appliance.api()
    node = appliance.node(api)
    eventually(lambda: logs(own_site, 223).count("run") >= 2)
    state = node.lxc(224).status.current.get()
    assert (state["status"], state["exit-detail"]) == ("stopped", "it ended while the appliance was away")
    for vmid in (223, 224):
        appliance.finish(api, node.lxc(vmid).status.stop.post())
        appliance.finish(api, node.lxc(vmid).delete())


def test_an_image_is_built_from_a_dockerfile_and_run(
    site: tuple[Appliance, Any], registry: str, tmp_path: Path
) -> None:
    if shutil.which("buildah") is None:
        pytest.skip("buildah is not installed")
    appliance, api = site
    dockerfile = f"FROM {registry}/busybox:app\nCOPY words /srv/words\nRUN echo built > /srv/ran\n"
    (tmp_path / "Dockerfile").write_text(dockerfile + 'ENTRYPOINT ["/bin/cat", "/srv/words", "/srv/ran"]\nCMD []\n')
    (tmp_path / "words").write_text("copied\n")
    context = tmp_path / "context.tar"
    run("tar", "-C", tmp_path, "-cf", context, "Dockerfile", "words")
    with context.open("rb") as file:
        upid = api.appliance.oci.build.post(tag="built:1", context=file)
    appliance.finish(api, upid)
    said = "\n".join(row["t"] for row in appliance.node(api).tasks(upid).log.get(limit=500))
    assert "COPY words /srv/words" in said  # buildah's own steps
    node = appliance.node(api)
    appliance.finish(api, node.lxc.post(vmid=230, ostemplate="local:vztmpl/built_1.tar", memory=64, start=1))
    eventually(lambda: logs(site, 230) == "copied\nbuilt\n")
    assert list((appliance.data_dir / "builds").iterdir()) == []
    eventually(lambda: status(node.lxc(230))["status"] == "stopped")
    appliance.finish(api, node.lxc(230).delete())
    appliance.finish(api, api.appliance.oci.images("local:vztmpl/built_1.tar").delete())

    (tmp_path / "Dockerfile").write_text(f"FROM {registry}/busybox:app\nRUN false\n")
    run("tar", "-C", tmp_path, "-cf", context, "Dockerfile")
    with context.open("rb") as file:
        upid = api.appliance.oci.build.post(tag="broken:1", context=file)
    with pytest.raises(TaskFailed, match="buildah exited with status"):
        appliance.finish(api, upid)
    assert list((appliance.data_dir / "builds").iterdir()) == []


def test_what_containers_stand_on_stays_when_their_image_goes(site: tuple[Appliance, Any]) -> None:
    appliance, api = site
    guest = create(site, 211, "echo still here", rootfs="local:0")
    eventually(lambda: status(guest).get("exit-code") == 0)
    appliance.finish(api, api.appliance.oci.images("local:vztmpl/busybox_app.tar").delete())
    layers = appliance.data_dir / "storage/local/.appliance/oci/layers"
    assert len(list(layers.iterdir())) == 2
    appliance.finish(api, guest.status.start.post())
    eventually(lambda: logs(site, 211).count("still here") == 2)
    node = appliance.node(api)
    for row in node.lxc.get():
        if row["status"] != "stopped":
            appliance.finish(api, node.lxc(row["vmid"]).status.stop.post())
        appliance.finish(api, node.lxc(row["vmid"]).delete())
    appliance.finish(api, api.appliance.oci.gc.post())
    assert list(layers.iterdir()) == []
    assert list((appliance.data_dir / "ct-logs").iterdir()) == []
