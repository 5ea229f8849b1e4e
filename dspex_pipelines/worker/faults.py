"""What there is to say about an exception that a program or a metric raised, whatever it makes of being looked at."""

from __future__ import annotations

import hashlib
import math
import re
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

from dspex.v1 import types_pb2
from dspex_pipelines.engine.calls.provider_faults import provider_fault
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.redaction import redact, redact_beginning
from dspex_pipelines.wire import marks
from dspex_pipelines.wire.codec import failure_to_wire

MESSAGE_CHARACTERS = 4_000
TRACEBACK_CHARACTERS = 16_000
MOST_LINKS = 32
"""Causes, contexts and members of groups that a traceback shows."""
_LONG_MESSAGE = 100_000
_OURS = (str(Path(__file__).parent), str(Path(marks.__file__)))
_LINKS = ("__cause__", "__context__", "__suppress_context__", "__traceback__", "exceptions", "__getattribute__")
_HEAP_TYPE = 1 << 9


def failure_of(kind: ErrorType, error: BaseException) -> types_pb2.Failure:
    """Return *error* as the wire has it. It takes bounded time, and nothing that the exception does gets out."""
    try:
        message, size = _said(error)
        return failure_to_wire(
            kind,
            clean(f"{redact(type(error).__qualname__)}: {message}"[:MESSAGE_CHARACTERS]),
            traceback=clean(_program_traceback(error, message, size)),
            retryable=kind is ErrorType.PROGRAM_EXCEPTION and _may_pass(error),
            fingerprint=_fingerprint(error, message),
            retry_after_s=_retry_after_s(error),
        )
    except BaseException:  # noqa: BLE001 - its attributes raise, or are nothing that makes sense
        return failure_to_wire(kind, "an exception that cannot be looked at", fingerprint="unspeakable")


def failure_and_raw(kind: ErrorType, error: BaseException) -> tuple[types_pb2.Failure, str | None]:
    """Return what `failure_of` does, told as the provider's fault where it is one, and what a model said in vain."""
    fault = provider_fault(error) if kind is ErrorType.PROGRAM_EXCEPTION else None
    if fault is None:
        return failure_of(kind, error), None
    failure = failure_of(fault.type, error)
    failure.message = f"{fault.what}: {failure.message}"[:MESSAGE_CHARACTERS]
    failure.retryable = fault.passes
    failure.ends_run = fault.ends_run
    if fault.retry_after_s:
        failure.retry_after_s = fault.retry_after_s
    return failure, None if fault.raw is None else clean(redact(fault.raw))


def said(error: BaseException) -> str:
    """Return the beginning of its message."""
    return clean(_said(error)[0])


def clean(text: str) -> str:
    """Return text that protobuf takes: lone surrogates are written out."""
    return text.encode(errors="backslashreplace").decode()


def _said(error: BaseException) -> tuple[str, int]:
    """Return the beginning of the message, and how long it is."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - a broken __str__ is not our end
        return "(its message could not be shown)", 0
    return redact_beginning(text, MESSAGE_CHARACTERS), len(text)


def _may_pass(error: BaseException) -> bool:
    """Return whether the error may be gone when the trial is run again.

    An exception says so itself by an attribute `retryable`; of the others, lost connections and timeouts may pass.
    """
    said = _attribute(error, "retryable")
    return said if isinstance(said, bool) else isinstance(error, ConnectionError | TimeoutError)


def _retry_after_s(error: BaseException) -> float:
    """Return the attribute `retry_after_s` of an exception, in seconds; 0 for none that is usable."""
    said = _attribute(error, "retry_after_s")
    try:
        seconds = float(said) if isinstance(said, int | float) else 0.0
    except OverflowError:
        return 0.0
    return seconds if math.isfinite(seconds) and seconds > 0 else 0.0


def _attribute(error: BaseException, name: str) -> Any:
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a property may raise anything
        return None


def _fingerprint(error: BaseException, message: str) -> str:
    """Return a digest that is equal for the same error at the same place, whatever numbers it names."""
    place, trace = "", _traceback_of(error)
    while trace is not None:
        place = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_frame.f_code.co_name}"
        trace = trace.tb_next
    words = re.sub(r"0x[0-9a-f]+|\d+", "#", message)
    text = f"{redact(type(error).__qualname__)}|{place}|{words}"
    return hashlib.blake2b(text.encode(errors="replace"), digest_size=8).hexdigest()


def _traceback_of(error: BaseException) -> TracebackType | None:
    return _slot(error, "__traceback__")


def _slot(error: BaseException, name: str) -> Any:
    """Return what the interpreter has of an exception, not what its class makes of that."""
    return BaseException.__dict__[name].__get__(error)


def _program_traceback(error: BaseException, message: str, size: int) -> str:
    """Return the traceback without the frames of the worker, and what it called to get to the program."""
    trace = frame = _traceback_of(error)
    while frame is not None:
        if frame.tb_frame.f_code.co_filename.startswith(_OURS):
            trace = frame.tb_next
        frame = frame.tb_next
    try:
        if size <= _LONG_MESSAGE and _is_plain(error):
            text = "".join(traceback.format_exception(type(error), error, trace))
        else:
            lines = ["Traceback (most recent call last):\n", *traceback.format_tb(trace)]
            text = "".join(
                [*lines, f"{type(error).__qualname__}: {message}\n", "(what led to it is too much to show)\n"]
            )
    except Exception:  # noqa: BLE001 - see above
        return ""
    text = redact(text)
    if len(text) > TRACEBACK_CHARACTERS:
        half = TRACEBACK_CHARACTERS // 2
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
    return text


def _is_plain(error: BaseException) -> bool:
    """Return whether what led to *error* is little, and the interpreter's own: a class can make it up without end."""
    seen: set[int] = set()
    todo = [error]
    while todo:
        link = todo.pop()
        if id(link) in seen:
            continue
        seen.add(id(link))
        if len(seen) > MOST_LINKS or any(_is_overridden(type(link), name) for name in _LINKS):
            return False
        todo += [led for name in ("__cause__", "__context__") if (led := _slot(link, name)) is not None]
        if isinstance(link, BaseExceptionGroup):
            todo += link.exceptions[: MOST_LINKS + 1]
    return True


def _is_overridden(of: type, name: str) -> bool:
    owner = next((base for base in of.__mro__ if name in base.__dict__), None)
    return owner is not None and bool(owner.__flags__ & _HEAP_TYPE)
