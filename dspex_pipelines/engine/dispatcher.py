"""Which trial runs where, and what becomes of it: events in, orders out, no I/O and no clock.

Every event takes the time as a value (monotonic seconds) and returns `Orders` for the caller to carry out, in any
order. A trial is settled exactly once, by its attempt: whatever comes later for that attempt only frees its slot.
Every event costs a constant time per trial it moves, whatever the number of trials, clients and workers.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from dspex_pipelines.engine.fleet import Fleet, Worker
from dspex_pipelines.engine.tickets import Orders, Settled, Stats, Ticket, WorkerStats
from dspex_pipelines.engine.timers import UNSET, Timers
from dspex_pipelines.model.outcome import ErrorType


class _Client:
    __slots__ = ("queue", "ready", "trials")

    def __init__(self) -> None:
        self.queue: OrderedDict[int, _Trial] = OrderedDict()
        self.trials: dict[int, _Trial] = {}
        self.ready = False


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
        self.worker: Worker[_Trial] | None = None
        self.attempt_id = 0
        self.attempts = 0
        self.since = now
        """When it was queued or dispatched, whichever was later."""
        self.queue_s = 0.0
        self.due = UNSET
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
        self._clients: dict[int, _Client] = {}
        self._ready: deque[_Client] = deque()
        self._fleet: Fleet[_Trial] = Fleet(affinity_lead=affinity_lead)
        self._timers: Timers[_Trial] = Timers()
        self._last_attempt_id = 0
        self._settled = 0

    # Workers

    def attach(self, worker_id: str, slots: int, now: float) -> Orders:
        """Take a worker into use; raises `ValueError` when one of that id is attached or *slots* is below 1."""
        self._fleet.add(worker_id, slots)
        orders = Orders()
        self._fill(orders, now)
        return orders

    def drain_worker(self, worker_id: str, now: float) -> Orders:
        """Send a worker no more trials; those it runs may finish. An unknown worker is ignored."""
        del now
        worker = self._fleet.get(worker_id)
        if worker is not None:
            self._fleet.close(worker)
        return Orders()

    def lose(self, worker_id: str, now: float, reason: str) -> Orders:
        """Requeue what the worker was running, or settle it as `WORKER_LOST`; an unknown worker is ignored."""
        orders = Orders()
        worker = self._fleet.remove(worker_id)
        if worker is None:
            return orders
        for trial in worker.abandoned.values():
            self._timers.disarm(trial)
        # Backwards, so that the first to be dispatched ends up first in the queue.
        kept: list[_Trial] = []
        for trial in worker.running.values():
            self._timers.disarm(trial)
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
        worker = self._fleet.get(worker_id)
        if worker is None:
            return orders
        freed = 0
        running, timers = worker.running, self._timers
        settle = orders.settle
        for attempt_id, outcome in outcomes:
            trial = running.pop(attempt_id, None)
            if trial is None:
                freed += self._release(worker, attempt_id)
                continue
            freed += 1
            timers.disarm(trial)
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
            self._fleet.move(worker, worker.free + freed)
            if self._ready:
                self._fill(orders, now)
        return orders

    def release(self, worker_id: str, attempt_ids: Iterable[int], now: float) -> Orders:
        """Use the slots of abandoned attempts again; attempts that are not abandoned are ignored."""
        orders = Orders()
        worker = self._fleet.get(worker_id)
        if worker is None:
            return orders
        freed = sum(self._release(worker, attempt_id) for attempt_id in attempt_ids)
        if freed:
            self._fleet.move(worker, worker.free + freed)
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
        while (trial := self._timers.pop(now)) is not None:
            worker = trial.worker
            assert worker is not None
            if trial.attempt_id in worker.running:
                message = f"no outcome within {trial.ticket.timeout_s:g} s of its start"
                self._settle(orders, trial, None, ErrorType.TIMEOUT_RUN, message, now)
                self._abandon(orders, trial, now)
                continue
            trial.stuck = True
            worker.stuck += 1
            if worker.stuck >= worker.stuck_limit and not worker.retired:
                worker.retired = True
                self._fleet.close(worker)
                orders.retire.append(worker.worker_id)
        return orders

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do next, or ``None``."""
        return self._timers.next()

    def stats(self) -> Stats:
        """Return the state in numbers; costs a step per client and worker."""
        return Stats(
            queue_depth=sum(len(client.queue) for client in self._clients.values()),
            in_flight=sum(len(worker.running) for worker in self._fleet),
            settled=self._settled,
            workers={
                worker.worker_id: WorkerStats(
                    slots=worker.slots,
                    in_flight=len(worker.running),
                    abandoned=len(worker.abandoned),
                    done=worker.done,
                    draining=not worker.open,
                )
                for worker in self._fleet
            },
        )

    # Decisions

    def _fill(self, orders: Orders, now: float) -> None:
        """Give waiting trials to free slots until one of the two runs out."""
        ready = self._ready
        while ready and self._fleet.most_free:
            client = ready[0]
            if not client.queue:
                client.ready = False
                ready.popleft()
                continue
            _, trial = client.queue.popitem(last=False)
            if len(ready) > 1:
                ready.rotate(-1)
            ticket = trial.ticket
            worker = self._fleet.choose((ticket[2], ticket[3]))
            self._fleet.move(worker, worker.free - 1)
            self._last_attempt_id = attempt_id = self._last_attempt_id + 1
            trial.worker = worker
            trial.attempt_id = attempt_id
            trial.attempts += 1
            trial.queue_s += now - trial.since
            trial.since = now
            worker.running[attempt_id] = trial
            if ticket[4] > 0:
                self._timers.arm(trial, now + ticket[4])
            sent = orders.dispatch.get(worker.worker_id)
            if sent is None:
                orders.dispatch[worker.worker_id] = [(attempt_id, ticket)]
            else:
                sent.append((attempt_id, ticket))

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
        self._timers.disarm(trial)
        self._timers.arm(trial, now + self._grace_s)
        orders.cancel.setdefault(worker.worker_id, []).append(trial.attempt_id)

    def _release(self, worker: Worker[_Trial], attempt_id: int) -> int:
        """Return how many slots an abandoned attempt gives back: 1, or 0 where there is none."""
        trial = worker.abandoned.pop(attempt_id, None)
        if trial is None:
            return 0
        self._timers.disarm(trial)
        worker.stuck -= trial.stuck
        return 1
