"""The one module that imports OpenTelemetry: turns spans that have ended into its own, and has them sent."""

from __future__ import annotations

import contextlib
import os
import threading

from dspex_pipelines.errors import TelemetryUnavailable
from dspex_pipelines.model.tracing import EndedSpan, TraceContext, sendable

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
    from opentelemetry.trace.status import Status, StatusCode
except ImportError as error:
    raise TelemetryUnavailable(str(error)) from error

SERVICE = "dspex"
QUEUE = 65_536
"""Spans that wait to be sent before new ones push out the oldest, unless `OTEL_BSP_MAX_QUEUE_SIZE` says otherwise."""
LATE_S = 0.2
"""A flush waits no longer than this after one that was not done in time."""
_SCOPE = InstrumentationScope("dspex_pipelines")
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Exporter:
    """Sends spans by OTLP over HTTP, in groups, from a thread of its own."""

    def __init__(self, instance: str) -> None:
        own = {"service.name": SERVICE, **({"service.instance.id": instance} if instance else {})}
        # What the environment says goes before.
        self._resource = Resource.create(own).merge(OTELResourceDetector().detect())
        self._sampler = TracerProvider(shutdown_on_exit=False).sampler
        size = None if os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE") else QUEUE
        self._late = False
        """Whether the last flush was not done in time: a run may have hundreds of steps, and each of them flushes."""
        self._processor = BatchSpanProcessor(OTLPSpanExporter(), max_queue_size=size)

    def samples(self, root: TraceContext, name: str) -> bool:
        """Whether that trace is to be recorded, which is decided once and for all its spans."""
        trace_id = int.from_bytes(root.trace_id, "big")
        return self._sampler.should_sample(None, trace_id, name).decision.is_sampled()

    def put(self, span: EndedSpan) -> None:
        """Have *span* sent, some time; from any thread."""
        # A trial's outcome is worth more than its span.
        with contextlib.suppress(Exception):
            self._processor.on_end(self._readable(span))

    def flush(self, within_s: float) -> None:
        """Wait until what was put is sent, or lost, but not longer than that."""
        # The processor's own bound is not kept, and one that cannot reach anybody tries again for long.
        sending = threading.Thread(target=self._processor.force_flush, name="flush-spans", daemon=True)
        sending.start()
        sending.join(min(within_s, LATE_S) if self._late else within_s)
        self._late = sending.is_alive()

    def _readable(self, span: EndedSpan) -> ReadableSpan:
        given = {**span.attributes, "error.type": span.error} if span.error else span.attributes
        attributes = {name: sendable(value) for name, value in given.items()}
        return ReadableSpan(
            name=str(sendable(span.name)),
            context=_context(span.trace_id, span.span_id),
            parent=_context(span.trace_id, span.parent_id) if span.parent_id else None,
            resource=self._resource,
            attributes=attributes,
            kind=SpanKind.CLIENT if span.calls_out else SpanKind.INTERNAL,
            status=Status(StatusCode.ERROR if span.error else StatusCode.UNSET),
            start_time=span.start_ns,
            end_time=span.end_ns,
            instrumentation_scope=_SCOPE,
        )


def _context(trace_id: bytes, span_id: bytes) -> SpanContext:
    return SpanContext(
        int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big"), is_remote=False, trace_flags=_SAMPLED
    )


_exporter: Exporter | None = None
_making = threading.Lock()


def exporter(instance: str = "") -> Exporter:
    """Return this process's exporter; whoever asks first says what the process is called."""
    global _exporter  # noqa: PLW0603 - one for each process: its thread, its queue and its connection
    with _making:
        if _exporter is None:
            _exporter = Exporter(instance)
        return _exporter
