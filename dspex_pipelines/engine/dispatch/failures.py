"""What becomes of a trial whose attempt has failed, is overdue, or went with its worker, and who is to blame for it."""

from __future__ import annotations

import random
from collections.abc import Iterable

from dspex_pipelines.engine.dispatch.board import Board
from dspex_pipelines.engine.dispatch.fleet import Worker
from dspex_pipelines.engine.dispatch.queues import Trial
from dspex_pipelines.engine.dispatch.retries import Fault, RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Orders
from dspex_pipelines.model.outcome import ErrorType

MOST_DEATHS = 2
"""A trial that so many workers died of, each while it ran it alone, is poison."""
MOST_RETURNS = 10
"""A trial that so many workers could not begin is not offered to any other."""
FEW_SUSPECTS = 4
"""So many at most are run alone each, without halving."""
_SURELY = 1.01
"""Of the time after which a worker counts as silent."""
_RETURNED = "its worker could not begin it"


class Failures:
    """Tries again, settles, or suspects; *silence_s* and *inspect_s* are those of the `Dispatcher`."""

    def __init__(
        self, board: Board, *, retries: RetryPolicy, rng: random.Random, silence_s: float, inspect_s: float
    ) -> None:
        self._board = board
        self._retries = retries
        self._rng = rng
        self._silence_s = silence_s
        self._inspect_s = inspect_s

    # Failed attempts

    def tries_again(self, orders: Orders, trial: Trial, fault: Fault, now: float) -> bool:
        """Have the trial of a failed attempt wait for its next one; return False where *fault* is its outcome."""
        if fault.type is ErrorType.WORKER_LOST:
            # It had a process to itself, so there is no one else to suspect.
            if not self._poisoned(orders, trial, fault.message, now):
                self._board.note(trial, fault, now)
                self._board.queues.put_again(trial)
            return True
        delay_s = self._retries.delay_s(
            fault, trial.history or (), most_attempts=trial.ticket.most_attempts, rng=self._rng
        )
        if delay_s is None:
            return False
        self._board.note(trial, fault, now)
        self._board.back_off(trial, now + delay_s)
        return True

    def returned(self, orders: Orders, worker: Worker, trials: Iterable[Trial], now: float) -> None:
        """Have trials that a worker could not begin run elsewhere, suspects still as such."""
        board = self._board
        again: list[Trial] = []
        for trial in trials:
            board.timers.disarm(trial)
            if sum(past.message == _RETURNED for past in trial.history or ()) + 1 >= MOST_RETURNS:
                message = f"{MOST_RETURNS} workers could not begin it; too few threads, processes or memory"
                board.settle(orders, trial, ErrorType.WORKER_LOST, message, now)
            else:
                board.note(trial, Fault(ErrorType.WORKER_LOST, _RETURNED), now)
                again.append(trial)
        if worker.group is not None:
            board.quarantine.halve(again)
        else:
            for trial in again:
                board.queues.put_again(trial)

    def _poisoned(self, orders: Orders, trial: Trial, reason: str, now: float) -> bool:
        """A process died of the trial alone; settle it as poison the second time, and return whether it was."""
        trial.deaths += 1
        if trial.deaths < MOST_DEATHS:
            return False
        message = f"{trial.deaths} processes died while they ran it alone; the last: {reason}"
        self._board.settle(orders, trial, ErrorType.POISON, message, now)
        return True

    # Deadlines

    def overdue(self, orders: Orders, trial: Trial, worker: Worker, now: float) -> None:
        """Settle a trial at its deadline, unless another one is, or may be, what held it up."""
        quiet_s = now - worker.heard
        silent = bool(worker.held_by) or quiet_s > self._silence_s
        holds = worker.held_by == trial.attempt_id or (worker.group is not None and worker.group.alone)
        if not silent and not holds and quiet_s > self._silence_s / 2:
            # A heartbeat is late: in a moment it is known whether something holds the worker.
            self._board.timers.arm(trial, worker.heard + _SURELY * self._silence_s)
            return
        if silent and not holds and self._postponed(orders, trial, worker, now):
            return
        message = f"no outcome within {trial.ticket.timeout_s:g} s of its start"
        self._board.settle(orders, trial, ErrorType.TIMEOUT_RUN, message, now)
        self._board.abandon(orders, trial, now)
        if silent and holds:
            self._board.kill(orders, worker, trial.attempt_id)

    def _postponed(self, orders: Orders, trial: Trial, worker: Worker, now: float) -> bool:
        """Find out what holds up a trial that is overdue; return whether it is given the time for that."""
        if worker.held_by:
            holder = worker.running.get(worker.held_by)
            # It waits for the other's deadline, but no longer than it might have run itself.
            patience = trial.since + 2.0 * trial.ticket.timeout_s
            until = 0.0
            if holder is not None:
                # One whose clock stands still has no deadline, but what it keeps from turning has.
                until = patience if holder.waiting_calls else min(holder.due, patience)
            if until < now or patience <= now:
                # Settled already, or free to take as long as it likes; but not from others.
                self._board.kill(orders, worker, worker.held_by)
                until = now + self._inspect_s
        else:
            if not worker.inspected:
                worker.inspected = now
                orders.inspect.append(worker.worker_id)
            until = worker.inspected + self._inspect_s
            if until <= now:
                return False
        self._board.timers.arm(trial, until)
        return True

    def unstoppable(self, orders: Orders, trial: Trial, worker: Worker) -> None:
        """A settled trial has not stopped in time: do without its slot, or without its worker."""
        if worker.held_by == trial.attempt_id:
            # Nobody waits for it any more, but all others in there wait for it to end.
            self._board.kill(orders, worker, trial.attempt_id)
        elif not trial.stuck:
            trial.stuck = True
            worker.stuck += 1
            orders.stuck.append((worker.worker_id, trial.attempt_id))
            # Beside a trial that does not stop, no suspect can be alone.
            if worker.stuck >= worker.stuck_limit or self._board.quarantine.keeps(worker):
                self._board.replace(orders, worker)

    # Lost workers

    def lost(self, orders: Orders, worker: Worker, suspects: set[int] | None, reason: str, now: float) -> None:
        """Suspect what ran on a worker that is gone, or of it only *suspects*, of having ended it."""
        board, quarantine = self._board, self._board.quarantine
        quarantine.dismiss(worker)
        for trial in (*worker.abandoned.values(), *worker.running.values()):
            board.timers.disarm(trial)
        kept = worker.group is not None
        alone = worker.group is not None and worker.group.alone
        # Whoever asks it to leave ends it when it takes too long; more than once in a row is no coincidence.
        left = worker.draining and suspects is None
        suspected: list[Trial] = []
        innocent: list[Trial] = []
        for attempt_id, trial in worker.running.items():
            spared = left and not trial.spared
            trial.spared |= spared
            if alone and not spared and self._poisoned(orders, trial, reason, now):
                continue
            cleared = attempt_id not in suspects if suspects else spared and not kept
            (innocent if cleared else suspected).append(trial)
            board.note(trial, Fault(ErrorType.WORKER_LOST, reason), now)
        if suspects and len(suspected) <= FEW_SUSPECTS:
            quarantine.single_out(suspected)
        else:
            quarantine.halve(suspected)
        for trial in innocent:
            board.queues.put_again(trial)
