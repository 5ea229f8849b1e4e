"""Parity: the scores of a DSPy module here are those that `dspy.Evaluate` gives, example for example."""

from __future__ import annotations

import contextvars
import logging
from typing import Any

import dspy
import pytest

from dspex_pipelines.model.outcome import TrialError, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, TrialSpec
from dspex_pipelines.wire.codec import outcome_from_wire, trial_to_wire
from dspex_pipelines.worker.running import Ready, answer_in_thread
from tests.worker import dspy_judges
from tests.worker.conftest import Bench, program
from tests.worker.dspy_trial import Trials

HERE = "tests.worker.dspy_judges"
COUNT = 60
METRICS = [
    pytest.param(f"{HERE}:is_right", dspy_judges.is_right, id="boolean"),
    pytest.param(f"{HERE}:how_right", dspy_judges.how_right, id="float"),
    pytest.param("dspy.evaluate:answer_exact_match", dspy.evaluate.answer_exact_match, id="built-in"),
]


def rows() -> list[tuple[str, str]]:
    return [(f"What is {number} in words?", f"Number  {number % 7}!") for number in range(COUNT)]


def evaluated(name: str, metric: Any) -> tuple[float, list[Any]]:
    """What DSPy says, in a context without a trial."""
    devset = [dspy.Example(question=question, answer=answer).with_inputs("question") for question, answer in rows()]
    evaluate = dspy.Evaluate(devset=devset, metric=metric, num_threads=4, max_errors=COUNT, failure_score=0.0)
    logging.getLogger("dspy").setLevel(logging.CRITICAL)
    result = contextvars.Context().run(evaluate, getattr(dspy_judges, name)())
    return result.score, [score for _, _, score in result.results]


async def ran(bench: Bench, name: str, metric: str) -> list[TrialResult | TrialError]:
    of = program(f"{HERE}:{name}")
    session = bench.open(of, [metric])
    numbers = []
    for index, (question, answer) in enumerate(rows()):
        example = Example(example_id=f"{index}", inputs={"question": question}, labels={"answer": answer})
        trial = TrialSpec(program=of, example=example, configuration=Configuration({}))
        numbers.append(bench.submit(trial, session=session))
    return [await bench.outcome(number) for number in numbers]


def score_of(outcome: TrialResult | TrialError) -> Any:
    """The score; that of a failure is 0, as in our lower bound."""
    return next(iter(outcome.scores.values())) if isinstance(outcome, TrialResult) else 0


@pytest.mark.parametrize(("entry_point", "metric"), METRICS)
@pytest.mark.parametrize("name", ["Counts", "CountsOrFails"])
async def test_parity_of_scores(bench: Bench, name: str, entry_point: str, metric: Any) -> None:
    theirs, each = evaluated(name, metric)
    outcomes = await ran(bench, name, entry_point)
    ours = [score_of(outcome) for outcome in outcomes]
    assert ours == each
    assert round(100 * sum(ours) / COUNT, 2) == theirs
    assert 0 < theirs < 100
    failed = sum(isinstance(outcome, TrialError) for outcome in outcomes)
    assert (failed > 0) is (name == "CountsOrFails")


@pytest.mark.parametrize(("entry_point", "metric"), METRICS)
async def test_parity_of_scores_from_stored_outputs(bench: Bench, entry_point: str, metric: Any) -> None:
    theirs, each = evaluated("Counts", metric)
    trials = Trials(f"{HERE}:Counts", metrics=(entry_point,))
    ours = []
    for index, outcome in enumerate(await ran(bench, "Counts", entry_point)):
        assert isinstance(outcome, TrialResult)
        question, answer = rows()[index]
        example = Example(example_id=f"{index}", inputs={"question": question}, labels={"answer": answer})
        spec = TrialSpec(program=trials.program.spec, example=example, configuration=Configuration({}))
        wire = trial_to_wire(spec, id=1, session_id=1, version=1, timeout_s=0)
        wire.outputs = outcome.outputs_payload
        # Whatever is asked now would be answered otherwise.
        ready = Ready(trials.program, Configuration({}), _never, {}, trials_caller(trials))
        rescored = outcome_from_wire(answer_in_thread(wire, ready, example, on_loop=_never), spec.trial_id)
        assert isinstance(rescored, TrialResult), rescored
        ours.append(score_of(rescored))
    assert ours == each
    assert round(100 * sum(ours) / COUNT, 2) == theirs


def trials_caller(trials: Trials) -> Any:
    return trials.begun().caller


def _never(*_: Any, **__: Any) -> Any:
    raise AssertionError("the program is not run again")
