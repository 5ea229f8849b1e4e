"""What each trial of a simulated pool deserves, and how long all of them may take."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from dspex_pipelines.engine.dispatch.retries import RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Settled
from dspex_pipelines.model.outcome import ErrorType
from tests.engine.schedules import KILLING, Kind, Schedule, charged

if TYPE_CHECKING:
    from tests.engine.records import Entry

SILENT_S = 10.0
"""The bridge gives up a worker that is silent for so long."""
MOST_DEATHS = 2


def bound_s(schedule: Schedule, retries: RetryPolicy) -> float:
    """Return how long everything may take: its work one after the other, and each misfortune with what it costs."""
    trials = [trial for client in schedule.clients for trial in client.trials]
    longest_s = max(max(trial.program.takes_s, trial.timeout_s) for trial in trials)
    round_s = longest_s + schedule.boot_s[1] + 15.0
    rounds = math.ceil(math.log2(schedule.slots)) + 4
    total = 60.0 + len(schedule.faults) * (20.0 + schedule.drain_s + round_s)
    longest_wait_s = 0.0
    for trial in trials:
        program = trial.program
        total += program.takes_s
        if program.kind in KILLING or program.kind is Kind.HOLDS_INTERPRETER:
            total += rounds * round_s
        elif program.kind not in {Kind.HEALTHY, Kind.DEADLY_TO_ITS_OWN}:
            total += round_s + schedule.drain_s
        if program.kind in {Kind.RECOVERS, Kind.REPEATS}:
            most, _ = charged(trial, retries)
            waits_s = sum(min(retries.cap_s, retries.base_s * 2**n) for n in range(most))
            waits_s += most * (program.retry_after_s + program.takes_s)
            # Some of them wait at the same time.
            total += waits_s / 4
            longest_wait_s = max(longest_wait_s, waits_s)
    return total + longest_wait_s


def earned(entry: Entry, one: Settled, retries: RetryPolicy) -> bool:
    """Return whether the outcome is what the program earns, whatever went on around it."""
    plan, kind = entry.plan, entry.plan.program.kind
    match kind:
        case Kind.DEADLY | Kind.DEADLY_TO_ITS_OWN | Kind.LEAKY:
            error = ErrorType.POISON
        case Kind.HOLDS_INTERPRETER if not 0 < plan.timeout_s <= SILENT_S:
            # The bridge does not wait for its deadline, not even when it is alone.
            error = ErrorType.POISON
        case Kind.HANGS | Kind.RAISES_LATE | Kind.HOLDS_LOOP | Kind.HOLDS_INTERPRETER:
            error = ErrorType.TIMEOUT_RUN
        case Kind.ENDLESS | Kind.ENDLESS_LOOP:
            error = ErrorType.CANCELLED
        case _:
            most, fails = charged(plan, retries)
            answer = "failed" if fails else "done"
            return one.error is None and entry.attempts[-1].answered[0] == answer and entry.failed == most
    alone = sum(attempt.alone for attempt in entry.attempts)
    return one.error is error and (error is not ErrorType.POISON or alone >= MOST_DEATHS)


def excused(entry: Entry, one: Settled) -> bool:
    """Return whether what came from outside explains the outcome."""
    last = entry.attempts[-1] if entry.attempts else None
    if one.error is ErrorType.CANCELLED:
        return entry.cancelled
    if last is None:
        return False
    match one.error:
        case None:
            # It was given more time than was promised, while it was found out what held its worker up.
            late = entry.plan.program.kind is Kind.RAISES_LATE and one.run_s > entry.plan.timeout_s
            return late and (last.disturbed or last.held_up)
        case ErrorType.TIMEOUT_RUN:
            # It was stopped for too short a time to be noticed, and for too long to end in time.
            return last.disturbed
        case _:
            # It was alone each time, so that nobody can say that it was not what stopped its worker.
            return sum(attempt.disturbed for attempt in entry.attempts) >= MOST_DEATHS
