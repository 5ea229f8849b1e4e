"""What the bridge takes from a worker's outcome and what it adds to it: bounded, whatever the worker says."""

from __future__ import annotations

from dataclasses import replace

from dspex.v1 import types_pb2
from dspex_pipelines.engine.dispatch.retries import Fault
from dspex_pipelines.engine.dispatch.tickets import Settled
from dspex_pipelines.model.outcome import Attempt
from dspex_pipelines.wire.codec import attempt_to_wire, error_type_from_wire, error_type_to_wire, failure_to_wire

NAME_CHARACTERS = 200
MESSAGE_CHARACTERS = 4_000
"""Of an attempt's message: a trial's history goes on top of its outcome."""
MOST_ATTEMPTS = 500
"""Of a history, the last ones. Those that cost nothing, because their workers were lost, have no other bound."""
HISTORY_BYTES = 1 << 19
"""Of a history, the last attempts: it goes on top of an outcome, which may be as large as a message may be."""


def outcome_of(settled: Settled) -> types_pb2.Outcome:
    """Return what stands for the outcome that no worker has given."""
    assert settled.error is not None
    return types_pb2.Outcome(
        run_s=settled.run_s,
        throttled_s=settled.throttled_s,
        session_version=settled.ticket.snapshot[1],
        failure=failure_to_wire(settled.error, settled.message, retryable=not settled.error.is_final),
    )


def fault_of(outcome: types_pb2.Outcome) -> Fault | None:
    """Return what a worker says of a failed attempt; None for a kind of failure that is not known here."""
    failure = outcome.failure
    kind = error_type_from_wire(failure.type)
    if error_type_to_wire(kind) != failure.type:
        return None
    return Fault(
        type=kind,
        message=failure.message[:MESSAGE_CHARACTERS],
        retryable=failure.retryable,
        fingerprint=failure.fingerprint[:NAME_CHARACTERS],
        # A number that is none would put every timer out of order.
        retry_after_s=max(0.0, failure.retry_after_s),
        calls=_calls(outcome),
        usage=outcome.usage,
    )


def tell_history(outcome: types_pb2.Outcome, settled: Settled) -> None:
    """Put the attempts before it in front of the calls that failed within the one that settled it."""
    calls = [replace(call, number=settled.attempts, worker=settled.worker_id) for call in _calls(outcome)]
    del outcome.history[:]
    outcome.history.extend(_last([attempt_to_wire(one) for one in (*settled.history[-MOST_ATTEMPTS:], *calls)]))


def _calls(outcome: types_pb2.Outcome) -> tuple[Attempt, ...]:
    """Return what a worker says of calls that failed within an attempt, the last ones, bounded."""
    return tuple(
        Attempt(
            number=0,
            worker="",
            type=error_type_from_wire(said.type),
            message=said.message[:MESSAGE_CHARACTERS],
            run_s=max(0.0, said.run_s),
            call=said.call[:NAME_CHARACTERS],
        )
        for said in outcome.history[-MOST_ATTEMPTS:]
        if said.call
    )


def _last(attempts: list[types_pb2.Attempt]) -> list[types_pb2.Attempt]:
    """Return the last of the attempts, as many as there is room for."""
    room, begin = HISTORY_BYTES, len(attempts)
    while begin and (room := room - attempts[begin - 1].ByteSize()) >= 0:
        begin -= 1
    return attempts[begin:]
