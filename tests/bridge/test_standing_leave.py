"""Calls that need not ask: what the bridge tells workers, and what they tell it."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict

import pytest

from dspex.v1 import worker_pb2
from dspex_pipelines.bridge import model_calls
from dspex_pipelines.bridge.model_calls import ModelCalls
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.throttling.throttle import Throttle, Verdict
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.wire.codec import verdict_to_wire
from dspex_pipelines.worker import permits
from dspex_pipelines.worker.permits import PermitsOfBridge

MODEL = "sim/model"
ENOUGH = 250


class Between:
    """A bridge and its workers, without a wire: a frame is what a worker has said since the last one."""

    def __init__(self, *names: str) -> None:
        self.told: dict[str, list[worker_pb2.StandingLeave]] = defaultdict(list)
        self.asks: dict[str, list[worker_pb2.CallAsk]] = defaultdict(list)
        self.ends: dict[str, list[worker_pb2.CallEnd]] = defaultdict(list)
        self.urgent: dict[str, int] = defaultdict(int)
        self.throttle = Throttle()
        self.now = time.monotonic()
        self.calls = ModelCalls(
            Dispatcher(),
            permit=lambda name, permit: self.workers[name].take([permit]),
            leave=self._leave,
            changed=lambda: None,
            throttle=self.throttle,
        )
        self.workers = {name: self._worker(name) for name in names}

    def _leave(self, name: str, leave: worker_pb2.StandingLeave) -> None:
        self.told[name].append(leave)
        self.workers[name].take_leaves([leave])

    def _worker(self, name: str) -> PermitsOfBridge:
        def end(said: worker_pb2.CallEnd, at_once: bool) -> None:
            self.ends[name].append(said)
            self.urgent[name] += at_once

        return PermitsOfBridge(ask=self.asks[name].append, end=end)

    def frame(self, name: str) -> None:
        self.now += 0.01
        asks, ends = list(self.asks[name]), list(self.ends[name])
        self.asks[name].clear()
        self.ends[name].clear()
        self.calls.heard(name, asks, ends, self.now)

    def call(self, name: str, verdict: Verdict = Verdict.OK, *, again: bool = False) -> bool:
        """Make a call; return whether it had to ask."""
        permit = self.workers[name].ask(1, MODEL, 0, again=again)
        asked = not permit.granted.done()
        if asked:
            self.frame(name)
        permit.granted.result(timeout=0)
        permit.end(verdict)
        if asked:
            self.frame(name)
        return asked


@pytest.fixture
async def between() -> Between:
    """Both workers have leave."""
    both = Between("a", "b")
    for _ in range(ENOUGH):
        both.call("a")
        both.call("b")
    for name in both.workers:
        both.frame(name)
    return both


async def test_after_many_answers_calls_go_unasked_and_are_counted_all_the_same(between: Between) -> None:
    for name in between.workers:
        assert [leave.given for leave in between.told[name]] == [True]
        assert not between.call(name)
        # In one frame: begun, and ended.
        between.frame(name)
    (status,) = between.calls.status()
    assert (status.granted, status.in_flight, status.waiting) == (2 * ENOUGH + 2, 0, 0)


async def test_what_goes_well_unasked_wakes_nobody(between: Between) -> None:
    before = between.urgent["a"]
    between.call("a")
    assert between.urgent["a"] == before
    between.call("a", Verdict.NEUTRAL)
    assert between.urgent["a"] == before + 1


async def test_a_refusal_ends_it_here_at_once_and_elsewhere_with_its_frame(between: Between) -> None:
    assert not between.call("a", Verdict.REFUSED)
    between.workers["a"].ask(1, MODEL, 0, again=True)
    assert [ask.begun for ask in between.asks["a"]] == [True, False]
    assert not between.call("b"), "has not heard of it"
    between.frame("a")
    assert not between.told["b"][-1].given
    between.workers["b"].ask(1, MODEL, 0, again=False)
    assert not between.asks["b"][-1].begun


async def test_a_limit_that_a_run_declares_ends_it(between: Between) -> None:
    between.calls.declare(1, [RateLimit(model="sim/*", max_concurrency=1)])
    assert [between.told[name][-1].given for name in between.workers] == [False, False]
    assert between.call("a")


async def test_what_was_on_its_way_when_it_ended_is_counted_and_told_so(between: Between) -> None:
    permit = between.workers["b"].ask(1, MODEL, 0, again=False)
    between.calls.declare(1, [RateLimit(model="sim/*", max_concurrency=1)])
    between.told["b"].clear()
    between.frame("b")
    assert [leave.given for leave in between.told["b"]] == [False]
    (status,) = between.calls.status()
    assert status.in_flight == 1
    permit.end(Verdict.OK)
    between.frame("b")
    (status,) = between.calls.status()
    assert status.in_flight == 0


async def test_a_leave_that_is_not_used_lapses(between: Between, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(permits, "LEAVE_S", -1.0)
    assert not between.call("a")
    assert between.call("a")
    monkeypatch.undo()
    assert between.call("a")
    assert between.told["a"][-1].given, "asked for, it is given again"
    assert not between.call("a")


async def test_the_calls_of_a_lost_worker_are_over(between: Between) -> None:
    for _ in range(3):
        between.workers["a"].ask(1, MODEL, 0, again=False)
    between.frame("a")
    (status,) = between.calls.status()
    assert status.in_flight == 3
    between.calls.lose("a", between.now)
    (status,) = between.calls.status()
    assert status.in_flight == 0
    between.told.clear()
    between.calls.declare(1, [RateLimit(model="sim/*", max_concurrency=1)])
    assert set(between.told) == {"b"}


async def test_an_end_of_what_was_never_asked_is_nothing(between: Between) -> None:
    before = between.calls.status()
    end = worker_pb2.CallEnd(id=10_000, verdict=verdict_to_wire(Verdict.REFUSED))
    between.calls.heard("a", [], [end], between.now)
    assert between.calls.status() == before
    assert not between.call("a")


async def test_calls_of_an_attempt_that_does_not_stop_are_over_after_a_while(
    between: Between, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_calls, "STUCK_S", 0.0)
    for trial in (1, 1, 2):
        between.workers["a"].ask(trial, MODEL, 0, again=False)
    between.frame("a")
    between.calls.abandon([("a", 1), ("gone", 1)])
    while between.calls.status()[0].in_flight == 3:
        await asyncio.sleep(0)
    assert between.calls.status()[0].in_flight == 1
    # Should one of them end after all, that changes nothing.
    for permit in list(between.workers["a"]._permits.values()):
        permit.end(Verdict.REFUSED)
    between.frame("a")
    assert between.calls.status()[0].in_flight == 0


async def test_a_trial_that_was_stopped_asks_nobody_any_more(between: Between) -> None:
    worker = between.workers["a"]
    worker.stop(7)
    asked = len(between.asks["a"])
    permit = worker.ask(7, MODEL, 0, again=False)
    with pytest.raises(permits.TrialStopped):
        permit.granted.result(timeout=0)
    permit.end(Verdict.NEUTRAL)
    assert len(between.asks["a"]) == asked
    worker.forget(7)
    assert worker.ask(7, MODEL, 0, again=False).granted.done()
