"""Turns what a program returned or raised into the outcome that goes over the wire."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import re
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dspex.v1 import types_pb2
from dspex_pipelines.errors import DspexError, ProgramUnavailable, SerializationError
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.wire import marks
from dspex_pipelines.wire.codec import PAYLOAD_BYTES, failure_to_wire

MESSAGE_CHARACTERS = 4_000
TRACEBACK_CHARACTERS = 16_000
OUTCOME_BYTES = PAYLOAD_BYTES
_OURS = (str(Path(__file__).parent), str(Path(marks.__file__)))


def answer_result(
    trial: types_pb2.Trial,
    configuration: Configuration,
    outputs: Any,
    scores: Mapping[str, Any] | BaseException,
    *,
    run_s: float,
) -> types_pb2.Outcome:
    """Return the outcome of a program that returned; a metric's failure keeps the outputs."""
    outcome = types_pb2.Outcome(
        id=trial.id,
        configuration_digest=configuration.digest,
        session_version=trial.version,
        run_s=run_s,
    )
    try:
        payload = encode(plain(outputs))
        _check_size("outputs", len(payload), OUTCOME_BYTES)
    except SerializationError as error:
        outcome.failure.CopyFrom(failure_to_wire(ErrorType.SERIALIZATION, _clean(str(error)[:MESSAGE_CHARACTERS])))
        return outcome
    except Exception as error:  # noqa: BLE001 - the outputs' own methods may raise anything
        outcome.failure.CopyFrom(_failure(ErrorType.SERIALIZATION, error))
        return outcome
    outcome.outputs = payload
    if not isinstance(scores, BaseException):
        try:
            judged = encode({name: _score(name, value) for name, value in scores.items()})
        except Exception as error:  # noqa: BLE001 - as above, of a score
            scores = error
        else:
            try:
                _check_size("scores", len(judged), OUTCOME_BYTES - len(payload))
                outcome.scores = judged
            except SerializationError as error:
                outcome.failure.CopyFrom(failure_to_wire(ErrorType.SERIALIZATION, str(error)))
            return outcome
    outcome.failure.CopyFrom(_failure(ErrorType.METRIC_EXCEPTION, scores))
    return outcome


def answer_failed(
    trial: types_pb2.Trial, configuration: Configuration, error: BaseException, *, run_s: float
) -> types_pb2.Outcome:
    """Return the outcome of a program that raised."""
    # Ours, of outputs of an earlier run that are none.
    unread = isinstance(error, SerializationError)
    kind = ErrorType.SERIALIZATION if unread else ErrorType.PROGRAM_EXCEPTION
    return types_pb2.Outcome(
        id=trial.id,
        configuration_digest=configuration.digest,
        session_version=trial.version,
        run_s=run_s,
        failure=_failure(kind, error),
    )


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
        failure=failure_to_wire(kind, _clean(_said(error)[:MESSAGE_CHARACTERS])),
    )


def plain(outputs: Any) -> Any:
    """Return outputs as plain values: DSPy predictions, pydantic models and dataclasses become maps."""
    if outputs is None or isinstance(outputs, dict | list | str | int | float | bool | bytes):
        return outputs
    for method in ("toDict", "model_dump"):
        convert = getattr(outputs, method, None)
        if callable(convert) and not isinstance(outputs, type):
            return convert()
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, type):
        return dataclasses.asdict(outputs)
    return outputs


def fingerprint(error: BaseException) -> str:
    """Return a digest that is equal for the same error at the same place, whatever numbers it names."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].name}" if frames else ""
    words = re.sub(r"\d+|0x[0-9a-f]+", "#", _said(error))
    text = f"{type(error).__qualname__}|{place}|{words}"
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def _failure(kind: ErrorType, error: BaseException) -> types_pb2.Failure:
    message = f"{type(error).__qualname__}: {_said(error)}"[:MESSAGE_CHARACTERS]
    return failure_to_wire(
        kind,
        _clean(message),
        traceback=_clean(_program_traceback(error)),
        retryable=kind is ErrorType.PROGRAM_EXCEPTION and may_pass(error),
        fingerprint=fingerprint(error),
        retry_after_s=_retry_after_s(error),
    )


def may_pass(error: BaseException) -> bool:
    """Return whether the error may be gone when the trial is run again.

    An exception says so itself by an attribute `retryable`; of the others, lost connections and timeouts may pass.
    """
    said = getattr(error, "retryable", None)
    return said if isinstance(said, bool) else isinstance(error, ConnectionError | TimeoutError)


def _retry_after_s(error: BaseException) -> float:
    """Return the attribute `retry_after_s` of an exception, in seconds; 0 for none that is usable."""
    said = getattr(error, "retry_after_s", 0.0)
    usable = isinstance(said, int | float) and math.isfinite(said) and said > 0
    return float(said) if usable else 0.0


def _said(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is not our end
        return "(its message could not be shown)"


def _program_traceback(error: BaseException) -> str:
    """Return the traceback without the frames of the worker, and what it called to get to the program."""
    trace = frame = error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.startswith(_OURS):
            trace = frame.tb_next
        frame = frame.tb_next
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
    except Exception:  # noqa: BLE001 - see above
        return ""
    if len(text) > TRACEBACK_CHARACTERS:
        half = TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
    return text


def _clean(text: str) -> str:
    """Return text that protobuf takes: lone surrogates are written out."""
    return text.encode("utf-8", errors="backslashreplace").decode()


def _check_size(part: str, size: int, most: int) -> None:
    if size > most:
        raise SerializationError(path=part, reason=f"{size:,} bytes are more than the {most:,} allowed")


def _score(name: str, value: Any) -> float | int | bool:
    if hasattr(value, "item") and not isinstance(value, bool | int | float):
        value = value.item()
    if isinstance(value, int) and value.bit_length() < 64:  # noqa: PLR2004 - what msgpack carries
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise TypeError(f"metric {name} returned {value!r}; return a finite number, a boolean or a dict of them")
