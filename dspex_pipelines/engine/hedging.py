"""Gives trials that take long a second copy: the first answer counts, and the other copy is cancelled.

These are the hedged requests of J. Dean and L. A. Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, insort
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from enum import IntEnum
from functools import partial
from typing import Any

from dspex_pipelines.engine.alarm import Alarm
from dspex_pipelines.engine.calls.trial_calls import MOST_AMOUNT
from dspex_pipelines.engine.runner import DurablePool
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult, continued
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.trial import TrialSpec
from dspex_pipelines.model.usage import UNTOLD_COPIES, usage_of

KEPT = 1_000
"""Durations that the quantile is of: the last ones, as providers have slower hours."""
ANSWER_S = 1.0
"""How long an outcome waits for what became of the copy that was cancelled; the bridge says so at once."""


class HedgedPool:
    """What a runner asks of a pool; trials that run for longer than most are sent a second time.

    How long one runs is counted from when it was running at the latest. A pool begins the trials of a client in the
    order in which it was sent them, so once one has run, those that were sent before it have begun; one that only waits
    for a slot gets no second copy. *may* is asked before each one, with the id of its trial.

    A result counts, and so does an error that would not be run again. After another error the other copy is waited for.
    """

    def __init__(self, pool: DurablePool, policy: Hedging, *, may: Callable[[bytes], bool] = lambda _: True) -> None:
        self.open_session = pool.open_session
        self.set_variables, self.make_versions = pool.set_variables, pool.make_versions
        self._pool = pool
        self._policy = policy
        self._may = may
        self._loop = asyncio.get_running_loop()
        self._durations = _Durations(policy.quantile)
        self._sent = 0
        self._ended = 0
        """Trials that have a final outcome."""
        self._waiting: OrderedDict[int, _Flight] = OrderedDict()
        """Trials that may still wait for a slot, in the order in which they were sent."""
        self._running: OrderedDict[int, _Flight] = OrderedDict()
        """Trials that run and have one copy, those that began first in front."""
        self._latest = -math.inf
        """When the last of those that run had begun."""
        self._alarm = Alarm(self._look)
        self.hedged = 0
        """Trials that were sent a second time."""
        self.won = 0
        """Those of them that the second copy answered first."""

    async def execute(
        self,
        spec: TrialSpec,
        *,
        session_id: int,
        version: int,
        timeout_s: float,
        outputs: bytes = b"",
        most_attempts: int = 0,
    ) -> TrialOutcome:
        """Run a trial as the pool does, in two copies if it takes long; raises what the first to end raises.

        Cancelling the wait cancels both. *timeout_s* is the run limit of each.
        """
        send = partial(
            self._pool.execute,
            spec,
            session_id=session_id,
            version=version,
            timeout_s=timeout_s,
            outputs=outputs,
            most_attempts=most_attempts,
        )
        if outputs:
            return await send()
        flight = self._begin(spec)
        first = _Copy(send)
        copies = [first]
        try:
            await asyncio.wait((first.task, flight.due), return_when=asyncio.FIRST_COMPLETED)
            if first.task.done():
                self.hedged -= flight.due.done()
                outcome = first.task.result()
            else:
                copies.append(_Copy(send))
                outcome = await self._first_of(spec, *copies)
            self._end(flight, outcome)
            return outcome
        finally:
            self._waiting.pop(flight.number, None)
            self._running.pop(flight.number, None)
            await _stop(copies)

    def send(self, *_: Any, **__: Any) -> int:
        """Begin nothing: each trial is awaited."""
        return 0

    def drop(self, answered: Any) -> None:
        """Cancel what was begun, which is nothing."""

    async def _first_of(self, spec: TrialSpec, first: _Copy, second: _Copy) -> TrialOutcome:
        await asyncio.wait((first.task, second.task), return_when=asyncio.FIRST_COMPLETED)
        ahead, behind = (first, second) if first.standing <= second.standing else (second, first)
        outcome = ahead.task.result()
        if ahead.standing is _Standing.SETTLED:
            behind.withdraw()
            await asyncio.wait((behind.task,), timeout=ANSWER_S)
        else:
            await asyncio.wait((behind.task,))
            if behind.standing <= _Standing.FAILED:
                ahead, behind = behind, ahead
                outcome = ahead.task.result()
        other = None
        if behind.standing <= _Standing.FAILED:
            other = behind.task.result()
            if not behind.is_withdrawn:
                # It took credit, and nobody will record it.
                self._pool.commit(1)
        self.won += ahead is second
        return _joined(spec, outcome, other, "first" if behind is first else "second")

    # Who takes long

    def _begin(self, spec: TrialSpec) -> _Flight:
        self._sent += 1
        flight = self._waiting[self._sent] = _Flight(self._sent, spec.trial_id, self._loop.create_future())
        return flight

    def _end(self, flight: _Flight, outcome: TrialOutcome) -> None:
        now = self._loop.time()
        if flight.number in self._waiting and outcome.worker:
            self._have_begun(flight.number, now - outcome.run_s - outcome.throttled_s)
        self._running.pop(flight.number, None)
        if _settles(outcome):
            self._ended += 1
            if flight.began < math.inf:
                self._durations.add(now - flight.began)
        self._look()

    def _have_begun(self, number: int, began: float) -> None:
        """One has run, and all that were sent before it have begun by then."""
        self._latest = max(self._latest, began)
        while self._waiting and next(iter(self._waiting)) <= number:
            first, flight = self._waiting.popitem(last=False)
            flight.began = self._latest
            self._running[first] = flight

    def _look(self) -> None:
        """Send those a second time that have run for too long, as far as that is allowed; look again in time."""
        policy, durations = self._policy, self._durations
        if self._ended < policy.after or not durations:
            return
        limit_s = durations.quantile_s
        while self._running and self.hedged + 1 <= policy.fraction * self._ended:
            number, flight = next(iter(self._running.items()))
            due = flight.began + limit_s
            if due > self._loop.time():
                self._alarm.set(due)
                return
            if not self._may(flight.trial_id):
                return
            del self._running[number]
            self.hedged += 1
            flight.due.set_result(None)


class _Flight:
    """A trial that is not answered."""

    __slots__ = ("began", "due", "number", "trial_id")

    def __init__(self, number: int, trial_id: bytes, due: asyncio.Future[None]) -> None:
        self.number = number
        self.trial_id = trial_id
        self.began = math.inf
        """When it was running at the latest; infinite while it may wait for a slot."""
        self.due = due
        """Done once it is to have a second copy."""


class _Standing(IntEnum):
    """How far a copy is; what is first counts for more."""

    SETTLED = 0
    FAILED = 1
    """With an error that another copy may not have."""
    RAISED = 2
    RUNNING = 3


class _Copy:
    """One of the two."""

    def __init__(self, send: Callable[..., Awaitable[TrialOutcome]]) -> None:
        self._withdrawn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.task = asyncio.ensure_future(send(withdrawn=self._withdrawn))

    def withdraw(self) -> None:
        """Have it cancelled, unless it has answered; its outcome says what became of it."""
        if not self.task.done():
            self._withdrawn.set_result(None)

    @property
    def is_withdrawn(self) -> bool:
        """Whether it was to be cancelled."""
        return self._withdrawn.done()

    @property
    def standing(self) -> _Standing:
        """How far it is."""
        if not self.task.done():
            return _Standing.RUNNING
        if self.task.cancelled() or self.task.exception() is not None:
            return _Standing.RAISED
        return _Standing.SETTLED if _settles(self.task.result()) else _Standing.FAILED


async def _stop(copies: list[_Copy]) -> None:
    """Cancel the copies that nobody waits for any more."""
    left = [copy.task for copy in copies if copy.standing is _Standing.RUNNING]
    for task in left:
        task.cancel()
    if left:
        await asyncio.gather(*left, return_exceptions=True)


class _Durations:
    """A quantile of the last so many, at the same cost for each whatever their number was."""

    def __init__(self, quantile: float) -> None:
        self._quantile = quantile
        self._last: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._last)

    def add(self, duration_s: float) -> None:
        """Count one more."""
        if len(self._last) == KEPT:
            del self._sorted[bisect_left(self._sorted, self._last.popleft())]
        self._last.append(duration_s)
        insort(self._sorted, duration_s)

    @property
    def quantile_s(self) -> float:
        """What so large a share of them is at most."""
        return self._sorted[int(self._quantile * len(self._sorted))]


def _settles(outcome: TrialOutcome) -> bool:
    """Whether the other copy could not do better."""
    return isinstance(outcome, TrialResult) or outcome.type.is_final or outcome.ends_run


def _joined(spec: TrialSpec, outcome: TrialOutcome, other: TrialOutcome | None, which: str) -> TrialOutcome:
    """Return *outcome* with the *other* copy, the first or second one, in its history, and what both have used.

    Nothing is known of a copy that is None. What one that was cancelled while it ran had used is not, and counted as
    an untold copy, where the one that answered says what it used.
    """
    if other is None:
        kind, said, untold = ErrorType.CANCELLED, "it was not heard of again", True
        other = TrialError(spec.trial_id, b"", kind, said)
    elif not other.attempts:
        return outcome  # it never left the queue
    elif isinstance(other, TrialResult):
        kind, said, untold = ErrorType.CANCELLED, "it answered too, a moment later", False
    else:
        kind, said, untold = other.type, other.message, other.type is ErrorType.CANCELLED and bool(other.worker)
    copy = TrialError(
        trial_id=spec.trial_id,
        configuration_digest=other.configuration_digest,
        type=kind,
        message=f"{which} copy of a hedged trial: {said}",
        fingerprint=other.fingerprint if isinstance(other, TrialError) else "",
        attempts=other.attempts,
        worker=other.worker,
        queue_s=other.queue_s,
        run_s=other.run_s,
        history=other.history,
    )
    joined = continued(copy, outcome)
    used = _sum(usage_of(outcome), usage_of(other))
    if not used:
        return joined
    return joined._replace(usage_payload=encode(_sum(used, {UNTOLD_COPIES: 1}) if untold else used))


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> Mapping[str, float]:
    return {name: min(one.get(name, 0) + other.get(name, 0), MOST_AMOUNT) for name in {**one, **other}}
