"""Groups are written in order, one at a time, and nothing that was added is lost on any way out."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import Any

import pytest

from dspex_pipelines.engine.journal import recorder as module
from dspex_pipelines.engine.journal.journal import Entry
from dspex_pipelines.engine.journal.recorder import GROUP, MOST_WAITING, Recorder
from dspex_pipelines.model.outcome import TrialResult


def entries(first: int, last: int) -> list[Entry]:
    return [
        Entry(b"", TrialResult(trial_id=str(number).encode(), configuration_digest=b""))
        for number in range(first, last)
    ]


def numbers(group: list[Entry]) -> list[int]:
    return [int(entry.outcome.trial_id) for entry in group]


class Disk:
    """Takes groups, as slowly as it is told to, and says what came in which order."""

    def __init__(self, *, fails_at: int | None = None) -> None:
        self.free = threading.Event()
        self.free.set()
        self.groups: list[list[int]] = []
        self.told: list[int] = []
        self.failures = 0
        self._fails_at = fails_at
        self._busy = threading.Lock()
        self.arrived = asyncio.Event()

    def record(self, group: list[Entry]) -> None:
        assert self._busy.acquire(blocking=False), "one group at a time"
        self.free.wait(10)
        self._busy.release()
        if len(self.groups) == self._fails_at:
            raise OSError("no room")
        self.groups.append(numbers(group))

    def durable(self, group: list[Entry]) -> None:
        assert self.groups[-1] == numbers(group), "told once it is written, before the next one is"
        self.told += numbers(group)
        self.arrived.set()

    def failed(self) -> None:
        self.failures += 1
        self.arrived.set()

    def recorder(self) -> Recorder:
        return Recorder(self.record, durable=self.durable, failed=self.failed)


async def test_everything_is_told_in_order_once_it_is_written() -> None:
    disk = Disk()
    with disk.recorder() as recorder:
        for start in range(0, 5_500, 100):
            await recorder.add(entries(start, start + 100))
            await asyncio.sleep(0)
    assert disk.told == list(range(5_500))


@pytest.mark.parametrize("waits", [[False], [True], [False, True, True, False]])
async def test_what_needs_no_waiting_is_recorded_on_the_spot_and_the_rest_in_its_turn(
    monkeypatch: pytest.MonkeyPatch, waits: list[bool]
) -> None:
    monkeypatch.setattr(module, "GROUP_S", 0)
    disk, turns = Disk(), itertools.cycle(waits)
    where: list[str] = []

    def record_now(group: list[Entry]) -> bool:
        if next(turns):
            return False
        where.append(threading.current_thread().name)
        disk.groups.append(numbers(group))
        return True

    with Recorder(disk.record, record_now=record_now, durable=disk.durable, failed=disk.failed, group=100) as recorder:
        for start in range(0, 2_000, 100):
            await recorder.add(entries(start, start + 100))
            if not any(waits):
                assert disk.told[-1] == start + 99
            await asyncio.sleep(0)
    assert disk.told == list(range(2_000))
    assert set(where) == (set() if all(waits) else {threading.current_thread().name})


@pytest.mark.parametrize("now", [True, False])
async def test_flushing_waits_for_all_that_was_added(now: bool) -> None:
    disk = Disk()

    def record_now(group: list[Entry]) -> bool:
        if now:
            disk.groups.append(numbers(group))
        return now

    with Recorder(disk.record, record_now=record_now, durable=disk.durable, failed=disk.failed) as recorder:
        await recorder.add(entries(0, 7))
        await asyncio.wait_for(recorder.flush(), 10)
        assert disk.told == list(range(7))
        await asyncio.wait_for(recorder.flush(), 10)


async def test_a_failure_on_the_spot_ends_it_too() -> None:
    disk = Disk()

    def record_now(group: list[Entry]) -> bool:
        raise OSError("no room")

    with (
        pytest.raises(OSError, match="no room"),
        Recorder(disk.record, record_now=record_now, durable=disk.durable, failed=disk.failed) as recorder,
    ):
        await recorder.add(entries(0, GROUP))
        assert disk.failures == 1
        await recorder.add(entries(GROUP, 2 * GROUP))
    assert (disk.told, disk.groups) == ([], [])


async def test_a_single_outcome_does_not_wait_for_others() -> None:
    disk = Disk()
    with disk.recorder() as recorder:
        await recorder.add(entries(0, 1))
        await asyncio.wait_for(disk.arrived.wait(), 10)
        assert disk.told == [0]


async def test_what_comes_in_meanwhile_is_the_next_group() -> None:
    disk = Disk()
    disk.free.clear()
    with disk.recorder() as recorder:
        await recorder.add(entries(0, GROUP))
        for start in range(GROUP, 4 * GROUP, 500):
            await recorder.add(entries(start, start + 500))
        disk.free.set()
        await asyncio.wait_for(disk.arrived.wait(), 10)
    assert [len(group) for group in disk.groups] == [GROUP, 3 * GROUP]


async def test_who_brings_more_than_a_slow_disk_takes_waits() -> None:
    disk = Disk()
    disk.free.clear()
    with disk.recorder() as recorder:
        await recorder.add(entries(0, GROUP))
        more = asyncio.create_task(recorder.add(entries(GROUP, GROUP + MOST_WAITING)))
        for _ in range(10):
            await asyncio.sleep(0)
        assert not more.done()
        disk.free.set()
        await asyncio.wait_for(more, 10)
    assert len(disk.told) == GROUP + MOST_WAITING


@pytest.mark.parametrize("error", [asyncio.CancelledError, KeyboardInterrupt, ValueError])
async def test_leaving_keeps_what_waits_whatever_it_is_left_for(error: type[BaseException]) -> None:
    disk = Disk()
    disk.free.clear()
    with pytest.raises(error), disk.recorder() as recorder:
        await recorder.add(entries(0, GROUP))
        await recorder.add(entries(GROUP, GROUP + 7))
        disk.free.set()
        raise error
    assert disk.told == list(range(GROUP + 7))


@pytest.mark.parametrize("now", [True, False])
async def test_what_waits_on_leaving_is_recorded_on_the_spot_where_it_can_be(now: bool) -> None:
    disk, on_the_spot = Disk(), []

    def record_now(group: list[Entry]) -> bool:
        if now:
            disk.groups.append(numbers(group))
            on_the_spot.extend(numbers(group))
        return now

    with Recorder(disk.record, record_now=record_now, durable=disk.durable, failed=disk.failed) as recorder:
        await recorder.add(entries(0, 7))
        assert disk.told == []
    assert disk.told == list(range(7))
    assert on_the_spot == (disk.told if now else [])


async def test_after_a_failure_nothing_is_written_and_it_is_raised() -> None:
    disk = Disk(fails_at=1)
    with pytest.raises(OSError, match="no room"), disk.recorder() as recorder:
        await recorder.add(entries(0, GROUP))
        await asyncio.wait_for(disk.arrived.wait(), 10)
        disk.arrived.clear()
        await recorder.add(entries(GROUP, 2 * GROUP))
        await asyncio.wait_for(disk.arrived.wait(), 10)
        assert disk.failures == 1
        await recorder.add(entries(2 * GROUP, 3 * GROUP))
    assert disk.told == list(range(GROUP))
    assert len(disk.groups) == 1


async def test_a_failure_lets_go_of_who_waits_for_room() -> None:
    disk = Disk(fails_at=0)
    disk.free.clear()
    with pytest.raises(OSError, match="no room"), disk.recorder() as recorder:
        await recorder.add(entries(0, GROUP))
        more = asyncio.create_task(recorder.add(entries(GROUP, GROUP + MOST_WAITING)))
        await asyncio.sleep(0)
        disk.free.set()
        await asyncio.wait_for(more, 10)
    assert disk.told == []


@pytest.mark.parametrize(
    ("took_s", "apart_s"), [(0.0, 0.001), (0.00015, 0.0015), (0.0002, 0.002), (0.1, module.GROUP_S)]
)
async def test_the_less_a_group_costs_the_sooner_comes_the_next(
    monkeypatch: pytest.MonkeyPatch, took_s: float, apart_s: float
) -> None:
    loop, asked = asyncio.get_running_loop(), list[float]()
    call_at, clock = loop.call_at, itertools.count()

    def asked_for(when: float, *args: Any) -> asyncio.TimerHandle:
        asked.append(when)
        return call_at(when, *args)

    # Looked at before a group and after it.
    monkeypatch.setattr(module, "perf_counter", lambda: next(clock) * took_s)
    monkeypatch.setattr(loop, "call_at", asked_for)
    monkeypatch.setattr(loop, "time", lambda: 0.0)
    with Recorder(lambda _: None, record_now=lambda _: True, durable=lambda _: None, failed=lambda: None) as recorder:
        await recorder.add(entries(0, GROUP))
        await recorder.add(entries(GROUP, GROUP + 1))
        assert asked == [pytest.approx(apart_s)]


async def test_who_is_told_may_fail_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_S", 0)
    failed = asyncio.Event()

    def told(group: list[Entry]) -> None:
        raise ValueError("not ready for this")

    with pytest.raises(ValueError, match="not ready"), Recorder(lambda _: None, durable=told, failed=failed.set) as one:
        await one.add(entries(0, 1))
        await asyncio.wait_for(failed.wait(), 10)
