"""A `dspy.Module` is a program as it stands, with an instance for each configuration."""

from __future__ import annotations

import pytest

from dspex_pipelines.engine.programs import inspect_program
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from tests.worker.conftest import Bench, program, spec

HERE = "tests.worker.dspy_programs"


async def test_a_plain_module_is_called_with_the_inputs(bench: Bench) -> None:
    outcome = await bench.run(f"{HERE}:Answers", judges=[f"{HERE}:is_short"], question="How are you?")
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs == {"answer": "fine"}
    assert outcome.scores == {"is_short": True}


@pytest.mark.parametrize("name", ["Answers", "AnswersLater", "Both", "Configured"])
async def test_each_configuration_has_a_module_and_a_language_model_of_its_own(bench: Bench, name: str) -> None:
    of = program(f"{HERE}:{name}")
    session = bench.open(of)
    seen: dict[float, tuple[object, object]] = {}
    for _ in range(2):
        for version, temperature in enumerate((0.1, 0.9), start=1):
            trial = spec(of, {"question": "Which?"}, {"temperature": temperature})
            outcome = await bench.outcome(bench.submit(trial, session=session, version=version))
            assert isinstance(outcome, TrialResult), outcome
            assert outcome.outputs["temperature"] == temperature
            who = (outcome.outputs["module"], outcome.outputs["model"])
            assert seen.setdefault(temperature, who) == who
    (first, first_model), (second, second_model) = seen.values()
    assert first != second
    assert first_model != second_model


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7}], ids=["all-of-them", "some-of-them"])
async def test_a_module_is_built_with_the_variables_that_its_constructor_takes(
    bench: Bench, settings: dict[str, float]
) -> None:
    of = program(f"{HERE}:Taking")
    session = bench.open(of)
    built: dict[int, set[object]] = {}
    for _ in range(2):
        for words, shown in ((1, "How…"), (2, "How are…")):
            values = {"words": words, "ellipsis": "…", **settings}
            trial = spec(of, {"question": "How are you?"}, values)
            outcome = await bench.outcome(bench.submit(trial, session=session, version=words))
            assert isinstance(outcome, TrialResult), outcome
            assert outcome.outputs["shown"] == shown
            assert outcome.outputs["settings"].get("temperature") == settings.get("temperature", 0.0)
            assert "words" not in outcome.outputs["settings"]
            built.setdefault(words, set()).add(outcome.outputs["built"])
    assert [len(instances) for instances in built.values()] == [1, 1]
    assert built[1] != built[2]


def test_a_module_whose_constructor_is_not_given_all_it_needs_is_refused() -> None:
    with pytest.raises(InvalidValue, match="nobody supplies it"):
        inspect_program(f"{HERE}:Taking", {}, inputs=["question"], variables=["words", "temperature"])


async def test_a_module_without_a_language_model_says_what_to_do(bench: Bench) -> None:
    outcome = await bench.run(f"{HERE}:Unset", values={"temperature": 0.5}, question="Which?")
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.PROGRAM_EXCEPTION
    assert "set_lm" in outcome.message
    assert "configure(variables)" in outcome.message


async def test_a_module_that_needs_none_runs_without_a_language_model(bench: Bench) -> None:
    outcome = await bench.run(f"{HERE}:Unset", question="Which?")
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs == {"answer": "Which?"}
