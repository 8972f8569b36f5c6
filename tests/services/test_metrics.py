"""Figures over time: bounded, coarser with age, surviving restarts, and never waiting for a guest."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import events as bus
from appliance.errors import HostError
from appliance.model.guest import GuestId, GuestKind, GuestState, GuestStats
from appliance.model.metrics import COLUMNS, FRAMES, LEVELS, Fold, Point, coarser, columns_of, fold, pack, rate, unpack
from appliance.services import pressure
from appliance.services.metrics import STEP_S, MetricsService
from appliance.services.node import derive
from appliance.state.metrics_file import MetricsFile
from appliance.tasks import TaskScope
from tests.fakes.clock import FakeClock
from tests.services.test_node import HOST, SAMPLE

START = 1_700_000_000 // 21_600 * 21_600


@pytest.fixture
def file(tmp_path: Path) -> Iterator[MetricsFile]:
    opened = MetricsFile(tmp_path / "metrics.db")
    opened.open()
    yield opened
    opened.close()


def everything(file: MetricsFile, level: int, how: Fold = Fold.AVERAGE) -> dict[int, float]:
    points = file.read("storage/x", level=level, first=START, last=START + 40 * 86_400, how=how)
    return {point.time - START: round(point.values[0], 3) for point in points}


def test_every_level_is_a_multiple_of_the_one_before_and_every_frame_fits_its_level() -> None:
    for finer, coarse in itertools.pairwise(LEVELS):
        assert coarse.step_s % finer.step_s == 0
        assert finer.keep_s >= 2 * coarse.step_s, "what a step is made from is still there when it ends"
    for frame in FRAMES.values():
        assert frame.step_s % LEVELS[frame.level].step_s == 0
        assert LEVELS[frame.level].keep_s >= frame.span_s


def test_steps_become_coarser_with_their_means_and_their_highest_values(file: MetricsFile) -> None:
    for tick in range(361):
        file.add(START + tick * 10, {"storage/x": (float(tick % 6), 1.0)})
    assert everything(file, 1) == {minute * 60: 2.5 for minute in range(60)}
    assert everything(file, 2) == {0: 2.5, 1800: 2.5}
    assert everything(file, 2, Fold.MAX) == {0: 2.5, 1800: 2.5}, "the highest of a minute's means"
    assert len(everything(file, 0)) == 361


def test_a_restart_in_the_midst_of_a_step_loses_nothing_of_it(tmp_path: Path) -> None:
    path = tmp_path / "metrics.db"
    for tick in range(13):
        file = MetricsFile(path)
        file.open()
        file.add(START + tick * 10, {"storage/x": (float(tick), 0.0)})
        file.close()
    file = MetricsFile(path)
    file.open()
    assert everything(file, 1) == {0: 2.5, 60: 8.5}
    file.close()


def test_time_the_appliance_was_off_is_a_gap_and_what_was_due_is_made_up(file: MetricsFile) -> None:
    for tick in range(6):
        file.add(START + tick * 10, {"storage/x": (4.0, 0.0)})
    file.add(START + 7200, {"storage/x": (8.0, 0.0)})
    file.add(START + 9000, {"storage/x": (8.0, 0.0)})
    assert everything(file, 1) == {0: 4.0, 7200: 8.0}
    assert everything(file, 2) == {0: 4.0, 7200: 8.0}


def test_the_file_is_bounded_by_age_and_by_number(file: MetricsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    for tick in range(450):
        file.add(START + tick * 10, {"storage/x": (1.0, 1.0)})
    finest = everything(file, 0)
    assert min(finest) >= 4490 - LEVELS[0].keep_s
    monkeypatch.setattr("appliance.state.metrics_file.SERIES_LIMIT", 3)
    assert file.add(START + 4500, {f"storage/{number}": (1.0, 1.0) for number in range(5)}) == 3


def test_a_deleted_objects_figures_are_not_its_successors(file: MetricsFile) -> None:
    file.add(START, {"storage/x": (1.0, 1.0)})
    file.forget("storage/x")
    file.add(START + 10, {"storage/x": (2.0, 1.0)})
    assert everything(file, 0) == {10: 2.0}


@pytest.mark.parametrize(
    "content", [b"not a database at all, but long enough" * 100, b"SQLite format 3\0" + b"\1" * 4096]
)
def test_a_damaged_file_is_put_aside(tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.db"
    path.write_bytes(content)
    file = MetricsFile(path)
    file.open()
    file.add(START, {"storage/x": (1.0, 1.0)})
    assert everything(file, 0) == {0: 1.0}
    assert path.with_suffix(".damaged").read_bytes() == content
    assert "begin anew" in caplog.text
    file.close()


def test_a_directory_that_cannot_be_written_is_an_error_naming_the_file(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"metrics\.db"):
        MetricsFile(tmp_path / "missing" / "metrics.db").open()


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=40))
def test_packed_values_come_back(values: list[float]) -> None:
    assert list(unpack(pack(values))) == values


def test_unknown_values_do_not_spoil_known_ones() -> None:
    assert fold([(1.0, math.nan), (3.0, math.nan), (math.nan, 5.0)], Fold.AVERAGE) == (2.0, 5.0)
    assert fold([(1.0,), (3.0, 2.0)], Fold.MAX) == (3.0, 2.0)
    assert math.isnan(fold([(math.nan,)], Fold.MAX)[0])
    assert coarser([Point(0, (1.0,)), Point(30, (3.0,)), Point(60, (9.0,))], 60, Fold.AVERAGE) == [
        Point(0, (2.0,)), Point(60, (9.0,))
    ]  # fmt: skip
    assert math.isnan(rate(5, 7, 10)), "a counter that has begun anew"
    assert rate(30, 10, 10) == 2.0


def test_columns_are_pve_names_and_few_enough_to_pack() -> None:
    assert all(len(columns) <= 64 and len(set(columns)) == len(columns) for columns in COLUMNS.values())
    assert columns_of("lxc/101") == columns_of("qemu/100")


def test_pressure_is_read_as_the_kernel_writes_it() -> None:
    text = "some avg10=1.50 avg60=0.00 avg300=0.00 total=12\nfull avg10=0.25 avg60=0.00 avg300=0.00 total=3\n"
    assert pressure.parse(text) == {"some": 1.5, "full": 0.25}
    assert pressure.parse("some avg10=x\n\x00 nonsense") == {}
    assert pressure.read_pressure_of(1 << 30) == {}


class Guests:
    """Running guests with whatever figures the test gives them."""

    def __init__(self) -> None:
        self.views: list[SimpleNamespace] = []

    def list(self) -> list[SimpleNamespace]:
        return self.views

    def run(self, guest_id: int, stats: GuestStats | None) -> None:
        self.views = [view for view in self.views if view.guest_id != guest_id]
        self.views.append(
            SimpleNamespace(
                guest_id=guest_id, kind=GuestKind.QEMU, state=GuestState.RUNNING, pid=None, stats=stats, cpus=2,
                maxmem=1 << 30, maxdisk=1 << 33,
            )
        )  # fmt: skip


class Scene:
    """A service over fakes."""

    def __init__(self, path: Path) -> None:
        self.clock, self.events, self.guests = FakeClock(now=START + 5), bus.EventBus(), Guests()
        self.scope = TaskScope("metrics-test")
        status = derive(SAMPLE, None, HOST, now=0.0)

        async def read_status() -> object:
            return status

        others: dict[str, Any] = {
            "guests": self.guests,
            "node": SimpleNamespace(status=read_status),
            "storage": SimpleNamespace(storages=list),
        }
        make = cast(Any, MetricsService)
        self.service: MetricsService = make(
            path, node_name="pve", events=self.events, clock=self.clock, scope=self.scope, **others
        )


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path / "metrics.db")
    await made.service.start()
    yield made
    await made.scope.close()
    await made.service.close()


async def test_a_guest_that_stops_answering_leaves_a_gap_and_delays_nobody(scene: Scene) -> None:
    await scene.scope.close()  # the test's own ticks only
    frozen, lively = GuestStats(cpu_seconds=1, memory_bytes=5), 0.0
    for _ in range(3):
        lively += 10
        scene.guests.run(100, frozen)  # the sampler has nothing newer of it
        scene.guests.run(101, GuestStats(cpu_seconds=lively, memory_bytes=7, net_in_bytes=int(lively) * 100))
        await scene.service.tick()
        await scene.clock.advance(10)
    assert "mem" not in scene.service.latest("qemu/100")
    assert scene.service.latest("qemu/101")["cpu"] == 0.5
    assert scene.service.latest("qemu/101")["netin"] == 100
    history = await scene.service.history("qemu/100", "hour", Fold.AVERAGE)
    assert len(history) == 1


async def test_no_figures_are_taken_once_their_file_is_closed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    made = Scene(tmp_path / "metrics.db")
    await made.service.start()
    await asyncio.sleep(0)
    await made.service.close()
    await made.clock.advance(STEP_S)
    await made.scope.close()
    assert not caplog.records


async def test_ticks_come_on_the_step_and_are_told(scene: Scene) -> None:
    with scene.events.subscribe() as seen:
        await asyncio.sleep(0)
        await scene.clock.advance(STEP_S)
        assert await asyncio.wait_for(seen.next(), 30) == bus.MetricsSampled()
    assert scene.service.latest_time() % STEP_S == 0
    assert scene.service.latest("node/pve")["memtotal"] == 1000


async def test_a_deleted_guest_is_forgotten(scene: Scene) -> None:
    scene.guests.run(100, GuestStats(memory_bytes=5))
    await scene.service.tick()
    scene.guests.views.clear()
    scene.events.publish(bus.GuestListChanged(guest_id=GuestId(100), kind=GuestKind.QEMU, exists=False))
    for _ in range(200):
        if not await scene.service.history("qemu/100", "hour", Fold.AVERAGE):
            break
        await asyncio.sleep(0.01)
    assert not await scene.service.history("qemu/100", "hour", Fold.AVERAGE)


async def test_a_disk_that_refuses_costs_figures_not_the_appliance(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(time: int, points: object) -> int:
        raise HostError("disk full")

    monkeypatch.setattr(scene.service._file, "add", refuse)
    with caplog.at_level(logging.WARNING):
        await scene.service.tick()
        await scene.service.tick()
    assert caplog.text.count("disk full") == 1, "told once, not every ten seconds"
    assert scene.service.latest("node/pve")["memtotal"] == 1000
