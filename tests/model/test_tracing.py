"""Contexts and spans cross the wire as they are, and what is neither is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.tracing import EndedSpan, TraceContext

CONTEXT = TraceContext.of_run("run")
SPAN = EndedSpan.of("chat", CONTEXT, CONTEXT.child(), 1, 2, {"a": 1, "b": "x", "c": 0.5, "d": True}, error="E")


def test_a_context_crosses_as_it_is() -> None:
    assert TraceContext.from_traceparent(CONTEXT.traceparent) == CONTEXT


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "0" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-00",
        "00-" + "G" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-01\n",
    ],
    ids=["none", "no trace", "no span", "not sampled", "not hexadecimal", "more than that"],
)
def test_what_is_no_context_to_be_told_of_is_none(text: str) -> None:
    assert TraceContext.from_traceparent(text) is None


def test_a_trial_has_one_span_id_below_a_root_and_another_below_another() -> None:
    again = TraceContext.of_run("run")
    assert again.trace_id == CONTEXT.trace_id
    assert CONTEXT.of_trial(b"t") == CONTEXT.of_trial(b"t")
    assert len({CONTEXT.of_trial(b"t"), CONTEXT.of_trial(b"u"), again.of_trial(b"t")}) == 3


def test_a_span_crosses_as_it_is() -> None:
    assert EndedSpan.from_payload(SPAN.payload) == SPAN


def test_what_cannot_cross_as_it_is_crosses_as_far_as_it_can() -> None:
    strange = {"a": 1 << 70, "b": -(1 << 70), "c": "x" * 5_000, "d": "\udc80", "e": True}
    span = EndedSpan.of("chat \udc80", CONTEXT, CONTEXT.child(), 1, 2, strange)
    told = EndedSpan.from_payload(span.payload)
    assert told.name == "chat ?"
    assert told.attributes == {"a": (1 << 63) - 1, "b": -(1 << 63), "c": "x" * 1_000, "d": "?", "e": True}


@given(st.integers(0, 8), st.sampled_from([None, -1, 1 << 63, [], {"a": []}, {1: 2}, 1.5, b"short"]))
def test_what_is_no_span_is_refused(place: int, instead: object) -> None:
    parts = [*SPAN[:6], dict(SPAN.attributes), *SPAN[7:]]
    with pytest.raises(SerializationError):
        EndedSpan.from_payload(encode([*parts[:place], instead, *parts[place + 1 :]]))


@pytest.mark.parametrize("payload", [b"", b"\xc1", encode({}), encode([1])])
def test_what_is_no_list_of_that_length_is_refused(payload: bytes) -> None:
    with pytest.raises(SerializationError):
        EndedSpan.from_payload(payload)
