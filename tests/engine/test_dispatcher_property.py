"""Whatever happens in whatever order: no trial is lost, none is answered twice.

A model that knows only what has been submitted, dispatched and answered is driven beside the dispatcher.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from dspex_pipelines.engine.dispatcher import Dispatcher
from dspex_pipelines.engine.tickets import Orders, Settled, Ticket
from dspex_pipelines.model.outcome import ErrorType

MAX_LOSSES = 2
GRACE_S = 1.0
CLIENTS = (1, 2, 3)
TIMEOUTS_S = (0.0, 2.0, 5.0)


@dataclass
class ModelWorker:
    slots: int
    open: bool = True
    running: dict[int, Ticket] = field(default_factory=dict)
    """Attempts sent and neither answered nor settled."""
    held: set[int] = field(default_factory=set)
    """Attempts settled otherwise, whose slots have not come back."""


class Dispatching(RuleBasedStateMachine):
    workers = Bundle("workers")

    @initialize()
    def start(self) -> None:
        self.now = 100.0
        self.dispatcher = Dispatcher(max_losses=MAX_LOSSES, grace_s=GRACE_S)
        self.fleet: dict[str, ModelWorker] = {}
        self.waiting: dict[int, list[int]] = {client: [] for client in CLIENTS}
        """By client, its queued trials in the order in which they are to be dispatched."""
        self.open_trials: dict[tuple[int, int], Ticket] = {}
        self.answered: set[tuple[int, int]] = set()
        self.attempts: dict[tuple[int, int], int] = {}
        self.due: dict[int, float] = {}
        self.seen_attempts: set[int] = set()
        self.numbers = 0

    # ------------------------------------------------------------------ what comes back

    def take(self, orders: Orders, *, expected: dict[tuple[int, int], object] | None = None) -> None:
        """Check every order against the model and carry it out there."""
        expected = dict(expected or {})
        for settled in orders.settle:
            self.settle(settled, expected)
        assert not expected, f"never answered: {expected}"
        for worker_id, attempt_ids in orders.cancel.items():
            worker = self.fleet[worker_id]
            for attempt_id in attempt_ids:
                del worker.running[attempt_id]
                worker.held.add(attempt_id)
                self.due.pop(attempt_id, None)
        sent = [(attempt_id, ticket, name) for name, some in orders.dispatch.items() for attempt_id, ticket in some]
        for attempt_id, ticket, worker_id in sorted(sent, key=lambda one: one[0]):
            worker = self.fleet[worker_id]
            assert worker.open
            key = (ticket.client, ticket.client_trial_id)
            assert key in self.open_trials, "dispatched, but answered or never submitted"
            assert attempt_id not in self.seen_attempts
            self.seen_attempts.add(attempt_id)
            assert self.waiting[ticket.client].pop(0) == ticket.client_trial_id, "out of turn"
            worker.running[attempt_id] = ticket
            self.attempts[key] += 1
            if ticket.timeout_s:
                self.due[attempt_id] = self.now + ticket.timeout_s
        for worker_id in orders.retire:
            worker = self.fleet[worker_id]
            assert worker.open or worker.held
            worker.open = False

    def settle(self, settled: Settled, expected: dict[tuple[int, int], object]) -> None:
        key = (settled.ticket.client, settled.ticket.client_trial_id)
        assert key in self.open_trials, "answered twice, or for nobody"
        assert self.open_trials.pop(key) is settled.ticket
        assert key not in self.answered
        self.answered.add(key)
        assert key in expected, f"nothing asked for {settled}"
        assert (settled.outcome if settled.error is None else settled.error) == expected.pop(key)
        assert settled.attempts == self.attempts[key]
        assert settled.queue_s >= 0
        assert settled.run_s >= 0
        if key[1] in self.waiting[key[0]]:
            self.waiting[key[0]].remove(key[1])

    @invariant()
    def nothing_is_lost(self) -> None:
        if not hasattr(self, "fleet"):
            return
        running = [
            (ticket.client, ticket.client_trial_id)
            for worker in self.fleet.values()
            for ticket in worker.running.values()
        ]
        queued = [(client, trial) for client, trials in self.waiting.items() for trial in trials]
        assert sorted(running + queued) == sorted(self.open_trials)
        stats = self.dispatcher.stats()
        assert stats.queue_depth == len(queued)
        assert stats.in_flight == len(running)
        assert stats.settled == len(self.answered)
        room = 0
        for worker_id, worker in self.fleet.items():
            taken = len(worker.running) + len(worker.held)
            assert taken <= worker.slots, "more than its slots"
            assert stats.workers[worker_id].in_flight == len(worker.running)
            assert stats.workers[worker_id].abandoned == len(worker.held)
            room += worker.slots - taken if worker.open else 0
        assert not (queued and room), "a slot is free while trials wait"
        soonest = min(self.due.values(), default=None)
        deadline = self.dispatcher.next_deadline()
        assert soonest is None or (deadline is not None and deadline <= soonest)

    # ------------------------------------------------------------------ what happens

    @rule(target=workers, slots=st.integers(min_value=1, max_value=4))
    def attach(self, slots: int) -> str:
        self.numbers += 1
        worker_id = f"w{self.numbers}"
        self.fleet[worker_id] = ModelWorker(slots)
        self.take(self.dispatcher.attach(worker_id, slots, self.now))
        return worker_id

    @rule(
        client=st.sampled_from(CLIENTS),
        states=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 3), st.sampled_from(TIMEOUTS_S)), max_size=6),
    )
    def submit(self, client: int, states: list[tuple[int, int, float]]) -> None:
        tickets: list[Ticket] = []
        for session, version, timeout_s in states:
            self.numbers += 1
            ticket = Ticket(client, self.numbers, session, version, timeout_s, object())
            tickets.append(ticket)
            self.open_trials[client, self.numbers] = ticket
            self.attempts[client, self.numbers] = 0
            self.waiting[client].append(self.numbers)
        self.take(self.dispatcher.submit(client, tickets, self.now))

    @rule(worker_id=workers, data=st.data())
    def finish(self, worker_id: str, data: st.DataObject) -> None:
        """Answers for running attempts, for settled ones, for unknown ones, and twice in one frame."""
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else [*worker.running, *worker.held]
        chosen = data.draw(st.lists(st.sampled_from([*known, 10**9]), max_size=4))
        answers = [(attempt_id, object()) for attempt_id in chosen]
        expected: dict[tuple[int, int], object] = {}
        for attempt_id, outcome in answers:
            ticket = None if worker is None else worker.running.pop(attempt_id, None)
            if ticket is not None:
                self.due.pop(attempt_id, None)
                expected[ticket.client, ticket.client_trial_id] = outcome
            elif worker is not None:
                worker.held.discard(attempt_id)
        self.take(self.dispatcher.finish_many(worker_id, answers, self.now), expected=expected)

    @rule(worker_id=workers, data=st.data())
    def release(self, worker_id: str, data: st.DataObject) -> None:
        worker = self.fleet.get(worker_id)
        known = [] if worker is None else sorted(worker.held | set(worker.running))
        chosen = data.draw(st.lists(st.sampled_from([*known, 10**9]), max_size=3))
        if worker is not None:
            worker.held -= set(chosen)
        self.take(self.dispatcher.release(worker_id, chosen, self.now))

    @rule(worker_id=workers)
    def drain(self, worker_id: str) -> None:
        if worker_id in self.fleet:
            self.fleet[worker_id].open = False
        self.take(self.dispatcher.drain_worker(worker_id, self.now))

    @rule(worker_id=consumes(workers))
    def lose(self, worker_id: str) -> None:
        worker = self.fleet.pop(worker_id)
        expected: dict[tuple[int, int], object] = {}
        for attempt_id, ticket in reversed(worker.running.items()):
            self.due.pop(attempt_id, None)
            key = (ticket.client, ticket.client_trial_id)
            if self.attempts[key] >= MAX_LOSSES:
                expected[key] = ErrorType.WORKER_LOST
            else:
                self.waiting[ticket.client].insert(0, ticket.client_trial_id)
        self.take(self.dispatcher.lose(worker_id, self.now, "killed"), expected=expected)
        assert self.dispatcher.lose(worker_id, self.now, "killed") == Orders()

    @rule(client=st.sampled_from(CLIENTS), data=st.data())
    def cancel(self, client: int, data: st.DataObject) -> None:
        mine = [trial for owner, trial in self.open_trials if owner == client]
        chosen = data.draw(st.lists(st.sampled_from([*mine, 10**9]), max_size=4))
        expected: dict[tuple[int, int], object] = {
            (client, trial): ErrorType.CANCELLED for trial in chosen if trial in mine
        }
        self.take(self.dispatcher.cancel(client, chosen, self.now), expected=expected)

    @rule(client=st.sampled_from(CLIENTS))
    def disconnect(self, client: int) -> None:
        for key in [key for key in self.open_trials if key[0] == client]:
            del self.open_trials[key]
        self.waiting[client].clear()
        self.take(self.dispatcher.disconnect(client, self.now))

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 10.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        expected: dict[tuple[int, int], object] = {}
        for worker in self.fleet.values():
            for attempt_id, ticket in worker.running.items():
                if self.due.get(attempt_id, float("inf")) <= self.now:
                    expected[ticket.client, ticket.client_trial_id] = ErrorType.TIMEOUT_RUN
        self.take(self.dispatcher.tick(self.now), expected=expected)

    def teardown(self) -> None:
        """From wherever it is, everything can be brought to an end."""
        if not hasattr(self, "fleet"):
            return
        self.attach(4)
        while self.open_trials:
            before = len(self.open_trials)
            for worker_id, worker in self.fleet.items():
                answers = [(attempt_id, object()) for attempt_id in worker.running]
                expected = {
                    (ticket.client, ticket.client_trial_id): outcome
                    for (_, outcome), ticket in zip(answers, worker.running.values(), strict=True)
                }
                worker.running.clear()
                self.due.clear()
                self.take(self.dispatcher.finish_many(worker_id, answers, self.now), expected=expected)
            assert len(self.open_trials) < before, "stuck with trials that nobody runs"


Dispatching.TestCase.settings = settings(max_examples=250, stateful_step_count=40, deadline=None)
TestDispatching = Dispatching.TestCase
