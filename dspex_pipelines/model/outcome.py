"""What becomes of a trial: a result, or an error of a closed set of types. Both are values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, NamedTuple, TypeAlias, cast

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.payload import decode


class ErrorType(StrEnum):
    """Why a trial has no result. `retryable` ones may succeed when they are run again."""

    PROGRAM_EXCEPTION = "program_exception"
    METRIC_EXCEPTION = "metric_exception"
    MALFORMED_OUTPUT = "malformed_output"
    SERIALIZATION = "serialization"
    TIMEOUT_QUEUE = "timeout_queue"
    TIMEOUT_RUN = "timeout_run"
    WORKER_LOST = "worker_lost"
    POISON = "poison"
    RATE_LIMITED = "rate_limited"
    PROVIDER_UNAVAILABLE = "provider_unavailable"
    PROGRAM_UNAVAILABLE = "program_unavailable"
    STALE_STATE = "stale_state"
    INVALID_CONFIGURATION = "invalid_configuration"
    CANCELLED = "cancelled"
    BUDGET_EXHAUSTED = "budget_exhausted"

    @property
    def is_final(self) -> bool:
        """Whether a later run reuses such an outcome instead of running the trial again."""
        return self not in _RUN_AGAIN


_RUN_AGAIN = frozenset(
    {
        ErrorType.CANCELLED,
        ErrorType.BUDGET_EXHAUSTED,
        ErrorType.TIMEOUT_QUEUE,
        ErrorType.TIMEOUT_RUN,
        ErrorType.WORKER_LOST,
        ErrorType.RATE_LIMITED,
        ErrorType.PROVIDER_UNAVAILABLE,
        ErrorType.PROGRAM_UNAVAILABLE,
        ErrorType.STALE_STATE,
    }
)

Scores: TypeAlias = Mapping[str, float | int | bool]
_NUMBER = (int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """An attempt of a trial that did not settle it, or a call that failed within one: what went wrong, and when."""

    number: int
    """From 1."""
    worker: str
    type: ErrorType
    message: str
    fingerprint: str = ""
    queue_s: float = 0.0
    run_s: float = 0.0
    call: str = ""
    """The model that was called, where a call failed and was made again within the attempt; empty for a whole one."""
    usage_payload: bytes = b""
    """What it used, on its way to the outcome, which sums it up. Not recorded."""


class TrialResult(NamedTuple):
    """A trial that ran to its end. Payloads are msgpack and decoded when asked for.

    A named tuple, as `TrialError` is: there is one of them per trial, and a frozen dataclass takes three times as long.
    """

    trial_id: bytes
    configuration_digest: bytes
    """Digest of the configuration as the worker saw it."""
    session_version: int = 0
    attempts: int = 1
    worker: str = ""
    queue_s: float = 0.0
    run_s: float = 0.0
    outputs_payload: bytes = b""
    scores_payload: bytes = b""
    trace_payload: bytes = b""
    usage_payload: bytes = b""
    history: tuple[Attempt, ...] = ()
    """The attempts before the one that settled it, and the calls that failed and were made again."""
    throttled_s: float = 0.0
    """Seconds in which it waited for leave to call a model, over all attempts; neither queue nor run time."""

    @property
    def outputs(self) -> Any:
        """What the program returned."""
        return decode(self.outputs_payload)

    @property
    def scores(self) -> Scores:
        """Score name to value; raises `SerializationError` for what no worker of ours sends."""
        return scores_of(self.scores_payload)

    @property
    def usage(self) -> Mapping[str, float]:
        """What the program says it has used: `tokens`, `cost_usd`, and whatever else it counts; raises as `scores`."""
        return _numbers(self.usage_payload, "usage")


class TrialError(NamedTuple):
    """A trial that has no result, and why. It stays in the denominator."""

    trial_id: bytes
    configuration_digest: bytes
    """Digest of the configuration as the worker saw it; empty when no worker did."""
    type: ErrorType
    message: str
    traceback: str = ""
    retryable: bool = False
    fingerprint: str = ""
    retry_after_s: float = 0.0
    session_version: int = 0
    attempts: int = 1
    worker: str = ""
    queue_s: float = 0.0
    run_s: float = 0.0
    outputs_payload: bytes = b""
    """What the program returned before the error, when the metric is what failed."""
    usage_payload: bytes = b""
    history: tuple[Attempt, ...] = ()
    """The attempts before the one that settled it, and the calls that failed and were made again."""
    throttled_s: float = 0.0
    """Seconds in which it waited for leave to call a model, over all attempts; neither queue nor run time."""
    trace_payload: bytes = b""
    ends_run: bool = False
    """Whether no other trial of the evaluation can succeed: a provider has refused its key. Not recorded."""

    @classmethod
    def unanswered(cls, trial_id: bytes, kind: ErrorType, message: str, *, retryable: bool = False) -> TrialError:
        """Return the error of a trial that no worker has answered: it has no attempts and no configuration."""
        return cls(trial_id, b"", kind, message, retryable=retryable, attempts=0)

    @property
    def outputs(self) -> Any:
        """What the program returned before the error, or ``None``."""
        return decode(self.outputs_payload)

    @property
    def usage(self) -> Mapping[str, float]:
        """What the program says it had used by then; raises `SerializationError` for what no worker of ours sends."""
        return _numbers(self.usage_payload, "usage")


TrialOutcome: TypeAlias = TrialResult | TrialError


def continued(earlier: TrialOutcome, outcome: TrialOutcome) -> TrialOutcome:
    """Return *outcome* with the attempts of an *earlier* one before its own: every attempt stays recorded."""
    past = list(earlier.history)
    if isinstance(earlier, TrialError):
        past.append(
            Attempt(
                number=earlier.attempts,
                worker=earlier.worker,
                type=earlier.type,
                message=earlier.message,
                fingerprint=earlier.fingerprint,
                queue_s=earlier.queue_s,
                run_s=earlier.run_s,
            )
        )
    own = (replace(attempt, number=attempt.number + earlier.attempts) for attempt in outcome.history)
    return outcome._replace(attempts=outcome.attempts + earlier.attempts, history=(*past, *own))


def scores_of(payload: bytes) -> Scores:
    """Return the scores in a payload, as `TrialResult.scores` does."""
    return _numbers(payload, "scores")


def _numbers(payload: bytes, what: str) -> Scores:
    numbers = decode(payload)
    if numbers is None:
        return {}
    if not isinstance(numbers, dict) or not all(
        isinstance(name, str) and isinstance(number, _NUMBER) and math.isfinite(number)
        for name, number in cast("dict[Any, Any]", numbers).items()
    ):
        raise SerializationError(path=what, reason="not a map of names to finite numbers")
    return cast("Scores", numbers)
