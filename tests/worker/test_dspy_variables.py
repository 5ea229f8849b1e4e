"""What a DSPy module is made from, and what its variables reach by their names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.engine.programs import ProgramKind, inspect_program
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from tests.worker import dspy_modules
from tests.worker.conftest import Bench, program
from tests.worker.dspy_trial import Trials

HERE = "tests.worker.dspy_modules"
SHOTS = "shots"


async def outputs_of(bench: Bench, name: str, values: dict[str, Any] | None = None, **init: Any) -> dict[str, Any]:
    outcome = await bench.run(program(f"{HERE}:{name}", **init), values=values, question="Which?")
    assert isinstance(outcome, TrialResult), outcome
    return outcome.outputs


def said(outputs: dict[str, Any], field: str = "said") -> dict[str, Any]:
    return json.loads(outputs[field])


async def refusal_of(bench: Bench, name: str, values: dict[str, Any] | None = None, **init: Any) -> TrialError:
    outcome = await bench.run(program(f"{HERE}:{name}", **init), values=values, question="Which?")
    assert isinstance(outcome, TrialError), outcome
    return outcome


# ---------------------------------------------------------------------------- what it is made from


@pytest.mark.parametrize(
    ("name", "style"),
    [
        ("QA", "plain"),
        ("make_qa", "made"),
        ("make_something", "made"),
        ("ready_made", "ready"),
        ("Unhashable", "plain"),
    ],
)
async def test_a_class_a_factory_and_an_instance_are_programs(bench: Bench, name: str, style: str) -> None:
    assert (await outputs_of(bench, name))["style"] == style


async def test_each_configuration_of_an_instance_is_a_copy(bench: Bench) -> None:
    changed = await outputs_of(bench, "ready_made", {"retrieve.k": 9, "temperature": 0.5})
    assert changed["k"] == 9
    assert dspy_modules.ready_made.retrieve.k == 3
    assert dspy_modules.ready_made.answer.lm.kwargs["temperature"] is None
    assert (await outputs_of(bench, "ready_made"))["k"] == 3


async def test_dspys_own_modules_are_programs(bench: Bench) -> None:
    of = program("dspy:ChainOfThought", signature="question -> answer")
    outcome = await bench.run(of, values={"temperature": 0.5}, question="Which?")
    assert isinstance(outcome, TrialError)
    assert "dspy.configure" in outcome.message  # it has no model


async def test_a_factory_gets_init_and_variables(bench: Bench) -> None:
    assert (await outputs_of(bench, "make_qa", style="given"))["style"] == "given"
    assert (await outputs_of(bench, "make_qa", {"style": "varied"}))["style"] == "varied"


async def test_a_factory_that_makes_something_else_is_told(bench: Bench) -> None:
    refusal = await refusal_of(bench, "make_nothing")
    assert refusal.type is ErrorType.PROGRAM_UNAVAILABLE
    assert "returned a str" in refusal.message


def test_a_function_without_that_annotation_is_just_called() -> None:
    shape = inspect_program(f"{HERE}:makes_unsaid", {}, inputs=["question"], variables=[])
    assert shape.kind is ProgramKind.FUNCTION


@pytest.mark.parametrize("name", ["QA", "make_qa", "ready_made"])
def test_an_init_parameter_that_nothing_takes_is_refused_when_planned(name: str) -> None:
    with pytest.raises(InvalidValue, match="init parameter 'colour'"):
        inspect_program(f"{HERE}:{name}", {"colour": "red"}, inputs=["question"], variables=[])


@pytest.mark.parametrize("name", ["QA", "make_qa", "ready_made"])
def test_an_input_that_forward_does_not_take_is_refused_when_planned(name: str) -> None:
    with pytest.raises(InvalidValue, match="input 'topic'"):
        inspect_program(f"{HERE}:{name}", {}, inputs=["question", "topic"], variables=[])


# ---------------------------------------------------------------------------- saved state


async def test_saved_state_is_loaded(bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import dspy

    optimised = dspy_modules.QA()
    optimised.set_lm(None)
    optimised.answer.demos = [dspy.Example(question="5+5?", answer="10"), dspy.Example(question="6+6?", answer="12")]
    optimised.answer.signature = optimised.answer.signature.with_instructions("Count.")
    optimised.save(tmp_path / "optimised.json")
    monkeypatch.chdir(tmp_path)
    outputs = await outputs_of(bench, "UsesState", state="optimised.json")
    assert said(outputs)["system"] == "Count."
    assert said(outputs)[SHOTS] == 2


@pytest.mark.parametrize(
    ("state", "says"), [("saved.pkl", "runs whatever code"), ("saved", "json"), (3, "json"), ("", "json")]
)
def test_state_is_json_alone(state: object, says: str) -> None:
    with pytest.raises(InvalidValue, match=says) as refusal:
        inspect_program(f"{HERE}:QA", {"state": state}, inputs=["question"], variables=[])
    assert refusal.value.field == "init.state"


async def test_state_that_is_not_there_says_so(bench: Bench) -> None:
    refusal = await refusal_of(bench, "QA", state="nowhere.json")
    assert refusal.type is ErrorType.PROGRAM_UNAVAILABLE
    assert "files=('nowhere.json',)" in refusal.message


async def test_a_constructors_own_state_is_its_own(bench: Bench) -> None:
    assert await outputs_of(bench, "Stateful", state="liquid") == {"state": "liquid"}


# ---------------------------------------------------------------------------- what variables reach


async def test_a_constructor_gets_the_object_that_a_value_names(bench: Bench) -> None:
    outputs = await outputs_of(bench, "QA", {"rank": f"{HERE}:rank_backwards", "style": "a:b"})
    assert outputs["rank"] == "rank_backwards"
    assert outputs["style"] == "a:b"  # it is annotated as text


async def test_configure_gets_what_the_constructor_does_not_take(bench: Bench) -> None:
    outputs = await outputs_of(bench, "WithConfigure", {"style": "own", "retrieve.k": 2, "temperature": 0.5})
    assert outputs == {"given": {"retrieve.k": 2, "temperature": 0.5}, "style": "own"}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param({"retrieve.k": 7}, {"k": 7}, id="attribute-of-a-part"),
        pytest.param({"depth": 4}, {"depth": 4}, id="attribute"),
        pytest.param({"max_demos": 2}, {"demos": 2}, id="demos"),
        pytest.param({"max_demos": 9}, {"demos": 3}, id="no-more-demos-than-fit"),
        pytest.param({"answer.max_demos": 1}, {"demos": 1}, id="demos-of-a-part"),
        pytest.param({"answer": "dspy:ChainOfThought"}, {"kind": "ChainOfThought"}, id="another-module"),
        pytest.param({"answer": "dspy:Predict"}, {"kind": "Predict"}, id="the-same-module"),
    ],
)
async def test_a_variable_reaches_a_part(bench: Bench, values: dict[str, Any], expected: dict[str, Any]) -> None:
    outputs = await outputs_of(bench, "QA", values)
    assert {name: outputs[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("values", "first", "second"),
    [
        pytest.param({"temperature": 0.5}, {"temperature": 0.5}, {"temperature": 0.5}, id="all"),
        pytest.param({"answer.temperature": 0.5}, {"temperature": None}, {"temperature": 0.5}, id="one"),
        pytest.param(
            {"answer.temperature": 0.5, "temperature": 0.1},
            {"temperature": 0.1},
            {"temperature": 0.5},
            id="one-and-all",
        ),
        pytest.param({"think.max_tokens": 7}, {"max_tokens": 7}, {"max_tokens": None}, id="max-tokens"),
        pytest.param({"model": "local/b"}, {"model": "local/b"}, {"model": "local/b"}, id="model"),
        pytest.param({"answer.model": "local/b"}, {"model": "local/echo"}, {"model": "local/b"}, id="model-of-one"),
        pytest.param(
            {"answer.model": "local/b", "temperature": 0.1},
            {"model": "local/echo", "temperature": 0.1},
            {"model": "local/b", "temperature": 0.1},
            id="model-of-one-settings-of-all",
        ),
        pytest.param({"think.instructions": "Think."}, {"system": "Think."}, {}, id="instructions"),
        pytest.param({"answer.predict.instructions": "Answer."}, {}, {"system": "Answer."}, id="instructions-deep"),
    ],
)
@pytest.mark.parametrize("name", ["TwoStep", "TwoStepLater"])
async def test_a_variable_reaches_the_models_of_predictors(
    bench: Bench, name: str, values: dict[str, Any], first: dict[str, Any], second: dict[str, Any]
) -> None:
    outputs = await outputs_of(bench, name, values)
    for field, expected in (("first", first), ("second", second)):
        assert said(outputs, field) | expected == said(outputs, field)


async def test_another_module_keeps_demonstrations_and_settings(bench: Bench) -> None:
    values = {"answer": "dspy:ChainOfThought", "answer.temperature": 0.5, "model": "local/b"}
    outputs = await outputs_of(bench, "QA", values)
    assert (said(outputs)["model"], said(outputs)["temperature"]) == ("local/b", 0.5)
    swapped = await outputs_of(bench, "TwoStep", {"answer": "dspy:Predict", "answer.instructions": "Go."})
    assert said(swapped, "second")["system"] == "Go."


async def test_reasoning_need_not_be_demonstrated(bench: Bench) -> None:
    swapped = await outputs_of(bench, "QA", {"answer": "dspy:ChainOfThought", "max_demos": 2})
    assert (swapped["demos"], said(swapped)[SHOTS]) == (2, 2)


async def test_no_demonstrations_can_be_had_anywhere(bench: Bench) -> None:
    assert await outputs_of(bench, "TwoStep", {"max_demos": 0})


def test_another_module_has_the_task_without_the_reasoning_of_the_first() -> None:
    trials = Trials("TwoStep", {"answer": "dspy:Predict", "think": "dspy:ChainOfThought"})
    assert list(trials.instance.answer.signature.output_fields) == ["answer"]
    assert list(trials.instance.think.predict.signature.output_fields) == ["reasoning", "answer"]


@pytest.mark.parametrize(
    ("values", "says"),
    [
        pytest.param({"nothing.k": 1}, "there is no 'nothing'", id="no-such-part"),
        pytest.param({"instructions": "x"}, "predictors: think, answer.predict", id="several-predictors"),
        pytest.param({"max_demos": 1}, "no predictor has demonstrations", id="no-demonstrations"),
        pytest.param({"temprature": 1.0}, "did you mean temperature?", id="misspelt"),
        pytest.param({"answer.temprature": 1.0}, "did you mean temperature?", id="misspelt-of-one"),
        pytest.param({"answer": 3}, "which this cannot stand for", id="no-module"),
    ],
)
async def test_a_variable_that_reaches_nothing_is_named_with_what_there_is(
    bench: Bench, values: dict[str, Any], says: str
) -> None:
    refusal = await refusal_of(bench, "TwoStep", values)
    assert refusal.type is ErrorType.INVALID_CONFIGURATION
    assert says in refusal.message
    assert f"variable {next(iter(values))!r}" in refusal.message


async def test_attributes_are_set_only_where_they_are(bench: Bench) -> None:
    refusal = await refusal_of(bench, "QA", {"retrieve.j": 1})
    assert "a Retriever has no attribute 'j'" in refusal.message


async def test_a_value_that_names_nothing_to_import_says_so(bench: Bench) -> None:
    refusal = await refusal_of(bench, "QA", {"rank": "tests.worker.dspy_modules:rank_backward"})
    assert refusal.type is ErrorType.PROGRAM_UNAVAILABLE
    assert "rank_backwards" in refusal.message


def test_a_module_with_neither_forward_nor_aforward_is_refused() -> None:
    with pytest.raises(ProgramUnavailable, match="neither forward nor aforward"):
        inspect_program("dspy:Module", {}, inputs=["question"], variables=[])
