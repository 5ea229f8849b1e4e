"""What the dispatcher decides, one decision at a time."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.failures import MOST_RETURNS
from dspex_pipelines.engine.dispatch.fleet import REMEMBERED_SNAPSHOTS
from dspex_pipelines.engine.dispatch.quarantine import NEVER
from dspex_pipelines.engine.dispatch.retries import Fault, RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Orders, Ticket
from dspex_pipelines.model.outcome import ErrorType


def tickets(client: int, *ids: int, state: tuple[int, int] = (1, 1), timeout_s: float = 0.0) -> list[Ticket]:
    return [Ticket(client, number, state, timeout_s, f"trial {number}") for number in ids]


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


def test_a_client_has_as_many_turns_as_its_weight():
    dispatcher = Dispatcher()
    dispatcher.join(1, 3)
    dispatcher.submit(1, tickets(1, *range(8)), 0.0)
    dispatcher.submit(2, tickets(2, *range(8)), 0.0)
    orders = dispatcher.attach("w", 12, 0.0)
    assert [client for client, _ in dispatched(orders)] == [1, 1, 1, 2] * 2 + [1, 1, 2, 2]


def test_turns_that_a_client_had_no_trials_for_are_not_kept():
    dispatcher = Dispatcher()
    dispatcher.join(1, 3)
    dispatcher.attach("w", 8, 0.0)
    for number in range(2):
        dispatcher.submit(1, tickets(1, number), 0.0)
    dispatcher.submit(2, tickets(2, *range(100, 120)), 0.0)
    dispatcher.submit(1, tickets(1, *range(200, 220)), 0.0)
    orders = dispatcher.finish_many("w", [(attempt, "done", None) for attempt in range(1, 9)], 1.0)
    assert [client for client, _ in dispatched(orders)] in ([2, 1, 1, 1, 2, 1, 1, 1], [1, 1, 1, 2, 1, 1, 1, 2])


def test_a_wide_trial_that_waits_for_room_costs_its_client_no_turn():
    dispatcher = Dispatcher()
    dispatcher.join(1, 2)
    dispatcher.attach("w", 4, 0.0)
    filled = dispatcher.submit(3, tickets(3, 1, 2, 3, 4), 0.0)
    attempts = [attempt for attempt, _ in filled.dispatch["w"]]
    dispatcher.submit(1, wide(1, 1, 2, 3, slots=2), 0.0)
    dispatcher.submit(2, wide(2, 1, 2, 3, slots=2), 0.0)
    assert not dispatcher.finish("w", attempts[0], "done", 1.0).dispatch
    orders = dispatcher.finish_many("w", [(attempt, "done", None) for attempt in attempts[1:]], 2.0)
    assert dispatched(orders) == [(1, 1), (1, 2)]
    orders = dispatcher.finish_many("w", [(attempt, "done", None) for attempt, _ in orders.dispatch["w"]], 3.0)
    assert dispatched(orders) == [(2, 1), (1, 3)]


def test_a_few_trials_wait_for_as_many_of_a_crowd_at_most():
    """An evaluation of 100 trials beside one of 100,000: it is over after 200 of both."""
    dispatcher = Dispatcher()
    dispatcher.attach("w", 10, 0.0)
    running = dispatcher.submit(1, tickets(1, *range(1_000)), 0.0).dispatch["w"]
    dispatcher.submit(2, tickets(2, *range(100)), 0.0)
    small = others = 0
    while small < 100:
        (attempt_id, ticket), *running = running
        small += ticket.client == 2
        others += ticket.client == 1
        running += dispatcher.finish("w", attempt_id, "done", 1.0).dispatch["w"]
    assert others <= 100 + 10


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


def wide(client: int, *ids: int, slots: int) -> list[Ticket]:
    return [replace(ticket, slots=slots) for ticket in tickets(client, *ids)]


def test_a_wide_trial_waits_for_room_and_no_other_client_takes_it():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 4, 0.0)
    sent = dispatcher.submit(1, tickets(1, 1, 2, 3, 4), 0.0).dispatch["a"]
    dispatcher.submit(2, wide(2, 1, slots=3), 0.0)
    dispatcher.submit(3, tickets(3, 1, 2), 0.0)
    done = [dispatched(dispatcher.finish("a", attempt, "done", 1.0)) for attempt, _ in sent]
    assert done == [[], [], [(2, 1)], [(3, 1)]]


def test_a_wide_trial_makes_do_with_what_trials_that_do_not_stop_leave():
    dispatcher = Dispatcher(silence_s=NEVER)
    dispatcher.attach("a", 8, 0.0)
    dispatcher.submit(1, tickets(1, 1, timeout_s=1.0), 0.0)
    dispatcher.tick(1.0)
    assert dispatched(dispatcher.submit(1, wide(1, 2, slots=8), 2.0)) == [(1, 2)]


def test_clients_that_come_and_go_while_there_is_no_room_are_forgotten():
    dispatcher = Dispatcher()
    dispatcher.submit(1, tickets(1, 1), 0.0)
    for client in range(2, 500):
        dispatcher.submit(client, tickets(client, 1), 0.0)
        dispatcher.disconnect(client, 0.0)
    assert len(dispatcher._queues._ready) < 10
    assert dispatched(dispatcher.attach("a", 4, 1.0)) == [(1, 1)]


# ---------------------------------------------------------------------- lost workers


def quarantined(orders: Orders, worker_id: str) -> list[int]:
    return [ticket.client_trial_id for _, ticket in orders.dispatch.get(worker_id, [])]


def test_the_trials_of_a_lost_worker_are_dealt_out_in_halves():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 5, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4, 5, 6), 0.0)
    orders = dispatcher.lose("a", 1.0, "killed")
    assert (orders.settle, orders.quarantine) == ([], 2)
    assert quarantined(dispatcher.attach("w", 10, 2.0), "w") == [6], "the rest goes on"
    assert quarantined(dispatcher.attach("q1", 10, 2.0, quarantine=True), "q1") == [1, 2]
    second = dispatcher.attach("q2", 10, 2.0, quarantine=True)
    assert quarantined(second, "q2") == [3, 4, 5]
    assert second.quarantine is None


def test_suspects_that_prove_harmless_make_room_for_the_next():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    _, attempt = only_attempt(dispatcher.attach("q", 9, 2.0, quarantine=True))
    orders = dispatcher.finish("q", attempt, "fine", 3.0)
    assert [settled.outcome for settled in orders.settle] == ["fine"]
    assert quarantined(orders, "q") == [2]


def test_a_group_larger_than_its_worker_is_run_bit_by_bit():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 6, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4, 5, 6), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    first = dispatcher.attach("q", 2, 1.0, quarantine=True)
    assert quarantined(first, "q") == [1, 2]
    (attempt, _), _ = first.dispatch["q"]
    assert quarantined(dispatcher.finish("q", attempt, "fine", 2.0), "q") == [3]
    # 2 and 3 are halved again; nothing of the group waits any more.
    assert dispatcher.lose("q", 3.0, "killed").settle == []
    assert quarantined(dispatcher.attach("r", 9, 3.0, quarantine=True), "r") == [4, 5, 6]
    assert quarantined(dispatcher.attach("s", 9, 3.0, quarantine=True), "s") == [2]
    assert quarantined(dispatcher.attach("t", 9, 3.0, quarantine=True), "t") == [3]


def test_a_trial_that_kills_twice_alone_is_poison_and_its_neighbours_are_not_charged():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2), 0.0)
    dispatcher.lose("a", 1.0, "signal 9")
    dispatcher.attach("q1", 9, 2.0, quarantine=True)
    assert dispatcher.lose("q1", 3.0, "signal 11").settle == []
    _, neighbour = only_attempt(dispatcher.attach("q2", 9, 4.0, quarantine=True))
    (settled,) = dispatcher.finish("q2", neighbour, "fine", 5.0).settle
    assert settled.outcome == "fine"
    (settled,) = dispatcher.lose("q2", 7.0, "signal 6").settle
    assert settled.error is ErrorType.POISON
    assert "signal 6" in settled.message
    assert (settled.ticket.client_trial_id, settled.attempts, settled.run_s) == (1, 3, 2.0)
    assert [(past.number, past.worker, past.message) for past in settled.history] == [
        (1, "a", "signal 9"),
        (2, "q1", "signal 11"),
    ]


def test_a_worker_that_is_about_to_be_lost_is_sent_nothing_and_what_it_ran_is_charged_as_ever():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1), 0.0)
    assert dispatcher.close("a")
    assert dispatcher.submit(1, tickets(1, 2), 0.0).dispatch == {}
    dispatcher.lose("a", 1.0, "killed")
    for name in ("q1", "q2"):
        assert quarantined(dispatcher.attach(name, 2, 2.0, quarantine=True), name) == [1]
        assert dispatcher.close(name)
        orders = dispatcher.lose(name, 3.0, "killed")
    assert [settled.error for settled in orders.settle] == [ErrorType.POISON]
    dispatcher.attach("idle", 2, 4.0, quarantine=True)
    assert not dispatcher.close("idle")
    assert not dispatcher.close("unknown")


def test_a_worker_that_dies_with_one_ordinary_trial_proves_nothing():
    dispatcher = Dispatcher()
    dispatcher.submit(1, tickets(1, 1), 0.0)
    for name in "abc":
        dispatcher.attach(name, 1, 0.0)
    for name in "abc":
        assert dispatcher.lose(name, 1.0, "killed").settle == []
    assert quarantined(dispatcher.attach("q", 1, 2.0, quarantine=True), "q") == [1]


def test_where_no_quarantine_worker_comes_an_ordinary_one_is_set_apart_and_given_back():
    dispatcher = Dispatcher(reserve_after_s=5.0)
    dispatcher.attach("a", 1, 0.0)
    dispatcher.submit(1, tickets(1, 1), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    dispatcher.attach("b", 1, 1.0)
    _, busy = only_attempt(dispatcher.submit(1, tickets(1, 2, 3), 1.0))
    assert dispatcher.next_deadline() == 6.0
    assert dispatcher.tick(6.0).dispatch == {}, "it is not empty yet"
    orders = dispatcher.finish("b", busy, "fine", 7.0)
    assert quarantined(orders, "b") == [1]
    (attempt, _) = orders.dispatch["b"][0]
    assert quarantined(dispatcher.finish("b", attempt, "fine", 8.0), "b") == [3]


def test_quarantine_workers_are_wanted_for_a_while_after_the_last_suspect():
    dispatcher = Dispatcher(quarantine_idle_s=10.0)
    dispatcher.attach("a", 1, 0.0)
    dispatcher.submit(1, tickets(1, 1), 0.0)
    assert dispatcher.lose("a", 1.0, "killed").quarantine == 1
    _, attempt = only_attempt(dispatcher.attach("q", 1, 2.0, quarantine=True))
    assert dispatcher.finish("q", attempt, "fine", 3.0).quarantine is None
    assert dispatcher.next_deadline() == 13.0
    assert dispatcher.tick(13.0).quarantine == 0
    assert dispatcher.next_deadline() is None


def test_a_quarantine_worker_that_is_drained_hands_its_group_on():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    assert quarantined(dispatcher.attach("q", 1, 1.0, quarantine=True), "q") == [1]
    dispatcher.drain_worker("q", 2.0)
    assert quarantined(dispatcher.attach("r", 9, 2.0, quarantine=True), "r") == [2]
    assert quarantined(dispatcher.attach("s", 9, 2.0, quarantine=True), "s") == [3, 4]


def leaving(slots: int, count: int, *, quarantine: bool) -> Dispatcher:
    """A dispatcher whose worker "w" runs *count* trials, suspects or not, and has been asked to leave."""
    dispatcher = Dispatcher()
    dispatcher.attach("a" if quarantine else "w", slots, 0.0)
    dispatcher.submit(1, tickets(1, *range(1, count + 1)), 0.0)
    if quarantine:
        dispatcher.lose("a", 1.0, "killed")
        dispatcher.attach("w", slots, 1.0, quarantine=True)
    dispatcher.drain_worker("w", 2.0)
    return dispatcher


def test_a_worker_that_was_asked_to_leave_makes_no_suspects_when_it_is_lost():
    dispatcher = leaving(4, 4, quarantine=False)
    assert dispatcher.lose("w", 30.0, "it took too long").quarantine is None
    assert dispatched(dispatcher.attach("b", 4, 31.0)) == [(1, 1), (1, 2), (1, 3), (1, 4)]
    dispatcher.drain_worker("b", 32.0)
    assert dispatcher.lose("b", 33.0, "out of memory").quarantine == 2, "again, and it is no coincidence"


def test_a_death_alone_on_a_worker_that_was_asked_to_leave_does_not_count_but_once():
    dispatcher = leaving(1, 1, quarantine=True)
    assert dispatcher.lose("w", 30.0, "it took too long").settle == []
    for name in ("q1", "q2"):
        assert quarantined(dispatcher.attach(name, 1, 31.0, quarantine=True), name) == [1]
        dispatcher.drain_worker(name, 32.0)
        orders = dispatcher.lose(name, 33.0, "out of memory")
    (settled,) = orders.settle
    assert (settled.error, len(settled.history)) == (ErrorType.POISON, 3)


def test_a_suspect_that_may_run_for_ever_keeps_no_other_from_its_turn():
    dispatcher = Dispatcher(patience_s=60.0, most_quarantined=1)
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2), 0.0)
    assert dispatcher.lose("a", 1.0, "killed").quarantine == 1
    assert quarantined(dispatcher.attach("q1", 2, 2.0, quarantine=True), "q1") == [1]
    assert dispatcher.next_deadline() == 62.0
    assert dispatcher.tick(62.0).quarantine == 2
    assert quarantined(dispatcher.attach("q2", 2, 63.0, quarantine=True), "q2") == [2]
    assert dispatcher.next_deadline() is None


def test_a_suspect_with_a_deadline_is_waited_for():
    dispatcher = Dispatcher(patience_s=60.0, most_quarantined=1)
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, timeout_s=600.0), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    dispatcher.attach("q", 2, 2.0, quarantine=True)
    assert dispatcher.tick(62.0).quarantine is None
    assert dispatcher.next_deadline() == 602.0


def test_ordinary_trials_go_on_where_the_only_worker_is_kept_by_a_suspect_that_may_run_for_ever():
    dispatcher = Dispatcher(patience_s=60.0, reserve_after_s=5.0)
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2), 0.0)
    dispatcher.lose("a", 0.0, "killed")
    dispatcher.attach("b", 2, 0.0)
    assert quarantined(dispatcher.tick(5.0), "b") == [1]
    assert dispatched(dispatcher.submit(1, tickets(1, 3), 6.0)) == []
    dispatcher.tick(65.0)
    assert dispatched(dispatcher.tick(70.0)) == [(1, 3)]
    assert dispatcher.stats().suspects == 1
    dispatcher.lose("b", 71.0, "killed")
    for name in ("q1", "q2", "q3"):
        assert len(quarantined(dispatcher.attach(name, 1, 72.0, quarantine=True), name)) == 1
        assert dispatcher.lose(name, 73.0, "killed").settle == [], "on an ordinary worker nobody is alone"


def test_suspects_that_wait_behind_one_another_on_a_worker_that_is_given_back_are_kept():
    dispatcher = Dispatcher(patience_s=60.0, reserve_after_s=5.0)
    dispatcher.attach("a", 6, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4, 5, 6), 0.0)
    dispatcher.lose("a", 0.0, "killed")
    dispatcher.attach("b", 1, 0.0)
    assert quarantined(dispatcher.tick(5.0), "b") == [1]
    dispatcher.tick(65.0)
    dispatcher.tick(70.0)
    assert (dispatcher.stats().suspects, dispatcher.stats().in_flight) == (5, 1)


def test_where_no_worker_is_free_of_trials_that_do_not_stop_one_is_replaced_for_the_suspects():
    dispatcher = Dispatcher(grace_s=1.0, silence_s=NEVER, reserve_after_s=5.0)
    dispatcher.attach("a", 8, 0.0)
    dispatcher.submit(1, tickets(1, 1, timeout_s=2.0), 0.0)
    dispatcher.tick(2.0)
    assert dispatcher.tick(3.0).retire == [], "one of eight"
    dispatcher.attach("b", 9, 3.0)
    assert dispatched(dispatcher.submit(1, tickets(1, 2), 3.0)) == [(1, 2)]
    dispatcher.lose("b", 4.0, "killed")
    assert dispatcher.tick(9.0).retire == ["a"]
    dispatcher.attach("c", 8, 10.0)
    assert quarantined(dispatcher.tick(14.0), "c") == [2]


def test_a_worker_set_apart_that_gets_stuck_is_replaced_at_once():
    dispatcher = Dispatcher(grace_s=1.0, silence_s=NEVER, reserve_after_s=5.0)
    dispatcher.attach("a", 8, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, timeout_s=2.0), 0.0)
    dispatcher.lose("a", 0.0, "killed")
    dispatcher.attach("b", 8, 0.0)
    assert quarantined(dispatcher.tick(5.0), "b") == [1]
    dispatcher.tick(7.0)
    assert dispatcher.tick(8.0).retire == ["b"]


def test_suspects_that_nobody_waits_for_leave_nothing_behind():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 8, 0.0)
    dispatcher.submit(1, tickets(1, *range(8)), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    dispatcher.cancel(1, [0, 1], 1.0)
    dispatcher.disconnect(1, 1.0)
    assert dispatcher.tick(11.0).quarantine == 0
    assert not dispatcher._quarantine.active
    assert dispatcher.next_deadline() is None


def test_no_suspect_runs_beside_a_trial_that_does_not_stop():
    dispatcher = Dispatcher(grace_s=1.0)
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, timeout_s=5.0), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    dispatcher.attach("q", 9, 1.0, quarantine=True)
    dispatcher.heard("q", 6.0)
    orders = dispatcher.tick(6.0)
    assert [settled.error for settled in orders.settle] == [ErrorType.TIMEOUT_RUN]
    assert (orders.dispatch, orders.kill) == ({}, {})
    assert dispatcher.tick(7.0).retire == ["q"]
    assert quarantined(dispatcher.attach("r", 9, 8.0, quarantine=True), "r") == [2]


def test_suspects_can_be_cancelled_where_they_wait():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3), 0.0)
    dispatcher.submit(2, tickets(2, 9), 0.0)
    dispatcher.lose("a", 1.0, "killed")
    assert [settled.error for settled in dispatcher.cancel(1, [2], 2.0).settle] == [ErrorType.CANCELLED]
    dispatcher.disconnect(2, 2.0)
    assert dispatcher.stats().suspects == 2
    assert quarantined(dispatcher.attach("q", 9, 3.0, quarantine=True), "q") == [1]


# ---------------------------------------------------------------------- silence


def test_a_deadline_on_a_silent_worker_waits_for_somebody_to_look():
    dispatcher = Dispatcher(silence_s=1.5)
    dispatcher.attach("a", 4, 0.0)
    sent = dispatcher.submit(1, tickets(1, 1, 2, 3, timeout_s=5.0), 0.0).dispatch["a"]
    orders = dispatcher.tick(5.0)
    assert (orders.settle, orders.inspect) == ([], ["a"])
    orders = dispatcher.hung("a", [sent[1][0]], 5.5, "held")
    assert (orders.settle, orders.quarantine) == ([], 1)
    assert quarantined(dispatcher.attach("b", 4, 6.0), "b") == [1, 3]
    quarantine = dispatcher.attach("q", 4, 6.0, quarantine=True)
    assert quarantined(quarantine, "q") == [2]
    dispatcher.heard("b", 11.0)
    orders = dispatcher.tick(11.0)
    assert sorted(settled.ticket.client_trial_id for settled in orders.settle) == [1, 2, 3]
    assert orders.kill == {"q": quarantine.dispatch["q"][0][0]}, "alone and silent: it is what hangs"


def test_a_worker_that_is_held_shortly_before_a_deadline_is_found_out_first():
    dispatcher = Dispatcher(silence_s=1.5)
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, timeout_s=2.0), 0.0)
    dispatcher.heard("a", 1.0)
    orders = dispatcher.tick(2.0)
    assert (orders.settle, orders.inspect) == ([], []), "nobody knows yet"
    due = dispatcher.next_deadline()
    assert due == pytest.approx(2.5, abs=0.05)
    orders = dispatcher.tick(due)
    assert (orders.settle, orders.inspect) == ([], ["a"])


def test_a_late_heartbeat_puts_a_deadline_off_and_no_more():
    dispatcher = Dispatcher(silence_s=1.5)
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, timeout_s=2.0), 0.0)
    dispatcher.heard("a", 1.0)
    assert dispatcher.tick(2.0).settle == []
    dispatcher.heard("a", 2.1)
    orders = dispatcher.tick(2.6)
    assert [settled.error for settled in orders.settle] == [ErrorType.TIMEOUT_RUN] * 2
    assert orders.inspect == []


def test_a_worker_that_says_what_holds_it_is_killed_at_that_trials_deadline():
    dispatcher = Dispatcher(silence_s=1.5)
    dispatcher.attach("a", 4, 0.0)
    three = tickets(1, 1, timeout_s=5.0) + tickets(1, 3, 2, timeout_s=6.0)
    holder = dispatcher.submit(1, three, 0.0).dispatch["a"][2][0]
    dispatcher.heard("a", 2.0, held_by=holder)
    orders = dispatcher.tick(5.0)
    assert (orders.settle, orders.kill, orders.inspect) == ([], {}, [])
    orders = dispatcher.tick(6.0)
    assert [settled.ticket.client_trial_id for settled in orders.settle] == [2]
    assert orders.kill == {"a": holder}
    dispatcher.hung("a", [holder], 6.0, "held")
    assert dispatched(dispatcher.attach("b", 4, 7.0)) == [(1, 1), (1, 3)]


@pytest.mark.parametrize("settled", [True, False])
def test_a_trial_without_a_deadline_holds_up_none_that_has_one(settled: bool):
    dispatcher = Dispatcher(silence_s=1.5)
    dispatcher.attach("a", 4, 0.0)
    sent = dispatcher.submit(1, tickets(1, 1, timeout_s=5.0) + tickets(1, 2), 0.0).dispatch["a"]
    holder = sent[1][0]
    dispatcher.heard("a", 2.0, held_by=holder)
    if settled:
        dispatcher.cancel(1, [2], 3.0)
    orders = dispatcher.tick(5.0)
    assert (orders.settle, orders.kill) == ([], {"a": holder})
    orders = dispatcher.hung("a", [holder], 5.0, "held")
    assert dispatched(dispatcher.attach("b", 4, 7.0)) == [(1, 1)]
    assert dispatcher.stats().suspects == (0 if settled else 1)


def test_a_long_deadline_holds_up_a_short_one_no_longer_than_the_short_one_takes():
    dispatcher = Dispatcher(silence_s=1.5)
    dispatcher.attach("a", 4, 0.0)
    both = tickets(1, 1, timeout_s=2.0) + tickets(1, 2, timeout_s=600.0)
    holder = dispatcher.submit(1, both, 0.0).dispatch["a"][1][0]
    dispatcher.heard("a", 1.0, held_by=holder)
    assert dispatcher.tick(2.0) == Orders()
    assert dispatcher.next_deadline() == 4.0
    orders = dispatcher.tick(4.0)
    assert (orders.settle, orders.kill) == ([], {"a": holder})
    dispatcher.hung("a", [holder], 4.0, "held")
    assert dispatched(dispatcher.attach("b", 4, 5.0)) == [(1, 1)]


@pytest.mark.parametrize("said_in_time", [True, False])
def test_a_worker_held_by_what_nobody_waits_for_any_more_is_killed(said_in_time: bool):
    dispatcher = Dispatcher(grace_s=1.0)
    dispatcher.attach("a", 8, 0.0)
    holder = dispatcher.submit(1, tickets(1, 1, 2), 0.0).dispatch["a"][0][0]
    dispatcher.cancel(1, [1], 2.0)
    if said_in_time:
        dispatcher.heard("a", 2.5, held_by=holder)
        now = 3.0
    else:
        assert dispatcher.tick(3.0) == Orders(stuck=[("a", holder)])
        assert dispatcher.next_deadline() is None
        dispatcher.heard("a", 4.0, held_by=holder)
        now = 4.0
    assert dispatcher.next_deadline() == now
    assert dispatcher.tick(now).kill == {"a": holder}
    dispatcher.hung("a", [holder], now, "held")
    assert dispatched(dispatcher.attach("b", 4, 5.0)) == [(1, 2)]


def test_a_worker_that_speaks_after_all_keeps_its_deadlines():
    dispatcher = Dispatcher(silence_s=1.5, inspect_s=2.0)
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, timeout_s=5.0), 0.0)
    assert dispatcher.tick(5.0).inspect == ["a"]
    dispatcher.heard("a", 6.9)
    assert dispatcher.next_deadline() == 7.0
    assert [settled.error for settled in dispatcher.tick(7.0).settle] == [ErrorType.TIMEOUT_RUN]


def test_a_worker_that_falls_silent_again_is_looked_at_again():
    dispatcher = Dispatcher(silence_s=1.5, inspect_s=2.0)
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, timeout_s=5.0) + tickets(1, 2, timeout_s=9.0), 0.0)
    assert dispatcher.tick(5.0).inspect == ["a"]
    dispatcher.heard("a", 7.0)
    dispatcher.tick(7.0)
    assert dispatcher.tick(9.0).inspect == ["a"]


def test_a_deadline_holds_when_nobody_looks():
    dispatcher = Dispatcher(silence_s=1.5, inspect_s=2.0)
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, timeout_s=5.0), 0.0)
    dispatcher.tick(5.0)
    assert len(dispatcher.tick(7.0).settle) == 2


def test_without_a_suspect_all_are():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 4, 0.0)
    dispatcher.submit(1, tickets(1, 1, 2, 3, 4), 0.0)
    dispatcher.hung("a", [], 1.0, "held")
    assert quarantined(dispatcher.attach("q", 4, 1.0, quarantine=True), "q") == [1, 2]


def test_a_trial_that_was_settled_before_its_worker_hung_makes_no_other_suspect():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 4, 0.0)
    sent = dispatcher.submit(1, tickets(1, 1, 2), 0.0).dispatch["a"]
    dispatcher.cancel(1, [1], 1.0)
    dispatcher.hung("a", [sent[0][0]], 1.0, "held")
    assert quarantined(dispatcher.attach("b", 4, 1.0), "b") == [2]


# ---------------------------------------------------------------------- attempts


PASSING = Fault(ErrorType.PROGRAM_EXCEPTION, "gone", retryable=True, fingerprint="f")


def test_a_failure_that_may_pass_is_tried_again_after_a_while_and_first():
    dispatcher = Dispatcher(rng=random.Random(1), retries=RetryPolicy(base_s=4.0))
    dispatcher.attach("a", 1, 0.0)
    worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1, 2, 3), 0.0))
    orders = dispatcher.finish(worker_id, attempt, "failed", 1.0, PASSING)
    assert orders.settle == []
    _, other = only_attempt(orders)
    due = dispatcher.next_deadline()
    assert due is not None
    assert 1.0 < due < 5.0
    assert dispatcher.stats().backing_off == 1
    assert dispatcher.tick(due).dispatch == {}, "no slot"
    orders = dispatcher.finish("a", other, "fine", due)
    assert dispatched(orders) == [(1, 1)]
    (settled,) = dispatcher.finish("a", only_attempt(orders)[1], "fine", due + 1.0).settle
    assert (settled.outcome, settled.attempts, settled.run_s, settled.queue_s) == ("fine", 2, 1.0, due - 1.0)
    (past,) = settled.history
    assert (past.number, past.worker, past.type, past.run_s) == (1, "a", ErrorType.PROGRAM_EXCEPTION, 1.0)


def test_a_failure_that_stays_is_the_answer():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1), 0.0))
    (settled,) = dispatcher.finish(worker_id, attempt, "failed", 1.0, PASSING._replace(retryable=False)).settle
    assert (settled.outcome, settled.attempts, settled.history) == ("failed", 1, ())


def test_the_same_error_three_times_running_is_permanent():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    orders, now = dispatcher.submit(1, tickets(1, 1), 0.0), 0.0
    for _ in range(2):
        assert dispatcher.finish("a", only_attempt(orders)[1], "failed", now, PASSING).settle == []
        now = dispatcher.next_deadline() or 0.0
        orders = dispatcher.tick(now)
    (settled,) = dispatcher.finish("a", only_attempt(orders)[1], "failed", now, PASSING).settle
    assert (settled.attempts, len(settled.history)) == (3, 2)


def test_a_trial_between_attempts_can_be_cancelled():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 2, 0.0)
    _, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1), 0.0))
    dispatcher.finish("a", attempt, "failed", 1.0, PASSING)
    (settled,) = dispatcher.cancel(1, [1], 1.0).settle
    assert (settled.error, settled.message) == (ErrorType.CANCELLED, "cancelled between attempts")
    assert dispatcher.next_deadline() is None
    assert dispatcher.stats().backing_off == 0


def test_what_is_run_again_is_first_but_keeps_its_order():
    dispatcher = Dispatcher(retries=RetryPolicy(base_s=0.0))
    dispatcher.attach("a", 2, 0.0)
    sent = dispatcher.submit(1, tickets(1, 1, 2, 3, 4, 5), 0.0).dispatch["a"]
    dispatcher.finish_many("a", [(attempt, "failed", PASSING) for attempt, _ in sent], 1.0)
    dispatcher.tick(1.0)
    assert dispatched(dispatcher.attach("b", 3, 2.0)) == [(1, 1), (1, 2), (1, 5)]


def test_each_attempt_says_how_long_it_waited_itself():
    dispatcher = Dispatcher(retries=RetryPolicy(base_s=0.0))
    dispatcher.submit(1, tickets(1, 1), 0.0)
    _, attempt = only_attempt(dispatcher.attach("a", 1, 3.0))
    dispatcher.finish("a", attempt, "failed", 4.0, PASSING)
    orders = dispatcher.tick(9.0)
    dispatcher.finish("a", only_attempt(orders)[1], "failed", 11.0, PASSING._replace(fingerprint="g"))
    (settled,) = dispatcher.finish("a", only_attempt(dispatcher.tick(12.0))[1], "fine", 13.0).settle
    assert [(past.queue_s, past.run_s) for past in settled.history] == [(3.0, 1.0), (5.0, 2.0)]
    assert (settled.queue_s, settled.run_s) == (9.0, 1.0)


def test_a_trial_that_no_worker_can_begin_fails_in_the_end():
    dispatcher = Dispatcher()
    dispatcher.submit(1, tickets(1, 1), 0.0)
    for number in range(MOST_RETURNS):
        assert dispatcher.next_deadline() is None
        name, attempt = only_attempt(dispatcher.attach(f"w{number}", 1, 0.0))
        dispatcher.drain_worker(name, 0.0)
        orders = dispatcher.give_back(name, [attempt], 0.0)
    (settled,) = orders.settle
    assert (settled.error, settled.attempts) == (ErrorType.WORKER_LOST, MOST_RETURNS)


def test_a_process_of_its_own_that_dies_twice_is_poison_without_quarantine():
    dispatcher = Dispatcher()
    dispatcher.attach("a", 1, 0.0)
    lost = Fault(ErrorType.WORKER_LOST, "signal 11", retryable=True)
    _, attempt = only_attempt(dispatcher.submit(1, tickets(1, 1), 0.0))
    orders = dispatcher.finish("a", attempt, "lost", 1.0, lost)
    assert orders.quarantine is None
    (settled,) = dispatcher.finish("a", only_attempt(orders)[1], "lost", 2.0, lost).settle
    assert settled.error is ErrorType.POISON


# ---------------------------------------------------------------------- deadlines


def test_at_the_deadline_the_trial_is_settled_and_its_slot_waits_for_the_worker():
    dispatcher = Dispatcher(silence_s=NEVER)
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
    dispatcher = Dispatcher(silence_s=NEVER)
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
    dispatcher = Dispatcher(grace_s=1.0, silence_s=NEVER)
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
    assert len(dispatcher._timers._line) + len(dispatcher._timers._heap) < 200


def test_timers_that_are_needed_stay_when_others_are_cleared_away():
    dispatcher = Dispatcher(silence_s=NEVER)
    dispatcher.attach("a", 2, 0.0)
    dispatcher.submit(1, tickets(1, 0, timeout_s=1e3), 0.0)
    for number in range(1, 500):
        worker_id, attempt = only_attempt(dispatcher.submit(1, tickets(1, number, timeout_s=1e6), 0.0))
        dispatcher.finish(worker_id, attempt, "done", 0.0)
    assert dispatcher.next_deadline() == 1e3
    assert [settled.ticket.client_trial_id for settled in dispatcher.tick(1e3).settle] == [0]
