"""Leave to call models: from the bridge, over the worker's wire, or from a throttle of this process alone."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

from dspex.v1 import worker_pb2
from dspex_pipelines.engine.throttling.throttle import Answer, Throttle, Verdict
from dspex_pipelines.errors import DspexError, ProviderGivenUp
from dspex_pipelines.wire.codec import verdict_to_wire

_GRANTED: Future[None] = Future()
"""Leave that nobody has waited for; all who have it so share it: a future costs as much as all the rest of a permit."""
_GRANTED.set_result(None)
LEAVE_S = 10.0
"""A standing leave that has not been used for so long is one no more: all that waits would go in one blow."""


class TrialStopped(DspexError):
    """The trial that waited here for leave to call a model has been cancelled."""

    def __init__(self) -> None:
        super().__init__("the trial was cancelled while it waited for leave to call a model")


class _Permit:
    """A call that waits for leave, or has it."""

    def __init__(
        self, number: int, trial: int, model: str, end: Callable[[_Permit, Verdict, float, int], None], *, begun: bool
    ) -> None:
        self.number = number
        self.trial = trial
        self.model = model
        self.begun = begun
        """Whether it went under a standing leave."""
        self.granted: Future[None] = _GRANTED if begun else Future()
        self._end = end
        self._ended = False

    def end(self, verdict: Verdict, *, retry_after_s: float = 0.0, tokens: int = 0) -> None:
        """Say how the call went; only the first time counts."""
        if not self._ended:
            self._ended = True
            self._end(self, verdict, retry_after_s, tokens)

    def stop(self) -> None:
        """Have its call fail, unless it has leave."""
        with suppress(Exception):
            self.granted.set_exception(TrialStopped())

    def answer(self, *, granted: bool, reason: str) -> None:
        """Let the call go on, or fail."""
        # A coroutine that was cancelled has cancelled its future.
        with suppress(Exception):
            if granted:
                self.granted.set_result(None)
            else:
                self.granted.set_exception(ProviderGivenUp(model=self.model.partition("@")[0], reason=reason))


class _Permits:
    """The permits that have not ended, by number; all methods from any thread."""

    def __init__(self) -> None:
        self._permits: dict[int, _Permit] = {}
        self._numbers = itertools.count(1)
        self._stopped: set[int] = set()

    def ask(self, trial: int, model: str, tokens: int, *, again: bool) -> _Permit:
        """Return the permit for a call of that trial; where that has been stopped, there is none."""
        begun = not again and self._goes_unasked(model)
        permit = _Permit(next(self._numbers), trial, model, self._ended, begun=begun)
        self._permits[permit.number] = permit
        # Only now: whoever stops the trial has seen the permit, or is seen here.
        if trial in self._stopped:
            permit.begun, permit.granted = False, Future()
            permit.stop()
        else:
            self._ask(permit, tokens, again=again)
        return permit

    def stop(self, trial: int) -> None:
        """Have whatever waits for that trial, which is cancelled, wait no more, and its next calls fail."""
        self._stopped.add(trial)
        for permit in list(self._permits.values()):
            if permit.trial == trial:
                permit.stop()

    def forget(self, trial: int) -> None:
        """A trial that was stopped has ended."""
        self._stopped.discard(trial)

    def _answer(self, number: int, *, granted: bool, reason: str) -> None:
        permit = self._permits.get(number)
        if permit is not None:
            permit.answer(granted=granted, reason=reason)

    def _ended(self, permit: _Permit, verdict: Verdict, retry_after_s: float, tokens: int) -> None:
        del self._permits[permit.number]
        self._end(permit, verdict, retry_after_s, tokens)

    def _goes_unasked(self, model: str) -> bool:
        """Return whether there is a standing leave to call that model."""
        del model
        return False

    def _ask(self, permit: _Permit, tokens: int, *, again: bool) -> None:
        raise NotImplementedError

    def _end(self, permit: _Permit, verdict: Verdict, retry_after_s: float, tokens: int) -> None:
        raise NotImplementedError


@dataclass(slots=True)
class _Leave:
    until: float
    """Seconds of the monotonic clock."""


class PermitsOfBridge(_Permits):
    """Asks and ends go to *ask* and *end*, which write them to the bridge; `take` is what it answers.

    Under a standing leave calls go at once and the bridge is told later, until one of them does not go well here.
    """

    def __init__(
        self, *, ask: Callable[[worker_pb2.CallAsk], None], end: Callable[[worker_pb2.CallEnd, bool], None]
    ) -> None:
        super().__init__()
        self._say_ask = ask
        self._say_end = end
        self._leaves: dict[str, _Leave] = {}
        """Models that may be called unasked."""

    def _goes_unasked(self, model: str) -> bool:
        now = time.monotonic()
        leave = self._leaves.get(model)
        if leave is None or now >= leave.until:
            return False
        # One that the reading thread takes back meanwhile stays taken.
        leave.until = now + LEAVE_S
        return True

    def _ask(self, permit: _Permit, tokens: int, *, again: bool) -> None:
        self._say_ask(
            worker_pb2.CallAsk(
                id=permit.number,
                trial_id=permit.trial,
                model=permit.model,
                tokens=max(0, tokens),
                again=again,
                begun=permit.begun,
            )
        )

    def take(self, permits: Iterable[worker_pb2.CallPermit]) -> None:
        """The bridge has answered."""
        for one in permits:
            self._answer(one.id, granted=one.granted, reason=one.reason)

    def take_leaves(self, leaves: Iterable[worker_pb2.StandingLeave]) -> None:
        """The bridge gives leave to call models unasked, or takes it back."""
        for one in leaves:
            if one.given:
                self._leaves[one.model] = _Leave(time.monotonic() + LEAVE_S)
            else:
                self._leaves.pop(one.model, None)

    def _end(self, permit: _Permit, verdict: Verdict, retry_after_s: float, tokens: int) -> None:
        if verdict not in (Verdict.OK, Verdict.NEUTRAL):
            # The bridge decides; its word may be a while in coming.
            self._leaves.pop(permit.model, None)
        said = worker_pb2.CallEnd(
            id=permit.number, verdict=verdict_to_wire(verdict), retry_after_s=retry_after_s, tokens=max(0, tokens)
        )
        self._say_end(said, verdict is not Verdict.OK or not permit.begun)


class PermitsHere(_Permits):
    """A throttle of this process alone, for a trial that runs without a bridge."""

    def __init__(self) -> None:
        super().__init__()
        self._throttle = Throttle()
        self._lock = threading.RLock()
        self._timer: threading.Timer | None = None

    def _ask(self, permit: _Permit, tokens: int, *, again: bool) -> None:
        self._step(lambda now: self._throttle.ask(permit.number, permit.model, tokens, now, again=again))

    def _end(self, permit: _Permit, verdict: Verdict, retry_after_s: float, tokens: int) -> None:
        number = permit.number
        self._step(lambda now: self._throttle.done(number, verdict, now, retry_after_s=retry_after_s, tokens=tokens))

    def _step(self, event: Callable[[float], list[Answer]]) -> None:
        with self._lock:
            answers = event(time.monotonic())
            self._arm()
        for answer in answers:
            assert isinstance(answer.call_id, int)
            self._answer(answer.call_id, granted=answer.granted, reason=answer.reason)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        due = self._throttle.next_due()
        self._timer = None
        if due is not None:
            self._timer = threading.Timer(max(0.0, due - time.monotonic()), self._step, (self._throttle.tick,))
            self._timer.daemon = True
            self._timer.start()
