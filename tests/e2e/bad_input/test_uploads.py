"""Uploads that go wrong: nothing of them remains, and the reason names the file."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest

from tests.e2e.bad_input.client import Client, Reply
from tests.e2e.bad_input.conftest import files_of
from tests.harness import Appliance, TaskFailed

pytestmark = [pytest.mark.host, pytest.mark.timeout(180)]

UPLOAD = "/nodes/{node}/storage/local/upload"
SETTLE_S = 30.0


def send(client: Client, filename: str, data: bytes, content: str = "iso", **fields: str) -> Reply:
    return client.call("POST", UPLOAD, data={"content": content, **fields}, files={"filename": (filename, data)})


def nothing_remains(appliance: Appliance, client: Client) -> None:
    deadline = time.monotonic() + SETTLE_S
    while (left := files_of(appliance)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    listed = client.call("GET", "/nodes/{node}/storage/local/content").body["data"]
    assert listed == []
    kept = [path for path in (appliance.data_dir / "storage").rglob("*") if path.is_file()]
    assert [path for path in kept if ".appliance" not in path.parts] == []


def last_upload(api: Any, node: str) -> dict[str, Any]:
    """The newest upload's task, once it has ended."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        task = dict(api.nodes(node).tasks.get(typefilter="imgcopy", source="all")[0])
        if "endtime" in task or time.monotonic() > deadline:
            return task


@pytest.mark.parametrize(
    "filename",
    ["../x.iso", "../../../../etc/cron.d/x.iso", "/etc/x.iso", "..\\x.iso", "..", ".", "", ".hidden.iso", ".tmp-1-x.iso",
     "a b;rm.iso", "x\u202eosi.iso", "-rf.iso", "x.exe", "x" * 300 + ".iso", "é.iso"],
)  # fmt: skip
def test_a_file_name_never_leaves_its_directory(appliance: Appliance, api: Any, client: Client, filename: str) -> None:
    reply = send(client, filename, b"data")
    if reply.status == 200:
        base = filename.replace("\\", "/").rpartition("/")[2]
        (row,) = client.call("GET", "/nodes/{node}/storage/local/content").body["data"]
        assert row["volid"] == f"local:iso/{base}", "browsers may send a path: only its last part counts"
        assert (appliance.data_dir / "storage/local/template/iso" / base).is_file()
        upid = client.call("DELETE", f"/nodes/{{node}}/storage/local/content/{row['volid']}").body["data"]
        appliance.finish(api, upid)
    else:
        assert reply.status == 400, reply.text
        assert "filename" in reply.errors, reply.text
    nothing_remains(appliance, client)


def test_an_upload_that_is_cut_off_leaves_nothing(appliance: Appliance, api: Any, client: Client) -> None:
    boundary = "cutcutcut"
    body = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="content"\r\n\r\niso\r\n'
        f'--{boundary}\r\nContent-Disposition: form-data; name="filename"; filename="cut.iso"\r\n\r\n'
    ).encode() + b"x" * (3 << 20)
    kind = f"Content-Type: multipart/form-data; boundary={boundary}"
    head = client.head("POST", UPLOAD, kind, f"Content-Length: {50 << 20}")
    iso = appliance.data_dir / "storage/local/template/iso"
    with client.connect() as connection:
        connection.sendall(head + body)
        deadline = time.monotonic() + SETTLE_S
        while not any(path.stat().st_size for path in iso.glob(".tmp-*")):
            assert time.monotonic() < deadline, "the upload has begun to arrive"
            time.sleep(0.02)
    nothing_remains(appliance, client)
    assert "cut" in last_upload(api, client.node)["status"]


@pytest.mark.parametrize("end", [b"", b"\r\n--wrong--\r\n", b"\r\n--cutcutcu"])
def test_a_body_without_its_last_boundary_is_refused(appliance: Appliance, client: Client, end: bytes) -> None:
    body = (
        b'--cutcutcut\r\nContent-Disposition: form-data; name="content"\r\n\r\niso\r\n'
        b'--cutcutcut\r\nContent-Disposition: form-data; name="filename"; filename="cut.iso"\r\n\r\ndata' + end
    )
    kind = "multipart/form-data; boundary=cutcutcut"
    reply = client.call("POST", UPLOAD, data=body, headers={"Content-Type": kind})
    if reply.status == 200:
        assert client.call("GET", "/nodes/{node}/tasks/" + reply.body["data"] + "/status").body["data"][
            "exitstatus"
        ] not in ("OK", None)
    else:
        assert reply.status == 400, reply.text
    nothing_remains(appliance, client)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"checksum": "0" * 64, "checksum-algorithm": "sha256"}, "checksum"),
        ({"checksum": hashlib.md5(b"other").hexdigest(), "checksum-algorithm": "md5"}, "checksum"),
        ({"checksum": "zz", "checksum-algorithm": "sha1"}, "checksum"),
        ({"checksum": "0" * 64}, "checksum"),
        ({"checksum": "0" * 64, "checksum-algorithm": "crc32"}, "checksum-algorithm"),
        ({"content": "images"}, "content"),
        ({"content": "backup"}, "content"),
        ({"content": "vztmpl"}, "filename"),
    ],
)
def test_wrong_fields_and_checksums_are_named(
    appliance: Appliance, api: Any, client: Client, fields: dict[str, str], wrong: str
) -> None:
    reply = send(client, "x.iso", b"data" * 1000, **fields)
    if reply.status == 200:
        with pytest.raises(TaskFailed, match=wrong):
            appliance.finish(api, reply.body["data"])
    else:
        assert reply.status == 400, reply.text
        assert wrong in reply.errors, reply.text
    nothing_remains(appliance, client)


def test_an_upload_without_a_file_or_to_nowhere_is_refused(appliance: Appliance, client: Client) -> None:
    reply = client.call("POST", UPLOAD, data={"content": "iso"})
    assert (reply.status, list(reply.errors)) == (400, ["filename"]), reply.text
    reply = client.call("POST", UPLOAD.replace("local", "nowhere"), data={"content": "iso"}, files={"filename": b"x"})
    assert reply.status in (400, 404)
    reply = client.call("POST", UPLOAD, files={"filename": ("x.iso", b"data")})
    assert (reply.status, list(reply.errors)) == (400, ["content"]), reply.text
    reply = client.call(
        "POST", UPLOAD, files=[("filename", ("x.iso", b"data")), ("content", (None, b"iso"))], data=None
    )
    assert reply.status == 400, "the file comes last"
    nothing_remains(appliance, client)


def test_a_file_is_never_replaced_and_of_two_uploads_of_one_name_one_wins(
    appliance: Appliance, api: Any, client: Client
) -> None:
    appliance.finish(api, send(client, "one.iso", b"first").body["data"])
    reply = send(client, "one.iso", b"second")
    assert reply.status == 409, reply.text
    assert "one.iso" in reply.text
    path = appliance.data_dir / "storage/local/template/iso/one.iso"
    assert path.read_bytes() == b"first"
    appliance.finish(api, client.call("DELETE", "/nodes/{node}/storage/local/content/local:iso/one.iso").body["data"])
    nothing_remains(appliance, client)


def test_credentials_of_a_url_reach_no_log(appliance: Appliance, client: Client) -> None:
    form = {"content": "iso", "filename": "x.iso", "url": "http://user:hunter2@127.0.0.1:1/x.iso"}
    reply = client.call("POST", "/nodes/{node}/storage/local/download-url", data=form)
    assert (reply.status, list(reply.errors)) == (400, ["url"])
    for path in (appliance.data_dir / "audit.log", appliance.log_path):
        assert b"hunter2" not in path.read_bytes()


@pytest.mark.parametrize(
    "url",
    ["file:///etc/shadow", "gopher://127.0.0.1/", "http://", "http://[::1", "http://127.0.0.1:1/x.iso", "not a url",
     "http://127.0.0.1:99999/x"],
)  # fmt: skip
def test_a_download_from_a_bad_address_names_it(appliance: Appliance, api: Any, client: Client, url: str) -> None:
    form = {"content": "iso", "filename": "x.iso", "url": url}
    reply = client.call("POST", "/nodes/{node}/storage/local/download-url", data=form)
    if reply.status == 200:
        with pytest.raises(TaskFailed, match=r"127\.0\.0\.1"):
            appliance.finish(api, reply.body["data"])
    else:
        assert reply.status == 400, reply.text
        assert "url" in reply.errors
    nothing_remains(appliance, client)
