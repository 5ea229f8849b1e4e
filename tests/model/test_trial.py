"""Payloads, trial identity and plans."""

from __future__ import annotations

import copy
import math
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex_pipelines.errors import InvalidValue, SerializationError
from dspex_pipelines.model.payload import canonical, decode, encode
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec

PROGRAM = ProgramSpec(entry_point="a.b:c", version="1")
EXAMPLE = Example(example_id="1", inputs={"x": 1}, labels={"y": 2})
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**63), max_value=2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES)
def test_a_payload_comes_back_as_it_went(value: object) -> None:
    back = decode(encode(value))
    assert back == value
    assert canonical(back) == canonical(value)


def test_nan_survives() -> None:
    assert math.isnan(decode(encode(math.nan)))


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"a": [1, {2}]}, "outputs['a'][1]"),
        ({"big": 2**64}, "outputs['big']"),
        ([object()], "outputs[0]"),
    ],
)
def test_what_cannot_be_carried_is_named_by_its_path(value: object, path: str) -> None:
    with pytest.raises(SerializationError) as refusal:
        encode(value)
    assert refusal.value.path == path


def test_numpy_values_become_plain_ones() -> None:
    assert decode(encode({"a": np.float64(0.5), "b": np.arange(3)})) == {"a": 0.5, "b": [0, 1, 2]}


def _spec(**changes: object) -> TrialSpec:
    fields = {"program": PROGRAM, "example": EXAMPLE, "configuration": Configuration({"k": 1}), **changes}
    return TrialSpec(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"program": ProgramSpec(entry_point="a.b:c", version="2")},
        {"program": ProgramSpec(entry_point="a.b:c", version="1", init={"n": 1})},
        {"example": Example(example_id="2", inputs={"x": 1})},
        {"example": Example(example_id="1", inputs={"x": 2})},
        {"configuration": Configuration({"k": 2})},
        {"repeat": 1},
        {"seed": 1},
    ],
)
def test_a_trial_is_another_one_when_any_part_of_it_is(change: dict[str, object]) -> None:
    assert _spec(**change).trial_id != _spec().trial_id


def test_a_copy_is_the_same_trial() -> None:
    spec = _spec(seed=3)
    for copied in (copy.copy(spec), copy.deepcopy(spec), pickle.loads(pickle.dumps(spec))):
        assert copied == spec
        assert type(copied) is TrialSpec
        assert copied.trial_id == spec.trial_id
        assert copied.example.payload == spec.example.payload


def test_a_trial_with_another_part_has_another_id() -> None:
    assert _spec()._replace(seed=7) == _spec(seed=7)
    assert _spec()._replace(seed=7).trial_id == _spec(seed=7).trial_id != _spec().trial_id


def test_the_trials_of_a_configuration_lie_side_by_side() -> None:
    # Each in a neighbourhood of its own.
    examples = [Example(example_id=str(number), inputs={"x": number}) for number in range(0, 100_000, 1_000)]
    kinds = [{"configuration": Configuration({"k": 1})}, {"configuration": Configuration({"k": 2})}]
    kinds.append({**kinds[0], "program": ProgramSpec(entry_point="a.b:c", version="2")})
    ids = [[_spec(**kind, example=one).trial_id for one in examples] for kind in kinds]
    together = sorted(trial_id for some in ids for trial_id in some)
    assert {len(trial_id) for trial_id in together} == {16}
    assert {frozenset(together[start : start + 100]) for start in (0, 100, 200)} == set(map(frozenset, ids))
    assert len({trial_id[:6] for trial_id in ids[0]}) == 100, "the twelve digits that are shown tell a trial apart"


def test_ids_of_neighbouring_examples_lie_side_by_side() -> None:
    """What runs together touches few pages of an index that holds all: a thousandth of it, with numbers for ids."""
    ids = [_spec(example=Example(example_id=str(number), inputs={})).trial_id for number in range(20_000)]
    place = {trial_id: number for number, trial_id in enumerate(sorted(ids))}
    for start in (1_000, 10_000, 19_000):
        places = sorted(place[trial_id] for trial_id in ids[start : start + 1_000])
        assert places[-1] - places[0] < 2_000


def test_long_ids_are_not_kept() -> None:
    tracemalloc.start()
    try:
        for number in range(300):
            _spec(example=Example(example_id=f"{number:06}" + 100_000 * "x", inputs={}))
        assert tracemalloc.get_traced_memory()[0] < 10_000_000
    finally:
        tracemalloc.stop()


def test_what_a_trial_is_judged_by_is_labels_metadata_and_metrics() -> None:
    def judged_by(metrics: bytes = b"a", **changes: Any) -> bytes:
        return Example(example_id="1", inputs={}, **changes).judged_by(metrics)

    alike = [judged_by(), judged_by(), judged_by(group="g")]
    assert len({*alike, judged_by(b"b"), judged_by(labels={"y": 1}), judged_by(metadata={"y": 1})}) == 4
    example = Example(example_id="1", inputs={})
    assert [example.judged_by(metrics) for metrics in (b"a", b"b", b"a")] == [alike[0], judged_by(b"b"), alike[0]]


def test_labels_are_not_part_of_a_trial() -> None:
    relabelled = Example(example_id="1", inputs={"x": 1}, labels={"y": 3}, group="g")
    assert _spec(example=relabelled).trial_id == _spec().trial_id


@pytest.mark.parametrize("entry_point", ["a.b", "a.b:<lambda>", "__main__:f", "a:f.<locals>.g", ":f", "a b:c"])
def test_what_cannot_be_imported_by_name_is_refused(entry_point: str) -> None:
    with pytest.raises(InvalidValue):
        ProgramSpec(entry_point=entry_point, version="1")


def _plan(**changes: object) -> Plan:
    fields: dict[str, object] = {
        "evaluation": "e",
        "partition": "p",
        "dataset_digest": "d",
        "rows": 3,
        "program": PROGRAM,
        "metrics": (MetricSpec(entry_point="m:n", version="1"),),
        "space_json": ConfigurationSpace().to_json(),
        "configurations": (Configuration({"k": 1}), Configuration({"k": 2})),
        "repeats": 2,
    }
    return Plan(**{**fields, **changes})  # type: ignore[arg-type]


def test_a_plan_survives_json() -> None:
    assert Plan.from_json(_plan().to_json()) == _plan()


@given(size=st.integers(min_value=1, max_value=20))
def test_batches_cover_every_trial_once(size: int) -> None:
    plan = _plan()
    examples = [Example(example_id=str(row), inputs={"x": row}) for row in range(3)]
    trials = [spec.trial_id for batch in plan.batches(size) for spec in plan.trials(batch, examples)]
    assert len(trials) == plan.total == 12
    assert len(set(trials)) == 12
    assert trials == [spec.trial_id for spec in plan.trials(Batch(start=0, stop=12), examples)]


def test_only_like_plans_are_alike() -> None:
    assert _plan(partition="q", rows=9).likeness == _plan().likeness
    assert _plan(limit=1).likeness != _plan().likeness
    assert _plan(seed=1).likeness != _plan().likeness
