"""Which trial runs where, and what becomes of it: events in, orders out, no I/O and no clock.

Every event takes the time as a value (monotonic seconds) and returns `Orders` for the caller to carry out, in any
order. A trial is settled exactly once, by its attempt: whatever comes later for that attempt only frees its slot.
Every event costs a constant time per trial it moves, whatever the number of trials, clients and workers.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

from dspex_pipelines.engine.fleet import Fleet, Worker
from dspex_pipelines.engine.quarantine import NEVER, Quarantine
from dspex_pipelines.engine.queues import Queues, Trial
from dspex_pipelines.engine.retries import Fault, RetryPolicy
from dspex_pipelines.engine.tickets import Orders, Settled, Stats, Ticket, WorkerStats
from dspex_pipelines.engine.timers import Timers
from dspex_pipelines.model.outcome import Attempt, ErrorType

MOST_DEATHS = 2
"""A trial that so many workers died of, each while it ran it alone, is poison."""
FEW_SUSPECTS = 4
"""So many at most are run alone each, without halving."""


class Dispatcher:
    """Hands trials to workers.

    * A worker is sent at most its free slots; a trial may take several, and one that finds no worker with so many free
      waits, and the others with it. Within a client trials go in the order of submission; clients with
      trials waiting take turns.
    * A worker that has run the ticket's (session, version) is preferred while it has a free slot and is at most
      `affinity_lead` (a fraction) busier than the worker with the most free slots, which is taken otherwise: knowing a
      snapshot saves building one instance, and must not leave other workers idle. ``float("inf")`` always prefers.
    * The run clock starts at dispatch. At the deadline the trial is settled as `TIMEOUT_RUN` and its worker asked to
      cancel it; the slot stays taken until the worker says `release` or `finish`. A worker of which a quarter of the
      slots (at least one) stay so for longer than `grace_s` gets no more trials and is named in `Orders.retire`.
    * A worker that has been silent for `silence_s` at a trial's deadline is held by some trial. If it has said by
      which, that one's deadline decides, and the worker is named in `Orders.kill`. If not, it is named in
      `Orders.inspect`, and whoever looks calls `hung` with the suspects; if nobody does within `inspect_s`, the
      deadline holds.
    * The trials of a lost worker are suspects. They go, in halves, to workers that run suspects only; what kills such a
      worker is halved again, and a trial that does so `MOST_DEATHS` times alone is settled as `POISON`. Orders say how
      many such workers are wanted; where none comes within `reserve_after_s`, an ordinary worker is set apart.
    * A failed attempt is followed by another as the `RetryPolicy` says; the trial waits at nobody's cost.
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
        quarantine_idle_s: float = 10.0,
        affinity_lead: float = 0.25,
        rng: random.Random | None = None,
    ) -> None:
        self._retries = retries or RetryPolicy()
        self._grace_s = grace_s
        self._silence_s = silence_s
        self._inspect_s = inspect_s
        self._rng = rng or random.Random()  # noqa: S311 - spreads retries, hides nothing
        self._queues = Queues()
        self._fleet = Fleet(affinity_lead=affinity_lead)
        self._timers: Timers[Trial] = Timers()
        self._quarantine = Quarantine(
            self._fleet,
            self._dispatch,
            most_workers=most_quarantined,
            reserve_after_s=reserve_after_s,
            idle_s=quarantine_idle_s,
        )
        self._last_attempt_id = 0
        self._settled = 0
        self._backing_off = 0

    # Workers

    def attach(self, worker_id: str, slots: int, now: float, *, quarantine: bool = False) -> Orders:
        """Take a worker into use; raises `ValueError` when one of that id is attached or *slots* is below 1.

        A *quarantine* worker runs suspects only.
        """
        worker = self._fleet.add(worker_id, slots, now, quarantine=quarantine)
        if quarantine:
            self._quarantine.admit(worker)
        return self._fill(Orders(), now)

    def heard(self, worker_id: str, now: float, *, held_by: int = 0) -> None:
        """Note a sign of life, or that the attempt *held_by* keeps the program loop from turning.

        An unknown worker is ignored.
        """
        worker = self._fleet.get(worker_id)
        if worker is None:
            return
        worker.held_by = held_by
        worker.heard = now
        worker.inspected = 0.0

    def drain_worker(self, worker_id: str, now: float) -> Orders:
        """Send a worker no more trials; those it runs may finish. An unknown worker is ignored."""
        worker = self._fleet.get(worker_id)
        if worker is not None:
            self._retire(worker)
        return self._fill(Orders(), now)

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
        freed = 0
        running, timers = worker.running, self._timers
        settle = orders.settle
        for attempt_id, outcome, fault in outcomes:
            trial = running.pop(attempt_id, None)
            if trial is None:
                freed += self._release(worker, attempt_id)
                continue
            freed += trial.slots
            timers.disarm(trial)
            if fault is not None and self._run_again(orders, trial, fault, now):
                continue
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
                    trial.history or (),
                )
            )
            worker.done += 1
            self._settled += 1
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
        freed = sum(self._release(worker, attempt_id) for attempt_id in attempt_ids)
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
                freed += self._release(worker, attempt_id)
                continue
            freed += trial.slots
            self._timers.disarm(trial)
            self._note(trial, Fault(ErrorType.WORKER_LOST, "its worker could not begin it"), now)
            returned.append(trial)
        self._fleet.move(worker, worker.free + freed)
        if worker.group is not None:
            self._quarantine.halve(returned)
        else:
            for trial in reversed(returned):
                self._queues.put_first(trial)
        return self._fill(orders, now)

    # Clients

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
            self._settle(orders, trial, ErrorType.CANCELLED, f"cancelled {where}", now)
            self._take_out(orders, trial, now)
        return self._fill(orders, now)

    def disconnect(self, client: int, now: float) -> Orders:
        """Forget a client: its waiting trials go, its running ones are cancelled, and nothing is settled."""
        orders = Orders()
        state = self._queues.forget(client)
        if state is None:
            return orders
        for trial in state.trials.values():
            self._take_out(orders, trial, now)
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

    # Time

    def tick(self, now: float) -> Orders:
        """Carry out what was due at or before *now*: next attempts, deadlines, grace, and workers set apart."""
        orders = Orders()
        while (trial := self._timers.pop(now)) is not None:
            worker = trial.worker
            if worker is None:
                self._backing_off -= 1
                self._queues.put_first(trial)
            elif trial.attempt_id in worker.running:
                self._overdue(orders, trial, worker, now)
            elif worker.held_by == trial.attempt_id:
                # Nobody waits for it any more, but all others in there wait for it to end.
                self._kill(orders, worker, trial.attempt_id)
            else:
                trial.stuck = True
                worker.stuck += 1
                if worker.stuck >= worker.stuck_limit and not worker.retired:
                    worker.retired = True
                    self._retire(worker)
                    orders.retire.append(worker.worker_id)
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
            backing_off=self._backing_off,
            suspects=self._quarantine.suspects,
            in_flight=sum(len(worker.running) for worker in self._fleet),
            settled=self._settled,
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
        queues, fleet = self._queues, self._fleet
        while queues and fleet.most_free:
            trial = queues.next()
            if trial is None:
                break
            ticket = trial.ticket
            worker = fleet.choose((ticket[2], ticket[3]), ticket[7])
            if worker is None:
                # The others wait with it: it would never have its turn if smaller ones always went before it.
                queues.put_first(trial)
                break
            self._dispatch(orders, trial, worker, now)
        return orders

    def _dispatch(self, orders: Orders, trial: Trial, worker: Worker, now: float) -> None:
        ticket = trial.ticket
        slots = trial.slots = min(ticket[7], worker.free)
        self._fleet.move(worker, worker.free - slots)
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

    def _settle(self, orders: Orders, trial: Trial, error: ErrorType, message: str, now: float) -> None:
        """Answer the client. Where the trial is now is the caller's to see to."""
        worker = trial.worker
        waited = 0.0 if worker else now - trial.since
        del trial.client.trials[trial.ticket.client_trial_id]
        self._settled += 1
        orders.settle.append(
            Settled(
                trial.ticket,
                None,
                error,
                message,
                worker.worker_id if worker else "",
                trial.attempts,
                trial.queue_s + waited,
                now - trial.since if worker else 0.0,
                trial.history or (),
            )
        )

    def _take_out(self, orders: Orders, trial: Trial, now: float) -> None:
        """Take a trial that nobody waits for any more from where it is."""
        if trial.worker is not None:
            self._abandon(orders, trial, now)
        elif trial.due >= 0.0:
            self._timers.disarm(trial)
            self._backing_off -= 1
        elif trial.group is not None:
            del trial.group.waiting[trial]
        else:
            trial.client.queue.pop(trial.ticket.client_trial_id, None)

    def _abandon(self, orders: Orders, trial: Trial, now: float) -> None:
        """Ask the worker to stop a settled trial; its slot stays taken until the worker says so."""
        worker = trial.worker
        assert worker is not None
        del worker.running[trial.attempt_id]
        worker.abandoned[trial.attempt_id] = trial
        self._timers.disarm(trial)
        self._timers.arm(trial, now + self._grace_s)
        orders.cancel.setdefault(worker.worker_id, []).append(trial.attempt_id)

    def _release(self, worker: Worker, attempt_id: int) -> int:
        """Return how many slots an abandoned attempt gives back, 0 where there is none."""
        trial = worker.abandoned.pop(attempt_id, None)
        if trial is None:
            return 0
        self._timers.disarm(trial)
        worker.stuck -= trial.stuck
        return trial.slots

    def _retire(self, worker: Worker) -> None:
        """Send the worker nothing more."""
        worker.draining = True
        self._fleet.close(worker)
        self._quarantine.dismiss(worker)

    # Failed attempts

    def _note(self, trial: Trial, fault: Fault, now: float) -> None:
        """Write down an attempt that does not settle its trial, which has no worker from here on."""
        worker = trial.worker
        assert worker is not None
        if trial.history is None:
            trial.history = []
        attempt = Attempt(
            number=trial.attempts,
            worker=worker.worker_id,
            type=fault.type,
            message=fault.message,
            fingerprint=fault.fingerprint,
            queue_s=trial.queue_s - sum(past.queue_s for past in trial.history),
            run_s=now - trial.since,
        )
        trial.history.append(attempt)
        trial.worker = None
        trial.group = None
        trial.attempt_id = 0
        trial.since = now

    def _run_again(self, orders: Orders, trial: Trial, fault: Fault, now: float) -> bool:
        """Have the trial of a failed attempt wait for its next one; return whether there is one."""
        if fault.type is ErrorType.WORKER_LOST:
            # It had a process to itself, so there is no one else to suspect.
            if not self._poisoned(orders, trial, fault.message, now):
                self._note(trial, fault, now)
                self._queues.put_first(trial)
            return True
        delay_s = self._retries.delay_s(
            fault, trial.history or (), most_attempts=trial.ticket.most_attempts, rng=self._rng
        )
        if delay_s is None:
            return False
        self._note(trial, fault, now)
        self._timers.arm(trial, now + delay_s)
        self._backing_off += 1
        return True

    def _poisoned(self, orders: Orders, trial: Trial, reason: str, now: float) -> bool:
        """A process died of the trial alone; settle it as poison the second time, and return whether it was."""
        trial.deaths += 1
        if trial.deaths < MOST_DEATHS:
            return False
        message = f"{trial.deaths} processes died while they ran it alone; the last: {reason}"
        self._settle(orders, trial, ErrorType.POISON, message, now)
        return True

    def _overdue(self, orders: Orders, trial: Trial, worker: Worker, now: float) -> None:
        """Settle a trial at its deadline, unless another one is, or may be, what held it up."""
        silent = bool(worker.held_by) or now - worker.heard > self._silence_s
        holds = worker.held_by == trial.attempt_id or (worker.group is not None and worker.group.alone)
        if silent and not holds and self._postponed(orders, trial, worker, now):
            return
        message = f"no outcome within {trial.ticket.timeout_s:g} s of its start"
        self._settle(orders, trial, ErrorType.TIMEOUT_RUN, message, now)
        self._abandon(orders, trial, now)
        if silent and holds:
            self._kill(orders, worker, trial.attempt_id)

    def _postponed(self, orders: Orders, trial: Trial, worker: Worker, now: float) -> bool:
        """Find out what holds up a trial that is overdue; return whether it is given the time for that."""
        if worker.held_by:
            holder = worker.running.get(worker.held_by)
            until = holder.due if holder is not None else 0.0
            if until < now:
                # Settled already, or free to take as long as it likes; but not from others.
                self._kill(orders, worker, worker.held_by)
                until = now + self._inspect_s
        else:
            if not worker.inspected:
                worker.inspected = now
                orders.inspect.append(worker.worker_id)
            until = worker.inspected + self._inspect_s
            if until <= now:
                return False
        self._timers.arm(trial, until)
        return True

    def _kill(self, orders: Orders, worker: Worker, attempt_id: int) -> None:
        self._retire(worker)
        orders.kill[worker.worker_id] = attempt_id

    def _lose(self, worker_id: str, suspects: set[int] | None, now: float, reason: str) -> Orders:
        orders = Orders()
        worker = self._fleet.remove(worker_id)
        if worker is None:
            return orders
        self._quarantine.dismiss(worker)
        for trial in (*worker.abandoned.values(), *worker.running.values()):
            self._timers.disarm(trial)
        alone = worker.group is not None and worker.group.alone
        suspected: list[Trial] = []
        innocent: list[Trial] = []
        for attempt_id, trial in worker.running.items():
            if alone and self._poisoned(orders, trial, reason, now):
                continue
            (innocent if suspects and attempt_id not in suspects else suspected).append(trial)
            self._note(trial, Fault(ErrorType.WORKER_LOST, reason), now)
        if suspects and len(suspected) <= FEW_SUSPECTS:
            self._quarantine.single_out(suspected)
        else:
            self._quarantine.halve(suspected)
        # Backwards, so that the first to be dispatched ends up first in the queue.
        for trial in reversed(innocent):
            self._queues.put_first(trial)
        return self._fill(orders, now)
