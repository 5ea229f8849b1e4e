"""Spans for OpenTelemetry: off unless `DSPEX_OTEL` says otherwise, and then nothing of OpenTelemetry is imported.

Where spans go, and which, is for OpenTelemetry's own variables to say (`OTEL_EXPORTER_OTLP_ENDPOINT`, and so on).
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Generator
from contextlib import contextmanager

from dspex_pipelines.engine.spans import RunSpans
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.tracing import Attributes, EndedSpan, SpanSink, TraceContext

SWITCH = "DSPEX_OTEL"
FLUSH_S = 5.0
"""How long the end of a step waits for its spans to be sent; that they cannot be fails no step."""
_ON = frozenset({"1", "true"})
_OFF = frozenset({"", "0", "false"})


def is_on() -> bool:
    """Whether this process is to send spans; raises `InvalidValue` for a switch that is neither on nor off."""
    said = os.environ.get(SWITCH, "").strip().lower()
    if said not in _ON | _OFF:
        raise InvalidValue(field=SWITCH, value=said, fix="give 1 for on, or 0 for off")
    return said in _ON and os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() != "true"


def check() -> None:
    """Raise `TelemetryUnavailable` when spans are on and cannot be sent for want of what sends them."""
    if is_on():
        importlib.import_module(f"{__name__}.exporting")


def span_sink(*, instance: str = "") -> SpanSink | None:
    """Return what takes this process's spans, None when they are off; raises `TelemetryUnavailable`.

    *instance* is what the process is called among others of its kind.
    """
    if not is_on():
        return None
    from dspex_pipelines.telemetry.exporting import exporter

    return exporter(instance).put


@contextmanager
def run_spans(evaluation: str, *, run_id: str, attributes: Attributes) -> Generator[RunSpans | None]:
    """Give what tells of a step's trials, and tell of the step itself at the end; None when spans are off.

    Raises `TelemetryUnavailable`.
    """
    if not is_on():
        yield None
        return
    from dspex_pipelines.telemetry.exporting import exporter

    name = f"evaluate {evaluation}"
    exports = exporter()
    root = TraceContext.of_run(run_id)
    if not exports.samples(root, name):
        yield None
        return
    about = {"dspex.evaluation": evaluation, "dspex.run.id": run_id, **attributes}
    started, failed = time.time_ns(), ""
    try:
        yield RunSpans(root, exports.put)
    except BaseException as error:
        failed = type(error).__name__
        raise
    finally:
        exports.put(EndedSpan.of(name, root, None, started, time.time_ns(), about, error=failed))
        exports.flush(FLUSH_S)


def flush(within_s: float) -> None:
    """Wait until what was told is sent, at most *within_s* seconds; does nothing when spans are off."""
    if is_on():
        from dspex_pipelines.telemetry.exporting import exporter

        exporter().flush(within_s)
