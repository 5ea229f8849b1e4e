"""What has happened in a simulated pool, written down beside the dispatcher, and the promises checked against it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.retries import Fault, RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Orders, Settled, Ticket
from dspex_pipelines.model.outcome import ErrorType
from tests.engine.deserts import earned, excused
from tests.engine.schedules import HANGING, KILLING, Kind, Schedule, TrialPlan, Where

if TYPE_CHECKING:
    from tests.engine.simulated import Client, Link
    from tests.engine.virtual import Clock

CLOSE = 1e-6
LATE_S = 0.03
"""A tick comes at most so late."""
LOOKS_S = 2.0
"""So long a deadline is put off while somebody looks why a worker is silent."""
UNFAIR = 2
"""By so many turns a client may be ahead of another that has waited all the while."""


class Wrong(AssertionError):
    """The dispatcher has broken a promise."""


@dataclass(slots=True, eq=False)
class Entry:
    """A trial that a client has sent; one that is sent again is another."""

    client: int
    plan: TrialPlan
    submitted: float
    ticket: Ticket | None = None
    attempts: list[Attempt] = field(default_factory=list["Attempt"])
    failed: int = 0
    """Attempts that failed by the program's own doing."""
    not_before: float = 0.0
    """When its next attempt may be made."""
    cancelled: bool = False
    spared: bool = False
    """Whether it has been lost once with a worker that was leaving."""
    suspected: bool = False
    """Whether it is to be run in quarantine."""
    settled: Settled | None = None
    settled_at: float = 0.0

    @property
    def took_s(self) -> float:
        """Seconds from its first start to its outcome."""
        return self.settled_at - self.attempts[0].started

    def __repr__(self) -> str:
        return f"trial {self.client}/{self.plan.number} ({self.plan.program.kind})"


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt, from its dispatch to what ended it."""

    attempt_id: int
    entry: Entry
    worker: str
    slots: int
    started: float
    ended: float | None = None
    by: ErrorType | None = None
    """What it failed by; None while it runs, and where its answer settled the trial."""
    alone: bool = False
    """Whether a worker, or a process, died while it ran nothing else."""
    disturbed: bool = False
    """Whether its worker was held up from outside."""
    held_up: bool = False
    """Whether its worker was held up by another trial."""
    answered: tuple[str, int] | None = None

    def __repr__(self) -> str:
        return f"attempt {self.attempt_id} of {self.entry}"


class Records:
    """Everything that was asked, sent and answered."""

    def __init__(self, schedule: Schedule, dispatcher: Dispatcher, retries: RetryPolicy, clock: Clock) -> None:
        self.schedule = schedule
        self.attempts: dict[int, Attempt] = {}
        self.entries: list[Entry] = []
        self.events = 0
        self.losses = 0
        self.faults = 0
        self.took_s = 0.0
        self.stopped: set[int] = set()
        """Clients that read too slowly."""
        self._dispatcher = dispatcher
        self.retries = retries
        self._clock = clock
        self._open: dict[tuple[int, int], Entry] = {}
        self._again: dict[int, dict[Entry, None]] = {}
        """By client, what failed and waits to be run again."""
        self._turns: dict[int, float] = {}
        """Dispatches of each client, by its weight, for as long as it has had trials waiting."""

    # What comes in

    def submitted(self, client: int, plan: TrialPlan) -> Ticket:
        entry = Entry(client, plan, self._clock.now)
        slots = self.schedule.process_slots if plan.program.where is Where.PROCESS else 1
        state = (1, plan.number % 3)
        entry.ticket = Ticket(client, plan.number, state, plan.timeout_s, entry, plan.most_attempts, slots)
        self.entries.append(entry)
        self._open[client, plan.number] = entry
        return entry.ticket

    def cancelled(self, client: int, numbers: Iterable[int]) -> None:
        for number in numbers:
            if entry := self._open.get((client, number)):
                entry.cancelled = True

    def disconnected(self, client: int) -> None:
        self._open = {key: entry for key, entry in self._open.items() if key[0] != client}
        self._turns.pop(client, None)
        self._again.pop(client, None)

    def answers(self, link: Link, answers: Sequence[tuple[int, Any, Fault | None]]) -> None:
        """Outcomes have arrived, and the dispatcher is told next."""
        for attempt_id, _, fault in answers:
            attempt = link.held.pop(attempt_id)
            if self._runs(attempt):
                attempt.ended = self._clock.now
                if fault is not None:
                    attempt.by = fault.type
                    attempt.alone = fault.type is ErrorType.WORKER_LOST
                    attempt.entry.failed += not attempt.alone

    def answered(self, answers: Sequence[tuple[int, Any, Fault | None]], orders: Orders) -> None:
        """The dispatcher has been told: what is to be tried again waits as long as it should."""
        settled = {id(one.ticket) for one in orders.settle}
        for attempt_id, _, fault in answers:
            entry = self.attempts[attempt_id].entry
            mine = entry.attempts[-1].attempt_id == attempt_id and entry.attempts[-1].by is not None
            if fault is None or not mine or id(entry.ticket) in settled or fault.type is ErrorType.WORKER_LOST:
                continue
            trial = self._dispatcher._queues.clients[entry.client].trials[entry.plan.number]
            failures = sum(past.by is fault.type for past in entry.attempts)
            most_s = min(self.retries.cap_s, self.retries.base_s * 2 ** (failures - 1))
            wait_s = trial.due - self._clock.now
            if not fault.retry_after_s - CLOSE <= wait_s <= fault.retry_after_s + most_s + CLOSE:
                self._wrong(f"{entry} waits {wait_s:g} s after its failure {failures} by {fault}")
            entry.not_before = trial.due
            self._again.setdefault(entry.client, {})[entry] = None

    def released(self, link: Link, attempt_ids: Sequence[int]) -> None:
        for attempt_id in attempt_ids:
            attempt = link.held.get(attempt_id)
            if attempt is not None and not self._runs(attempt):
                del link.held[attempt_id]

    def returned(self, link: Link, attempt_ids: Sequence[int]) -> None:
        for attempt_id in attempt_ids:
            attempt = link.held.pop(attempt_id)
            if self._runs(attempt):
                self._lost(attempt)
                inside = self._dispatcher._fleet.get(link.worker.name)
                attempt.entry.suspected = inside is not None and inside.group is not None

    def _lost(self, attempt: Attempt) -> None:
        attempt.ended = self._clock.now
        attempt.by = ErrorType.WORKER_LOST
        self._in_time(attempt)

    def _in_time(self, attempt: Attempt) -> None:
        """No attempt with a deadline is left to itself, whatever it is that holds it up."""
        timeout_s = attempt.entry.plan.timeout_s
        assert attempt.ended is not None
        took_s = attempt.ended - attempt.started
        if timeout_s and took_s > 2 * timeout_s + LOOKS_S + LATE_S:
            self._wrong(f"{attempt} ran for {took_s:g} s with a deadline at {timeout_s:g} s")

    def lost(self, link: Link, suspects: Sequence[int] | None) -> None:
        """A worker is gone, and the dispatcher is told next; with *suspects* it was ended because it was silent."""
        self.losses += 1
        inside = self._dispatcher._fleet.get(link.worker.name)
        kept = inside is not None and inside.group is not None
        sudden = suspects is not None or not link.leaving
        for attempt_id, attempt in link.held.items():
            if self._runs(attempt):
                entry = attempt.entry
                self._lost(attempt)
                attempt.alone = kept and len(link.held) == 1 and (sudden or entry.spared)
                if suspects:
                    entry.suspected = attempt_id in suspects
                else:
                    entry.suspected = sudden or kept or entry.spared
                entry.spared |= not sudden

    # What is ordered

    def settled(self, orders: Orders) -> None:
        for one in orders.settle:
            entry = self._open.pop((one.ticket.client, one.ticket.client_trial_id), None)
            if entry is None or entry.settled is not None:
                self._wrong(f"settled twice, or for nobody: {one}")
            entry.settled = one
            entry.settled_at = self._clock.now
            self._again.get(entry.client, {}).pop(entry, None)
            self._settled(entry, one)

    def _settled(self, entry: Entry, one: Settled) -> None:
        now = self._clock.now
        if one.ticket is not entry.ticket or one.attempts != len(entry.attempts):
            self._wrong(f"{entry} was tried {len(entry.attempts)} times: {one}")
        past = entry.attempts
        last = past[-1] if past else None
        if last is not None and (last.ended is None or one.error is not ErrorType.CANCELLED):
            past = past[:-1]
            last.ended = last.ended or now
            if one.error is None and one.outcome is not last.answered:
                self._wrong(f"{last} answered {last.answered}: {one}")
            if not math.isclose(one.run_s, now - last.started, abs_tol=CLOSE) or one.worker_id != last.worker:
                self._wrong(f"{last} ran from {last.started} on {last.worker} until {now}: {one}")
        if one.error is ErrorType.TIMEOUT_RUN and last is not None:
            timeout_s = entry.plan.timeout_s
            most_s = 2 * timeout_s + LOOKS_S if last.disturbed or last.held_up else timeout_s
            if not timeout_s - CLOSE <= one.run_s <= most_s + LATE_S:
                self._wrong(f"{last} was given {one.run_s:g} of {timeout_s:g} s")
        if len(one.history) != len(past):
            self._wrong(f"{entry} failed {len(past)} times before: {one}")
        waits_since = entry.submitted
        for number, (ours, theirs) in enumerate(zip(past, one.history, strict=True), start=1):
            assert ours.ended is not None
            if (theirs.number, theirs.worker, theirs.type) != (number, ours.worker, ours.by):
                self._wrong(f"{ours} ended by {ours.by}: {theirs}")
            for said, true in ((theirs.queue_s, ours.started - waits_since), (theirs.run_s, ours.ended - ours.started)):
                if not math.isclose(said, true, abs_tol=CLOSE):
                    self._wrong(f"{ours} took {true:g} s of something: {theirs}")
            waits_since = ours.ended
        spent_s = one.queue_s + one.run_s + sum(attempt.run_s for attempt in one.history)
        if not math.isclose(spent_s, now - entry.submitted, abs_tol=CLOSE):
            self._wrong(f"{entry} took {now - entry.submitted:g} s, of which {spent_s:g} s are said: {one}")

    def dispatched(self, orders: Orders, links: Mapping[str, Link]) -> None:
        keepers = {name: worker.quarantine for name, worker in self._dispatcher.stats().workers.items()}
        sent = [(attempt_id, ticket, name) for name, some in orders.dispatch.items() for attempt_id, ticket in some]
        for attempt_id, ticket, name in sorted(sent, key=lambda one: one[0]):
            link = links[name]
            entry = self._open.get((ticket.client, ticket.client_trial_id))
            if entry is None:
                self._wrong(f"dispatched though nobody waits for it: {ticket}")
            if attempt_id in self.attempts or (entry.attempts and entry.attempts[-1].ended is None):
                self._wrong(f"{entry} is dispatched twice")
            room = link.worker.slots - link.used
            # A wide one makes do with what there is where it cannot have more: beside trials that do not stop.
            narrow = room < ticket.slots and not keepers[name] and any(map(self._runs, link.held.values()))
            if link.leaving or not room or narrow:
                self._wrong(f"{entry} is sent to {name}, which has no room: {link}")
            if entry.client in self.stopped and not keepers[name]:
                self._wrong(f"{entry} is dispatched though its client reads too slowly")
            if self._clock.now < entry.not_before - CLOSE:
                self._wrong(f"{entry} is sent before its time {entry.not_before}")
            if keepers[name] != entry.suspected:
                self._wrong(f"{entry} is {'' if entry.suspected else 'not '}suspected, and sent to {name}")
            again = self._again.get(entry.client, ())
            # A wide one may have had its turn, and no room, before they had to be run again.
            if (
                not entry.attempts
                and ticket.slots == 1
                and any(other.not_before < self._clock.now - LATE_S for other in again)
            ):
                self._wrong(f"{entry} is sent before its client's {again}, which are to be run again")
            again.pop(entry, None) if again else None
            entry.suspected = False
            if not keepers[name] and entry.client in self._turns:
                self._turns[entry.client] += 1 / self._dispatcher.weight_of(entry.client)
            attempt = Attempt(attempt_id, entry, name, min(room, ticket.slots), self._clock.now)
            attempt.disturbed = link.worker.disturbed
            attempt.held_up = bool(link.worker.held_by or link.culprit)
            self.attempts[attempt_id] = link.held[attempt_id] = attempt
            entry.attempts.append(attempt)

    # What holds at all times

    def consistent(self, links: Mapping[str, Link]) -> None:
        """No trial is lost, no slot is, none is idle while trials wait, and clients take turns."""
        stats = self._dispatcher.stats()
        queues = self._dispatcher._queues
        known = stats.queue_depth + stats.backing_off + stats.suspects + stats.in_flight
        if known != len(self._open):
            self._wrong(f"{len(self._open)} trials wait for an outcome: {stats}")
        waiting: list[int] = []
        needs = 0
        for number, client in queues.clients.items():
            if number not in self.stopped and (client.queue or client.again):
                waiting.append(number)
                needs = max(needs, *(trial.ticket.slots for trial in (*client.queue.values(), *client.again.values())))
        needs = needs or math.inf
        for name, link in links.items():
            worker = stats.workers[name]
            if worker.in_flight + worker.abandoned != len(link.held) or link.used > worker.slots:
                self._wrong(f"{name} has {link.held}: {worker}")
            room = 0 if worker.draining or worker.quarantine else worker.slots - link.used
            if room >= needs or (needs < math.inf and room and not worker.in_flight):
                self._wrong(f"{name} is idle while trials wait: {stats}")
        known_turns = [self._turns[number] for number in waiting if number in self._turns]
        if known_turns and max(known_turns) - min(known_turns) > UNFAIR:
            self._wrong(f"clients had so many turns each: {self._turns}")
        newest = max(known_turns, default=0)
        self._turns = {number: self._turns.get(number, newest) for number in waiting}

    def _runs(self, attempt: Attempt) -> bool:
        """Whether it is what its trial waits for."""
        entry = attempt.entry
        return attempt.ended is None and self._open.get((entry.client, entry.plan.number)) is entry

    def _wrong(self, what: str) -> NoReturn:
        raise Wrong(f"at {self._clock.now - 100.0:.3f} s: {what}")

    # What holds in the end

    def at_rest(self, links: Iterable[Link], clients: Sequence[Client], *, wanted: int) -> None:
        """Everything is over: each trial got what it deserved, and nothing is left."""
        for client in clients:
            if not client.gone:
                for plan in client.plan.trials:
                    self._deserved(client.outcomes[plan.number].ticket.body)
        dispatcher = self._dispatcher
        stats = dispatcher.stats()
        if stats.queue_depth or stats.backing_off or stats.suspects or stats.in_flight or wanted:
            self._wrong(f"not at rest, with {wanted} quarantine workers wanted: {stats}")
        for link in links:
            worker = stats.workers[link.worker.name]
            stuck = len(link.worker.runs)
            if not worker.draining and (worker.abandoned != stuck or worker.quarantine):
                self._wrong(f"{link.worker.name} holds {stuck} trials that do not stop: {worker}")
            inside = dispatcher._fleet.get(link.worker.name)
            if inside is None or inside.free != worker.slots - link.used:
                self._wrong(f"{link.worker.name} has lost a slot: {worker}")
        if (due := dispatcher.next_deadline()) is not None:
            self._wrong(f"it still wants to be woken at {due}")
        if dispatcher._quarantine.active or len(dispatcher._queues._ready) > len(clients):
            self._wrong("it keeps what is over")
        self._affordable()

    def _affordable(self) -> None:
        """What it took is in proportion to what there was, and what went wrong."""
        plan = self.schedule
        deadly = sum(
            trial.program.kind in (*KILLING, *HANGING, Kind.ENDLESS_LOOP)
            for client in plan.clients
            for trial in client.trials
        )
        most = (self.faults + deadly) * (math.ceil(math.log2(plan.slots)) + 6) + 4 * plan.workers
        if self.losses > most:
            self._wrong(f"{self.losses} workers were lost, with {self.faults} faults and {deadly} deadly trials")
        most = 3 * len(self.attempts) + 6 * self.losses + 10 * len(plan.clients) + 40
        if self.events > most:
            self._wrong(f"{self.events} events for {len(self.attempts)} attempts and {self.losses} losses")

    def _deserved(self, entry: Entry) -> None:
        """Check that the outcome is what the program earns, whatever went on around it."""
        one = entry.settled
        assert one is not None
        if not (earned(entry, one, self.retries) or excused(entry, one)):
            self._wrong(f"{entry} of {entry.plan} did not deserve {one}")
