"""Where every trial in flight is, and how it gets from one place to another: queued, with a worker, waiting, settled.

It decides nothing: which trial goes where, and when, is up to the `Dispatcher` and, where something has gone wrong, to
`Failures`.
"""

from __future__ import annotations

from dataclasses import replace

from dspex_pipelines.engine.dispatch.fleet import Fleet, Worker
from dspex_pipelines.engine.dispatch.quarantine import Quarantine
from dspex_pipelines.engine.dispatch.queues import Queues, Trial
from dspex_pipelines.engine.dispatch.retries import Fault
from dspex_pipelines.engine.dispatch.tickets import Orders, Settled
from dspex_pipelines.engine.timers import UNSET, Timers
from dspex_pipelines.model.outcome import Attempt, ErrorType


class Board:
    """Queues, workers, suspects and timers, kept in step with each other.

    A worker has *grace_s* to stop a trial that it is asked to; see `Quarantine` for the rest.
    """

    def __init__(
        self,
        *,
        affinity_lead: float,
        grace_s: float,
        most_quarantined: int,
        reserve_after_s: float,
        patience_s: float,
        quarantine_idle_s: float,
    ) -> None:
        self.queues = Queues()
        self.fleet = Fleet(affinity_lead=affinity_lead)
        self.timers: Timers[Trial] = Timers()
        self.quarantine = Quarantine(
            self.fleet,
            self.dispatch,
            self.replace,
            most_workers=most_quarantined,
            reserve_after_s=reserve_after_s,
            patience_s=patience_s,
            idle_s=quarantine_idle_s,
        )
        self.settled = 0
        self.backing_off = 0
        self._grace_s = grace_s
        self._last_attempt_id = 0

    # Trials

    def dispatch(self, orders: Orders, trial: Trial, worker: Worker, now: float) -> None:
        """Send a trial that is nowhere to a worker that has a free slot."""
        ticket = trial.ticket
        slots, free = ticket.slots, worker.free
        if slots > free:  # noqa: PLR1730 - `min` takes as long as half of the rest
            slots = free
        trial.slots = slots
        self.fleet.move(worker, free - slots)
        self._last_attempt_id = attempt_id = self._last_attempt_id + 1
        trial.worker = worker
        trial.attempt_id = attempt_id
        trial.attempts += 1
        trial.queue_s += now - trial.since
        trial.since = now
        worker.running[attempt_id] = trial
        if ticket.timeout_s > 0:
            self.timers.arm(trial, now + ticket.timeout_s)
        orders.dispatch[worker.worker_id].append((attempt_id, ticket))

    def stop_clock(self, trial: Trial, now: float) -> None:
        """One more of its calls waits for leave."""
        trial.waiting_calls += 1
        if trial.waiting_calls == 1:
            trial.waits_since = now
            trial.left_s = max(0.0, trial.due - now) if trial.due >= 0.0 else UNSET
            self.timers.disarm(trial)

    def start_clock(self, trial: Trial, now: float) -> None:
        """One of its calls waits no more."""
        if trial.waiting_calls > 1:
            trial.waiting_calls -= 1
        elif self.end_wait(trial, now) and trial.left_s != UNSET:
            self.timers.arm(trial, now + trial.left_s)

    def end_wait(self, trial: Trial, now: float) -> bool:
        """Count how long a trial's clock has stood still; return False where it has not."""
        if not trial.waiting_calls:
            return False
        trial.waiting_calls = 0
        waited_s = now - trial.waits_since
        trial.throttled_s += waited_s
        trial.since += waited_s
        return True

    def settle(self, orders: Orders, trial: Trial, error: ErrorType, message: str, now: float) -> None:
        """Answer the client. Where the trial is now is the caller's to see to."""
        self.end_wait(trial, now)
        worker = trial.worker
        waited = 0.0 if worker else now - trial.since
        del trial.client.trials[trial.ticket.client_trial_id]
        self.settled += 1
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
                trial.throttled_s,
            )
        )

    def note(self, trial: Trial, fault: Fault, now: float) -> None:
        """Write down an attempt that does not settle its trial, which has no worker from here on."""
        worker = trial.worker
        assert worker is not None
        self.end_wait(trial, now)
        if trial.history is None:
            trial.history = []
        queue_s = trial.queue_s - sum(past.queue_s for past in trial.history)
        trial.history += (replace(call, number=trial.attempts, worker=worker.worker_id) for call in fault.calls)
        attempt = Attempt(
            number=trial.attempts,
            worker=worker.worker_id,
            type=fault.type,
            message=fault.message,
            fingerprint=fault.fingerprint,
            queue_s=queue_s,
            run_s=now - trial.since,
            usage_payload=fault.usage,
        )
        trial.history.append(attempt)
        trial.worker = None
        trial.group = None
        trial.since = now

    def back_off(self, trial: Trial, until: float) -> None:
        """Have a trial that is nowhere wait for the time of its next attempt."""
        self.timers.arm(trial, until)
        self.backing_off += 1

    def return_to_queue(self, trial: Trial) -> None:
        """The time of its next attempt has come."""
        self.backing_off -= 1
        self.queues.put_again(trial)

    def take_out(self, orders: Orders, trial: Trial, now: float) -> None:
        """Take a trial that nobody waits for any more from where it is."""
        if trial.worker is not None:
            self.abandon(orders, trial, now)
        elif trial.due >= 0.0:
            self.timers.disarm(trial)
            self.backing_off -= 1
        elif trial.group is not None:
            self.quarantine.remove(trial)
        else:
            self.queues.remove(trial)

    def abandon(self, orders: Orders, trial: Trial, now: float) -> None:
        """Ask the worker to stop a settled trial; its slot stays taken until the worker says so."""
        worker = trial.worker
        assert worker is not None
        del worker.running[trial.attempt_id]
        worker.abandoned[trial.attempt_id] = trial
        self.timers.disarm(trial)
        self.timers.arm(trial, now + self._grace_s)
        orders.cancel.setdefault(worker.worker_id, []).append(trial.attempt_id)

    def release(self, worker: Worker, attempt_id: int) -> int:
        """Return how many slots an abandoned attempt gives back, 0 where there is none."""
        trial = worker.abandoned.pop(attempt_id, None)
        if trial is None:
            return 0
        self.timers.disarm(trial)
        worker.stuck -= trial.stuck
        return trial.slots

    # Workers

    def retire(self, worker: Worker) -> None:
        """Send the worker nothing more."""
        worker.draining = True
        self.fleet.close(worker)
        self.quarantine.dismiss(worker)

    def replace(self, orders: Orders, worker: Worker) -> None:
        """Have another worker in the place of one that has trials which do not stop."""
        if not worker.retired:
            worker.retired = True
            self.retire(worker)
            orders.retire.append(worker.worker_id)

    def kill(self, orders: Orders, worker: Worker, attempt_id: int) -> None:
        """Have a worker killed that the attempt holds."""
        self.retire(worker)
        orders.kill[worker.worker_id] = attempt_id
