"""A trial whose calls wait for leave: its clock stands still, and nothing else does."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.retries import Fault
from dspex_pipelines.engine.dispatch.tickets import Orders, Settled, Ticket
from dspex_pipelines.model.outcome import ErrorType

MAY_PASS = Fault(ErrorType.PROGRAM_EXCEPTION, "may pass", retryable=True)


class Bench:
    """One worker, one client, and a clock that begins at 100."""

    def __init__(self, *, timeout_s: float = 10.0, trials: int = 1, slots: int = 4) -> None:
        self.dispatcher = Dispatcher(rng=random.Random(0))
        self.attempts: list[int] = []
        self.settled: list[Settled] = []
        self.cancelled: list[int] = []
        self.killed: dict[str, int] = {}
        self.take(self.dispatcher.attach("w", slots, 100.0))
        tickets = [Ticket(1, number, (1, 1), timeout_s, f"body {number}") for number in range(1, trials + 1)]
        self.take(self.dispatcher.submit(1, tickets, 100.0))

    @property
    def attempt(self) -> int:
        return self.attempts[-1]

    def take(self, orders: Orders) -> Orders:
        self.attempts += [attempt_id for sent in orders.dispatch.values() for attempt_id, _ in sent]
        self.settled += orders.settle
        self.cancelled += [attempt_id for some in orders.cancel.values() for attempt_id in some]
        self.killed |= orders.kill
        return orders

    def stop(self, now: float, attempt: int = 0) -> None:
        self.dispatcher.stop_clock("w", attempt or self.attempt, now)

    def start(self, now: float, attempt: int = 0) -> None:
        self.dispatcher.start_clock("w", attempt or self.attempt, now)

    def tick(self, now: float) -> None:
        self.dispatcher.heard("w", now)
        self.take(self.dispatcher.tick(now))

    def finish(self, now: float, fault: Fault | None = None) -> None:
        self.take(self.dispatcher.finish("w", self.attempt, "outcome", now, fault))


Steps = list[tuple[str, float]]


def play(bench: Bench, steps: Steps) -> None:
    for what, now in steps:
        getattr(bench, what)(now)


@pytest.mark.parametrize(
    ("steps", "due"),
    [
        pytest.param([], 110.0, id="never-waits"),
        pytest.param([("stop", 101.0)], None, id="waits"),
        pytest.param([("stop", 101.0), ("start", 104.0)], 113.0, id="has-waited"),
        pytest.param([("stop", 101.0), ("stop", 102.0), ("start", 104.0)], None, id="one-of-two-waits-on"),
        pytest.param(
            [("stop", 101.0), ("stop", 102.0), ("start", 104.0), ("start", 105.0)],
            114.0,
            id="two-overlap-and-count-once",
        ),
        pytest.param(
            [("stop", 101.0), ("start", 102.0), ("stop", 103.0), ("start", 105.0)], 113.0, id="one-after-other"
        ),
        pytest.param([("start", 101.0)], 110.0, id="started-without-a-stop"),
        pytest.param([("stop", 101.0), ("start", 101.0), ("start", 108.0)], 110.0, id="started-twice"),
        pytest.param([("stop", 111.0), ("start", 120.0)], 120.0, id="stopped-one-second-late"),
        pytest.param([("stop", 110.5), ("start", 120.0)], 120.0, id="stopped-late"),
    ],
)
def test_a_deadline_is_put_off_by_as_long_as_any_call_waits(steps: Steps, due: float | None) -> None:
    bench = Bench()
    play(bench, steps)
    assert bench.dispatcher.next_deadline() == due
    bench.tick(10_000.0)
    assert [settled.error for settled in bench.settled] == ([] if due is None else [ErrorType.TIMEOUT_RUN])


def test_a_trial_without_a_deadline_gets_none_by_waiting() -> None:
    bench = Bench(timeout_s=0.0)
    play(bench, [("stop", 101.0), ("start", 105.0)])
    assert bench.dispatcher.next_deadline() is None


def cancels(bench: Bench, now: float) -> None:
    bench.take(bench.dispatcher.cancel(1, [1], now))


def finishes(bench: Bench, now: float) -> None:
    bench.finish(now)


def fails(bench: Bench, now: float) -> None:
    bench.finish(now, Fault(ErrorType.PROGRAM_EXCEPTION, "stays"))


@pytest.mark.parametrize(
    ("end", "error"),
    [
        pytest.param(finishes, None, id="it-ends"),
        pytest.param(fails, None, id="it-fails"),
        pytest.param(cancels, ErrorType.CANCELLED, id="it-is-cancelled"),
    ],
)
@pytest.mark.parametrize("waits", [1, 3])
def test_a_trial_that_is_settled_while_it_waits_has_waited_and_not_run(
    end: Callable[[Bench, float], None], error: ErrorType | None, waits: int
) -> None:
    bench = Bench()
    play(bench, [("stop", 102.0)] * waits)
    end(bench, 109.0)
    (settled,) = bench.settled
    assert (settled.error, settled.run_s, settled.throttled_s) == (error, 2.0, 7.0)
    # Whatever its calls hear later is nobody's any more.
    play(bench, [("start", 110.0)] * waits)
    bench.take(bench.dispatcher.release("w", bench.cancelled, 110.0))
    assert bench.dispatcher.next_deadline() is None
    assert len(bench.settled) == 1


@pytest.mark.parametrize("how", ["fails", "lost", "hung", "returned"])
def test_an_attempt_that_ends_while_it_waits_leaves_no_wait_to_the_next(how: str) -> None:
    bench = Bench()
    play(bench, [("stop", 102.0), ("stop", 103.0)])
    first, dispatcher = bench.attempt, bench.dispatcher
    match how:
        case "fails":
            bench.finish(105.0, MAY_PASS)
        case "lost":
            bench.take(dispatcher.lose("w", 105.0, "killed"))
        case "hung":
            bench.take(dispatcher.hung("w", [first], 105.0, "held"))
        case _:
            dispatcher.drain_worker("w", 105.0)
            bench.take(dispatcher.give_back("w", [first], 105.0))
    assert not bench.settled
    if how == "returned":
        bench.take(dispatcher.lose("w", 105.0, "left"))
    if how != "fails":
        bench.take(dispatcher.attach("w", 4, 106.0, quarantine=how != "returned"))
    while bench.attempt == first:
        due = dispatcher.next_deadline()
        assert due is not None
        dispatcher.heard("w", due)
        bench.take(dispatcher.tick(due))
    # What the first attempt's calls hear now is not the second's.
    bench.start(120.0, first)
    begun = dispatcher.next_deadline()
    assert begun is not None
    play(bench, [("stop", begun - 9.0), ("start", begun - 4.0)])
    assert dispatcher.next_deadline() == begun + 5.0
    bench.finish(begun - 1.0)
    (settled,) = bench.settled
    assert settled.attempts == 2
    assert settled.throttled_s == pytest.approx(3.0 + 5.0)
    assert settled.run_s == pytest.approx(4.0)
    assert [(past.run_s, past.queue_s) for past in settled.history] == [(2.0, 0.0)]


def test_what_times_out_has_not_been_charged_for_its_waits() -> None:
    bench = Bench()
    play(bench, [("stop", 101.0), ("start", 104.0), ("tick", 112.9)])
    assert not bench.settled
    bench.tick(113.0)
    (settled,) = bench.settled
    assert (settled.error, settled.run_s, settled.throttled_s) == (ErrorType.TIMEOUT_RUN, 10.0, 3.0)
    assert bench.cancelled == [bench.attempt]
    # Abandoned, it may wait again: its grace is not put off by that.
    bench.stop(113.1)
    assert bench.dispatcher.next_deadline() == 114.0


def test_a_client_that_leaves_takes_waits_and_timers_along() -> None:
    bench = Bench()
    bench.stop(101.0)
    bench.take(bench.dispatcher.disconnect(1, 102.0))
    bench.start(103.0)
    bench.take(bench.dispatcher.release("w", bench.cancelled, 103.0))
    assert bench.dispatcher.next_deadline() is None


def test_one_trials_wait_is_not_its_neighbours() -> None:
    bench = Bench(trials=2)
    bench.stop(101.0, bench.attempts[0])
    bench.tick(110.0)
    assert [settled.ticket.client_trial_id for settled in bench.settled] == [2]


@pytest.mark.parametrize(("worker", "attempt"), [("w", 10**9), ("w", 0), ("another", 1)])
def test_clocks_that_nobody_has_are_not_stopped(worker: str, attempt: int) -> None:
    bench = Bench()
    bench.dispatcher.stop_clock(worker, attempt, 101.0)
    bench.dispatcher.start_clock(worker, attempt, 102.0)
    assert bench.dispatcher.client_of(worker, attempt) == 0
    assert bench.dispatcher.client_of("w", bench.attempt) == 1
    assert bench.dispatcher.next_deadline() == 110.0


def test_one_that_waits_while_it_holds_the_loop_is_given_its_neighbours_time_over_again() -> None:
    """It called a model from a coroutine, in a way that blocks: no one's fault before it has had some time for it."""
    bench = Bench(trials=2)
    holder = bench.attempts[0]
    bench.stop(101.0, holder)
    for now in (110.0, 119.9):
        bench.dispatcher.heard("w", now, held_by=holder)
        bench.take(bench.dispatcher.tick(now))
    assert (bench.settled, bench.killed) == ([], {})
    bench.dispatcher.heard("w", 120.1, held_by=holder)
    bench.take(bench.dispatcher.tick(120.1))
    assert bench.killed == {"w": holder}


def test_a_trial_that_is_overdue_after_a_wait_is_told_from_one_that_is_held_up() -> None:
    """The worker's heartbeat was late when the clock was stopped: the rest of that patience is kept, no more."""
    bench = Bench()
    bench.dispatcher.heard("w", 109.0)
    bench.take(bench.dispatcher.tick(110.0))
    late = bench.dispatcher.next_deadline()
    assert late is not None
    assert late > 110.0
    play(bench, [("stop", 110.1), ("start", 130.1)])
    assert bench.dispatcher.next_deadline() == pytest.approx(late + 20.0)
