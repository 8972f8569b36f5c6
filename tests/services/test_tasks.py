"""Tasks: names, records, logs, exit statuses, cancelling, restarts, retention, a full disk."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from proxmoxer.tools.tasks import Tasks as ProxmoxerTasks

from appliance.errors import Conflict, HostError, InvalidParameter, NotFound, ServiceStopping, TimedOut
from appliance.events import Event, EventBus, TaskFinished, TaskProgressed, TaskStarted
from appliance.services import task_log
from appliance.services.task_records import TaskOutcome
from appliance.services.tasks import TaskHandle, TaskService
from appliance.services.upid import Upid
from appliance.state.store import Put, StoreFull
from tests.fakes.clock import FakeClock
from tests.fakes.store import FakeStore

PATIENCE_S = 30.0


class Host:
    """A store and a log directory that outlive the services started on them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = FakeClock()
        self.store = FakeStore(self.clock)
        self.events = EventBus()

    async def start(self, *, retention: int = 2000) -> TaskService:
        service = TaskService(
            self.store, self.events, self.clock, directory=self.directory, node="pve1", retention=retention
        )
        await service.start()
        return service

    def logs(self) -> list[str]:
        return sorted(path.name for path in self.directory.glob("*/*"))


@pytest.fixture
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    host = Host(tmp_path / "tasks")
    yield host
    await host.store.close()


@pytest.fixture
async def tasks(host: Host) -> AsyncIterator[TaskService]:
    service = await host.start()
    yield service
    await service.close()


async def run(tasks: TaskService, work: Callable[[TaskHandle], Awaitable[None]], *, object_id: str = "100") -> str:
    return await tasks.run("qmstart", object_id=object_id, user="admin@pve", work=work)


async def nothing(_: TaskHandle) -> None:
    """Work that ends at once."""


async def for_ever(_: TaskHandle) -> None:
    await asyncio.Event().wait()


async def status_of(tasks: TaskService, work: Callable[[TaskHandle], Awaitable[None]]) -> str | None:
    return (await tasks.wait(await run(tasks, work), timeout_s=PATIENCE_S)).status


def raising(error: Exception) -> Callable[[TaskHandle], Awaitable[None]]:
    async def work(_: TaskHandle) -> None:
        raise error

    return work


# names


async def test_proxmoxer_understands_our_upids(tasks: TaskService, host: Host) -> None:
    upid = await tasks.run("qmstart", object_id="100", user="admin@pve!ci", work=nothing)
    decoded = ProxmoxerTasks.decode_upid(upid)
    info = await tasks.wait(upid, timeout_s=PATIENCE_S)
    assert (decoded["node"], decoded["type"], decoded["id"], decoded["user"]) == ("pve1", "qmstart", "100", "admin@pve")
    assert (decoded["pid"], decoded["pstart"], decoded["starttime"]) == (info.pid, info.pstart, info.starttime)
    assert decoded["starttime"] == int(host.clock.now())


async def test_tasks_begun_at_once_have_different_names(tasks: TaskService) -> None:
    upids = await asyncio.gather(*(run(tasks, nothing) for _ in range(50)))
    assert len(set(upids)) == 50
    for upid in upids:
        await tasks.wait(upid, timeout_s=PATIENCE_S)


async def test_a_name_taken_already_is_not_used_again(host: Host) -> None:
    first, second = await host.start(), await host.start()
    upids = [await run(service, nothing) for service in (first, second)]
    assert len(set(upids)) == 2
    await first.close()
    await second.close()


async def test_odd_objects_and_users_make_safe_names_and_true_records(tasks: TaskService) -> None:
    upid = await tasks.run("imgdel", object_id="local:iso/../é x.iso" + "y" * 99, user="o'hara/x:y@pam", work=nothing)
    info = await tasks.wait(upid, timeout_s=PATIENCE_S)
    assert str(Upid.parse(upid)) == upid
    assert len(upid) < 250
    assert (info.id, info.user) == ("local:iso/../é x.iso" + "y" * 99, "o'hara/x:y@pam")
    assert (await tasks.read_log(upid))[0] == ["TASK OK"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "UPID",
        "UPID:n:1:1:1:t:i:u:",
        "UPID:n:00000001:00000001:00000001:t:../../x:u:",
        "UPID:n:00000001:00000001:00000001:t:i:u:\n",
        "UPID:n:00000001:00000001:00000001:t:i:u:more",
        "UPID:../n:00000001:00000001:00000001:t:i:u:",
    ],
)
async def test_what_is_no_upid_is_refused(text: str, tasks: TaskService) -> None:
    with pytest.raises(InvalidParameter):
        Upid.parse(text)
    with pytest.raises(NotFound, match="does not exist"):
        await tasks.get(text)


async def test_a_kind_that_fits_in_no_upid_is_refused(tasks: TaskService) -> None:
    with pytest.raises(InvalidParameter):
        await tasks.run("a:b", object_id="", user="admin@pve", work=nothing)


# exit statuses


async def test_what_ends_well_is_ok(tasks: TaskService) -> None:
    assert await status_of(tasks, nothing) == "OK"


async def test_warnings_are_counted(tasks: TaskService) -> None:
    async def work(handle: TaskHandle) -> None:
        handle.warn("one")
        handle.log("fine")
        handle.warn("two")

    upid = await run(tasks, work)
    info = await tasks.wait(upid, timeout_s=PATIENCE_S)
    assert (info.status, info.outcome) == ("WARNINGS: 2", TaskOutcome.WARNING)
    assert await tasks.read_log(upid) == (["WARN: one", "fine", "WARN: two", "TASK WARNINGS: 2"], 4)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Conflict("vm 100: is running"), "vm 100: is running"),
        (HostError("mount: two\nlines\r\n here"), "mount: two lines here"),
        (NotFound("volume local:x"), "volume local:x does not exist"),
        (HostError("OK"), "error: OK"),
        (HostError("WARNINGS: 3"), "error: WARNINGS: 3"),
        (HostError(""), "unknown error"),
        (HostError("x" * 2000), "x" * 500),
    ],
)
async def test_an_error_becomes_the_status_in_one_line(tasks: TaskService, error: HostError, status: str) -> None:
    upid = await run(tasks, raising(error))
    info = await tasks.wait(upid, timeout_s=PATIENCE_S)
    assert (info.status, info.outcome) == (status, TaskOutcome.ERROR)
    assert (await tasks.read_log(upid))[0] == [f"TASK ERROR: {status}"]


async def test_a_defect_is_an_internal_error_with_its_traceback_in_the_log(
    tasks: TaskService, caplog: pytest.LogCaptureFixture
) -> None:
    assert await status_of(tasks, raising(ValueError("oops"))) == "internal error: ValueError: oops"
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_a_cancelled_task_cleans_up_and_says_so(tasks: TaskService) -> None:
    cleaned = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            handle.log("cleaning up")
            cleaned.set()

    upid = await run(tasks, work)
    await asyncio.sleep(0)
    await tasks.cancel(upid)
    info = await tasks.wait(upid, timeout_s=PATIENCE_S)
    assert cleaned.is_set()
    assert info.status == "interrupted by user"
    assert (await tasks.read_log(upid))[0] == ["cleaning up", "TASK ERROR: interrupted by user"]


async def test_a_task_cancelled_before_its_first_step_ends(tasks: TaskService) -> None:
    upid = await run(tasks, for_ever)
    await tasks.cancel(upid)
    assert (await tasks.wait(upid, timeout_s=PATIENCE_S)).status == "interrupted by user"


async def test_work_begins_even_if_its_task_is_cancelled_at_once_so_that_it_can_clean_up(
    tasks: TaskService, host: Host
) -> None:
    cleaned = asyncio.Event()

    async def work(_: TaskHandle) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    async def cancel_what_starts(events: AsyncIterator[Event]) -> None:
        started = await anext(events)
        assert isinstance(started, TaskStarted)
        await tasks.cancel(started.upid)

    with host.events.subscribe() as events:
        cancelling = asyncio.ensure_future(cancel_what_starts(aiter(events)))
        await asyncio.sleep(0)
        upid = await run(tasks, work)
        await cancelling
        assert (await tasks.wait(upid, timeout_s=PATIENCE_S)).status == "interrupted by user"
    assert cleaned.is_set()


async def test_cancelling_an_ended_task_changes_nothing_and_an_unknown_one_does_not_exist(tasks: TaskService) -> None:
    upid = await run(tasks, nothing)
    before = await tasks.wait(upid, timeout_s=PATIENCE_S)
    await tasks.cancel(upid)
    assert await tasks.get(upid) == before
    with pytest.raises(NotFound):
        await tasks.cancel("UPID:pve1:00000001:00000001:00000001:t:i:u:")


async def test_waiting_has_an_end(tasks: TaskService) -> None:
    upid = await run(tasks, for_ever)
    with pytest.raises(TimedOut):
        await tasks.wait(upid, timeout_s=0.01)
    await tasks.cancel(upid)


async def test_a_task_goes_on_when_its_starter_goes_away(tasks: TaskService, host: Host) -> None:
    done = asyncio.Event()

    async def work(_: TaskHandle) -> None:
        done.set()

    starter = asyncio.ensure_future(run(tasks, work))
    await asyncio.sleep(0)
    starter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starter
    async with asyncio.timeout(PATIENCE_S):
        await done.wait()
    (info,) = await tasks.list()
    assert (await tasks.wait(info.upid, timeout_s=PATIENCE_S)).status == "OK"


# logs and events


async def test_a_watcher_gets_each_line_as_it_is_written_and_the_end(tasks: TaskService) -> None:
    go_on = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        handle.log("one\ntwo")
        await go_on.wait()
        handle.log("three")

    upid = await run(tasks, work)
    seen: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        async for line in tasks.watch_log(upid, start=1):
            seen.append(line)
            if line == "two":
                assert await tasks.read_log(upid) == (["one", "two"], 2)
                go_on.set()
    assert seen == ["two", "three", "TASK OK"]
    assert [line async for line in tasks.watch_log(upid)] == ["one", *seen]
    assert await tasks.read_log(upid, start=1, limit=2) == (["two", "three"], 4)
    assert await tasks.read_log(upid, start=9) == ([], 4)


async def test_control_characters_do_not_reach_the_log(tasks: TaskService) -> None:
    async def work(handle: TaskHandle) -> None:
        handle.log("\x1b[31mred\x1b[0m\ttab\x00\x85 \udcff é")

    upid = await run(tasks, work)
    await tasks.wait(upid, timeout_s=PATIENCE_S)
    lines, _ = await tasks.read_log(upid)
    assert lines == ["[31mred[0m\ttab", "  é", "TASK OK"]


async def test_a_log_is_bounded_and_still_tells_the_end(tasks: TaskService, host: Host) -> None:
    async def work(handle: TaskHandle) -> None:
        for _ in range(2000):
            handle.log("x" * 5000)

    upid = await run(tasks, work)
    await tasks.wait(upid, timeout_s=PATIENCE_S)
    lines, _ = await tasks.read_log(upid, limit=0)
    assert lines[0] == "x" * task_log.LINE_LIMIT
    assert "left out" in lines[-2]
    assert lines[-1] == "TASK OK"
    (path,) = host.directory.glob("*/UPID*")
    assert path.stat().st_size < task_log.LOG_LIMIT_BYTES + 2 * task_log.LINE_LIMIT


async def test_the_bus_hears_of_start_progress_and_end_but_not_too_often(tasks: TaskService, host: Host) -> None:
    reached = asyncio.Event()
    end = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        for number in range(100):
            handle.progress(number / 50)
            handle.log(str(number))
            await asyncio.sleep(0)
        reached.set()
        await end.wait()

    heard: list[Event] = []
    with host.events.subscribe() as subscription:
        upid = await run(tasks, work)
        await reached.wait()
        assert (await tasks.get(upid)).progress == 1.0
        heard += [await subscription.next(), await subscription.next()]
        # The second word of the task's progress comes only when the interval has passed.
        await host.clock.advance(0.3)
        heard.append(await subscription.next())
        end.set()
        heard.append(await subscription.next())
    assert heard == [
        TaskStarted(upid=upid),
        TaskProgressed(upid=upid),
        TaskProgressed(upid=upid),
        TaskFinished(upid=upid, status="OK"),
    ]


# lists


async def test_lists_are_newest_first_and_filtered(tasks: TaskService, host: Host) -> None:
    started = int(host.clock.now())
    plan: list[tuple[str, str, str, Callable[[TaskHandle], Awaitable[None]]]] = [
        ("qmcreate", "100", "admin@pve", nothing),
        ("qmstart", "100", "admin@pve!ci", raising(HostError("no"))),
        ("vzstart", "101", "bob@pam", nothing),
        ("qmstart", "102", "admin@pvex", for_ever),
    ]
    upids = []
    for kind, object_id, user, work in plan:
        upids.append(await tasks.run(kind, object_id=object_id, user=user, work=work))
        if work is not for_ever:
            await tasks.wait(upids[-1], timeout_s=PATIENCE_S)
        await host.clock.advance(10)
    create, failed, bob, running = upids

    async def found(**filters: object) -> list[str]:
        return [info.upid for info in await tasks.list(**filters)]  # type: ignore[arg-type]  # one table of filters

    assert await found() == [running, bob, failed, create]
    assert await found(guest_id=100) == [failed, create]
    assert await found(limit=2, start=1) == [bob, failed]
    assert await found(limit=0, start=3) == [create]
    assert await found(errors=True) == [failed]
    assert await found(running=True) == [running]
    assert await found(running=False, kinds=("qmstart",)) == [failed]
    assert await found(user="admin@pve") == [failed, create]
    assert await found(user_contains="ADMIN") == [running, failed, create]
    assert await found(since=started + 10, until=started + 20) == [bob, failed]
    assert await found(outcomes=("ok", "unknown")) == [running, bob, create]
    await tasks.cancel(running)


# restarts


async def test_what_becomes_known_after_the_end_follows_in_the_log_within_bounds(
    tasks: TaskService, host: Host
) -> None:
    handles: list[TaskHandle] = []

    async def work(handle: TaskHandle) -> None:
        handles.append(handle)
        handle.log("started")

    upid = await run(tasks, work)
    await tasks.wait(upid, timeout_s=PATIENCE_S)

    async def lines() -> list[str]:
        for _ in range(200):
            await asyncio.sleep(0.01)
            if not tasks._late:
                break
        return (await tasks.read_log(upid, limit=0))[0]

    handles[0].log("it has ended")
    handles[0].log("why")
    assert await lines() == ["started", "TASK OK", "it has ended", "why"]
    for _ in range(40):
        for _ in range(1000):
            handles[0].log("x" * 5000)
        await lines()
    (path,) = host.directory.glob("*/UPID*")
    assert path.stat().st_size <= task_log.LATE_LIMIT_BYTES
    path.unlink()
    handles[0].log("nobody remembers")
    assert await lines() == []


async def test_records_and_logs_survive_an_orderly_restart(host: Host) -> None:
    first = await host.start()
    done = await run(first, nothing)
    await first.wait(done, timeout_s=PATIENCE_S)
    running = await run(first, for_ever)
    before = await first.get(done)
    await first.close()
    with pytest.raises(ServiceStopping):
        await run(first, nothing)
    second = await host.start()
    assert await second.get(done) == before
    info = await second.get(running)
    assert info.status == "interrupted: the appliance was stopped"
    assert info.endtime is not None
    assert [info.upid for info in await second.list()] == [running, done]
    await second.close()


async def test_what_ran_when_the_process_died_is_interrupted(host: Host) -> None:
    logged = asyncio.Event()

    async def work(handle: TaskHandle) -> None:
        handle.log("half done")
        logged.set()
        await asyncio.Event().wait()

    with host.events.subscribe() as subscription:
        first = await host.start()
        upid = await run(first, work)
        await logged.wait()
        await subscription.next()
        await subscription.next()
    documents = (await host.store.range("tasks/"))[0]
    logs = {path: path.read_bytes() for path in host.directory.glob("*/*")}
    await first.close()
    # As a killed process leaves it: the record still running, half a line at the end of the log.
    await host.store.txn([], [Put(document.key, document.value) for document in documents])
    for path, data in logs.items():
        path.write_bytes(data + b"half a li")
    await host.clock.advance(100)
    second = await host.start()
    info = await second.get(upid)
    assert info.status == "interrupted: the appliance was restarted"
    assert info.endtime == info.starttime + 100
    assert (await second.read_log(upid))[0] == ["half done", "half a li", f"TASK ERROR: {info.status}"]
    assert await second.list(running=True) == ()
    await second.close()


async def test_an_unreadable_record_is_left_out(host: Host, caplog: pytest.LogCaptureFixture) -> None:
    await host.store.txn([], [Put("tasks/UPID:x", b"{"), Put("tasks/y", b'{"upid": 1}')])
    service = await host.start()
    assert await service.list() == ()
    assert len(caplog.records) == 2
    await service.close()


async def test_the_oldest_are_forgotten_with_their_logs(host: Host) -> None:
    service = await host.start(retention=3)
    upids = [await run(service, for_ever)]
    for _ in range(6):
        upids.append(await run(service, nothing))
        await service.wait(upids[-1], timeout_s=PATIENCE_S)
    assert [info.upid for info in await service.list()] == [upids[6], upids[5], upids[0]]
    await service.close()
    assert host.logs() == sorted([upids[0], *upids[5:]])
    (host.directory / "AB").mkdir()
    (host.directory / "AB" / "UPID:orphan").write_bytes(b"")
    service = await host.start(retention=2)
    assert [info.upid for info in await service.list()] == upids[:-3:-1]
    assert host.logs() == sorted(upids[-2:])
    await service.close()


# a full disk


async def test_a_task_that_cannot_be_recorded_is_not_started(tasks: TaskService, host: Host) -> None:
    host.store.fail_with(StoreFull("store x: full"))
    with pytest.raises(StoreFull):
        await run(tasks, raising(AssertionError("must not run")))
    assert await tasks.list() == ()


async def test_an_end_that_cannot_be_recorded_is_recorded_later(host: Host) -> None:
    service = await host.start()

    async def work(_: TaskHandle) -> None:
        host.store.fail_with(StoreFull("store x: full"))

    upid = await run(service, work)
    assert (await service.wait(upid, timeout_s=PATIENCE_S)).status == "OK"
    await host.clock.advance(6)
    host.store.fail_with(None)
    await host.clock.advance(6)
    documents, _ = await host.store.range("tasks/")
    assert b'"status":"OK"' in documents[0].value
    await service.close()
    second = await host.start()
    assert (await second.get(upid)).status == "OK"
    await second.close()


async def test_a_log_that_could_not_be_written_is_written_once_there_is_space(host: Host) -> None:
    host.directory.parent.mkdir(parents=True, exist_ok=True)
    host.directory.write_bytes(b"in the way")
    log = task_log.TaskLog(host.directory / "00" / "UPID:x")
    log.append("one")
    await log.flush()
    log.append("two")
    await log.flush()
    host.directory.unlink()
    await log.flush()
    assert await asyncio.to_thread(task_log.read_lines, log.path) == ["one", "two"]


async def test_stubborn_work_does_not_keep_the_service_from_closing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = asyncio.Event()

    async def work(_: TaskHandle) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await release.wait()

    service = await host.start()
    upid = await run(service, work)
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(service.close())
    await asyncio.sleep(0.05)
    assert not closing.done()
    release.set()
    await closing
    assert (await service.get(upid)).status == "OK"
