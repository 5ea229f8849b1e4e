"""The calls to models that a trial makes: each has leave from the throttle, waits where it is refused, and is counted.

A trial's `TrialCalls` is found by whatever runs on its behalf, coroutine or thread, through `running_trial`.
"""

from __future__ import annotations

import asyncio
import time
from _thread import RLock
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from dspex_pipelines.engine.calls.provider_faults import ProviderFault, provider_fault
from dspex_pipelines.engine.calls.used import Used, credible_tokens
from dspex_pipelines.engine.spans import AttemptSpans, SessionSpans
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.calls import CallPolicy, lane_name
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.redaction import redact, redact_beginning

MOST_NAMES = 64
MOST_REFUSALS = 30
"""So often a call may be refused before its trial is."""
MOST_FAILURES = 3
"""So often a call may be made in one attempt of its trial when the provider fails."""
MESSAGE_CHARACTERS = 1_000
NAME_CHARACTERS = 600
"""Of what a trial counts: a model, and what of it."""
MOST_AMOUNT = 2**63 - 1
"""Of what a trial has used, in sum."""
MOST_FAILED = 100
"""Of the calls of a trial that were made again, the last ones are told."""
T = TypeVar("T")


class Permit(Protocol):
    """Leave for one call to a model, once `granted` has a result; it raises `ProviderGivenUp` where there is none."""

    @property
    def granted(self) -> Future[None]:
        """Set when the call may be made."""
        ...

    def end(self, verdict: Verdict, *, retry_after_s: float = 0.0, tokens: int = 0) -> None:
        """Say how the call went, or that it will not be made; once."""
        ...


class Permits(Protocol):
    """Who gives leave."""

    def ask(self, trial: int, model: str, tokens: int, *, again: bool) -> Permit:
        """Return the permit for a call, which may have to wait; from any thread."""
        ...


@dataclass(frozen=True, slots=True)
class Caller:
    """What the trials of one session call models under."""

    permits: Permits
    policy: CallPolicy = field(default_factory=CallPolicy)
    spans: SessionSpans | None = None
    """What is told of the trials; None for nothing."""


class FailedCall(NamedTuple):
    """A call that was made again."""

    model: str
    type: ErrorType
    message: str
    run_s: float


@dataclass(slots=True)
class Call:
    """One call, as it is kept in the trial's trace."""

    model: str
    asked: Any = None
    answered: Any = None
    at_s: float = 0.0
    """Since the trial's start."""
    run_s: float = 0.0
    throttled_s: float = 0.0
    used: Used | None = None
    error: str = ""
    tries: int = 1
    settings: Mapping[str, Any] | None = None

    @property
    def tokens(self) -> int:
        """What the throttle is told."""
        return 0 if self.used is None or self.used.cached else self.used.input_tokens + self.used.output_tokens


class TrialCalls:
    """What one trial has asked of models, what it has used, and how long it has waited for leave."""

    # Of the class, as most trials have no others: there is one of these per trial.
    started = 0.0
    spans: AttemptSpans | None = None
    calls: list[Call] | None = None
    """None until there is one: most programs of other kinds make none."""
    failed: deque[FailedCall] | None = None
    steps: list[Any] | None = None
    """What the program's own parts made of the answers, as its library tells."""
    _waiting = 0
    _waits_since = 0.0
    _throttled_s = 0.0

    def __init__(
        self, caller: Caller | None, *, trial: int = 0, seed: int = 0, attempt: int = 1, timeout_s: float = 0.0
    ) -> None:
        self.caller = caller
        self.trial = trial
        self.seed = seed
        self.attempt = attempt
        self.timeout_s = timeout_s
        self.used: dict[str, float] = {}
        # A program's threads call and count at once.
        self._lock = RLock()

    @property
    def throttled_s(self) -> float:
        """Seconds in which at least one of its calls waited for leave."""
        return self._throttled_s

    @property
    def ran_s(self) -> float:
        """Seconds since it began, those apart in which it waited for leave."""
        return max(0.0, time.perf_counter() - self.started - self._throttled_s)

    # Calls

    def call(self, model: str, make: Callable[[Call], T], *, tokens: int = 0) -> T:
        """Return what *make* returns, once there is leave, in this thread.

        A call that is refused, or at which the provider fails, is made again here and nothing before it is; what else
        *make* raises goes on. Raises `ProviderGivenUp`.
        """
        ongoing = _Ongoing(self, model, tokens)
        while True:
            ongoing.ask()
            try:
                ongoing.wait()
                answer = make(ongoing.call)
            except BaseException as error:
                if not ongoing.again(error):
                    raise
            else:
                ongoing.end()
                return answer

    async def acall(self, model: str, make: Callable[[Call], Awaitable[T]], *, tokens: int = 0) -> T:
        """Return what *make* returns, as `call` does, in a coroutine."""
        ongoing = _Ongoing(self, model, tokens)
        while True:
            ongoing.ask()
            try:
                await ongoing.wait_async()
                answer = await make(ongoing.call)
            except BaseException as error:
                if not ongoing.again(error):
                    raise
            else:
                ongoing.end()
                return answer

    def add(self, call: Call) -> None:
        """Keep a call that has ended, and count what it used."""
        with self._lock:
            if self.calls is None:
                self.calls = []
            self.calls.append(call)
        if call.used is None:
            return
        model, used = call.model.partition("@")[0], call.used
        self._count_of(model, {"calls": 1})
        if used.cached:
            self._count(cached_calls=1)
            return
        self._count(tokens=used.input_tokens + used.output_tokens)
        amounts = {"input_tokens": used.input_tokens, "output_tokens": used.output_tokens}
        price = self.caller.policy.price_of(model) if self.caller else None
        cost_usd = used.cost_usd
        if price is not None:
            cost_usd = price.cost_usd(
                input_tokens=used.input_tokens,
                output_tokens=used.output_tokens,
                cached_input_tokens=used.cached_input_tokens,
            )
        if used.cost_usd is None and not call.tokens:
            # It says nothing of tokens, so a price makes no cost of it.
            self._count_of(model, amounts | {"untold_calls": 1})
        elif cost_usd is None:
            self._count_of(model, amounts | {"unpriced_calls": 1})
        else:
            self._count_of(model, amounts | {"cost_usd": cost_usd})

    def _count(self, **amounts: float) -> None:
        """Add to what is used; these few names always have room."""
        with self._lock:
            for name, amount in amounts.items():
                self._add(name, amount)

    def _count_of(self, model: str, amounts: Mapping[str, float]) -> None:
        """Add to what is used, of all models and of *model*; the latter only where there is room for its names."""
        self._count(**amounts)
        self.report({f"{model}.{name}": amount for name, amount in amounts.items()}, crowded=False)

    def report(self, amounts: Mapping[str, float], *, crowded: bool = True) -> None:
        """Add to what is used; raises `InvalidValue` for the name that is one too many, unless not *crowded*."""
        used = self.used
        with self._lock:
            for name, amount in amounts.items():
                if name not in used and len(used) >= MOST_NAMES:
                    if not crowded:
                        continue
                    raise InvalidValue(field=name, value=amount, fix=f"a trial reports at most {MOST_NAMES} names")
                self._add(name, amount)

    def _add(self, name: str, amount: float) -> None:
        self.used[name] = min(self.used.get(name, 0) + amount, MOST_AMOUNT)

    def note_failure(self, call: Call, fault: ProviderFault, error: BaseException, run_s: float) -> None:
        """Write down a call that is going to be made again."""
        try:
            said = redact_beginning(str(error), MESSAGE_CHARACTERS)
        except Exception:  # noqa: BLE001 - a broken __str__ is not our end
            said = "(its message could not be shown)"
        with self._lock:
            if self.failed is None:
                self.failed = deque(maxlen=MOST_FAILED)
            self.failed.append(FailedCall(call.model, fault.type, f"{fault.what}: {said}", run_s))
        self._count(retried_calls=1)

    # Time

    def waits(self) -> None:
        """One of its calls waits from now on."""
        with self._lock:
            self._waiting += 1
            if self._waiting == 1:
                self._waits_since = time.perf_counter()

    def waited(self) -> None:
        """It waits no more."""
        with self._lock:
            self._waiting -= 1
            if self._waiting == 0:
                self._throttled_s += time.perf_counter() - self._waits_since


class _Ongoing:
    """A call from its first ask to its end."""

    def __init__(self, trial: TrialCalls, model: str, tokens: int) -> None:
        self._trial = trial
        self._tokens = credible_tokens(tokens)
        self._refusals = 0
        self._failures = 0
        self._permit: Permit | None = None
        self._asked_at = 0.0
        self._made_at = 0.0
        self._waited = False
        # The name goes to the pool, which shows it.
        self.call = Call(lane_name(redact(model)), at_s=time.perf_counter() - trial.started)

    def ask(self) -> None:
        trial = self._trial
        self._made_at = 0.0
        self._waited = False
        self._asked_at = time.perf_counter()
        if trial.caller is not None:
            again = self._refusals + self._failures > 0
            self._permit = trial.caller.permits.ask(trial.trial, self.call.model, self._tokens, again=again)

    def wait(self) -> None:
        if self._permit is not None and not self._permit.granted.done():
            self._waited = True
            self._trial.waits()
            try:
                self._permit.granted.result()
            finally:
                self._trial.waited()
        self._granted()

    async def wait_async(self) -> None:
        if self._permit is not None and not self._permit.granted.done():
            self._waited = True
            self._trial.waits()
            try:
                await asyncio.wrap_future(self._permit.granted)
            finally:
                self._trial.waited()
        self._granted()

    def _granted(self) -> None:
        if self._permit is not None:
            self._permit.granted.result()
        self._made_at = time.perf_counter()
        self.call.throttled_s += self._made_at - self._asked_at
        if self._waited and self._trial.spans is not None:
            self._trial.spans.throttled(self.call.model, self._asked_at, self._made_at)

    def again(self, error: BaseException) -> bool:
        """The call was not made, or has failed: give the permit back, and return whether to make it again."""
        trial, call = self._trial, self.call
        if not self._made_at:
            # It waited for leave when it was cancelled, or there is none.
            if self._waited and trial.spans is not None:
                said = type(error).__name__
                trial.spans.throttled(call.model, self._asked_at, time.perf_counter(), said)
            self._end(Verdict.NEUTRAL)
            return False
        run_s = time.perf_counter() - self._made_at
        call.run_s += run_s
        fault = provider_fault(error, within_call=True)
        if fault is None:
            self._end(Verdict.NEUTRAL, tokens=call.tokens)
        else:
            self._end(fault.verdict, retry_after_s=fault.retry_after_s, tokens=call.tokens)
        self._made(run_s, type(error).__name__ if fault is None else fault.type.value)
        if fault is not None:
            self._refusals += fault.verdict in (Verdict.REFUSED, Verdict.OVERLOADED)
            self._failures += fault.verdict is Verdict.FAILED
            if (
                fault.verdict is not Verdict.NEUTRAL
                and self._refusals < MOST_REFUSALS
                and self._failures < MOST_FAILURES
            ):
                trial.note_failure(call, fault, error, run_s)
                call.tries += 1
                return True
        call.error = f"{type(error).__name__}: {fault.what if fault else ''}".rstrip(": ")
        trial.add(call)
        return False

    def end(self) -> None:
        """The call has been answered."""
        run_s = time.perf_counter() - self._made_at
        self.call.run_s += run_s
        self._end(Verdict.OK, tokens=self.call.tokens)
        self._made(run_s)
        self._trial.add(self.call)

    def _made(self, run_s: float, error: str = "") -> None:
        """Tell of the call, made once more."""
        spans, call = self._trial.spans, self.call
        if spans is not None:
            until = self._made_at + run_s
            spans.called(call.model, self._made_at, until, used=call.used, tries=call.tries, error=error)

    def _end(self, verdict: Verdict, *, retry_after_s: float = 0.0, tokens: int = 0) -> None:
        if self._permit is not None:
            self._permit.end(verdict, retry_after_s=retry_after_s, tokens=tokens)
            self._permit = None


# ---------------------------------------------------------------------------- the trial that runs here

_running: ContextVar[TrialCalls | None] = ContextVar("running_trial", default=None)


def running_trial() -> TrialCalls | None:
    """Return the calls of the trial that this coroutine, or thread, runs for; None outside a trial."""
    return _running.get()


def begin_trial(calls: TrialCalls) -> None:
    """From here on, this coroutine or thread runs for that trial."""
    calls.started = time.perf_counter()
    _running.set(calls)


def end_trial() -> None:
    """From here on, the thread runs for no trial."""
    _running.set(None)
