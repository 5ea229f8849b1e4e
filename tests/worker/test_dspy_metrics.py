"""Metrics written for DSPy judge as they are, and those written for us judge DSPy programs."""

from __future__ import annotations

import copy
import threading
from typing import Any

import dspy
import pytest

from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, TrialSpec
from dspex_pipelines.worker.dspy_trials import SharedExample
from tests.worker import dspy_judges
from tests.worker.conftest import Bench, program

HERE = "tests.worker.dspy_judges"


async def scores_of(bench: Bench, name: str, *judges: str, **labels: Any) -> dict[str, Any]:
    of = program(f"{HERE}:{name}")
    example = Example(example_id="one", inputs={"question": "Which?"}, labels=labels or {"label": "yes"})
    trial = TrialSpec(program=of, example=example, configuration=Configuration({}))
    session = bench.open(of, [judge if ":" in judge else f"{HERE}:{judge}" for judge in judges])
    outcome = await bench.outcome(bench.submit(trial, session=session))
    assert isinstance(outcome, TrialResult), outcome
    return dict(outcome.scores)


@pytest.mark.parametrize("name", ["Labels", "LabelsLater", "labels"])
@pytest.mark.parametrize(
    ("judge", "score"),
    [
        ("as_dspy_has_it", True),
        ("as_dspy_requires_it", 1.0),
        ("as_optimisers_have_it", 0.25),
        ("as_dspy_has_it_later", 0.75),
        ("judge", 0.5),
    ],
)
async def test_a_metric_for_dspy_works_as_it_is(bench: Bench, name: str, judge: str, score: object) -> None:
    assert await scores_of(bench, name, judge) == {judge: score}


@pytest.mark.parametrize("name", ["Labels", "LabelsLater", "labels"])
async def test_a_metric_of_ours_judges_them_too(bench: Bench, name: str) -> None:
    scores = await scores_of(bench, name, "as_we_have_it")
    assert set(scores.values()) == {True}
    assert len(scores) == 5


@pytest.mark.parametrize("name", ["Labels", "LabelsLater", "labels"])
@pytest.mark.parametrize(
    ("metric", "labels", "score"),
    [
        ("answer_exact_match", {"answer": "paris"}, True),
        ("answer_exact_match", {"answer": ["rome", "paris"]}, True),
        ("answer_exact_match", {"answer": "rome"}, False),
    ],
)
async def test_dspys_own_metrics_are_entry_points(
    bench: Bench, name: str, metric: str, labels: dict[str, Any], score: object
) -> None:
    assert await scores_of(bench, name, f"dspy.evaluate:{metric}", **labels) == {metric: score}


async def test_several_styles_judge_one_trial(bench: Bench) -> None:
    scores = await scores_of(bench, "LabelsLater", "as_dspy_has_it", "as_we_have_it", "judge", "as_dspy_has_it_later")
    assert len(scores) == 8


@pytest.mark.parametrize("name", ["Labels", "LabelsLater"])
@pytest.mark.parametrize("judge", ["judge", "judged_by_predictor"])
async def test_what_a_judge_asks_is_counted(bench: Bench, name: str, judge: str) -> None:
    outcome = await bench.run(program(f"{HERE}:{name}"), judges=[f"{HERE}:{judge}"], question="Which?")
    assert isinstance(outcome, TrialResult), outcome
    assert outcome.usage["local/judge.input_tokens"] == 10


async def test_a_judge_that_asks_a_model_keeps_no_loop_waiting(bench: Bench) -> None:
    dspy_judges.Judge.threads.clear()
    await scores_of(bench, "LabelsLater", "judge")
    assert threading.get_ident() not in dspy_judges.Judge.threads
    assert len(dspy_judges.Judge.threads) == 1


async def test_a_metric_that_fails_keeps_a_predictions_outputs(bench: Bench) -> None:
    outcome = await bench.run(program(f"{HERE}:Labels"), judges=[f"{HERE}:as_dspy_has_it"], question="Which?")
    assert isinstance(outcome, TrialError)  # there is no label
    assert outcome.type is ErrorType.METRIC_EXCEPTION
    assert outcome.outputs["label"] == "yes"


async def test_what_a_model_said_in_vain_is_kept(bench: Bench) -> None:
    outcome = await bench.run(program("tests.worker.dspy_modules:Garbled"), question="How many?")
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.MALFORMED_OUTPUT
    assert outcome.retryable
    assert "local/echo" in outcome.outputs["raw"]
    assert outcome.usage["calls"] == 2  # the second is DSPy's, in another format


# ---------------------------------------------------------------------------- examples


def example(**of: Any) -> SharedExample:
    of = {"inputs": {"q": "Q"}, "labels": {"a": "A"}, "group": "g", "metadata": {"m": 1}} | of
    return SharedExample(Example(example_id="one", **of))


def test_an_example_is_dspys_and_ours() -> None:
    ours = example()
    theirs = dspy.Example(q="Q", a="A").with_inputs("q")
    assert ours == theirs
    assert ours.inputs().toDict() == theirs.inputs().toDict() == dict(ours.inputs) == {"q": "Q"}
    assert ours.labels().toDict() == theirs.labels().toDict() == dict(ours.labels) == {"a": "A"}
    assert (ours.q, ours["a"], ours.get("b"), len(ours), "q" in ours) == ("Q", "A", None, 2, True)
    assert (ours.example_id, ours.group, ours.metadata) == ("one", "g", {"m": 1})
    assert ours.toDict() == theirs.toDict()


@pytest.mark.parametrize("how", [lambda one: one.copy(), copy.copy, copy.deepcopy, lambda one: one.with_inputs("q")])
def test_a_copy_of_an_example_is_one(how: Any) -> None:
    copied = how(example())
    assert copied.inputs().toDict() == {"q": "Q"}
    assert copied.labels["a"] == "A"
    assert copied.example_id == "one"


def test_a_column_goes_before_what_we_add() -> None:
    ours = example(inputs={"group": "own"}, labels={"example_id": "own too"})
    assert (ours.group, ours.example_id, ours.metadata) == ("own", "own too", {"m": 1})


def test_an_input_and_a_label_of_one_name_are_both_there() -> None:
    ours = example(inputs={"text": "in"}, labels={"text": "out"})
    assert (ours.text, ours.inputs["text"], ours.labels["text"]) == ("in", "in", "out")


def test_an_attribute_that_is_not_there_is_missed() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = example().nothing


def test_dspys_evaluate_takes_them() -> None:
    evaluate = dspy.Evaluate(devset=[example(inputs={"question": "Q"}, labels={"label": "yes"})], num_threads=1)
    assert evaluate(dspy_judges.Labels(), metric=dspy_judges.as_dspy_has_it).score == 100.0
