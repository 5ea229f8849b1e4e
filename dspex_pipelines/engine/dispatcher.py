"""Which trial runs where, and what becomes of it: events in, orders out, no I/O and no clock.

Every event takes the time as a value (monotonic seconds) and returns `Orders` for the caller to carry out, in any
order. A trial is settled exactly once, by its attempt: whatever comes later for that attempt only frees its slot.
Every event costs a constant time per trial it moves, whatever the number of trials, clients and workers.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from dspex_pipelines.model.outcome import ErrorType

REMEMBERED_SNAPSHOTS = 1024
"""How many snapshots a worker is remembered to have run; about what it keeps instances of itself."""

_PROBES = 8
"""How many workers that know a snapshot are asked for a free slot before the freest worker is taken."""

_UNSET = -1.0
_STALE_TIMERS = 64


# Named tuples: as immutable as a frozen dataclass, at a third of the price, and there is one of each per trial.
class Ticket(NamedTuple):
    """A trial as the dispatcher knows it; `body` is the caller's and is handed back untouched."""

    client: int
    client_trial_id: int
    session_id: int
    version: int
    timeout_s: float
    """Run time allowed from dispatch on; 0 is no limit."""
    body: object


class Settled(NamedTuple):
    """The one answer to a ticket: the worker's `outcome`, or the `error` that stands for it."""

    ticket: Ticket
    outcome: object | None
    error: ErrorType | None
    message: str
    worker_id: str
    """Empty when no worker has it."""
    attempts: int
    """How often it was dispatched; 0 for one cancelled in the queue."""
    queue_s: float
    """Time waited for a slot, over all attempts."""
    run_s: float
    """Time since the last dispatch; 0 in the queue."""


@dataclass(slots=True)
class Orders:
    """What an event asks its caller to do."""

    dispatch: dict[str, list[tuple[int, Ticket]]] = field(default_factory=dict[str, list[tuple[int, Ticket]]])
    """Worker to (attempt id, ticket), in the order in which they are to be sent."""
    cancel: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Worker to attempt ids that it is to stop and then `release`."""
    settle: list[Settled] = field(default_factory=list[Settled])
    retire: list[str] = field(default_factory=list[str])
    """Workers to replace: too many of their slots are held by trials that do not stop. Each is named once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """One worker, now."""

    slots: int
    in_flight: int
    abandoned: int
    """Slots held by trials that were settled without it and have not stopped yet."""
    done: int
    draining: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The dispatcher, now."""

    queue_depth: int
    in_flight: int
    settled: int
    workers: dict[str, WorkerStats]


class _Client:
    __slots__ = ("queue", "ready", "trials")

    def __init__(self) -> None:
        self.queue: OrderedDict[int, _Trial] = OrderedDict()
        self.trials: dict[int, _Trial] = {}
        self.ready = False


class _Worker:
    __slots__ = (
        "abandoned",
        "done",
        "free",
        "open",
        "retired",
        "running",
        "slots",
        "stuck",
        "stuck_limit",
        "warm",
        "worker_id",
    )

    def __init__(self, worker_id: str, slots: int) -> None:
        self.worker_id = worker_id
        self.slots = slots
        self.free = slots
        self.running: dict[int, _Trial] = {}
        self.abandoned: dict[int, _Trial] = {}
        self.stuck = 0
        self.stuck_limit = max(1, slots // 4)
        self.warm: OrderedDict[tuple[int, int], None] = OrderedDict()
        self.open = True
        self.retired = False
        self.done = 0


class _Trial:
    __slots__ = (
        "attempt_id",
        "attempts",
        "client",
        "due",
        "queue_s",
        "since",
        "stuck",
        "ticket",
        "worker",
    )

    def __init__(self, ticket: Ticket, client: _Client, now: float) -> None:
        self.ticket = ticket
        self.client = client
        self.worker: _Worker | None = None
        self.attempt_id = 0
        self.attempts = 0
        self.since = now
        """When it was queued or dispatched, whichever was later."""
        self.queue_s = 0.0
        self.due = _UNSET
        """When its timer fires: its deadline while it runs, the end of its grace once it is abandoned."""
        self.stuck = False


class Dispatcher:
    """Hands trials to workers.

    * A worker is sent at most its free slots. Within a client trials go in the order of submission; clients with
      trials waiting take turns.
    * A worker that has run the ticket's (session, version) is preferred while it has a free slot and is at most
      `affinity_lead` (a fraction) busier than the worker with the most free slots, which is taken otherwise: knowing a
      snapshot saves building one instance, and must not leave other workers idle. ``float("inf")`` always prefers.
    * The run clock starts at dispatch. At the deadline the trial is settled as `TIMEOUT_RUN` and its worker asked to
      cancel it; the slot stays taken until the worker says `release` or `finish`. A worker of which a quarter of the
      slots (at least one) stay so for longer than `grace_s` gets no more trials and is named in `Orders.retire`.
    * The trials of a lost worker go to the front of their client's queue, in order; one that was lost `max_losses`
      times is settled as `WORKER_LOST`.
    """

    def __init__(self, *, max_losses: int = 3, grace_s: float = 1.0, affinity_lead: float = 0.25) -> None:
        self._max_losses = max_losses
        self._grace_s = grace_s
        self._busier = 1.0 + affinity_lead
        self._clients: dict[int, _Client] = {}
        self._ready: deque[_Client] = deque()
        self._workers: dict[str, _Worker] = {}
        # Open workers by number of free slots, and the highest number there is.
        self._by_free: dict[int, dict[_Worker, None]] = {}
        self._most_free = 0
        self._warm: dict[tuple[int, int], dict[_Worker, None]] = {}
        self._timers: list[tuple[float, int, _Trial]] = []
        self._timers_live = 0
        self._timers_made = 0
        self._last_attempt_id = 0
        self._settled = 0

    # Workers

    def attach(self, worker_id: str, slots: int, now: float) -> Orders:
        """Take a worker into use; raises `ValueError` when one of that id is attached or *slots* is below 1."""
        if worker_id in self._workers:
            msg = f"worker {worker_id} is attached already"
            raise ValueError(msg)
        if slots < 1:
            msg = f"worker {worker_id} offers {slots} slots; at least 1 is needed"
            raise ValueError(msg)
        worker = self._workers[worker_id] = _Worker(worker_id, slots)
        self._by_free.setdefault(slots, {})[worker] = None
        self._most_free = max(self._most_free, slots)
        orders = Orders()
        self._fill(orders, now)
        return orders

    def drain_worker(self, worker_id: str, now: float) -> Orders:
        """Send a worker no more trials; those it runs may finish. An unknown worker is ignored."""
        del now
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._close(worker)
        return Orders()

    def lose(self, worker_id: str, now: float, reason: str) -> Orders:
        """Requeue what the worker was running, or settle it as `WORKER_LOST`; an unknown worker is ignored."""
        orders = Orders()
        worker = self._workers.pop(worker_id, None)
        if worker is None:
            return orders
        self._close(worker)
        for trial in worker.abandoned.values():
            self._disarm(trial)
        # Backwards, so that the first to be dispatched ends up first in the queue.
        kept: list[_Trial] = []
        for trial in worker.running.values():
            self._disarm(trial)
            if trial.attempts >= self._max_losses:
                times = "once" if trial.attempts == 1 else f"{trial.attempts} times"
                message = f"lost with its worker {times}, last with {worker_id}: {reason}"
                self._settle(orders, trial, None, ErrorType.WORKER_LOST, message, now)
            else:
                kept.append(trial)
        for trial in reversed(kept):
            client, trial_id = trial.client, trial.ticket.client_trial_id
            trial.worker = None
            trial.attempt_id = 0
            trial.since = now
            client.queue[trial_id] = trial
            client.queue.move_to_end(trial_id, last=False)
            if not client.ready:
                client.ready = True
                self._ready.append(client)
        self._fill(orders, now)
        return orders

    def finish(self, worker_id: str, attempt_id: int, outcome: object, now: float) -> Orders:
        """Settle the trial of an attempt with its outcome; see `finish_many`."""
        return self.finish_many(worker_id, ((attempt_id, outcome),), now)

    def finish_many(self, worker_id: str, outcomes: Iterable[tuple[int, object]], now: float) -> Orders:
        """Settle each attempt's trial with its outcome and use the slots again.

        The outcome of an attempt that was settled otherwise is ignored and only frees its slot; an attempt the worker
        does not have is ignored. An outcome that arrives late but before `tick` has seen the deadline counts.
        """
        orders = Orders()
        worker = self._workers.get(worker_id)
        if worker is None:
            return orders
        freed = 0
        running = worker.running
        settle = orders.settle
        for attempt_id, outcome in outcomes:
            trial = running.pop(attempt_id, None)
            if trial is None:
                freed += self._release(worker, attempt_id)
                continue
            freed += 1
            if trial.due >= 0.0:
                trial.due = _UNSET
                self._timers_live -= 1
            ticket = trial.ticket
            del trial.client.trials[ticket[1]]
            settle.append(
                Settled(
                    ticket,
                    outcome,
                    None,
                    "",
                    worker_id,
                    trial.attempts,
                    trial.queue_s,
                    now - trial.since,
                )
            )
        worker.done += len(settle)
        self._settled += len(settle)
        if freed:
            self._move(worker, worker.free + freed)
            if self._ready:
                self._fill(orders, now)
        return orders

    def release(self, worker_id: str, attempt_ids: Iterable[int], now: float) -> Orders:
        """Use the slots of abandoned attempts again; attempts that are not abandoned are ignored."""
        orders = Orders()
        worker = self._workers.get(worker_id)
        if worker is None:
            return orders
        freed = sum(self._release(worker, attempt_id) for attempt_id in attempt_ids)
        if freed:
            self._move(worker, worker.free + freed)
            self._fill(orders, now)
        return orders

    # Clients

    def submit(self, client: int, tickets: Sequence[Ticket], now: float) -> Orders:
        """Queue *tickets* in their order.

        Raises `ValueError`, having queued none, when one is not of *client* or has the id of a trial that is queued
        or running.
        """
        state = self._clients.get(client)
        if state is None:
            state = self._clients[client] = _Client()
        trials, queue = state.trials, state.queue
        for position, ticket in enumerate(tickets):
            if ticket.client != client or ticket.client_trial_id in trials:
                for earlier in tickets[:position]:
                    del trials[earlier.client_trial_id], queue[earlier.client_trial_id]
                msg = f"trial {ticket.client_trial_id} of client {ticket.client}: "
                msg += "in flight already" if ticket.client == client else f"submitted by {client}"
                raise ValueError(msg)
            trials[ticket.client_trial_id] = queue[ticket.client_trial_id] = _Trial(ticket, state, now)
        if queue and not state.ready:
            state.ready = True
            self._ready.append(state)
        orders = Orders()
        self._fill(orders, now)
        return orders

    def cancel(self, client: int, client_trial_ids: Iterable[int], now: float) -> Orders:
        """Settle trials as `CANCELLED`, wherever they are; those not in flight are ignored."""
        orders = Orders()
        state = self._clients.get(client)
        if state is None:
            return orders
        for trial_id in client_trial_ids:
            trial = state.trials.get(trial_id)
            if trial is None:
                continue
            where = "while it ran" if trial.worker else "in the queue"
            self._settle(orders, trial, None, ErrorType.CANCELLED, f"cancelled {where}", now)
            if trial.worker:
                self._abandon(orders, trial, now)
            else:
                del state.queue[trial_id]
        return orders

    def disconnect(self, client: int, now: float) -> Orders:
        """Forget a client: its queued trials go, its running ones are cancelled, and nothing is settled."""
        orders = Orders()
        state = self._clients.pop(client, None)
        if state is None:
            return orders
        for trial in state.trials.values():
            if trial.worker:
                self._abandon(orders, trial, now)
        state.trials.clear()
        state.queue.clear()
        return orders

    # Time

    def tick(self, now: float) -> Orders:
        """Carry out what was due at or before *now*: deadlines, and grace given to abandoned trials."""
        orders = Orders()
        timers = self._timers
        while timers and timers[0][0] <= now:
            due, _, trial = heapq.heappop(timers)
            if trial.due != due or trial.worker is None:
                continue
            self._disarm(trial)
            worker = trial.worker
            if trial.attempt_id in worker.running:
                message = f"no outcome within {trial.ticket.timeout_s:g} s of its start"
                self._settle(orders, trial, None, ErrorType.TIMEOUT_RUN, message, now)
                self._abandon(orders, trial, now)
                timers = self._timers
                continue
            trial.stuck = True
            worker.stuck += 1
            if worker.stuck >= worker.stuck_limit and not worker.retired:
                worker.retired = True
                self._close(worker)
                orders.retire.append(worker.worker_id)
        return orders

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do next, or ``None``."""
        timers = self._timers
        while timers and timers[0][2].due != timers[0][0]:
            heapq.heappop(timers)
        return timers[0][0] if timers else None

    def stats(self) -> Stats:
        """Return the state in numbers; costs a step per client and worker."""
        return Stats(
            queue_depth=sum(len(client.queue) for client in self._clients.values()),
            in_flight=sum(len(worker.running) for worker in self._workers.values()),
            settled=self._settled,
            workers={
                worker.worker_id: WorkerStats(
                    slots=worker.slots,
                    in_flight=len(worker.running),
                    abandoned=len(worker.abandoned),
                    done=worker.done,
                    draining=not worker.open,
                )
                for worker in self._workers.values()
            },
        )

    # Decisions

    def _fill(self, orders: Orders, now: float) -> None:
        """Give waiting trials to free slots until one of the two runs out."""
        ready = self._ready
        while ready and self._most_free:
            client = ready[0]
            if not client.queue:
                client.ready = False
                ready.popleft()
                continue
            _, trial = client.queue.popitem(last=False)
            if len(ready) > 1:
                ready.rotate(-1)
            ticket = trial.ticket
            worker = self._choose((ticket[2], ticket[3]))
            self._move(worker, worker.free - 1)
            self._last_attempt_id = attempt_id = self._last_attempt_id + 1
            trial.worker = worker
            trial.attempt_id = attempt_id
            trial.attempts += 1
            trial.queue_s += now - trial.since
            trial.since = now
            worker.running[attempt_id] = trial
            if ticket[4] > 0:
                self._arm(trial, now + ticket[4])
            sent = orders.dispatch.get(worker.worker_id)
            if sent is None:
                orders.dispatch[worker.worker_id] = [(attempt_id, ticket)]
            else:
                sent.append((attempt_id, ticket))

    def _choose(self, snapshot: tuple[int, int]) -> _Worker:
        """Return the worker for a trial of *snapshot* and note that it will have run it; one must be free."""
        freest = next(iter(self._by_free[self._most_free]))
        if snapshot in freest.warm:
            return freest
        knowing = self._warm.get(snapshot)
        if knowing is None:
            knowing = self._warm[snapshot] = {}
        else:
            busiest = (freest.slots - freest.free) * self._busier
            for worker in islice(knowing, _PROBES):
                # An infinite lead over an idle worker is not a number; such a lead always prefers.
                if worker.free and not worker.slots - worker.free > busiest:
                    return worker
        knowing[freest] = None
        freest.warm[snapshot] = None
        if len(freest.warm) > REMEMBERED_SNAPSHOTS:
            self._forget(freest, freest.warm.popitem(last=False)[0])
        return freest

    def _forget(self, worker: _Worker, snapshot: tuple[int, int]) -> None:
        knowing = self._warm[snapshot]
        del knowing[worker]
        if not knowing:
            del self._warm[snapshot]

    def _move(self, worker: _Worker, free: int) -> None:
        """Note that an open worker has *free* slots now."""
        before, worker.free = worker.free, free
        if not worker.open:
            return
        by_free = self._by_free
        peers = by_free[before]
        del peers[worker]
        if not peers:
            del by_free[before]
        others = by_free.get(free)
        if others is None:
            by_free[free] = {worker: None}
        else:
            others[worker] = None
        if free > self._most_free:
            self._most_free = free
        elif not peers and before == self._most_free:
            # The worker itself went down by one (a dispatch): nobody can be between.
            self._most_free = free

    def _close(self, worker: _Worker) -> None:
        """Send the worker nothing more."""
        if not worker.open:
            return
        worker.open = False
        peers = self._by_free[worker.free]
        del peers[worker]
        if not peers:
            del self._by_free[worker.free]
            if worker.free == self._most_free:
                self._most_free = max(self._by_free, default=0)
        for snapshot in worker.warm:
            self._forget(worker, snapshot)
        worker.warm.clear()

    def _settle(
        self,
        orders: Orders,
        trial: _Trial,
        outcome: object | None,
        error: ErrorType | None,
        message: str,
        now: float,
    ) -> None:
        """Answer the client. The trial's queue or worker is the caller's to see to."""
        worker = trial.worker
        waited = 0.0 if worker else now - trial.since
        del trial.client.trials[trial.ticket.client_trial_id]
        self._settled += 1
        orders.settle.append(
            Settled(
                trial.ticket,
                outcome,
                error,
                message,
                worker.worker_id if worker else "",
                trial.attempts,
                trial.queue_s + waited,
                now - trial.since if worker else 0.0,
            )
        )

    def _abandon(self, orders: Orders, trial: _Trial, now: float) -> None:
        """Ask the worker to stop a settled trial; its slot stays taken until the worker says so."""
        worker = trial.worker
        assert worker is not None
        del worker.running[trial.attempt_id]
        worker.abandoned[trial.attempt_id] = trial
        self._disarm(trial)
        self._arm(trial, now + self._grace_s)
        orders.cancel.setdefault(worker.worker_id, []).append(trial.attempt_id)

    def _release(self, worker: _Worker, attempt_id: int) -> int:
        """Return how many slots an abandoned attempt gives back: 1, or 0 where there is none."""
        trial = worker.abandoned.pop(attempt_id, None)
        if trial is None:
            return 0
        self._disarm(trial)
        worker.stuck -= trial.stuck
        return 1

    # A cancelled timer stays in the heap until it comes up or until stale ones are the majority.

    def _arm(self, trial: _Trial, due: float) -> None:
        timers = self._timers
        trial.due = due
        self._timers_live += 1
        self._timers_made += 1
        heapq.heappush(timers, (due, self._timers_made, trial))
        if len(timers) > 2 * self._timers_live + _STALE_TIMERS:
            timers[:] = [entry for entry in timers if entry[2].due == entry[0]]
            heapq.heapify(timers)

    def _disarm(self, trial: _Trial) -> None:
        if trial.due >= 0.0:
            trial.due = _UNSET
            self._timers_live -= 1
