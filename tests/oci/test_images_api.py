"""Images through the API and the command line of a real appliance, with Debian's registry and skopeo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from proxmoxer import ResourceException

from tests.harness import ROOT, Appliance, TaskFailed
from tests.oci import images
from tests.oci.images import TestImage

pytestmark = pytest.mark.host

BASE = images.layer(images.directory("etc"), images.file("etc/os-release", b"NAME=test\n"))
UPPER = [images.layer(images.file(f"file{number}", bytes([number]) * 5000)) for number in range(3)]
CONFIG = {
    "Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "Env": ["A=1"], "User": "app", "WorkingDir": "/srv",
    "ExposedPorts": {"80/tcp": {}}, "Volumes": {"/data": {}}, "Labels": {"who": "me"}, "StopSignal": "SIGUSR1",
    "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 2_000_000_000},
}  # fmt: skip


def layout(directory: Path, made: TestImage) -> str:
    """The image as an OCI layout that skopeo reads."""
    (directory / "blobs/sha256").mkdir(parents=True)
    for digest, data in (made.blobs | {made.digest: made.document}).items():
        (directory / "blobs/sha256" / digest[7:]).write_bytes(data)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = {
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "digest": made.digest,
        "size": len(made.document),
        "annotations": {"org.opencontainers.image.ref.name": "1"},
    }
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    return f"oci:{directory}:1"


def skopeo(*arguments: str) -> None:
    done = subprocess.run(["skopeo", "--insecure-policy", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def registry(debian_registry: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian's registry with `app:1` and `app:2`, which share layers, pushed by skopeo."""
    for tag, layers in (("1", [BASE, *UPPER[:2]]), ("2", [BASE, *UPPER])):
        source = layout(tmp_path_factory.mktemp("layout") / tag, images.image(layers, config=CONFIG))
        skopeo("copy", "--dest-tls-verify=false", source, f"docker://{debian_registry}/app:{tag}")
    return debian_registry


@pytest.fixture(scope="module")
def api(registry: str) -> Iterator[tuple[Appliance, Any]]:
    with Appliance() as appliance:
        api = appliance.api()
        api.appliance.oci.registries.post(registry=registry, transport="plain")
        yield appliance, api


def pull(appliance: Appliance, api: Any, reference: str, **params: str) -> None:
    node = appliance.node(api)
    appliance.finish(api, node.storage("local")("oci-registry-pull").post(reference=reference, **params))


def store(appliance: Appliance) -> set[str]:
    return {path.name for path in (appliance.data_dir / "storage/local/.appliance/oci/blobs/sha256").iterdir()}


def test_a_pulled_image_is_listed_as_a_template_with_its_size_and_what_it_says(
    api: tuple[Appliance, Any], registry: str
) -> None:
    appliance, client = api
    pull(appliance, client, f"{registry}/app:1")
    node = appliance.node(client)
    (row,) = [each for each in node.storage("local").content.get(content="vztmpl") if "app_1" in each["volid"]]
    assert row["volid"] == "local:vztmpl/app_1.tar"
    made = images.image([BASE, *UPPER[:2]], config=CONFIG)
    assert row["size"] == sum(len(blob) for blob in made.blobs.values())
    assert row["notes"] == f"{registry}/app:1@{made.digest}"
    details = client.appliance.oci.images("local:vztmpl/app_1.tar").get()
    assert details["digest"] == made.digest
    assert (details["entrypoint"], details["command"], details["env"]) == (["/bin/app"], ["--serve"], {"A": "1"})
    assert (details["user"], details["workdir"], details["stop-signal"]) == ("app", "/srv", "SIGUSR1")
    assert (details["ports"], details["volumes"], details["labels"]) == (["80/tcp"], ["/data"], {"who": "me"})
    assert details["health"]["interval"] == 2.0


def test_tags_are_asked_of_the_registry(api: tuple[Appliance, Any], registry: str) -> None:
    appliance, client = api
    assert sorted(appliance.node(client)("query-oci-repo-tags").get(reference=f"{registry}/app")) == ["1", "2"]


def test_images_share_blobs_and_removal_takes_only_what_nobody_else_needs(
    api: tuple[Appliance, Any], registry: str
) -> None:
    appliance, client = api
    one, two = (images.image([BASE, *UPPER[:count]], config=CONFIG) for count in (2, 3))
    pull(appliance, client, f"{registry}/app:1")
    pull(appliance, client, f"{registry}/app:2", filename="second")
    assert store(appliance) >= {digest[7:] for digest in one.blobs | two.blobs}
    appliance.finish(client, client.appliance.oci.images("local:vztmpl/second.tar").delete())
    left = store(appliance)
    assert {digest[7:] for digest in one.blobs} <= left
    assert not {digest[7:] for digest in two.blobs.keys() - one.blobs.keys()} & left
    client.appliance.oci.images("local:vztmpl/app_1.tar").get()


def test_what_is_pushed_is_what_was_pulled(api: tuple[Appliance, Any], registry: str, tmp_path: Path) -> None:
    appliance, client = api
    pull(appliance, client, f"{registry}/app:1")
    appliance.finish(
        client, client.appliance.oci.push.post(volume="local:vztmpl/app_1.tar", reference=f"{registry}/copy:x")
    )
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry}/copy:x", f"oci:{tmp_path}/out:x")
    index = json.loads((tmp_path / "out/index.json").read_text())
    assert index["manifests"][0]["digest"] == images.image([BASE, *UPPER[:2]], config=CONFIG).digest


def test_an_archive_of_skopeos_is_pushed_with_the_layers_it_holds(
    api: tuple[Appliance, Any], registry: str, tmp_path: Path
) -> None:
    appliance, client = api
    made = images.image([BASE, images.layer(images.file("only-here", b"x"))], config=CONFIG)
    archive = tmp_path / "uploaded.tar"
    skopeo("copy", layout(tmp_path / "layout", made), f"oci-archive:{archive}:up")
    volume = appliance.upload(client, archive, "vztmpl", archive.name)
    assert client.appliance.oci.images(volume).get()["digest"] == made.digest
    appliance.finish(client, client.appliance.oci.push.post(volume=volume, reference=f"{registry}/uploaded:1"))
    skopeo("copy", "--src-tls-verify=false", f"docker://{registry}/uploaded:1", f"oci:{tmp_path}/out:x")


def test_an_image_that_is_not_there_fails_the_task_and_names_it(api: tuple[Appliance, Any], registry: str) -> None:
    appliance, client = api
    with pytest.raises(TaskFailed, match=f"registry {registry}: missing/manifests/1 does not exist"):
        pull(appliance, client, f"{registry}/missing:1")
    for bad in ("UPPER/case:1", "a b", "../x", "x:" + "y" * 200):
        with pytest.raises(ResourceException, match="400"):
            pull(appliance, client, bad)


def test_credentials_are_kept_from_others_and_never_shown(api: tuple[Appliance, Any]) -> None:
    appliance, client = api
    client.appliance.oci.registries.post(registry="r.example.com", username="me", password="sesame-4711")
    (row,) = [each for each in client.appliance.oci.registries.get() if each["registry"] == "r.example.com"]
    assert row == {"registry": "r.example.com", "transport": "verified", "username": "me", "password": 1, "ca": 0}
    assert (appliance.data_dir / "oci-registries.json").stat().st_mode & 0o777 == 0o600
    for path in appliance.data_dir.rglob("*"):
        if path.is_file() and path.name != "oci-registries.json":
            assert b"sesame-4711" not in path.read_bytes(), path
    assert "sesame-4711" not in appliance.log_path.read_text()
    client.appliance.oci.registries("r.example.com").delete()
    with pytest.raises(ResourceException, match="password is not sent over plain http"):
        client.appliance.oci.registries.post(registry="r.example.com", username="a", password="b", transport="plain")


def cli(appliance: Appliance, *words: str) -> str:
    argv = [sys.executable, "-m", "appliance", "--data-dir", str(appliance.data_dir), "oci", *words]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_line_does_it_all(api: tuple[Appliance, Any], registry: str) -> None:
    appliance, _ = api
    assert "replaced" not in cli(appliance, "pull", f"{registry}/app:2")
    assert "local:vztmpl/app_2.tar" in cli(appliance, "list")
    assert "/bin/app" in cli(appliance, "show", "local:vztmpl/app_2.tar")
    assert cli(appliance, "tags", f"{registry}/app").split()[-2:]
    cli(appliance, "push", "local:vztmpl/app_2.tar", f"{registry}/cli:1")
    assert "removed volume" in cli(appliance, "rm", "local:vztmpl/app_2.tar")
    assert "removed 0 blobs" in cli(appliance, "gc")
    assert registry in cli(appliance, "registries")
    assert "push VOLUME REFERENCE" in cli(appliance, "--help")
