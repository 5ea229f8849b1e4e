"""Outcomes as a table, and what its version depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex_pipelines.analysis import results
from dspex_pipelines.analysis.results import as_json, collect_trials, data_version
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.model.variables import Boolean, Choice, Float, Integer, Text

SPACE = ConfigurationSpace(
    variables=(
        Float(name="real", low=0, high=1),
        Integer(name="whole", low=0, high=9),
        Boolean(name="flag"),
        Text(name="prompt", candidates=("é",)),
        Choice(name="model", options=("x", "y")),
        Choice(name="count", options=(1, 2)),
        Choice(name="mixed", options=(1, "1", True, 1.0)),
    )
)
EXAMPLES = [Example(example_id="a", inputs={"x": 1}, group="g"), Example(example_id="b", inputs={"x": 2})]


def make_plan(*metrics: str, **changes: Any) -> Plan:
    values = {"real": 0.5, "whole": 3, "flag": True, "prompt": "é", "model": "x", "count": 2, "mixed": 1}
    given = {
        "evaluation": "tested",
        "partition": "p",
        "dataset_digest": "d",
        "rows": 2,
        "program": ProgramSpec(entry_point="m:f", version="1"),
        "metrics": tuple(MetricSpec(entry_point=f"m:{name}", version="1") for name in metrics or ("good",)),
        "space_json": SPACE.to_json(),
        "configurations": (Configuration(values),),
        **changes,
    }
    return Plan(**given)


def result(spec: TrialSpec, outputs: Any = 1, **scores: Any) -> TrialResult:
    return TrialResult(
        trial_id=spec.trial_id,
        configuration_digest=spec.configuration.digest,
        worker="w",
        queue_s=0.25,
        run_s=0.5,
        outputs_payload=encode(outputs),
        scores_payload=encode(scores or {"good": True}),
    )


def error(spec: TrialSpec, kind: ErrorType = ErrorType.PROGRAM_EXCEPTION, **changes: Any) -> TrialError:
    given = {"message": "no", "traceback": "Traceback …", **changes}
    return TrialError(trial_id=spec.trial_id, configuration_digest=spec.configuration.digest, type=kind, **given)


def collect(plan: Plan, *make: Callable[[TrialSpec], TrialOutcome]) -> tuple[pa.Table, str]:
    specs = list(plan.trials(Batch(start=0, stop=plan.total), EXAMPLES[: plan.rows]))
    rows = [(spec, one(spec)) for spec, one in zip(specs, make, strict=True)]
    with TemporaryDirectory() as folder:
        version = collect_trials(plan, iter(rows), Path(folder) / "trials.parquet")
        assert version == data_version(plan, rows)
        (file,) = Path(folder).iterdir()
        return pq.read_table(file), version


def test_columns_and_their_types() -> None:
    table, _ = collect(make_plan(), result, error)
    assert {field.name: str(field.type) for field in table.schema} == {
        "trial_id": "string",
        "evaluation": "string",
        "partition": "string",
        "example_id": "string",
        "group": "string",
        "repeat": "int32",
        "seed": "int64",
        "configuration": "string",
        "var.real": "double",
        "var.whole": "int64",
        "var.flag": "bool",
        "var.prompt": "string",
        "var.model": "string",
        "var.count": "int64",
        "var.mixed": "string",
        "score.good": "double",
        "status": "string",
        "error_type": "string",
        "error_message": "string",
        "error_traceback": "string",
        "run_s": "double",
        "queue_s": "double",
        "throttled_s": "double",
        "attempts": "int32",
        "worker": "string",
        "outputs": "string",
    }


def test_a_row_says_all_of_its_trial() -> None:
    plan = make_plan()
    table, _ = collect(plan, lambda spec: result(spec, {"n": 1}, good=True), error)
    first, second = table.to_pylist()
    (spec, _) = plan.trials(Batch(start=0, stop=2), EXAMPLES)
    assert first == {
        "trial_id": spec.trial_id.hex(),
        "evaluation": "tested",
        "partition": "p",
        "example_id": "a",
        "group": "g",
        "repeat": 0,
        "seed": 0,
        "configuration": spec.configuration.digest.hex()[:12],
        "var.real": 0.5,
        "var.whole": 3,
        "var.flag": True,
        "var.prompt": "é",
        "var.model": "x",
        "var.count": 2,
        "var.mixed": "1",
        "score.good": 1.0,
        "status": "ok",
        "error_type": None,
        "error_message": None,
        "error_traceback": None,
        "run_s": 0.5,
        "queue_s": 0.25,
        "throttled_s": 0.0,
        "attempts": 1,
        "worker": "w",
        "outputs": '{"n": 1}',
    }
    assert (second["group"], second["score.good"], second["outputs"]) == ("b", None, None)
    assert (second["status"], second["error_type"]) == ("error", "program_exception")
    assert (second["error_message"], second["error_traceback"]) == ("no", "Traceback …")


def test_what_a_program_gave_before_its_metric_failed_is_kept() -> None:
    table, _ = collect(
        make_plan(rows=1), lambda spec: error(spec, ErrorType.METRIC_EXCEPTION, outputs_payload=encode("kept"))
    )
    assert table["outputs"].to_pylist() == ['"kept"']


@pytest.mark.parametrize(
    "sent",
    [
        {"outputs_payload": b"\xc1"},
        {"scores_payload": b"\xc1"},
        {"scores_payload": encode([1])},
        {"scores_payload": encode({1: 1})},
        {"scores_payload": encode({"good": "1"})},
        {"scores_payload": encode({"good": math.nan})},
    ],
)
def test_what_a_worker_sends_that_cannot_be_read_is_a_malformed_output(sent: dict[str, bytes]) -> None:
    table, version = collect(
        make_plan(),
        result,
        lambda spec: result(spec)._replace(attempts=2, **sent),  # type: ignore[arg-type]
    )
    good, bad = table.to_pylist()
    assert (good["status"], bad["status"], bad["error_type"]) == ("ok", "error", "malformed_output")
    assert "worker w" in bad["error_message"]
    assert (bad["score.good"], bad["outputs"], bad["attempts"]) == (None, None, 2)
    assert version != collect(make_plan(), result, result)[1]


def test_scores_stand_in_the_order_of_their_metrics() -> None:
    plan = make_plan("parts", "good")
    table, _ = collect(
        plan,
        lambda spec: result(spec, **{"parts.z": 1, "parts.a": 2.5, "good": 0.5}),
        lambda spec: result(spec, **{"parts.a": 2, "good": False}),
    )
    assert [name for name in table.column_names if name.startswith("score.")] == [
        "score.parts.a",
        "score.parts.z",
        "score.good",
    ]
    assert table["score.parts.z"].to_pylist() == [1.0, None]
    assert table["score.good"].to_pylist() == [0.5, 0.0]


LATE: list[Callable[[TrialSpec], TrialOutcome]] = [
    error,
    lambda spec: result(spec, **{"parts.a": 1}),
    lambda spec: error(spec, usage_payload=encode({"tokens": 3})),
    lambda spec: result(spec, **{"parts.b": 2, "good": True}),
    lambda spec: result(spec, **{"parts.a": 4}),
]


def test_row_groups_with_scores_and_usage_that_earlier_ones_lack_are_the_same_table(monkeypatch: Any) -> None:
    plan = make_plan("parts", "good", rows=1, repeats=len(LATE))
    whole, version = collect(plan, *LATE)
    monkeypatch.setattr(results, "GROUP_ROWS", 1)
    table, again = collect(plan, *LATE)
    assert again == version
    assert table.equals(whole)
    assert table["score.parts.a"].to_pylist() == [None, 1.0, None, None, 4.0]
    assert table["usage.tokens"].to_pylist() == [None, None, 3.0, None, None]


@pytest.mark.parametrize("bound", ["GROUP_ROWS", "GROUP_CHARACTERS"])
def test_outcomes_are_written_as_they_come(tmp_path: Path, monkeypatch: Any, bound: str) -> None:
    monkeypatch.setattr(results, bound, 2)
    plan = make_plan(rows=1, repeats=5)
    sizes: list[int] = []

    def rows() -> Iterator[tuple[TrialSpec, TrialOutcome]]:
        for spec in plan.trials(Batch(start=0, stop=plan.total), EXAMPLES):
            yield spec, result(spec)
            sizes.append(sum(file.stat().st_size for file in tmp_path.iterdir()))

    collect_trials(plan, rows(), tmp_path / "trials.parquet")
    assert sizes[0] == 0
    assert sizes[1] < sizes[3]
    metadata = pq.read_metadata(tmp_path / "trials.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 1]


def test_of_outcomes_that_cannot_be_had_nothing_is_left(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(results, "GROUP_ROWS", 1)
    plan = make_plan()

    def rows() -> Iterator[tuple[TrialSpec, TrialOutcome]]:
        for spec in plan.trials(Batch(start=0, stop=1), EXAMPLES):
            yield spec, result(spec)
        raise LookupError

    with pytest.raises(LookupError):
        collect_trials(plan, rows(), tmp_path / "trials.parquet")
    assert list(tmp_path.iterdir()) == []


def test_where_all_failed_every_metric_has_its_column() -> None:
    table, _ = collect(make_plan("one", "two"), error, error)
    assert table["score.one"].to_pylist() == table["score.two"].to_pylist() == [None, None]
    assert str(table["score.one"].type) == "double"


@settings(deadline=None)
@given(
    st.fixed_dictionaries(
        {
            "run_s": st.floats(0, 100),
            "queue_s": st.floats(0, 100),
            "attempts": st.integers(1, 9),
            "worker": st.text(),
            "session_version": st.integers(0, 99),
        }
    ),
    st.text(),
)
def test_the_version_is_the_same_whenever_and_wherever_trials_ran(changes: dict[str, Any], traceback: str) -> None:
    plan = make_plan()
    _, version = collect(plan, result, error)
    _, other = collect(
        plan,
        lambda spec: result(spec)._replace(**changes),
        lambda spec: error(spec, traceback=traceback, message=traceback, **changes),
    )
    assert other == version


OUTCOMES: dict[str, Callable[[TrialSpec], TrialOutcome]] = {
    "ok": result,
    "other-outputs": lambda spec: result(spec, 2),
    "outputs-of-another-type": lambda spec: result(spec, 1.0),
    "other-score": lambda spec: result(spec, good=False),
    "other-score-name": lambda spec: result(spec, **{"good.x": True}),
    "error": error,
    "other-error": lambda spec: error(spec, ErrorType.TIMEOUT_RUN),
    "error-with-outputs": lambda spec: error(spec, outputs_payload=encode(1)),
}


def test_the_version_tells_every_outcome_apart_and_where_it_stands() -> None:
    versions = {
        (first, second): collect(make_plan(), OUTCOMES[first], OUTCOMES[second])[1]
        for first in OUTCOMES
        for second in OUTCOMES
    }
    assert len(set(versions.values())) == len(OUTCOMES) ** 2


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"partition": "q"}, {"dataset_digest": "e"}, {"evaluation": "other"}], ids=str
)
def test_another_plan_is_another_version(changes: dict[str, Any]) -> None:
    assert collect(make_plan(**changes), result, result)[1] != collect(make_plan(), result, result)[1]


def test_a_plan_of_fewer_is_another_version() -> None:
    versions = {
        collect(make_plan(rows=1), result)[1],
        collect(make_plan(rows=1, repeats=2), result, result)[1],
        collect(make_plan(), result, result)[1],
    }
    assert len(versions) == 3


JSON_LIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(JSON_LIKE)
def test_outputs_that_are_json_read_back_as_they_were(value: Any) -> None:
    assert json.loads(as_json(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (b"\x00\xff", '{"base64": "AP8="}'),
        ({"a": [math.nan, -math.inf, 1.5]}, '{"a": ["nan", "-inf", 1.5]}'),
        ({1: {b"k": 2}}, """{"1": {"b'k'": 2}}"""),
        ("é", '"é"'),
        (None, "null"),
    ],
)
def test_outputs_that_are_not_json_are_written_readably(value: Any, text: str) -> None:
    assert as_json(value) == text


def test_the_table_is_what_pandas_reads() -> None:
    table, _ = collect(make_plan(), result, error)
    read = table.to_pandas()
    assert read["score.good"].dtype == "float64"
    assert read["attempts"].dtype == "int32"
    assert pd.isna(read["score.good"][1])
