"""Feeds bytes to everything that decodes bytes from another process. The seeds are what is sent in fact.

`decode(name, data)` raises only what a decoder may not do. A coverage-guided fuzzer needs no more than this module:

    import atheris, sys
    with atheris.instrument_imports(include=["dspex_pipelines"]):
        from tests.wire import fuzz_decoders
    atheris.Setup(sys.argv, fuzz_decoders.decode_any); atheris.Fuzz()
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from google.protobuf.message import DecodeError

from dspex.v1 import execution_pb2, session_pb2, types_pb2, worker_pb2
from dspex_pipelines.bridge.sessions import SessionStore
from dspex_pipelines.errors import DspexError, InvalidValue, SerializationError
from dspex_pipelines.model import payload
from dspex_pipelines.model.outcome import Attempt, TrialError, TrialOutcome
from dspex_pipelines.model.space import AtMost, Configuration, ConfigurationSpace, Implies, Ordered
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.model.variables import Boolean, Choice, Float, Integer, Module, Text
from dspex_pipelines.wire import codec
from dspex_pipelines.worker.session_context import SessionContext

SPACE = ConfigurationSpace(
    variables=(
        Float(name="t", low=0, high=2, default=1, points=(0.0, 1.5)),
        Float(name="lr", low=1e-5, high=1, log=True, default=0.1),
        Integer(name="k", low=1, high=9, default=3),
        Integer(name="n", low=1, high=9, default=3),
        Boolean(name="on", default=True),
        Choice(name="model", options=("a", 1, 2.5, True), default="a"),
        Text(name="say", candidates=("x", "y"), default="x"),
        Module(name="how", allowed=("a.b:c",), default="a.b:c"),
    ),
    constraints=(
        Ordered(lower="k", upper="n"),
        Implies(when={"on": (True,)}, then={"model": ("a", 1)}),
        AtMost(weights={"k": 0.5, "t": 1}, bound=9),
    ),
)
PROGRAM = ProgramSpec(entry_point="a.b:c", init={"depth": [1, {"x": 2.5}]}, version="1" * 32)
EXAMPLE = Example(example_id="1", inputs={"x": [1, 2.5, None]}, labels={"y": b"z"}, group="g", metadata={"m": True})
SPEC = TrialSpec(program=PROGRAM, example=EXAMPLE, configuration=Configuration({"k": 1}))
OUTCOME = types_pb2.Outcome(
    id=7,
    configuration_digest=b"0123456789abcdef",
    session_version=3,
    outputs=payload.encode({"x": 1}),
    scores=payload.encode({"s": 0.5}),
    failure=codec.failure_to_wire(codec.ErrorType.PROGRAM_EXCEPTION, "m", traceback="t", fingerprint="f"),
    run_s=0.25,
    queue_s=0.5,
    attempts=2,
    worker_id="w",
    history=[codec.attempt_to_wire(Attempt(number=1, worker="w", type=codec.ErrorType.TIMEOUT_RUN, message="m"))],
)
TRIAL = codec.trial_to_wire(SPEC, id=7, session_id=9, version=1, timeout_s=2.5)
PROGRAM_MESSAGE = codec.program_to_wire(PROGRAM)
METRIC_MESSAGE = codec.metric_to_wire(MetricSpec(entry_point="a:b", version="2" * 32))
SESSION = types_pb2.Session(session_id=9, program=PROGRAM_MESSAGE, metrics=[METRIC_MESSAGE])
SNAPSHOT = types_pb2.Snapshot(session_id=9, version=1, values=payload.encode({"k": 1}), digest=b"0123456789abcdef")

SEEDS: Mapping[str, bytes] = {
    "payload": payload.encode([1, -2, 2.5, None, True, "text", b"bytes", {"k": [{}, []]}, 2**64 - 1, -(2**63)]),
    "example": EXAMPLE.payload,
    "configuration": SNAPSHOT.values,
    "space": SPACE.to_json().encode(),
    "program": PROGRAM_MESSAGE.SerializeToString(),
    "metric": METRIC_MESSAGE.SerializeToString(),
    "outcome": OUTCOME.SerializeToString(),
    "open": session_pb2.OpenSessionRequest(
        program=PROGRAM_MESSAGE, metrics=[METRIC_MESSAGE], space=SPACE.to_json()
    ).SerializeToString(),
    "set": session_pb2.SetVariablesRequest(
        session_id=9, values=SNAPSHOT.values, expected_version=0
    ).SerializeToString(),
    "worker": worker_pb2.AttachResponse(
        sessions=[SESSION], snapshots=[SNAPSHOT], trials=[TRIAL], cancel_ids=[7]
    ).SerializeToString(),
    "bridge": worker_pb2.AttachRequest(
        hello=worker_pb2.WorkerHello(protocol_version=1, worker_id="w", slots=4, pid=7),
        outcomes=[OUTCOME],
        released_ids=[3],
    ).SerializeToString(),
    "client": execution_pb2.ExecuteProgramsRequest(
        protocol_version=1, trials=[TRIAL], cancel_ids=[7], committed=1
    ).SerializeToString(),
}


def decode(name: str, data: bytes) -> bool:
    """Decode *data* as what *name* says; return whether it is that. Raises what its decoder should not."""
    try:
        _DECODERS[name](data)
    except (DspexError, DecodeError):
        return False
    return True


def decode_any(data: bytes) -> None:
    """Decode *data* as what its first byte says."""
    names = sorted(_DECODERS)
    if data:
        decode(names[data[0] % len(names)], data[1:])


def _payload(data: bytes) -> None:
    value = payload.decode(data)
    try:
        again = payload.encode(value)
    except SerializationError:
        return  # nested more deeply than is ever sent
    assert payload.encode(payload.decode(again)) == again


def _example(data: bytes) -> None:
    example = codec.example_from_wire(data)
    assert tuple(example.inputs) == tuple(str(name) for name in example.inputs)
    example.digest  # noqa: B018 - as a client makes it


def _configuration(data: bytes) -> None:
    configuration = codec.configuration_from_wire(data)
    assert codec.configuration_from_wire(payload.encode(configuration.values)) == configuration


def _space(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # no protobuf string
    space = ConfigurationSpace.from_json(text)
    assert ConfigurationSpace.from_json(space.to_json()).to_json() == space.to_json()
    SessionStore().open(b"", space)
    _try_values(space, {})
    _try_values(space, dict.fromkeys(space.names, 1))
    _try_values(space, dict.fromkeys(space.names, 2**63))
    _try_values(space, dict.fromkeys(space.names, math.nan))
    _try_values(space, dict.fromkeys(space.names, "x"))


def _try_values(space: ConfigurationSpace, values: Mapping[str, object]) -> None:
    try:
        configuration = space.validate(values)
    except DspexError:
        return
    assert space.validate(configuration.values) == configuration


def _program(data: bytes) -> None:
    message = types_pb2.Program.FromString(data)
    program = codec.program_from_wire(message)
    assert codec.program_from_wire(codec.program_to_wire(program)).digest == program.digest


def _metric(data: bytes) -> None:
    metric = codec.metric_from_wire(types_pb2.Metric.FromString(data))
    assert codec.metric_from_wire(codec.metric_to_wire(metric)) == metric


def _outcome(data: bytes) -> None:
    storable(codec.outcome_from_wire(types_pb2.Outcome.FromString(data), b"0123456789abcdef"))


def storable(outcome: TrialOutcome) -> None:
    """Fail unless any journal takes the outcome."""
    assert 0 <= outcome.session_version < 2**63
    assert 0.0 <= outcome.run_s < math.inf
    assert len(outcome.configuration_digest) <= payload.DIGEST_BYTES
    if isinstance(outcome, TrialError):
        assert outcome.retry_after_s >= 0.0
        assert outcome.type.value


def _open(data: bytes) -> None:
    request = session_pb2.OpenSessionRequest.FromString(data)
    about = codec.checked_about(request.program, request.metrics)
    context = SessionContext()
    context.open(codec.session_to_wire(9, about))
    _space(request.space.encode() or b"{}")


def _set(data: bytes) -> None:
    request = session_pb2.SetVariablesRequest.FromString(data)
    store = SessionStore()
    values = payload.decode(request.values) or {}
    if not isinstance(values, dict):
        raise InvalidValue(field="values", value=values, fix="a map")
    for space in (None, SPACE):
        session = store.open(b"", space).session_id
        try:
            snapshot = store.set_variables(session, values, replace=request.replace)
        except DspexError:
            continue
        assert codec.configuration_from_wire(snapshot.values).digest == snapshot.digest


def _worker(data: bytes) -> None:
    """What a worker takes from its stream: it keeps what it cannot read as the error that it is."""
    frame = worker_pb2.AttachResponse.FromString(data)
    context = SessionContext()
    for session in frame.sessions:
        context.open(session)
    for snapshot in frame.snapshots:
        context.add(snapshot)
    for trial in frame.trials:
        try:
            context.find(trial.session_id, trial.version)
            codec.example_from_wire(trial.example)
        except DspexError:
            continue
    for session_id in frame.closed_session_ids:
        context.close(session_id)


_DECODERS: dict[str, Callable[[bytes], Any]] = {
    "payload": _payload,
    "example": _example,
    "configuration": _configuration,
    "space": _space,
    "program": _program,
    "metric": _metric,
    "outcome": _outcome,
    "open": _open,
    "set": _set,
    "worker": _worker,
    "bridge": worker_pb2.AttachRequest.FromString,
    "client": execution_pb2.ExecuteProgramsRequest.FromString,
}
assert set(_DECODERS) == set(SEEDS)
assert json.loads(SEEDS["space"])
