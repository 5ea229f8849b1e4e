"""Turns what a program returned or raised into the outcome that goes over the wire."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from dspex.v1 import types_pb2
from dspex_pipelines.engine.calls.trial_calls import TrialCalls
from dspex_pipelines.engine.trace import pack_trace
from dspex_pipelines.errors import DspexError, ProgramUnavailable, SerializationError
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.redaction import holds_secret, redact_values
from dspex_pipelines.wire.codec import PAYLOAD_BYTES, error_type_to_wire, failure_to_wire
from dspex_pipelines.worker.faults import clean, failure_and_raw, failure_of, said
from dspex_pipelines.worker.plain import encode_outputs

OUTCOME_BYTES = PAYLOAD_BYTES
SCORES_BYTES = 1 << 16
"""Of scores, for which there is room beside outputs of any size."""
RAW = "raw"
"""In place of outputs: what a model said that could not be read."""
_SCALARS = frozenset((type(None), str, int, float, bool, bytes))
"""Exactly these are packed as they are, and can be read again."""


def answer_result(
    trial: types_pb2.Trial,
    configuration: Configuration,
    outputs: Any,
    scores: Mapping[str, Any] | BaseException,
    *,
    calls: TrialCalls,
    run_s: float,
) -> types_pb2.Outcome:
    """Return the outcome of a program that returned; a metric's failure keeps the outputs."""
    payload, judged, failure = b"", b"", None
    try:
        payload = _packed(outputs)
    except SerializationError as error:
        payload, failure = b"", failure_to_wire(ErrorType.SERIALIZATION, said(error))
    except BaseException as error:  # noqa: BLE001 - the outputs' own methods may raise anything
        payload, failure = b"", failure_of(ErrorType.SERIALIZATION, error)
    if failure is None and not isinstance(scores, BaseException):
        try:
            packed = encode({name: _score(name, value) for name, value in scores.items()})
            judged = _redacted(packed) if holds_secret(packed) else packed
        except BaseException as error:  # noqa: BLE001 - as above, of a score
            scores = error
        if len(judged) > SCORES_BYTES:
            try:
                _check_size("scores", len(judged), max(SCORES_BYTES, OUTCOME_BYTES - len(payload)))
            except SerializationError as error:
                judged, failure = b"", failure_to_wire(ErrorType.SERIALIZATION, said(error))
    if failure is None and isinstance(scores, BaseException):
        failure = failure_of(ErrorType.METRIC_EXCEPTION, scores)
    # One by one: by name, the constructor takes twice as long.
    outcome = types_pb2.Outcome()
    outcome.id = trial.id
    outcome.configuration_digest = configuration.digest
    outcome.session_version = trial.version
    outcome.run_s = run_s
    outcome.outputs = payload
    outcome.scores = judged
    if calls.used:
        outcome.usage = _usage(calls)
    if failure is not None:
        outcome.failure.CopyFrom(failure)
    if calls.calls is not None:
        _tell_calls(outcome, calls)
    return outcome


def answer_failed(
    trial: types_pb2.Trial,
    configuration: Configuration,
    error: BaseException,
    *,
    calls: TrialCalls,
    run_s: float = 0.0,
) -> types_pb2.Outcome:
    """Return the outcome of a program that raised; what it had used by then is no less spent."""
    # Ours, of outputs of an earlier run that are none.
    unread = issubclass(type(error), SerializationError)
    kind = ErrorType.SERIALIZATION if unread else ErrorType.PROGRAM_EXCEPTION
    failure, raw = failure_and_raw(kind, error)
    outcome = types_pb2.Outcome(
        id=trial.id,
        configuration_digest=configuration.digest,
        session_version=trial.version,
        run_s=run_s,
        outputs=b"" if raw is None else encode({RAW: raw}),
        usage=_usage(calls) if calls.used else b"",
        failure=failure,
    )
    if calls.calls is not None:
        _tell_calls(outcome, calls)
    return outcome


def _tell_calls(outcome: types_pb2.Outcome, calls: TrialCalls) -> None:
    """Add to an outcome what its trial had to do with models, as far as there is room."""
    outcome.throttled_s = calls.throttled_s
    for failed in calls.failed or ():
        kind = error_type_to_wire(failed.type)
        message = clean(failed.message)
        outcome.history.append(types_pb2.Attempt(type=kind, message=message, run_s=failed.run_s, call=failed.model))
    most = calls.caller.policy.trace_bytes if calls.caller is not None else 0
    room = OUTCOME_BYTES - len(outcome.outputs) - SCORES_BYTES
    if 0 < most <= room:
        # No trace is a reason to have no outcome.
        with contextlib.suppress(BaseException):
            outcome.trace = pack_trace(calls, most)


def answer_unavailable(
    trial: types_pb2.Trial, configuration: Configuration | None, error: DspexError
) -> types_pb2.Outcome:
    """Return the outcome of a trial whose program, or configuration, cannot be used here."""
    match error:
        case ProgramUnavailable():
            kind = ErrorType.PROGRAM_UNAVAILABLE
        case SerializationError():
            kind = ErrorType.SERIALIZATION
        case _:
            kind = ErrorType.INVALID_CONFIGURATION
    return types_pb2.Outcome(
        id=trial.id,
        configuration_digest=b"" if configuration is None else configuration.digest,
        session_version=trial.version,
        failure=failure_to_wire(kind, said(error)),
    )


def _packed(outputs: Any) -> bytes:
    payload = encode_outputs(outputs)
    _check_size("outputs", len(payload), OUTCOME_BYTES)
    if type(outputs) not in _SCALARS:
        _check_readable(payload)
    if holds_secret(payload):
        payload = _redacted(payload)
        # A secret's name may be longer than the secret.
        _check_size("outputs", len(payload), OUTCOME_BYTES)
    return payload


def _usage(calls: TrialCalls) -> bytes:
    used = encode(calls.used)
    return _redacted(used) if holds_secret(used) else used


def _redacted(payload: bytes) -> bytes:
    """Return a payload that holds a secret without it: they are seldom there, so nothing is unpacked to find out."""
    return encode(redact_values(decode(payload)))


def _check_readable(payload: bytes) -> None:
    """Raise for what can be packed and not unpacked: a tuple that is a key is a list by then."""
    try:
        decode(payload)
    except SerializationError as error:
        reason = f"it could not be read again: {error.reason}; use strings or numbers as keys, and fewer levels"
        raise SerializationError(path="outputs", reason=reason) from error


def _check_size(part: str, size: int, most: int) -> None:
    if size > most:
        raise SerializationError(path=part, reason=f"{size:,} bytes are more than the {most:,} allowed")


def _score(name: str, value: Any) -> float | int | bool:
    if value is True or value is False:
        return value
    if hasattr(value, "item") and not isinstance(value, bool | int | float):
        value = value.item()
    if isinstance(value, int) and value.bit_length() < 64:  # noqa: PLR2004 - what msgpack carries
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"metric {name} returned {value!r}; return a finite number, a boolean or a dict of them")
