"""Whatever happens in whatever order: no trial is lost, none is answered twice.

A model that knows only what has been submitted, dispatched and answered is driven beside the dispatcher.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TypeAlias

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.failures import MOST_DEATHS
from dspex_pipelines.engine.dispatch.retries import Fault
from dspex_pipelines.engine.dispatch.tickets import Orders, Settled, Ticket
from dspex_pipelines.model.outcome import ErrorType

GRACE_S = 1.0
SILENCE_S = 1.5
INSPECT_S = 2.0
CLIENTS = (1, 2, 3)
WIDEST = 3
TIMEOUTS_S = (0.0, 2.0, 5.0)
Key: TypeAlias = tuple[int, int]
FAULTS = (
    Fault(ErrorType.PROGRAM_EXCEPTION, "stays"),
    Fault(ErrorType.PROGRAM_EXCEPTION, "may pass", retryable=True, fingerprint="a"),
    Fault(ErrorType.PROGRAM_EXCEPTION, "may pass", retryable=True, fingerprint="b"),
    Fault(ErrorType.RATE_LIMITED, "slowly", retryable=True, retry_after_s=3.0),
    Fault(ErrorType.WORKER_LOST, "its own process died", retryable=True),
)


@dataclass
class ModelWorker:
    slots: int
    quarantine: bool
    heard: float
    open: bool = True
    inspected: float | None = None
    held_by: int = 0
    running: dict[int, Ticket] = field(default_factory=dict)
    """Attempts sent and neither answered nor settled."""
    held: set[int] = field(default_factory=set)
    """Attempts settled otherwise, whose slots have not come back."""


@dataclass
class ModelWait:
    """An attempt whose calls wait for leave."""

    key: Key
    since: float
    left_s: float | None
    calls: int = 1


class Dispatching(RuleBasedStateMachine):
    workers = Bundle("workers")

    @initialize()
    def start(self) -> None:
        self.now = 100.0
        self.dispatcher = Dispatcher(grace_s=GRACE_S, silence_s=SILENCE_S, inspect_s=INSPECT_S, rng=random.Random(0))
        self.fleet: dict[str, ModelWorker] = {}
        self.fresh: dict[int, list[int]] = {client: [] for client in CLIENTS}
        """By client, its trials that were never dispatched, in their order."""
        self.between: set[Key] = set()
        """Trials that have lost an attempt: backing off, suspected, or first in the queue again."""
        self.open_trials: dict[Key, Ticket] = {}
        self.answered: set[Key] = set()
        self.attempts: dict[Key, int] = {}
        self.deaths: dict[Key, int] = {}
        """Deaths that may have been alone."""
        self.due: dict[int, float] = {}
        self.seen_attempts: set[int] = set()
        self.killed: list[tuple[str, int]] = []
        self.width: dict[int, int] = {}
        """By attempt, how many slots it takes."""
        self.stopped: set[int] = set()
        """Clients whose ordinary trials are not to be dispatched."""
        self.waits: dict[int, ModelWait] = {}
        """By attempt, for as long as its clock stands still."""
        self.throttled: dict[Key, float] = {}
        """For how long a trial's clock has stood still, over all attempts."""
        self.numbers = 0

    # ------------------------------------------------------------------ what comes back

    def take(
        self, orders: Orders, *, expected: dict[Key, object] | None = None, allowed: dict[Key, object] | None = None
    ) -> None:
        """Check every order against the model and carry it out there.

        Each of *expected* must be answered, of *allowed* may be; nothing else.
        """
        expected, allowed = dict(expected or {}), dict(allowed or {})
        running = {attempt_id for worker in self.fleet.values() for attempt_id in worker.running}
        for attempt_id in self.waits.keys() - running:
            self.end_wait(attempt_id)
        for settled in orders.settle:
            self.settle(settled, expected, allowed)
        assert not expected, f"never answered: {expected}"
        self.between |= {key for key in allowed if key in self.open_trials and key not in self.running_keys()}
        for worker_id, attempt_ids in orders.cancel.items():
            worker = self.fleet[worker_id]
            for attempt_id in attempt_ids:
                del worker.running[attempt_id]
                worker.held.add(attempt_id)
                self.due.pop(attempt_id, None)
        self.dispatched(orders)
        for worker_id in orders.retire:
            worker = self.fleet[worker_id]
            assert worker.open or worker.held
            worker.open = False
        for worker_id in orders.inspect:
            assert self.fleet[worker_id].inspected is None
            self.fleet[worker_id].inspected = self.now
        for worker_id, attempt_id in orders.kill.items():
            assert attempt_id == self.fleet[worker_id].held_by or not self.fleet[worker_id].running
            self.fleet[worker_id].open = False
            self.killed.append((worker_id, attempt_id))

    def dispatched(self, orders: Orders) -> None:
        keepers = {name: worker.quarantine for name, worker in self.dispatcher.stats().workers.items()}
        sent = [(attempt_id, ticket, name) for name, some in orders.dispatch.items() for attempt_id, ticket in some]
        for attempt_id, ticket, worker_id in sorted(sent, key=lambda one: one[0]):
            worker = self.fleet[worker_id]
            assert worker.open
            key = (ticket.client, ticket.client_trial_id)
            assert key in self.open_trials, "dispatched, but answered or never submitted"
            assert attempt_id not in self.seen_attempts
            self.seen_attempts.add(attempt_id)
            if key in self.between:
                self.between.remove(key)
            else:
                assert not worker.quarantine, "no suspect"
                assert not keepers[worker_id] or worker.running, "no suspect"
                assert self.fresh[ticket.client].pop(0) == ticket.client_trial_id, "out of turn"
            if ticket.client in self.stopped:
                assert keepers[worker_id], "its client was stopped"
            self.width[attempt_id] = min(ticket.slots, worker.slots - self.taken(worker))
            assert self.width[attempt_id] == ticket.slots or keepers[worker_id] or not worker.running, "squeezed in"
            worker.running[attempt_id] = ticket
            self.attempts[key] += 1
            if ticket.timeout_s:
                self.due[attempt_id] = self.now + ticket.timeout_s

    def settle(self, settled: Settled, expected: dict[Key, object], allowed: dict[Key, object]) -> None:
        key = (settled.ticket.client, settled.ticket.client_trial_id)
        assert key in self.open_trials, "answered twice, or for nobody"
        assert self.open_trials.pop(key) is settled.ticket
        assert key not in self.answered
        self.answered.add(key)
        answer = settled.outcome if settled.error is None else settled.error
        if settled.error is ErrorType.POISON:
            assert self.deaths[key] >= MOST_DEATHS
        assert answer == (expected.pop(key) if key in expected else allowed[key]), f"nothing asked for {settled}"
        assert settled.attempts == self.attempts[key]
        assert [past.number for past in settled.history] == list(range(1, len(settled.history) + 1))
        assert len(settled.history) >= settled.attempts - 1
        assert settled.queue_s >= 0
        assert settled.run_s >= 0
        for attempt_id in [attempt_id for attempt_id, wait in self.waits.items() if wait.key == key]:
            self.end_wait(attempt_id)
        assert settled.throttled_s == pytest.approx(self.throttled.pop(key, 0.0))
        if key[1] in self.fresh[key[0]]:
            self.fresh[key[0]].remove(key[1])
        self.between.discard(key)

    def end_wait(self, attempt_id: int) -> ModelWait:
        wait = self.waits.pop(attempt_id)
        self.throttled[wait.key] = self.throttled.get(wait.key, 0.0) + self.now - wait.since
        return wait

    def taken(self, worker: ModelWorker) -> int:
        return sum(self.width[attempt_id] for attempt_id in (*worker.running, *worker.held))

    def running_keys(self) -> set[Key]:
        return {
            (ticket.client, ticket.client_trial_id)
            for worker in self.fleet.values()
            for ticket in worker.running.values()
        }

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "fleet"):
            return
        running = self.running_keys()
        fresh = {(client, trial) for client, trials in self.fresh.items() for trial in trials}
        assert not running & self.between
        assert running | fresh | self.between == set(self.open_trials)
        stats = self.dispatcher.stats()
        assert stats.queue_depth + stats.backing_off + stats.suspects == len(fresh) + len(self.between)
        assert stats.in_flight == len(running)
        assert stats.settled == len(self.answered)
        for worker_id, worker in self.fleet.items():
            room = worker.slots - self.taken(worker)
            assert room >= 0, "more than its slots"
            assert all(self.width[attempt_id] for attempt_id in worker.running), "less than a slot"
            shown = stats.workers[worker_id]
            assert (shown.in_flight, shown.abandoned) == (len(worker.running), len(worker.held))
            assert shown.draining is not worker.open
            if stats.queue_depth and worker.open and not shown.quarantine and not self.stopped:
                assert room < WIDEST, "slots are free while trials wait"
                assert not room or worker.running, "a worker does nothing while trials wait"
        soonest = min(self.due.values(), default=None)
        deadline = self.dispatcher.next_deadline()
        assert soonest is None or deadline is not None
        assert not stats.backing_off or deadline is not None
        keepers = [worker for worker in stats.workers.values() if worker.quarantine]
        busy = any(worker.in_flight or worker.abandoned for worker in keepers)
        assert not stats.suspects or busy or (not keepers and deadline is not None), "suspects wait for nobody"

    # ------------------------------------------------------------------ what happens

    @rule(target=workers, slots=st.integers(min_value=1, max_value=4), quarantine=st.booleans())
    def attach(self, slots: int, quarantine: bool) -> str:
        self.numbers += 1
        worker_id = f"w{self.numbers}"
        self.fleet[worker_id] = ModelWorker(slots, quarantine, self.now)
        self.take(self.dispatcher.attach(worker_id, slots, self.now, quarantine=quarantine))
        return worker_id

    @rule(
        client=st.sampled_from(CLIENTS),
        states=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3), st.sampled_from(TIMEOUTS_S)), max_size=6),
        most_attempts=st.sampled_from([0, 2]),
        slots=st.sampled_from([1, 1, WIDEST]),
    )
    def submit(self, client: int, states: list[tuple[int, int, float]], most_attempts: int, slots: int) -> None:
        tickets: list[Ticket] = []
        for session, version, timeout_s in states:
            self.numbers += 1
            ticket = Ticket(client, self.numbers, (session, version), timeout_s, object(), most_attempts, slots)
            tickets.append(ticket)
            self.open_trials[client, self.numbers] = ticket
            self.attempts[client, self.numbers] = 0
            self.deaths[client, self.numbers] = 0
            self.fresh[client].append(self.numbers)
        self.take(self.dispatcher.submit(client, tickets, self.now))

    @rule(worker_id=workers, data=st.data())
    def finish(self, worker_id: str, data: st.DataObject) -> None:
        """Answers for running attempts, for settled ones, for unknown ones, and twice in one frame."""
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else [*worker.running, *worker.held]
        faults = st.one_of(st.none(), st.sampled_from(FAULTS))
        chosen = data.draw(st.lists(st.tuples(st.sampled_from([*known, 10**9]), faults), max_size=4))
        answers = [(attempt_id, object(), fault) for attempt_id, fault in chosen]
        expected: dict[Key, object] = {}
        allowed: dict[Key, object] = {}
        for attempt_id, outcome, fault in answers:
            ticket = None if worker is None else worker.running.pop(attempt_id, None)
            if ticket is not None:
                self.due.pop(attempt_id, None)
                key = (ticket.client, ticket.client_trial_id)
                if fault is None or not fault.retryable:
                    expected[key] = outcome
                elif fault.type is ErrorType.WORKER_LOST:
                    self.deaths[key] += 1
                    allowed[key] = ErrorType.POISON
                else:
                    allowed[key] = outcome
            elif worker is not None:
                worker.held.discard(attempt_id)
        self.take(self.dispatcher.finish_many(worker_id, answers, self.now), expected=expected, allowed=allowed)

    @rule(worker_id=workers, data=st.data())
    def release(self, worker_id: str, data: st.DataObject) -> None:
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else sorted(worker.held | set(worker.running))
        chosen = data.draw(st.lists(st.sampled_from([*known, 10**9]), max_size=3))
        if worker is not None:
            worker.held -= set(chosen)
        self.take(self.dispatcher.release(worker_id, chosen, self.now))

    @rule(worker_id=workers, data=st.data())
    def hear(self, worker_id: str, data: st.DataObject) -> None:
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else [*worker.running, *worker.held]
        held_by = data.draw(st.sampled_from([0, *known]))
        if worker is not None:
            worker.held_by = held_by
            worker.heard = self.now
            worker.inspected = None
        self.dispatcher.heard(worker_id, self.now, held_by=held_by)

    @rule(worker_id=workers, data=st.data())
    def stop_clock(self, worker_id: str, data: st.DataObject) -> None:
        """A call waits for leave; perhaps it is of an attempt that has ended."""
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else [*worker.running, *worker.held]
        attempt_id = data.draw(st.sampled_from([*known, 10**9]))
        self.dispatcher.stop_clock(worker_id, attempt_id, self.now)
        if worker is None or attempt_id not in worker.running:
            return
        if attempt_id in self.waits:
            self.waits[attempt_id].calls += 1
            return
        ticket, due = worker.running[attempt_id], self.due.pop(attempt_id, None)
        left_s = None if due is None else max(0.0, due - self.now)
        self.waits[attempt_id] = ModelWait((ticket.client, ticket.client_trial_id), self.now, left_s)

    @rule(worker_id=workers, data=st.data())
    def start_clock(self, worker_id: str, data: st.DataObject) -> None:
        """A call has leave; perhaps its attempt never waited, or has ended."""
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else [*worker.running, *worker.held]
        waiting = [attempt_id for attempt_id in known if attempt_id in self.waits]
        attempt_id = data.draw(st.sampled_from([*waiting, *waiting, *known, 10**9]))
        self.dispatcher.start_clock(worker_id, attempt_id, self.now)
        if attempt_id in waiting:
            self.waits[attempt_id].calls -= 1
            if not self.waits[attempt_id].calls:
                wait = self.end_wait(attempt_id)
                if wait.left_s is not None:
                    self.due[attempt_id] = self.now + wait.left_s

    @rule(worker_id=workers)
    def drain(self, worker_id: str) -> None:
        if worker_id in self.fleet:
            self.fleet[worker_id].open = False
        self.take(self.dispatcher.drain_worker(worker_id, self.now))

    @rule(worker_id=workers, data=st.data())
    def give_back(self, worker_id: str, data: st.DataObject) -> None:
        """A worker cannot begin some, which it says after it has asked for no more."""
        worker = self.fleet.get(worker_id)
        if worker is None:
            return
        self.drain(worker_id)
        chosen = data.draw(st.lists(st.sampled_from([*worker.running, *worker.held, 10**9]), max_size=3, unique=True))
        for attempt_id in chosen:
            ticket = worker.running.pop(attempt_id, None)
            worker.held.discard(attempt_id)
            self.due.pop(attempt_id, None)
            if ticket is not None:
                self.between.add((ticket.client, ticket.client_trial_id))
        self.take(self.dispatcher.give_back(worker_id, chosen, self.now))

    @rule(client=st.sampled_from(CLIENTS), stopped=st.booleans())
    def stop(self, client: int, stopped: bool) -> None:
        known = self.dispatcher._queues.clients.get(client) is not None
        if stopped and known:
            self.stopped.add(client)
            self.dispatcher.stop(client)
        elif not stopped:
            self.stopped.discard(client)
            self.take(self.dispatcher.resume(client, self.now))

    @rule(worker_id=consumes(workers), data=st.data(), hung=st.booleans(), closed=st.booleans())
    def lose(self, worker_id: str, data: st.DataObject, hung: bool, closed: bool) -> None:
        if worker_id not in self.fleet:
            return
        worker = self.fleet.pop(worker_id)
        keeper = self.dispatcher.stats().workers[worker_id].quarantine or worker.quarantine
        allowed: dict[Key, object] = {}
        for attempt_id, ticket in worker.running.items():
            self.due.pop(attempt_id, None)
            key = (ticket.client, ticket.client_trial_id)
            if keeper and len(worker.running) == 1:
                self.deaths[key] += 1
            allowed[key] = ErrorType.POISON
        if closed:
            assert self.dispatcher.close(worker_id) is bool(worker.running)
            # Nothing more goes there, whatever happens meanwhile.
            self.take(self.dispatcher.tick(self.now))
        if hung:
            suspects = data.draw(st.lists(st.sampled_from([*worker.running, *worker.held, 10**9])))
            orders = self.dispatcher.hung(worker_id, suspects, self.now, "held")
        else:
            orders = self.dispatcher.lose(worker_id, self.now, "killed")
        self.take(orders, allowed=allowed)
        assert self.dispatcher.lose(worker_id, self.now, "killed") == Orders()

    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def cancel(self, client: int, data: st.DataObject) -> None:
        mine = [trial for owner, trial in self.open_trials if owner == client]
        chosen = data.draw(st.lists(st.sampled_from([*mine, 10**9]), max_size=4))
        expected: dict[Key, object] = {(client, trial): ErrorType.CANCELLED for trial in chosen if trial in mine}
        self.take(self.dispatcher.cancel(client, chosen, self.now), expected=expected)

    @rule(client=st.sampled_from(CLIENTS))
    def disconnect(self, client: int) -> None:
        for key in [key for key in self.open_trials if key[0] == client]:
            del self.open_trials[key]
            self.between.discard(key)
        self.fresh[client].clear()
        self.stopped.discard(client)
        self.take(self.dispatcher.disconnect(client, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        expected: dict[Key, object] = {}
        allowed: dict[Key, object] = {}
        for worker in self.fleet.values():
            silent = worker.held_by or self.now - worker.heard > SILENCE_S / 2
            for attempt_id, ticket in worker.running.items():
                if self.due.get(attempt_id, float("inf")) <= self.now:
                    # Where another trial may be what holds the worker, somebody looks first.
                    sure = not silent or worker.held_by == attempt_id
                    answered = expected if sure else allowed
                    answered[ticket.client, ticket.client_trial_id] = ErrorType.TIMEOUT_RUN
        self.take(self.dispatcher.tick(self.now), expected=expected, allowed=allowed)
        for worker in self.fleet.values():
            in_doubt = not worker.held_by and self.now - worker.heard <= SILENCE_S
            for attempt_id in worker.running:
                if self.due.get(attempt_id, float("inf")) <= self.now:
                    self.due[attempt_id] = worker.heard + 1.01 * SILENCE_S if in_doubt else self.now + INSPECT_S
        while self.killed:
            worker_id, attempt_id = self.killed.pop()
            worker = self.fleet.pop(worker_id)
            for running in worker.running:
                self.due.pop(running, None)
            self.between |= {(ticket.client, ticket.client_trial_id) for ticket in worker.running.values()}
            self.take(self.dispatcher.hung(worker_id, [attempt_id], self.now, "held"))

    def teardown(self) -> None:
        """From wherever it is, everything can be brought to an end."""
        if not hasattr(self, "fleet"):
            return
        for client in CLIENTS:
            self.stop(client, False)
        self.attach(4, False)
        self.attach(4, True)
        for _ in range(200):
            if not self.open_trials:
                return
            self.now += 1.0
            for worker in self.fleet.values():
                worker.running, running = {}, worker.running
                answers = [(attempt_id, object(), None) for attempt_id in running]
                expected: dict[Key, object] = {
                    (ticket.client, ticket.client_trial_id): outcome
                    for (_, outcome, _), ticket in zip(answers, running.values(), strict=True)
                }
                self.due = {attempt_id: due for attempt_id, due in self.due.items() if attempt_id not in running}
                name = next(name for name, one in self.fleet.items() if one is worker)
                self.take(self.dispatcher.finish_many(name, answers, self.now), expected=expected)
            self.pass_time(0.0)
        raise AssertionError(f"stuck with trials that nobody runs: {self.open_trials}")


Dispatching.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestDispatching = Dispatching.TestCase
