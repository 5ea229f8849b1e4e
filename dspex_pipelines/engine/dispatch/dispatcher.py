"""Which trial runs where, and what becomes of it: events in, orders out, no I/O and no clock.

Every event takes the time as a value (monotonic seconds) and returns `Orders` for the caller to carry out, in any
order. A trial is settled exactly once, by its attempt: whatever comes later for that attempt only frees its slot.
Every event costs a constant time per trial it moves, whatever the number of trials, clients and workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from dspex_pipelines.engine.dispatch.board import Board
from dspex_pipelines.engine.dispatch.failures import Failures
from dspex_pipelines.engine.dispatch.quarantine import NEVER
from dspex_pipelines.engine.dispatch.queues import Trial
from dspex_pipelines.engine.dispatch.retries import Fault, RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Orders, Settled, Stats, Ticket, WorkerStats
from dspex_pipelines.model.outcome import ErrorType


class Dispatcher:
    """Hands trials to workers.

    * A worker is sent at most its free slots; a trial may take several, and one that finds no worker with so many free
      waits, and the others with it. Within a client trials go in the order of submission; clients with
      trials waiting take turns, each as many as its weight.
    * A worker that has run the ticket's snapshot is preferred while it has a free slot and is at most
      `affinity_lead` (a fraction) busier than the worker with the most free slots, which is taken otherwise: knowing a
      snapshot saves building one instance, and must not leave other workers idle. ``float("inf")`` always prefers.
    * The run clock starts at dispatch. At the deadline the trial is settled as `TIMEOUT_RUN` and its worker asked to
      cancel it; the slot stays taken until the worker says `release` or `finish`. A worker of which a quarter of the
      slots (at least one) stay so for longer than `grace_s` gets no more trials and is named in `Orders.retire`; one
      whose program loop such a trial holds is named in `Orders.kill`.
    * A worker that has been silent for `silence_s` at a trial's deadline is held by some trial. If it has said by
      which, that one's deadline decides, or the overdue one's time over again if that is shorter, and the worker is
      named in `Orders.kill`. If not, it is named in `Orders.inspect`, and whoever looks calls `hung` with the suspects;
      if nobody does within `inspect_s`, the deadline holds. One that has been quiet for half of `silence_s` is given
      the rest of it, so that a worker held shortly before the deadline does not cost its other trials theirs.
    * The trials of a lost worker are suspects. They go, in halves, to workers that run suspects only; what kills such a
      worker is halved again, and a trial that does so `MOST_DEATHS` times alone is settled as `POISON`. A worker that
      had been asked to leave says nothing about a trial when it is lost, but only once. Orders say how many such
      workers are wanted; where none comes within `reserve_after_s`, an ordinary worker is set apart, and another one,
      or another is wanted, where trials without a deadline keep those there are for `patience_s`.
    * A failed attempt is followed by another as the `RetryPolicy` says; the trial waits at nobody's cost, and is next
      among those of its client when its time has come. A trial that workers give back unbegun `MOST_RETURNS` times is
      settled as `WORKER_LOST`.
    """

    def __init__(
        self,
        *,
        retries: RetryPolicy | None = None,
        grace_s: float = 1.0,
        silence_s: float = 1.5,
        inspect_s: float = 2.0,
        reserve_after_s: float = 5.0,
        most_quarantined: int = 2,
        patience_s: float = 60.0,
        quarantine_idle_s: float = 10.0,
        affinity_lead: float = 0.25,
        rng: random.Random | None = None,
    ) -> None:
        self._board = board = Board(
            affinity_lead=affinity_lead,
            grace_s=grace_s,
            most_quarantined=most_quarantined,
            reserve_after_s=reserve_after_s,
            patience_s=patience_s,
            quarantine_idle_s=quarantine_idle_s,
        )
        self._queues = board.queues
        self._fleet = board.fleet
        self._timers = board.timers
        self._quarantine = board.quarantine
        self._failures = Failures(
            board,
            retries=retries or RetryPolicy(),
            rng=rng or random.Random(),  # noqa: S311 - spreads retries, hides nothing
            silence_s=silence_s,
            inspect_s=inspect_s,
        )

    # Workers

    def attach(self, worker_id: str, slots: int, now: float, *, quarantine: bool = False) -> Orders:
        """Take a worker into use; raises `ValueError` when one of that id is attached or *slots* is below 1.

        A *quarantine* worker runs suspects only.
        """
        worker = self._fleet.add(worker_id, slots, now, quarantine=quarantine)
        if quarantine:
            self._quarantine.admit(worker, now)
        return self._fill(Orders(), now)

    def heard(self, worker_id: str, now: float, *, held_by: int = 0) -> None:
        """Note a sign of life, or that the attempt *held_by* keeps the program loop from turning.

        With *held_by*, `next_deadline` may be earlier than before. An unknown worker is ignored.
        """
        worker = self._fleet.get(worker_id)
        if worker is None:
            return
        worker.held_by = held_by
        worker.heard = now
        worker.inspected = 0.0
        if held_by and (trial := worker.abandoned.get(held_by)) is not None and trial.stuck:
            self._timers.disarm(trial)
            self._timers.arm(trial, now)

    def drain_worker(self, worker_id: str, now: float) -> Orders:
        """Send a worker no more trials; those it runs may finish. An unknown worker is ignored."""
        worker = self._fleet.get(worker_id)
        if worker is not None:
            self._board.retire(worker)
        return self._fill(Orders(), now)

    def close(self, worker_id: str) -> bool:
        """Send a worker that is about to be lost nothing more; return whether it runs anything."""
        worker = self._fleet.get(worker_id)
        if worker is None:
            return False
        self._fleet.close(worker)
        self._quarantine.dismiss(worker)
        return bool(worker.running)

    def lose(self, worker_id: str, now: float, reason: str) -> Orders:
        """Suspect what the worker was running; an unknown worker is ignored."""
        return self._lose(worker_id, None, now, reason)

    def hung(self, worker_id: str, suspects: Iterable[int], now: float, reason: str) -> Orders:
        """Lose a worker that one of its trials keeps silent; only the attempts in *suspects* may have done it.

        An empty *suspects* is no help: then all are. An unknown worker is ignored.
        """
        return self._lose(worker_id, set(suspects), now, reason)

    def finish(
        self, worker_id: str, attempt_id: int, outcome: object, now: float, fault: Fault | None = None
    ) -> Orders:
        """Settle the trial of an attempt with its outcome; see `finish_many`."""
        return self.finish_many(worker_id, ((attempt_id, outcome, fault),), now)

    def finish_many(self, worker_id: str, outcomes: Iterable[tuple[int, object, Fault | None]], now: float) -> Orders:
        """Settle each attempt's trial with its outcome, or run it again, and use the slots again.

        The outcome of an attempt that was settled otherwise is ignored and only frees its slot; an attempt the worker
        does not have is ignored. An outcome that arrives late but before `tick` has seen the deadline counts.
        """
        orders = Orders()
        worker = self._fleet.get(worker_id)
        if worker is None:
            return orders
        freed = settled = 0
        board, timers, running = self._board, self._timers, worker.running
        settle = orders.settle
        for attempt_id, outcome, fault in outcomes:
            trial = running.pop(attempt_id, None)
            if trial is None:
                freed += board.release(worker, attempt_id)
                continue
            freed += trial.slots
            timers.disarm(trial)
            if fault is not None and self._failures.tries_again(orders, trial, fault, now):
                continue
            if trial.waiting_calls:
                board.end_wait(trial, now)
            ticket = trial.ticket
            del trial.client.trials[ticket.client_trial_id]
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
                    trial.history or (),
                    trial.throttled_s,
                )
            )
            settled += 1
        worker.done += settled
        board.settled += settled
        if freed:
            self._fleet.move(worker, worker.free + freed)
            self._fill(orders, now)
        return orders

    def release(self, worker_id: str, attempt_ids: Iterable[int], now: float) -> Orders:
        """Use the slots of abandoned attempts again; attempts that are not abandoned are ignored."""
        orders = Orders()
        worker = self._fleet.get(worker_id)
        if worker is None:
            return orders
        freed = sum(self._board.release(worker, attempt_id) for attempt_id in attempt_ids)
        if freed:
            self._fleet.move(worker, worker.free + freed)
            self._fill(orders, now)
        return orders

    def give_back(self, worker_id: str, attempt_ids: Iterable[int], now: float) -> Orders:
        """Run trials elsewhere that a worker has not begun and cannot begin; they are next, and it costs them nothing.

        Attempts that the worker does not have are ignored. It has to be drained before.
        """
        orders = Orders()
        worker = self._fleet.get(worker_id)
        if worker is None:
            return orders
        freed = 0
        returned: list[Trial] = []
        for attempt_id in attempt_ids:
            trial = worker.running.pop(attempt_id, None)
            if trial is None:
                freed += self._board.release(worker, attempt_id)
                continue
            freed += trial.slots
            returned.append(trial)
        self._fleet.move(worker, worker.free + freed)
        self._failures.returned(orders, worker, returned, now)
        return self._fill(orders, now)

    # Clients

    def join(self, client: int, weight: int) -> None:
        """Take in a client of a *weight*, 1 or more; one that submits without has weight 1."""
        self._queues.join(client, weight)

    def submit(self, client: int, tickets: Sequence[Ticket], now: float) -> Orders:
        """Queue *tickets* in their order.

        Raises `ValueError`, having queued none, when one is not of *client* or has the id of a trial in flight.
        """
        self._queues.submit(client, tickets, now)
        return self._fill(Orders(), now)

    def cancel(self, client: int, client_trial_ids: Iterable[int], now: float) -> Orders:
        """Settle trials as `CANCELLED`, wherever they are; those not in flight are ignored."""
        orders = Orders()
        state = self._queues.clients.get(client)
        if state is None:
            return orders
        for trial_id in client_trial_ids:
            trial = state.trials.get(trial_id)
            if trial is None:
                continue
            where = "while it ran" if trial.worker else "before it ran" if not trial.attempts else "between attempts"
            self._board.settle(orders, trial, ErrorType.CANCELLED, f"cancelled {where}", now)
            self._board.take_out(orders, trial, now)
        return self._fill(orders, now)

    def disconnect(self, client: int, now: float) -> Orders:
        """Forget a client: its waiting trials go, its running ones are cancelled, and nothing is settled."""
        orders = Orders()
        state = self._queues.forget(client)
        if state is None:
            return orders
        for trial in state.trials.values():
            self._board.take_out(orders, trial, now)
        state.trials.clear()
        return self._fill(orders, now)

    def stop(self, client: int) -> None:
        """Dispatch no trial of a client until `resume`; those that run go on."""
        state = self._queues.clients.get(client)
        if state is not None:
            state.stopped = True

    def resume(self, client: int, now: float) -> Orders:
        """Dispatch the trials of a client again."""
        self._queues.resume(client)
        return self._fill(Orders(), now)

    # Calls to models

    def client_of(self, worker_id: str, attempt_id: int) -> int:
        """Return whose trial runs as that attempt; 0 where none does."""
        worker = self._fleet.get(worker_id)
        trial = None if worker is None else worker.running.get(attempt_id)
        return 0 if trial is None else trial.ticket.client

    def weight_of(self, client: int) -> int:
        """Return a client's weight; 1 for one that is not known."""
        state = self._queues.clients.get(client)
        return 1 if state is None else state.weight

    def stop_clock(self, worker_id: str, attempt_id: int, now: float) -> None:
        """A call of that attempt waits for leave: its deadline is put off until `start_clock`, called as often."""
        worker = self._fleet.get(worker_id)
        if worker is not None and (trial := worker.running.get(attempt_id)) is not None:
            self._board.stop_clock(trial, now)

    def start_clock(self, worker_id: str, attempt_id: int, now: float) -> None:
        """A call of that attempt waits no more; an attempt that has ended is ignored."""
        worker = self._fleet.get(worker_id)
        if worker is not None and (trial := worker.running.get(attempt_id)) is not None:
            self._board.start_clock(trial, now)

    # Time

    def tick(self, now: float) -> Orders:
        """Carry out what was due at or before *now*: next attempts, deadlines, grace, and workers set apart."""
        orders = Orders()
        while (trial := self._timers.pop(now)) is not None:
            worker = trial.worker
            if worker is None:
                self._board.return_to_queue(trial)
            elif trial.attempt_id in worker.running:
                self._failures.overdue(orders, trial, worker, now)
            else:
                self._failures.unstoppable(orders, trial, worker)
        return self._fill(orders, now)

    def next_deadline(self) -> float | None:
        """Return when `tick` has something to do next, or ``None``."""
        timer = self._timers.next()
        due = min(NEVER if timer is None else timer, self._quarantine.due)
        return None if due == NEVER else due

    def stats(self) -> Stats:
        """Return the state in numbers; costs a step per client, worker and group of suspects."""
        return Stats(
            queue_depth=len(self._queues),
            backing_off=self._board.backing_off,
            suspects=self._quarantine.suspects,
            in_flight=sum(len(worker.running) for worker in self._fleet),
            settled=self._board.settled,
            workers={
                worker.worker_id: WorkerStats(
                    slots=worker.slots,
                    in_flight=len(worker.running),
                    abandoned=len(worker.abandoned),
                    done=worker.done,
                    draining=worker.draining,
                    quarantine=self._quarantine.keeps(worker),
                )
                for worker in self._fleet
            },
        )

    # Decisions

    def _fill(self, orders: Orders, now: float) -> Orders:
        """Give waiting trials to free slots until one of the two runs out."""
        if self._quarantine.active:
            self._quarantine.tend(orders, now)
        queues, fleet, dispatch = self._queues, self._fleet, self._board.dispatch
        while fleet.most_free and (trial := queues.next()) is not None:
            ticket = trial.ticket
            worker = fleet.choose(ticket.snapshot, ticket.slots)
            if worker is None:
                # The others wait with it: it would never have its turn if smaller ones always went before it.
                queues.put_back(trial)
                break
            dispatch(orders, trial, worker, now)
        return orders

    def _lose(self, worker_id: str, suspects: set[int] | None, now: float, reason: str) -> Orders:
        orders = Orders()
        worker = self._fleet.remove(worker_id)
        if worker is None:
            return orders
        self._failures.lost(orders, worker, suspects, reason, now)
        return self._fill(orders, now)
