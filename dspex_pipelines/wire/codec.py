"""The only place that turns model values into wire messages and back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines.engine.calls.trial_calls import MOST_AMOUNT
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.calls import CallPolicy, Price
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.outcome import Attempt, ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import DIGEST_BYTES, decode, encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, Isolation, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.redaction import redact

PROTOCOL_VERSION = 3
"""Raised whenever the two ends of different releases would misunderstand each other."""

HEARTBEAT_S = 0.5
FRAME_TRIALS = 64
FRAME_BYTES = 1 << 20
MESSAGE_LIMIT = 16 << 20
"""Most bytes of a message to the bridge."""
PAYLOAD_BYTES = MESSAGE_LIMIT - (1 << 20)
"""Most bytes of all that a trial takes along (example and outputs), or that an outcome brings back."""
RELAYED_LIMIT = MESSAGE_LIMIT + (1 << 20)
"""Most bytes of a message from the bridge: what it was sent, and what it adds to that."""
CHANNEL_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", RELAYED_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
]
"""Of those who dial the bridge."""
SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", RELAYED_LIMIT),
]

_TO_WIRE: dict[ErrorType, types_pb2.ErrorType.ValueType] = {
    kind: types_pb2.ErrorType.Value(f"ERROR_TYPE_{kind.name}") for kind in ErrorType
}
_MOST_VERSION = 2**63 - 1
"""As large a number as a journal's column takes."""
_FROM_WIRE = {number: kind for kind, number in _TO_WIRE.items()}
_VERDICT_TO_WIRE: dict[Verdict, worker_pb2.CallVerdict.ValueType] = {
    verdict: worker_pb2.CallVerdict.Value(f"CALL_VERDICT_{verdict.name}") for verdict in Verdict
}
_VERDICT_FROM_WIRE: dict[int, Verdict] = {number: verdict for verdict, number in _VERDICT_TO_WIRE.items()}


def error_type_to_wire(kind: ErrorType) -> types_pb2.ErrorType.ValueType:
    """Return the wire's number of an error type."""
    return _TO_WIRE[kind]


def error_type_from_wire(number: int) -> ErrorType:
    """Return the error type of a wire number; one this release does not know is a lost worker's."""
    return _FROM_WIRE.get(cast("types_pb2.ErrorType.ValueType", number), ErrorType.WORKER_LOST)


def program_to_wire(program: ProgramSpec) -> types_pb2.Program:
    """Return the wire form of a program."""
    return types_pb2.Program(
        entry_point=program.entry_point,
        init=encode(program.init),
        version=program.version,
        isolation=program.isolation,
    )


def program_from_wire(program: types_pb2.Program) -> ProgramSpec:
    """Return the program of a wire message; raises `InvalidValue` or `SerializationError` for one that cannot be."""
    init = decode(program.init)
    if init is None:
        init = {}
    if not isinstance(init, dict) or not all(isinstance(name, str) for name in cast("dict[Any, Any]", init)):
        raise SerializationError(path="program.init", reason="not a map of names to values")
    return ProgramSpec(
        entry_point=program.entry_point,
        init=cast("dict[str, Any]", init),
        version=program.version,
        isolation=cast("Isolation", program.isolation or "shared"),
    )


def metric_to_wire(metric: MetricSpec) -> types_pb2.Metric:
    """Return the wire form of a metric."""
    return types_pb2.Metric(entry_point=metric.entry_point, version=metric.version, name=metric.name)


def metric_from_wire(metric: types_pb2.Metric) -> MetricSpec:
    """Return the metric of a wire message; raises `InvalidValue` for one that cannot be."""
    return MetricSpec(entry_point=metric.entry_point, version=metric.version, name=metric.name)


def policy_to_wire(policy: CallPolicy) -> types_pb2.CallPolicy:
    """Return the wire form of what holds for calls to models."""
    return types_pb2.CallPolicy(
        limits=[
            types_pb2.RateLimit(
                model=limit.model,
                requests_per_minute=limit.requests_per_minute,
                tokens_per_minute=limit.tokens_per_minute,
                max_concurrency=limit.max_concurrency,
            )
            for limit in policy.limits
        ],
        prices=[
            types_pb2.Price(
                model=price.model,
                input_usd=price.input_usd,
                output_usd=price.output_usd,
                cached_input_usd=price.cached_input_usd,
            )
            for price in policy.prices
        ],
        trace_bytes=policy.trace_bytes,
    )


def policy_from_wire(policy: types_pb2.CallPolicy) -> CallPolicy:
    """Return the value of a policy message; raises `InvalidValue` for one that cannot be."""
    return CallPolicy(
        limits=tuple(
            RateLimit(
                model=limit.model,
                requests_per_minute=limit.requests_per_minute,
                tokens_per_minute=limit.tokens_per_minute,
                max_concurrency=limit.max_concurrency,
            )
            for limit in policy.limits
        ),
        prices=tuple(
            Price(
                model=price.model,
                input_usd=price.input_usd,
                output_usd=price.output_usd,
                cached_input_usd=price.cached_input_usd if price.HasField("cached_input_usd") else None,
            )
            for price in policy.prices
        ),
        trace_bytes=policy.trace_bytes,
    )


def verdict_to_wire(verdict: Verdict) -> worker_pb2.CallVerdict.ValueType:
    """Return the wire's number of how a call went."""
    return _VERDICT_TO_WIRE[verdict]


def verdict_from_wire(number: int) -> Verdict:
    """Return how a call went; what this release does not know says nothing."""
    return _VERDICT_FROM_WIRE.get(number, Verdict.NEUTRAL)


def checked_about(
    program: types_pb2.Program,
    metrics: Iterable[types_pb2.Metric],
    calls: types_pb2.CallPolicy | None = None,
    traceparent: str = "",
) -> bytes:
    """Return what a session is about, as it goes to the workers; raises `InvalidValue`.

    The program's parameters stay unread: only workers look at payloads.
    """
    unread = types_pb2.Program(entry_point=program.entry_point, version=program.version, isolation=program.isolation)
    program_from_wire(unread)
    for metric in metrics:
        metric_from_wire(metric)
    if calls is not None:
        policy_from_wire(calls)
    return types_pb2.Session(
        program=program, metrics=metrics, calls=calls, traceparent=traceparent or None
    ).SerializeToString()


def session_to_wire(session_id: int, about: bytes) -> types_pb2.Session:
    """Return the wire form of a session that is about what `checked_about` returned."""
    session = types_pb2.Session.FromString(about)
    session.session_id = session_id
    return session


def trial_to_wire(
    spec: TrialSpec,
    *,
    id: int,  # noqa: A002 - the wire's name
    session_id: int,
    version: int,
    timeout_s: float,
) -> types_pb2.Trial:
    """Return the wire form of a trial that runs under the snapshot (*session_id*, *version*)."""
    trial = types_pb2.Trial()
    write_trial(trial, spec, spec.example.payload, id, session_id, version, timeout_s)
    return trial


def write_trial(
    trial: types_pb2.Trial,
    spec: TrialSpec,
    example: bytes,
    id: int,  # noqa: A002 - the wire's name
    session_id: int,
    version: int,
    timeout_s: float,
) -> None:
    """Make an empty message the wire form of a trial, *example* being its example's payload.

    Where it is part of a frame, nothing is copied.
    """
    trial.id = id
    trial.trial_id = spec.trial_id
    trial.session_id = session_id
    trial.version = version
    trial.example = example
    if seed := spec.seed:
        trial.seed = seed
    if repeat := spec.repeat:
        trial.repeat = repeat
    trial.timeout_s = timeout_s


def example_from_wire(payload: bytes) -> Example:
    """Return the example that `Example.payload` holds; raises `SerializationError` or `InvalidValue`."""
    try:
        example_id, inputs, labels, group, metadata = decode(payload)
    except (TypeError, ValueError):
        raise _not_an_example() from None
    if not (
        type(inputs) is dict
        and type(labels) is dict
        and type(metadata) is dict
        and type(example_id) is type(group) is str
    ):
        raise _not_an_example()
    name: object
    for name in inputs:  # pyright: ignore[reportUnknownVariableType] - as it came
        if type(name) is not str:
            raise SerializationError(path=f"example.inputs[{name!r}]", reason="inputs are named by strings")
    return Example(example_id=example_id, inputs=inputs, labels=labels, group=group, metadata=metadata)


def _not_an_example() -> SerializationError:
    return SerializationError(path="example", reason="not a list of id, inputs, labels, group and metadata")


def configuration_from_wire(values: bytes) -> Configuration:
    """Return the configuration of a snapshot's values; raises `SerializationError`."""
    decoded = decode(values)
    if decoded is None:
        decoded = {}
    if not isinstance(decoded, dict) or not all(
        isinstance(name, str) and isinstance(value, bool | int | float | str)
        for name, value in cast("dict[Any, Any]", decoded).items()
    ):
        raise SerializationError(path="values", reason="not a map of names to numbers, booleans and strings")
    return Configuration(cast("dict[str, Any]", decoded))


def failure_to_wire(
    kind: ErrorType,
    message: str,
    *,
    traceback: str = "",
    retryable: bool = False,
    fingerprint: str = "",
    retry_after_s: float = 0.0,
) -> types_pb2.Failure:
    """Return the wire form of why a trial has no result, without secrets."""
    return types_pb2.Failure(
        type=_TO_WIRE[kind],
        message=redact(message),
        traceback=redact(traceback),
        retryable=retryable,
        fingerprint=fingerprint,
        retry_after_s=retry_after_s,
    )


def attempt_to_wire(attempt: Attempt) -> types_pb2.Attempt:
    """Return the wire form of an attempt that did not settle its trial."""
    return types_pb2.Attempt(
        number=attempt.number,
        worker_id=attempt.worker,
        type=_TO_WIRE[attempt.type],
        message=attempt.message,
        fingerprint=attempt.fingerprint,
        queue_s=attempt.queue_s,
        run_s=attempt.run_s,
        call=attempt.call,
        usage=attempt.usage_payload,
    )


def attempt_from_wire(attempt: types_pb2.Attempt) -> Attempt:
    """Return the value of an attempt message."""
    return Attempt(
        number=attempt.number,
        worker=attempt.worker_id,
        type=error_type_from_wire(attempt.type),
        message=attempt.message,
        fingerprint=attempt.fingerprint,
        queue_s=attempt.queue_s,
        run_s=attempt.run_s,
        call=attempt.call,
    )


def _spent(outcome: types_pb2.Outcome) -> bytes:
    """Return what all attempts of a trial used together: those that failed were paid for too."""
    payloads = [attempt.usage for attempt in outcome.history if attempt.usage]
    if not payloads:
        return outcome.usage
    total: dict[str, float] = {}
    for payload in (*payloads, outcome.usage):
        try:
            used = decode(payload) or {}
        except SerializationError:
            continue
        if isinstance(used, dict):
            for name, amount in cast("dict[Any, Any]", used).items():
                if isinstance(name, str) and isinstance(amount, int | float) and 0 <= amount < math.inf:
                    # A sum of numbers that could be sent need not be one.
                    total[name] = min(total.get(name, 0) + amount, MOST_AMOUNT)
    return encode(total)


def outcome_from_wire(outcome: types_pb2.Outcome, trial_id: bytes) -> TrialOutcome:
    """Return the value of an outcome message, for the trial it answers; what a worker says of itself is bounded."""
    failed = outcome.HasField("failure")
    attempts = outcome.attempts
    history: tuple[Attempt, ...] = ()
    if past := outcome.history:
        # Most have none. One that went well at once has had none, but for calls that were made again.
        history = tuple(one for one in map(attempt_from_wire, past) if failed or attempts > 1 or one.call)
    version = outcome.session_version
    if version > _MOST_VERSION:
        version = 0
    run_s = outcome.run_s
    # Not every number is one that a journal can hold and that can be added up.
    if not 0.0 <= run_s < math.inf:
        run_s = 0.0
    throttled_s = outcome.throttled_s
    if not 0.0 <= throttled_s < math.inf:
        throttled_s = 0.0
    usage = _spent(outcome) if history else outcome.usage
    if not failed:
        # In the order of its fields: by name, making one takes four times as long.
        fields = (
            trial_id,
            outcome.configuration_digest[:DIGEST_BYTES],
            version,
            attempts,
            outcome.worker_id,
            outcome.queue_s,
            run_s,
            outcome.outputs,
            outcome.scores,
            outcome.trace,
            usage,
            history,
            throttled_s,
        )
        return tuple.__new__(TrialResult, fields)
    failure = outcome.failure
    return TrialError(
        trial_id=trial_id,
        configuration_digest=outcome.configuration_digest[:DIGEST_BYTES],
        type=error_type_from_wire(failure.type),
        message=failure.message,
        traceback=failure.traceback,
        retryable=failure.retryable,
        fingerprint=failure.fingerprint,
        retry_after_s=max(0.0, failure.retry_after_s),
        session_version=version,
        attempts=attempts,
        worker=outcome.worker_id,
        queue_s=outcome.queue_s,
        run_s=run_s,
        outputs_payload=outcome.outputs,
        usage_payload=usage,
        history=history,
        throttled_s=throttled_s,
        trace_payload=outcome.trace,
        ends_run=failure.ends_run,
    )
