"""Any bytes are a value or the error they are; and decoding them costs no more than they are long."""

from __future__ import annotations

import gc
import json
import math
import resource
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dspex.v1 import types_pb2
from dspex_pipelines.engine.calls.trial_calls import MOST_AMOUNT
from dspex_pipelines.errors import DspexError, InvalidValue, SerializationError
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.wire.codec import example_from_wire, outcome_from_wire
from dspex_pipelines.worker.session_context import SessionContext
from tests.wire import fuzz_decoders
from tests.wire.fuzz_decoders import SEEDS

NAMES = sorted(SEEDS)
MANY = settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))


def cpu_s(work: Callable[[], object]) -> float:
    """Return what *work* costs by itself: the least of three, without collections of what other tests have left."""

    def once() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    gc.collect()
    gc.disable()
    try:
        return min(once() for _ in range(3))
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_is_taken(name: str) -> None:
    assert fuzz_decoders.decode(name, SEEDS[name])


@MANY
@given(name=st.sampled_from(NAMES), data=st.binary(max_size=200))
def test_no_bytes_do_what_they_should_not(name: str, data: bytes) -> None:
    fuzz_decoders.decode(name, data)


@st.composite
def mutants(draw: st.DrawFn) -> tuple[str, bytes]:
    """What is sent in fact, with something cut out, doubled, swapped, or overwritten."""
    name = draw(st.sampled_from(NAMES))
    data = bytearray(SEEDS[name])
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, len(data)))
        match draw(st.integers(0, 4)):
            case 0:
                del data[at:to]
            case 1:
                data[at:at] = data[at:to]
            case 2:
                data[at:to] = draw(st.binary(max_size=12))
            case 3:
                data[at:to] = draw(st.sampled_from(list(SEEDS.values())))
            case _:
                if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
    return name, bytes(data)


@MANY
@given(mutant=mutants())
def test_no_mutant_does_what_it_should_not(mutant: tuple[str, bytes]) -> None:
    fuzz_decoders.decode(*mutant)


# ---------------------------------------------------------------------- spaces, as JSON of the right words

OF_SPACES = ("variables", "constraints", "kind", "name", "k", "n", "a.b:c")
OF_VARIABLES = ("low", "high", "default", "log", "points", "options", "candidates", "max_length", "allowed")
OF_CONSTRAINTS = ("lower", "upper", "strict", "when", "then", "weights", "bound")
KINDS = ("float", "integer", "boolean", "choice", "text", "module", "ordered", "implies", "at_most")
WORDS = st.sampled_from([*OF_SPACES, *OF_VARIABLES, *OF_CONSTRAINTS, *KINDS])
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63, -(2**64), 10**400, 0, 1])
    | st.floats()
    | WORDS
    | st.text(max_size=3)
)
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=5), max_leaves=12
)


@MANY
@given(variables=st.lists(DOCUMENTS, max_size=3), constraints=st.lists(DOCUMENTS, max_size=3))
def test_no_document_does_what_it_should_not(variables: list[Any], constraints: list[Any]) -> None:
    fuzz_decoders.decode("space", json.dumps({"variables": variables, "constraints": constraints}).encode())


FIELDS: dict[str, dict[str, Any]] = {
    "float": {"low": 0, "high": 1, "default": 1, "points": [1], "log": False, "description": ""},
    "integer": {"low": 0, "high": 1, "default": 1, "points": [1], "description": ""},
    "boolean": {"default": True, "description": ""},
    "choice": {"options": [1, "a"], "default": 1, "description": ""},
    "text": {"candidates": ["a"], "default": "a", "max_length": 9, "description": ""},
    "module": {"allowed": ["a:b"], "default": "a:b", "description": ""},
    "ordered": {"lower": "k", "upper": "n", "strict": True},
    "implies": {"when": {"k": [1]}, "then": {"n": [1]}},
    "at_most": {"weights": {"k": 1, "n": 2.5}, "bound": 3},
}
CONSTRAINTS = ("ordered", "implies", "at_most")


@MANY
@given(data=st.data(), kind=st.sampled_from(sorted(FIELDS)), value=DOCUMENTS)
def test_no_field_of_a_variable_or_constraint_does_what_it_should_not(
    data: st.DataObject, kind: str, value: object
) -> None:
    field = data.draw(st.sampled_from([*FIELDS[kind], "name", "kind"]))
    one = {"kind": kind, **({} if kind in CONSTRAINTS else {"name": "x"}), **FIELDS[kind], field: value}
    numbers = [{"kind": "integer", "name": name, "low": 0, "high": 10**9, "default": 10**9} for name in "kn"]
    document = {"variables": numbers, "constraints": []}
    document["constraints" if kind in CONSTRAINTS else "variables"].append(one)
    fuzz_decoders.decode("space", json.dumps(document).encode())


# ---------------------------------------------------------------------- outcomes, with numbers that are none

ANY_DOUBLE = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -1.0, 1e308])


@MANY
@given(
    run_s=ANY_DOUBLE,
    retry_after_s=ANY_DOUBLE,
    version=st.integers(0, 2**64 - 1),
    kind=st.integers(-(2**31), 2**31 - 1),
    attempts=st.integers(0, 2**32 - 1),
    digest=st.binary(max_size=40),
    failed=st.booleans(),
)
@example(run_s=math.nan, retry_after_s=math.nan, version=2**64 - 1, kind=99, attempts=0, digest=b"", failed=True)
def test_every_outcome_is_one_that_a_journal_takes(
    run_s: float, retry_after_s: float, version: int, kind: int, attempts: int, digest: bytes, failed: bool
) -> None:
    outcome = types_pb2.Outcome(
        run_s=run_s,
        session_version=version,
        attempts=attempts,
        configuration_digest=digest,
        history=[types_pb2.Attempt()],
    )
    if failed:
        outcome.failure.type = kind  # type: ignore[assignment]
        outcome.failure.retry_after_s = retry_after_s
    fuzz_decoders.storable(outcome_from_wire(outcome, b""))


def test_a_past_that_a_worker_makes_up_is_not_one() -> None:
    outcome = types_pb2.Outcome(attempts=1, history=[types_pb2.Attempt(message="never")])
    assert outcome_from_wire(outcome, b"").history == ()


# ---------------------------------------------------------------------- what it may cost


def nested(depth: int, size: int) -> bytes:
    """Lists in lists, each of which claims to be as long as everything is."""
    head = b"\xdd" + size.to_bytes(4, "big")
    return head * depth + bytes(size - len(head) * depth)


@pytest.mark.parametrize(
    "bomb",
    [
        pytest.param(nested(1_000, 1 << 20), id="lists-that-claim-much"),
        pytest.param(b"\x91" * (1 << 20), id="deep"),
        pytest.param(b"\xdf\xff\xff\xff\xff" * 1_000, id="maps-that-claim-much"),
        pytest.param(b"\xc6\xff\xff\xff\xff" + bytes(1 << 20), id="bytes-that-are-not-there"),
    ],
)
def test_a_bomb_is_refused_for_what_its_bytes_cost(bomb: bytes) -> None:
    def refused() -> None:
        with pytest.raises(SerializationError):
            decode(bomb)

    honest = encode([0] * (1 << 20))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cpu_s(refused) < 2 * cpu_s(lambda: decode(honest))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 64 << 10


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x81\x90\x01", id="a-list-as-a-key"),
        pytest.param(b"\x81\x80\x01", id="a-map-as-a-key"),
        pytest.param(b"\xd6\xff\x00\x00\x00\x00", id="a-timestamp"),
        pytest.param(b"\xc7\x00\x05", id="an-empty-extension"),
        pytest.param(b"\xc7\x03\x05abc", id="an-extension"),
        pytest.param(b"\xa1\xff", id="not-utf-8"),
        pytest.param(b"\xc1", id="no-such-type"),
        pytest.param(b"\x01\x01", id="more-than-one"),
    ],
)
def test_what_is_never_packed_is_not_unpacked(data: bytes) -> None:
    with pytest.raises(SerializationError):
        decode(data)


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("wrong", [None, 1, b"x", [1], {1: 2}, True])
def test_an_example_has_its_types(at: int, wrong: object) -> None:
    fields: list[object] = ["1", {"x": 1}, {}, "", {}]
    fields[at] = wrong
    if at in (2, 4) and isinstance(wrong, dict):
        assert example_from_wire(encode(fields)).example_id == "1"
        return
    with pytest.raises(SerializationError):
        example_from_wire(encode(fields))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("[" * 100_000, id="deep"),
        pytest.param('{"variables": ' + "[" * 100_000, id="deep-inside"),
        pytest.param(json.dumps({"variables": [{"kind": "float", "name": "x", "low": 0, "high": 10**400}]}), id="huge"),
        pytest.param(
            json.dumps({"variables": [{"kind": "choice", "name": "x", "options": [1], "default": 10**4_000}]}),
            id="default",
        ),
        pytest.param('{"variables": 1' + "0" * 5_000 + "}", id="endless"),
    ],
)
def test_a_space_of_excess_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        ConfigurationSpace.from_json(text)


@pytest.mark.parametrize(
    "constraint",
    [
        pytest.param({"kind": "at_most", "weights": {"k": [0]}, "bound": 1}, id="a-list-times-a-number"),
        pytest.param({"kind": "at_most", "weights": {"k": "ab"}, "bound": 1}, id="a-string-times-a-number"),
        pytest.param({"kind": "at_most", "weights": {"k": True}, "bound": 1}, id="a-boolean"),
        pytest.param({"kind": "at_most", "weights": {"k": 1}, "bound": "9"}, id="a-bound-that-is-none"),
        pytest.param({"kind": "ordered", "lower": ["k"], "upper": "n"}, id="a-list-of-names"),
        pytest.param({"kind": "implies", "when": [["k", 1]], "then": {"n": [1]}}, id="pairs"),
    ],
)
def test_a_constraint_of_the_wrong_types_is_refused(constraint: dict[str, Any]) -> None:
    numbers = [{"kind": "integer", "name": name, "low": 0, "high": 10**12} for name in "kn"]
    with pytest.raises(InvalidValue):
        ConfigurationSpace.from_json(json.dumps({"variables": numbers, "constraints": [constraint]}))


def test_a_large_space_costs_what_it_is_long() -> None:
    def seconds(count: int) -> float:
        text = json.dumps({"variables": [{"kind": "boolean", "name": f"v{x}"} for x in range(count)]})
        return cpu_s(lambda: ConfigurationSpace.from_json(text))

    assert seconds(16_000) < 100 * seconds(1_000)


# ---------------------------------------------------------------------- a worker's sessions


def test_what_a_worker_cannot_read_fails_its_own_trials_alone() -> None:
    context = SessionContext()
    good = types_pb2.Session(session_id=1, program=types_pb2.Program(entry_point="a.b:c", version="1"))
    context.open(good)
    for session_id, program in enumerate(
        [
            types_pb2.Program(entry_point="<lambda>"),
            types_pb2.Program(entry_point="a.b:c", init=b"\xc1"),
            types_pb2.Program(entry_point="a.b:c", init=encode([1])),
            types_pb2.Program(entry_point="a.b:c", init=b"\x91" * 800 + b"\x80"),
            types_pb2.Program(entry_point="a.b:c", isolation="none"),
        ],
        start=2,
    ):
        context.open(types_pb2.Session(session_id=session_id, program=program))
        context.add(types_pb2.Snapshot(session_id=session_id, version=1, values=b"\x80"))
        for _ in range(2):
            with pytest.raises(DspexError):
                context.find(session_id, 1)
    for version, values in enumerate([b"\xc1", b"\x90", encode({1: 2}), encode({"k": [1]}), b"\x91" * 800], start=1):
        context.add(types_pb2.Snapshot(session_id=1, version=version, values=values))
        with pytest.raises(SerializationError):
            context.find(1, version)
    context.add(types_pb2.Snapshot(session_id=1, version=9, values=encode({"k": 1})))
    found = context.find(1, 9)
    assert found is not None
    assert found[1].values == {"k": 1}
    assert context.find(77, 1) is None
    for session_id, version in ((1, 9), (1, 9), (2, 1), (77, 1)):
        context.forget(session_id, version)
        context.close(77)
    assert context.find(1, 9) is None


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        pytest.param(2**64 - 1, MOST_AMOUNT, id="too-many-together"),
        pytest.param(-(2**63), 0, id="negative"),
        pytest.param(math.nan, 0, id="none"),
        pytest.param("5", 0, id="text"),
    ],
)
def test_what_attempts_have_used_together_is_what_can_be_counted(said: Any, tokens: int) -> None:
    usage = encode({"tokens": said})
    past = [types_pb2.Attempt(number=number, usage=usage) for number in (1, 2, 3)]
    outcome = outcome_from_wire(types_pb2.Outcome(attempts=4, history=past, usage=usage), b"")
    assert outcome.usage.get("tokens", 0) == tokens
