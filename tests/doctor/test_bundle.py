"""The bug report's archive: whole without a server, nothing secret in it, nothing overwritten."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from appliance.cli.errors import CliError
from appliance.doctor import bundle
from appliance.errors import HostError

ADMIN = "first-Password-9"
CLOUD_INIT = "hunter2hunter2"
NOTES = "root password is on the yellow sticker"


class Api:
    """An appliance with one guest that has secrets in its configuration."""

    def get(self, path: str, **params: object) -> Any:
        match path:
            case "/cluster/resources":
                return [{"type": "qemu", "vmid": 100, "name": "web"}]
            case "/nodes/localhost/qemu/100/config":
                return {"name": "web", "cipassword": CLOUD_INIT, "description": NOTES, "net0": "virtio,bridge=vmbr0"}
            case "/nodes/localhost/tasks":
                raise CliError("not reachable")
        return {"said": f"the first password was {ADMIN}"}


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    directory = tmp_path / "data"
    (directory / "pki").mkdir(parents=True)
    (directory / "admin-password").write_text(f"{ADMIN}\n")
    (directory / "pki/server.key").write_text("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n")
    return directory


def content(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {
            member.name.removeprefix("appliance-report/"): file.read().decode()
            for member in archive
            if (file := archive.extractfile(member)) is not None
        }


def test_it_tells_of_host_and_guests_and_holds_no_secret(tmp_path: Path, data_dir: Path) -> None:
    path = tmp_path / "report.tar.gz"
    bundle.write(path, f"findings {ADMIN}", data_dir=data_dir, api=Api())
    found = content(path)
    everything = "\n".join(found.values())
    for secret in (ADMIN, CLOUD_INIT, NOTES, "MIIE"):
        assert secret not in everything
    assert json.loads(found["api/nodes-localhost-qemu-100-config.json"])["net0"] == "virtio,bridge=vmbr0"
    assert "not reachable" in found["api/nodes-localhost-tasks.json"], "one part that fails does not end the others"
    assert "pki/server.key" in found["data-directory.txt"]
    assert "Linux" in found["host/uname.txt"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_without_an_appliance_it_is_written_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    bundle.write(path, "findings", data_dir=tmp_path / "none", api=None)
    assert content(path)["doctor.txt"] == "findings"


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "report.tar.gz"
    path.write_text("mine")
    with pytest.raises(HostError, match="File exists"):
        bundle.write(path, "findings", data_dir=tmp_path, api=None)
    assert path.read_text() == "mine"


def test_a_full_disk_leaves_no_half_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(bundle, "_add", full)
    path = tmp_path / "report.tar.gz"
    with pytest.raises(HostError, match="No space left"):
        bundle.write(path, "findings", data_dir=tmp_path, api=None)
    assert not path.exists()
