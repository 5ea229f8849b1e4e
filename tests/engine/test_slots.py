"""Trials that take several slots of a worker, and trials that it hands back."""

from __future__ import annotations

from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.tickets import Orders, Ticket
from dspex_pipelines.model.outcome import ErrorType


def tickets(client: int, *ids: int, slots: int = 1) -> list[Ticket]:
    return [Ticket(client, number, (1, 1), 0.0, f"trial {number}", slots=slots) for number in ids]


def sent(orders: Orders) -> dict[int, int]:
    """Trial to attempt."""
    return {ticket.client_trial_id: attempt for some in orders.dispatch.values() for attempt, ticket in some}


def test_a_worker_is_sent_as_many_as_its_slots_hold():
    dispatcher = Dispatcher()
    dispatcher.attach("w", 10, 0.0)
    first = sent(dispatcher.submit(1, tickets(1, 1, 2, 3, slots=4), 0.0))
    assert set(first) == {1, 2}
    assert not sent(dispatcher.submit(2, tickets(2, 9), 0.0)), "it waits with the larger one"
    orders = dispatcher.finish("w", first[1], "done", 1.0)
    assert set(sent(orders)) == {3, 9}
    # 2 of 10 are free, then all.
    assert not sent(dispatcher.submit(1, tickets(1, 4, slots=4), 1.0))
    assert set(sent(dispatcher.finish("w", sent(orders)[9], "done", 1.0))) == set()
    assert set(sent(dispatcher.finish("w", first[2], "done", 1.0))) == {4}


def test_a_worker_with_fewer_slots_gives_all_it_has():
    dispatcher = Dispatcher()
    dispatcher.attach("w", 3, 0.0)
    first = sent(dispatcher.submit(1, tickets(1, 1, 2, slots=8), 0.0))
    assert set(first) == {1}
    assert set(sent(dispatcher.finish("w", first[1], "done", 1.0))) == {2}


def test_an_abandoned_trial_gives_back_what_it_took():
    dispatcher = Dispatcher()
    dispatcher.attach("w", 8, 0.0)
    first = sent(dispatcher.submit(1, tickets(1, 1, slots=8), 0.0))
    dispatcher.cancel(1, [1], 1.0)
    assert not sent(dispatcher.submit(1, tickets(1, *range(2, 12)), 1.0))
    assert len(sent(dispatcher.release("w", [first[1]], 2.0))) == 8


def test_a_trial_that_is_handed_back_is_next_elsewhere_and_not_charged():
    dispatcher = Dispatcher()
    dispatcher.attach("w", 2, 0.0)
    first = sent(dispatcher.submit(1, tickets(1, 1, 2, 3), 0.0))
    dispatcher.drain_worker("w", 1.0)
    assert not sent(dispatcher.give_back("w", [first[2], 99], 1.0))
    orders = dispatcher.attach("v", 1, 2.0)
    assert set(sent(orders)) == {2}
    (settled,) = dispatcher.finish("v", sent(orders)[2], "done", 3.0).settle
    assert (settled.outcome, settled.attempts) == ("done", 2)
    assert [(past.type, past.worker) for past in settled.history] == [(ErrorType.WORKER_LOST, "w")]
    assert [one.outcome for one in dispatcher.finish("w", first[1], "also done", 3.0).settle] == ["also done"]
    assert dispatcher.stats().suspects == 0
