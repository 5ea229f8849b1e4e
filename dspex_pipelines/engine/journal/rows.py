"""Outcomes as rows of the journal's tables, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, cast

from dspex_pipelines.model.outcome import Attempt, ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import decode, encode

Row = tuple[Any, ...]
OK = 0
"""The status of a success. The other numbers are in databases too: append to the enum, never reorder it."""
STATUS = {kind: number for number, kind in enumerate(ErrorType, start=1)}
ERROR_TYPE = {number: kind for kind, number in STATUS.items()}
JUDGED = frozenset((OK, STATUS[ErrorType.METRIC_EXCEPTION]))
"""Statuses of executions whose outputs metrics have seen."""
# The sqlite3 module looks for an adapter of each bytes that it is given, never of a bytearray: half the time of a row.
_blob = bytearray
_NOTHING = bytearray()
"""Bytes that are added to it are a `_blob` too, in half the time."""


class Entry(NamedTuple):
    """An outcome to be recorded. *scoring* is a digest of the labels and metric versions that it was judged by."""

    scoring: bytes
    outcome: TrialOutcome
    rescored: bool = False
    """Whether only the scores are new: the program's outputs were recorded before."""
    plain: Row | None = None
    """The values of `executions` that are neither in `PLAIN` nor in `SHARED`, for those that need no others."""


def entry_of(scoring: bytes, outcome: TrialOutcome) -> Entry:
    """Return the entry of an outcome that has just come: its row costs twice as much once it is out of the caches."""
    if not isinstance(outcome, TrialResult):
        return Entry(scoring, outcome)
    # fmt: off
    (trial_id, seen, version, attempts, worker, queue_s, run_s, outputs, payload, trace, usage, history,
     throttled_s) = outcome
    # fmt: on
    if trace or usage or history or throttled_s or len(outputs) > LARGE_BYTES:
        return Entry(scoring, outcome)
    # fmt: off
    plain = (
        _NOTHING + trial_id, _NOTHING + scoring, _NOTHING + seen, version, attempts, worker, queue_s, run_s,
        _NOTHING + outputs, _NOTHING + payload,
    )
    # fmt: on
    return tuple.__new__(Entry, (scoring, outcome, False, plain))


def execution_row(entry: Entry, generation: int, now: float) -> Row:
    """Return the values of `executions`, but for its id, in the order of its columns."""
    scoring, outcome, *_ = entry
    succeeded = isinstance(outcome, TrialResult)
    return (
        _blob(outcome.trial_id),
        generation,
        _blob(scoring),
        OK if succeeded else STATUS[outcome.type],
        succeeded or outcome.type.is_final,
        _blob(outcome.configuration_digest),
        outcome.session_version,
        outcome.attempts,
        outcome.worker,
        outcome.queue_s,
        outcome.run_s,
        now,
        _blob(outcome.outputs_payload),
        _blob(outcome.scores_payload) if succeeded else _NOTHING,
        _blob(outcome.trace_payload) if outcome.trace_payload else _NOTHING,
        _blob(outcome.usage_payload) if outcome.usage_payload else _NOTHING,
        _NOTHING if succeeded else _blob(_failure(outcome)),
        _blob(_history_payload(outcome.history)) if outcome.history else _NOTHING,
        outcome.throttled_s,
    )


PLAIN = {
    "status": str(OK),
    "final": "1",
    "trace": "X''",
    "usage": "X''",
    "failure": "X''",
    "history": "X''",
    "throttled_s": "0.0",
}
"""What the rows of most results have alike, as SQLite writes it: what is not handed over costs nothing."""
LARGE_BYTES = 65_536
"""Of outputs that are not held twice while they wait."""
SHARED = ("generation", "recorded_at")
"""What all rows of a statement have alike, and what is known when they are written."""


def scores_row(entry: Entry, generation: int, now: float) -> Row:
    """Return the values of `scores`, but for its id, in the order of its columns."""
    scoring, outcome, *_ = entry
    key = (_blob(outcome.trial_id), generation, _blob(scoring))
    if isinstance(outcome, TrialResult):
        return (*key, OK, now, _blob(outcome.scores_payload), _NOTHING)
    return (*key, STATUS[outcome.type], now, _NOTHING, _blob(_failure(outcome)))


def outcome_of(row: Sequence[Any]) -> TrialOutcome:
    """Return the outcome that a row of `executions` is."""
    # fmt: off
    (trial_id, _, _, status, _, seen, version, attempts, worker, queue_s, run_s, _, outputs, payload, trace, usage,
     failure, history, throttled_s) = row
    # fmt: on
    past = _history(history) if history else ()
    if status == OK:
        # By position: by name each takes three times as long, and there may be a million.
        return TrialResult(
            trial_id, seen, version, attempts, worker, queue_s, run_s, outputs, payload, trace, usage, past, throttled_s
        )
    message, traceback, retryable, fingerprint, retry_after_s = decode(failure)
    return TrialError(
        trial_id=trial_id,
        configuration_digest=seen,
        type=ERROR_TYPE[status],
        message=message,
        traceback=traceback,
        retryable=retryable,
        fingerprint=fingerprint,
        retry_after_s=retry_after_s,
        session_version=version,
        attempts=attempts,
        worker=worker,
        queue_s=queue_s,
        run_s=run_s,
        outputs_payload=outputs,
        usage_payload=usage,
        history=past,
        throttled_s=throttled_s,
        trace_payload=trace,
    )


def judged_again(outcome: TrialOutcome, row: Sequence[Any]) -> TrialOutcome:
    """Return *outcome* with the scores, or the metric's failure, of a row of `scores`."""
    (_, _, _, status, _, payload, failure) = row
    if status == OK:
        return _as_result(outcome, payload)
    message, traceback, retryable, fingerprint, retry_after_s = decode(failure)
    return _as_error(outcome)._replace(
        type=ERROR_TYPE[status],
        message=message,
        traceback=traceback,
        retryable=retryable,
        fingerprint=fingerprint,
        retry_after_s=retry_after_s,
    )


def _failure(error: TrialError) -> bytes:
    return encode([error.message, error.traceback, error.retryable, error.fingerprint, error.retry_after_s])


def _history_payload(history: Iterable[Attempt]) -> bytes:
    return encode(
        [
            [one.number, one.worker, STATUS[one.type], one.message, one.fingerprint, one.queue_s, one.run_s, one.call]
            for one in history
        ]
    )


def _history(payload: bytes) -> tuple[Attempt, ...]:
    return tuple(
        Attempt(
            number=number,
            worker=worker,
            type=ERROR_TYPE[status],
            message=message,
            fingerprint=fingerprint,
            queue_s=queue_s,
            run_s=run_s,
            call=call[0] if call else "",  # earlier releases wrote none
        )
        for number, worker, status, message, fingerprint, queue_s, run_s, *call in cast("list[Any]", decode(payload))
    )


def _as_result(outcome: TrialOutcome, scores_payload: bytes) -> TrialResult:
    if isinstance(outcome, TrialResult):
        return outcome._replace(scores_payload=scores_payload)
    return TrialResult(**_shared(outcome), scores_payload=scores_payload)


def _as_error(outcome: TrialOutcome) -> TrialError:
    if isinstance(outcome, TrialError):
        return outcome
    return TrialError(**_shared(outcome), type=ErrorType.METRIC_EXCEPTION, message="")


def _shared(outcome: TrialOutcome) -> dict[str, Any]:
    names = (
        *("trial_id", "configuration_digest", "session_version", "attempts", "worker"),
        *("queue_s", "run_s", "throttled_s", "outputs_payload", "usage_payload", "trace_payload", "history"),
    )
    return {name: getattr(outcome, name) for name in names}
