from __future__ import annotations

import asyncio
import json
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from appliance.errors import HostError
from appliance.services import audit
from appliance.services.audit import Anchor, AuditLog, verify_file
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore


async def write_rows(path: Path, count: int, store: FakeStore | None = None) -> Anchor:
    log = AuditLog(path, FakeClock(), store)
    await log.start()
    for number in range(count):
        await log.record(who="a@pve", remote="::1", action="POST", target=f"/x/{number}", outcome="ok")
    head = log.head
    await log.close()
    return head


async def test_an_untouched_log_verifies(tmp_path: Path) -> None:
    head = await write_rows(tmp_path / "log", 5)
    result = verify_file(tmp_path / "log", head)
    assert (result.ok, result.rows, result.head) == (True, 5, head)
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


async def test_the_chain_goes_on_after_a_restart(tmp_path: Path) -> None:
    await write_rows(tmp_path / "log", 2)
    head = await write_rows(tmp_path / "log", 2)
    assert head.n == 4
    assert verify_file(tmp_path / "log", head).ok


def edit(lines: list[str]) -> None:
    lines[2] = lines[2].replace("/x/2", "/x/9")


def edit_and_rehash(lines: list[str]) -> None:
    row = json.loads(lines[2])
    row["target"] = "/x/9"
    import msgspec

    from appliance.services.audit import Row, hash_of

    forged = msgspec.convert(row, Row)
    lines[2] = msgspec.json.encode(msgspec.structs.replace(forged, hash=hash_of(forged))).decode() + "\n"


def delete(lines: list[str]) -> None:
    del lines[2]


def delete_first(lines: list[str]) -> None:
    del lines[0]


def swap(lines: list[str]) -> None:
    lines[2], lines[3] = lines[3], lines[2]


def insert(lines: list[str]) -> None:
    lines.insert(2, lines[1])


def add_field(lines: list[str]) -> None:
    lines[2] = lines[2].replace('{"n"', '{"x":1,"n"')


def garbage(lines: list[str]) -> None:
    lines[2] = "not json\n"


def huge(lines: list[str]) -> None:
    lines[2] = "x" * (1 << 20) + "\n"


@pytest.mark.parametrize(
    ("tamper", "bad_line"),
    [(edit, 3), (edit_and_rehash, 4), (delete, 3), (delete_first, 1), (swap, 3), (insert, 3), (add_field, 3),
     (garbage, 3), (huge, 3)],
)  # fmt: skip
async def test_tampering_is_found_at_its_line(
    tmp_path: Path, tamper: Callable[[list[str]], None], bad_line: int
) -> None:
    path = tmp_path / "log"
    await write_rows(path, 5)
    lines = path.read_text().splitlines(keepends=True)
    tamper(lines)
    path.write_text("".join(lines))
    result = verify_file(path)
    assert (result.ok, result.bad_line) == (False, bad_line)
    assert result.problem


async def test_a_cut_tail_shows_against_the_anchor_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    head = await write_rows(path, 5)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    assert verify_file(path).ok
    result = verify_file(path, head)
    assert not result.ok
    assert "cut off" in result.problem


async def test_the_head_is_anchored_in_the_store_and_a_cut_file_is_noticed_at_start(tmp_path: Path) -> None:
    path, store = tmp_path / "log", FakeStore()
    head = await write_rows(path, 5, store)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]))
    log = AuditLog(path, FakeClock(), store)
    assert await log.anchor() == head
    await log.start()
    assert [row.action for row in await log.tail(1)] == ["audit.truncated"]
    await log.close()
    await store.close()


async def test_a_running_log_verifies_against_what_it_wrote(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", FakeClock())
    await log.start()
    await log.record(who="a", remote="b", action="c", target="d", outcome="ok")
    assert (await log.verify()).ok
    (tmp_path / "log").write_bytes(b"")
    assert not (await log.verify()).ok
    await log.close()


async def test_rows_are_written_while_a_long_log_is_being_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slowly(path: Path, anchor: Anchor, *, size_bytes: int) -> audit.VerifyResult:
        begun.set()
        go_on.wait(10)
        return verify_file(path, anchor, size_bytes=size_bytes)

    log = AuditLog(tmp_path / "log", FakeClock())
    await log.start()
    await log.record(who="a", remote="b", action="c", target="d", outcome="ok")
    monkeypatch.setattr(audit, "verify_file", slowly)
    verifying = asyncio.create_task(log.verify())
    await asyncio.to_thread(begun.wait, 10)
    async with asyncio.timeout(30):
        await log.record(who="a", remote="b", action="c", target="e", outcome="ok")
    go_on.set()
    result = await verifying
    assert (result.ok, result.rows, log.head.n) == (True, 1, 2)
    await log.close()


async def test_an_unfinished_last_row_is_removed_and_recorded(tmp_path: Path) -> None:
    path = tmp_path / "log"
    await write_rows(path, 2)
    with path.open("ab") as file:
        file.write(b'{"n":3,"time":17')
    head = await write_rows(path, 1)
    assert head.n == 4
    assert verify_file(path, head).ok
    assert '"audit.recover"' in path.read_text()


async def test_concurrent_rows_are_all_there_in_one_chain(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", FakeClock())
    await log.start()
    await asyncio.gather(
        *(log.record(who=f"u{n}", remote="r", action="a", target="t", outcome="ok") for n in range(200))
    )
    assert log.head.n == 200
    assert (await log.verify()).ok
    assert {row.who for row in await log.tail(200)} == {f"u{n}" for n in range(200)}
    await log.close()


async def test_hostile_fields_stay_within_a_row(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "log", FakeClock())
    await log.start()
    await log.record(
        who="\ud800\n\0" * 1000, remote="\r\n", action="é" * 900, target="💥" * 9999, outcome="ok", detail="x" * 10**6
    )
    assert (await log.verify()).rows == 1
    await log.close()


@contextmanager
def files_may_not_grow(limit_bytes: int) -> Iterator[None]:
    """A full disk for this process: writing past the limit fails with EFBIG."""
    before, old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, old)


async def test_rows_the_disk_refuses_go_to_the_process_log_and_leave_a_mark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "log"
    log = AuditLog(path, FakeClock())
    await log.start()
    await log.record(who="before", remote="r", action="a", target="t", outcome="ok")
    with files_may_not_grow(path.stat().st_size + 100):
        await log.record(who="during", remote="r", action="a", target="t", outcome="ok")
    assert "during" in caplog.text
    await log.record(who="after", remote="r", action="a", target="t", outcome="ok")
    assert [row.who for row in await log.tail(9)] == ["after", "appliance", "before"]
    assert (await log.verify()).ok
    await log.close()


async def test_a_log_that_cannot_be_opened_is_an_error_naming_it(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    with pytest.raises(HostError, match="log"):
        await AuditLog(tmp_path / "log", FakeClock()).start()
    with pytest.raises(HostError, match="missing"):
        verify_file(tmp_path / "missing")
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(HostError, match="link"):
        await AuditLog(tmp_path / "link", FakeClock()).start()
    assert os.path.getsize("/etc/passwd") > 0
