"""Spans as values: the context that crosses the wire, and what is told of a span once it has ended."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias, cast

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.payload import DIGEST_BYTES, decode, digest, encode

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_SAMPLED = 1
SPAN_ID_BYTES = 8
CHARACTERS = 1_000
"""Most characters of a span's name, or of an attribute, that are sent."""
Attributes: TypeAlias = Mapping[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceContext:
    """A span that others may be children of."""

    trace_id: bytes
    """16 bytes."""
    span_id: bytes
    """8 bytes."""

    @classmethod
    def of_run(cls, run_id: str) -> TraceContext:
        """Return a new root span in the trace of that run: all steps of a run share one trace."""
        return cls(trace_id=digest(b"trace", run_id.encode()), span_id=os.urandom(SPAN_ID_BYTES))

    @classmethod
    def from_traceparent(cls, text: str) -> TraceContext | None:
        """Return the context that a W3C ``traceparent`` names; None for one that cannot be read or is not sampled."""
        found = _TRACEPARENT.fullmatch(text)
        if found is None or not int(found[3], 16) & _SAMPLED:
            return None
        trace_id, span_id = bytes.fromhex(found[1]), bytes.fromhex(found[2])
        return cls(trace_id=trace_id, span_id=span_id) if any(trace_id) and any(span_id) else None

    @property
    def traceparent(self) -> str:
        """The W3C form, sampled: what is not sampled has no context here."""
        return f"00-{self.trace_id.hex()}-{self.span_id.hex()}-01"

    def of_trial(self, trial_id: bytes) -> TraceContext:
        """Return the span of a trial below this one: client and worker work out the same, so none has to be sent."""
        span_id = digest(b"trial", self.trace_id, self.span_id, trial_id)[:SPAN_ID_BYTES]
        return TraceContext(trace_id=self.trace_id, span_id=span_id)

    def child(self) -> TraceContext:
        """Return a new span's context in the same trace."""
        return TraceContext(trace_id=self.trace_id, span_id=os.urandom(SPAN_ID_BYTES))


class EndedSpan(NamedTuple):
    """A span from its start to its end. There are no messages in it, and nothing that a model was told or said."""

    name: str
    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    """Empty for a root."""
    start_ns: int
    """Since the epoch, as `end_ns`."""
    end_ns: int
    attributes: Attributes
    error: str = ""
    """The type of what went wrong; empty where nothing did."""
    calls_out: bool = False
    """Whether it is a call to a system elsewhere."""

    @classmethod
    def of(
        cls,
        name: str,
        context: TraceContext,
        parent: TraceContext | None,
        start_ns: int,
        end_ns: int,
        attributes: Attributes,
        *,
        error: str = "",
        calls_out: bool = False,
    ) -> EndedSpan:
        """Return the span that is *context*, below *parent*."""
        above = b"" if parent is None else parent.span_id
        end_ns = max(start_ns, end_ns)
        return cls(name, context.trace_id, context.span_id, above, start_ns, end_ns, attributes, error, calls_out)

    @property
    def payload(self) -> bytes:
        """As it goes from a trial's own process to the worker, as far as it can."""
        attributes = {sendable(name): sendable(value) for name, value in self.attributes.items()}
        return encode([sendable(self.name), *self[1:6], attributes, sendable(self.error), self.calls_out])

    @classmethod
    def from_payload(cls, payload: bytes) -> EndedSpan:
        """Return the span of `payload`; raises `SerializationError` for what is none: a program may write anything."""
        parts = decode(payload)
        if not isinstance(parts, list) or not _reads_as_span(cast("list[Any]", parts)):
            raise SerializationError(path="span", reason="not a span")
        return cls(*cast("list[Any]", parts))


def sendable(value: str | float) -> str | float:
    """Return what can be sent of a span's name, or of an attribute: the rest would take the spans beside it along."""
    if isinstance(value, str):
        return value[:CHARACTERS].encode(errors="replace").decode()
    if isinstance(value, int) and not isinstance(value, bool):
        return max(-(1 << 63), min(value, (1 << 63) - 1))
    return value


def _reads_as_span(parts: list[Any]) -> bool:
    if len(parts) != len(EndedSpan._fields):
        return False
    name, trace_id, span_id, parent_id, start_ns, end_ns, attributes, error, calls_out = parts
    return (
        isinstance(name, str)
        and all(isinstance(one, bytes) for one in (trace_id, span_id, parent_id))
        and (len(trace_id), len(span_id)) == (DIGEST_BYTES, SPAN_ID_BYTES)
        and len(parent_id) in (0, SPAN_ID_BYTES)
        and all(type(one) is int and 0 <= one < 1 << 63 for one in (start_ns, end_ns))
        and isinstance(attributes, dict)
        and all(
            isinstance(key, str) and isinstance(value, str | int | float | bool)
            for key, value in cast("dict[Any, Any]", attributes).items()
        )
        and isinstance(error, str)
        and isinstance(calls_out, bool)
    )


SpanSink: TypeAlias = Callable[[EndedSpan], None]
"""Takes spans that have ended, from any thread, and raises nothing."""
