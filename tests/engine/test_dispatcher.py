"""What the dispatcher decides, one decision at a time."""

from __future__ import annotations

import pytest

from dspex_pipelines.engine.dispatcher import Dispatcher
from dspex_pipelines.engine.fleet import REMEMBERED_SNAPSHOTS
from dspex_pipelines.engine.tickets import Orders, Ticket
from dspex_pipelines.model.outcome import ErrorType


def tickets(client: int, *ids: int, state: tuple[int, int] = (1, 1), timeout_s: float = 0.0) -> list[Ticket]:
    return [Ticket(client, number, *state, timeout_s, f"trial {number}") for number in ids]


def dispatched(orders: Orders) -> list[tuple[int, int]]:
    """(client, trial) of everything sent, in the order of dispatch."""
    sent = [one for some in orders.dispatch.values() for one in some]
    return [(ticket.client, ticket.client_trial_id) for _, ticket in sorted(sent, key=lambda one: one[0])]


def only_attempt(orders: Orders) -> tuple[str, int]:
    ((worker_id, [(attempt_id, _)]),) = orders.dispatch.items()
    return worker_id, attempt_id


def test_clients_take_turns():
    dispatcher = Dispatcher()
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4), 0.0)
    dispatcher.submit(2, tickets(2, 1, 2), 0.0)
    orders = dispatcher.attach("w", 6, 0.0)
    assert dispatched(orders) == [(1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (1, 4)]


def test_trials_spread_over_workers_with_room():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 10, 0.0)
    dispatcher.attach("b", 10, 0.0)
    orders = dispatcher.submit(1, tickets(1, *range(10)), 0.0)
    assert {worker_id: len(sent) for worker_id, sent in orders.dispatch.items()} == {"a": 5, "b": 5}


def test_a_worker_that_knows_the_snapshot_is_preferred_when_it_is_little_busier():
    dispatcher = Dispatcher(affinity_lead=float("inf"))
    dispatcher.attach("a", 10, 0.0)
    dispatcher.attach("b", 10, 0.0)
    first, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1, state=(7, 7)), 0.0))
    dispatcher.finish(first, attempt, "done", 0.0)
    other = only_attempt(dispatcher.submit(1, tickets(1, 2, state=(8, 8)), 0.0))[0]
    again = dispatcher.submit(1, tickets(1, 3, state=(7, 7)), 0.0)
    assert only_attempt(again)[0] == first
    assert {first, other} == {"a", "b"}


def test_knowing_the_snapshot_never_leaves_another_worker_idle():
    dispatcher = Dispatcher(affinity_lead=0.25)
    dispatcher.attach("a", 100, 0.0)
    dispatcher.submit(1, tickets(1, *range(20)), 0.0)
    dispatcher.attach("b", 100, 0.0)
    orders = dispatcher.submit(1, tickets(1, *range(20, 40)), 0.0)
    assert len(orders.dispatch["b"]) == 20


def test_what_a_worker_knows_is_bounded():
    dispatcher = Dispatcher(affinity_lead=float("inf"))
    dispatcher.attach("a", 1, 0.0)
    for version in range(2 * REMEMBERED_SNAPSHOTS):
        worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, version, state=(1, version)), 0.0))
        dispatcher.finish(worker_id, attempt, "done", 0.0)
    (worker,) = dispatcher._fleet
    assert len(worker.warm) == REMEMBERED_SNAPSHOTS
    assert len(dispatcher._fleet._knowing) == REMEMBERED_SNAPSHOTS


def test_the_trials_of_a_lost_worker_go_first_and_in_order():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 3, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4, 5), 0.0)
    assert dispatcher.lose("a", 1.0, "killed").settle == []
    assert dispatched(dispatcher.attach("b", 5, 2.0)) == [(1, 1), (1, 2), (1, 3), (1, 4), (1, 5)]


def test_a_trial_lost_too_often_is_an_error_that_says_so():
    dispatcher = Dispatcher(max_losses=2)
    dispatcher.submit(1, tickets(1, 1), 0.0)
    dispatcher.attach("a", 1, 1.0)
    assert dispatcher.lose("a", 2.0, "killed by signal 9").settle == []
    dispatcher.attach("b", 1, 4.0)
    (settled,) = dispatcher.lose("b", 7.0, "killed by signal 9").settle
    assert settled.error is ErrorType.WORKER_LOST
    assert "2 times" in settled.message
    assert "killed by signal 9" in settled.message
    assert (settled.attempts, settled.queue_s, settled.run_s) == (2, 3.0, 3.0)


def test_at_the_deadline_the_trial_is_settled_and_its_slot_waits_for_the_worker():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1, timeout_s=5.0), 10.0))
    dispatcher.submit(1, tickets(1, 2), 10.0)
    assert dispatcher.next_deadline() == 15.0
    assert dispatcher.tick(14.9) == Orders()
    orders = dispatcher.tick(15.0)
    assert [settled.error for settled in orders.settle] == [ErrorType.TIMEOUT_RUN]
    assert orders.cancel == {"a": [attempt]}
    assert orders.dispatch == {}
    assert dispatched(dispatcher.release(worker_id, [attempt], 15.1)) == [(1, 2)]


def test_an_answer_after_the_deadline_frees_the_slot_and_answers_nothing():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1, timeout_s=5.0), 0.0))
    dispatcher.tick(5.0)
    dispatcher.submit(1, tickets(1, 2), 5.0)
    orders = dispatcher.finish(worker_id, attempt, "late", 5.5)
    assert orders.settle == []
    assert dispatched(orders) == [(1, 2)]


def test_an_answer_that_comes_before_the_tick_counts():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1, timeout_s=5.0), 0.0))
    (settled,) = dispatcher.finish(worker_id, attempt, "just so", 5.5).settle
    assert settled.outcome == "just so"
    assert dispatcher.tick(6.0) == Orders()
    assert dispatcher.next_deadline() is None


def test_a_worker_whose_slots_do_not_come_back_is_retired_once():
    dispatcher = Dispatcher(grace_s=1.0)
    dispatcher.attach("a", 8, 0.0)
    dispatcher.submit(1, tickets(1, *range(8), timeout_s=5.0), 0.0)
    orders = dispatcher.tick(5.0)
    stuck = orders.cancel["a"]
    assert len(stuck) == 8
    dispatcher.release("a", stuck[:7], 5.5)
    assert dispatcher.tick(6.5).retire == []  # one of eight is less than a quarter
    dispatcher.submit(1, tickets(1, *range(8, 15), timeout_s=1.0), 6.5)
    dispatcher.tick(7.5)
    assert dispatcher.tick(8.5).retire == ["a"]
    assert dispatcher.tick(99.0).retire == []
    assert dispatched(dispatcher.submit(1, tickets(1, 99), 99.0)) == []


def test_a_drained_worker_finishes_what_it_runs():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 2, 0.0)
    worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1), 0.0))
    dispatcher.drain_worker("a", 0.0)
    assert dispatched(dispatcher.submit(1, tickets(1, 2), 0.0)) == []
    (settled,) = dispatcher.finish(worker_id, attempt, "done", 1.0).settle
    assert settled.outcome == "done"
    assert dispatched(dispatcher.attach("b", 1, 2.0)) == [(1, 2)]


def test_a_client_that_goes_takes_its_trials_along():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    _, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1), 0.0))
    dispatcher.submit(1, tickets(1, 2, 3), 0.0)
    orders = dispatcher.disconnect(1, 1.0)
    assert (orders.settle, orders.cancel) == ([], {"a": [attempt]})
    assert dispatcher.release("a", [attempt], 2.0) == Orders()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [(tickets(1, 7, 7), "in flight already"), (tickets(1, 7) + tickets(2, 8), "submitted by 1")],
)
def test_a_bad_submission_queues_nothing(wrong: list[Ticket], message: str):
    dispatcher = Dispatcher()
    with pytest.raises(ValueError, match=message):
        dispatcher.submit(1, wrong, 0.0)
    assert dispatcher.stats().queue_depth == 0
    assert dispatched(dispatcher.attach("a", 5, 0.0)) == []


def test_a_worker_that_cannot_be_is_refused():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    with pytest.raises(ValueError, match="attached already"):
        dispatcher.attach("a", 1, 0.0)
    with pytest.raises(ValueError, match="at least 1"):
        dispatcher.attach("b", 0, 0.0)


def test_timers_that_are_no_longer_needed_do_not_pile_up():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    for number in range(5_000):
        worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, number, timeout_s=1e6), 0.0))
        dispatcher.finish(worker_id, attempt, "done", 0.0)
    assert len(dispatcher._timers._heap) < 200
