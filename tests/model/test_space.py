"""Configuration spaces: what they accept, refuse, list and draw."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.space import AtMost, Configuration, ConfigurationSpace, Implies, Ordered
from dspex_pipelines.model.variables import Boolean, Choice, Float, Integer, Module, Text

SPACE = ConfigurationSpace(
    variables=(
        Float(name="temperature", low=0.0, high=2.0, default=1.0),
        Integer(name="few", low=0, high=4),
        Integer(name="many", low=0, high=8),
        Boolean(name="stem"),
        Choice(name="mode", options=("fast", 1, 1.0, True)),
        Text(name="instruction", candidates=("be brief", "be kind")),
        Module(name="strategy", allowed=("a.b:C", "a.b:D")),
    ),
    constraints=(
        Ordered(lower="few", upper="many"),
        Implies(when={"stem": (True,)}, then={"mode": ("fast",)}),
        AtMost(weights={"few": 1, "many": 1}, bound=10),
    ),
)
SPACE_OF_FORTY = ConfigurationSpace(
    variables=(
        Boolean(name="stem"),
        Choice(name="mode", options=tuple(range(10))),
        Integer(name="few", low=0, high=1),
    )
)
GOOD = {"few": 1, "many": 2, "stem": False, "mode": "fast", "instruction": "x", "strategy": "a.b:C"}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        pytest.param({"temperature": math.nan}, "temperature", id="nan"),
        pytest.param({"temperature": math.inf}, "temperature", id="infinity"),
        pytest.param({"temperature": True}, "temperature", id="boolean-is-no-number"),
        pytest.param({"temperature": 2.1}, "temperature", id="above-its-bound"),
        pytest.param({"few": 1.0}, "few", id="float-is-no-integer"),
        pytest.param({"stem": 1}, "stem", id="integer-is-no-boolean"),
        pytest.param({"mode": 2}, "mode", id="no-such-option"),
        pytest.param({"strategy": "os:system"}, "strategy", id="not-an-allowed-module"),
        pytest.param({"instruction": "x" * 10_001}, "instruction", id="too-long"),
        pytest.param({"unknown": 1}, "unknown", id="unknown-variable"),
        pytest.param({"few": None}, "few", id="missing-without-default"),
        pytest.param({"few": 4}, "few, many", id="ordered"),
        pytest.param({"stem": True, "mode": 1}, "stem, mode", id="implies"),
        pytest.param({"few": 4, "many": 8}, "few, many", id="at-most"),
    ],
)
def test_a_refusal_names_the_field_and_the_value(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        SPACE.validate({**GOOD, **change})
    assert refusal.value.field == field
    assert field in str(refusal.value)


def test_names_joined_by_dots_are_names_in_variables_and_constraints() -> None:
    space = ConfigurationSpace(
        variables=(
            Integer(name="retrieve.k", low=1, high=10, points=(1, 10)),
            Integer(name="rerank.first.k", low=1, high=10, points=(1, 10)),
            Boolean(name="rerank.on"),
        ),
        constraints=(
            Ordered(lower="rerank.first.k", upper="retrieve.k"),
            Implies(when={"rerank.on": (False,)}, then={"rerank.first.k": (1,)}),
            AtMost(weights={"retrieve.k": 1, "rerank.first.k": 1}, bound=20),
        ),
    )
    assert ConfigurationSpace.from_json(space.to_json()) == space
    assert [tuple(configuration.values.values()) for configuration in space.grid()] == [
        (1, False, 1),
        (1, True, 1),
        (1, False, 10),
        (1, True, 10),
        (10, True, 10),
    ]
    assert space.validate({"retrieve.k": 2, "rerank.first.k": 1, "rerank.on": True}).values["retrieve.k"] == 2
    with pytest.raises(InvalidValue) as refusal:
        space.validate({"retrieve.k": 2, "rerank.first.k": 3, "rerank.on": True})
    assert refusal.value.field == "rerank.first.k, retrieve.k"


@pytest.mark.parametrize("name", ["", ".", "k.", ".k", "retrieve..k", "retrieve.1", "retrieve. k", "retrieve-k", None])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(InvalidValue, match="identifier"):
        Boolean(name=name)


def test_a_default_fills_in_for_a_value_left_out() -> None:
    assert SPACE.validate(GOOD).values["temperature"] == 1.0


def test_options_are_told_apart_by_type() -> None:
    kinds = {type(SPACE.validate({**GOOD, "mode": value}).values["mode"]) for value in (1, 1.0, True)}
    assert kinds == {int, float, bool}


def test_json_round_trip_keeps_space_and_digest() -> None:
    again = ConfigurationSpace.from_json(SPACE.to_json())
    assert again == SPACE
    assert again.digest == SPACE.digest


def test_the_grid_keeps_every_constraint_and_repeats_nothing() -> None:
    grid = list(SPACE.grid())
    assert grid
    assert len({configuration.digest for configuration in grid}) == len(grid)
    assert all(SPACE.validate(configuration.values) == configuration for configuration in grid)


@given(seed=st.integers(min_value=0, max_value=2**32))
def test_a_sample_is_allowed_and_the_same_for_its_seed(seed: int) -> None:
    drawn = SPACE.sample(5, seed=seed)
    assert drawn == SPACE.sample(5, seed=seed)
    assert len(set(drawn)) == 5
    assert all(SPACE.validate(configuration.values) == configuration for configuration in drawn)


@pytest.mark.parametrize(
    ("space", "count", "there"),
    [
        pytest.param(ConfigurationSpace(variables=(Integer(name="few", low=1, high=10),)), 100_000, 10, id="far-more"),
        pytest.param(
            ConfigurationSpace(
                variables=(Integer(name="few", low=1, high=100), Integer(name="many", low=1, high=100)),
                constraints=(AtMost(weights={"few": 1, "many": 1}, bound=4),),
            ),
            100_000,
            6,
            id="constrained",
        ),
        pytest.param(
            ConfigurationSpace(
                variables=(Integer(name="few", low=1, high=200), Integer(name="many", low=1, high=200)),
                constraints=(AtMost(weights={"few": 1, "many": 1}, bound=4),),
            ),
            30_000,
            6,
            id="more-combinations-than-are-asked-for",
        ),
        pytest.param(
            ConfigurationSpace(variables=(Float(name="x", low=1, high=1), Choice(name="mode", options=(1, 1.0, True)))),
            100_000,
            3,
            id="a-fixed-number",
        ),
        pytest.param(
            ConfigurationSpace(
                variables=(Text(name="t", candidates=("a", "a", "b")), Module(name="m", allowed=("a:b", "a:b")))
            ),
            100_000,
            2,
            id="given-twice",
        ),
        pytest.param(ConfigurationSpace(), 2, 1, id="no-variables"),
    ],
)
def test_far_more_samples_than_there_are_are_refused_without_drawing_for_them(
    space: ConfigurationSpace, count: int, there: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws = 0

    class Counted(random.Random):
        def random(self) -> float:
            return self.counted(super().random())

        def getrandbits(self, k: int, /) -> int:
            return self.counted(super().getrandbits(k))

        def counted(self, drawn: Any) -> Any:
            nonlocal draws
            draws += 1
            assert draws < 10 * count
            return drawn

    monkeypatch.setattr("dspex_pipelines.model.space.random.Random", Counted)
    with pytest.raises(InvalidValue, match=f"only {there} different"):
        space.sample(count, seed=1)


def test_all_there_are_can_be_drawn() -> None:
    drawn = SPACE_OF_FORTY.sample(40, seed=1)
    assert set(drawn) == set(SPACE_OF_FORTY.grid())
    assert [str(one) for one in drawn[:3]] == [
        "few=1 mode=1 stem=True",
        "few=1 mode=7 stem=True",
        "few=0 mode=3 stem=False",
    ]


def test_an_integer_may_have_more_values_than_an_index() -> None:
    space = ConfigurationSpace(
        variables=(Integer(name="few", low=-(2**63), high=2**63 - 1), Float(name="x", low=0, high=1))
    )
    assert len(set(space.sample(3, seed=1))) == 3
    assert len(set(ConfigurationSpace(variables=space.variables[:1]).sample(3, seed=1))) == 3


@pytest.mark.parametrize("count", [0, True, 2.0, "3"])
def test_a_sample_is_of_a_whole_number(count: Any) -> None:
    with pytest.raises(InvalidValue, match="give an integer of 1 or more"):
        SPACE.sample(count, seed=1)


def test_asking_for_more_samples_than_there_are_says_so() -> None:
    with pytest.raises(InvalidValue, match="only 2 different"):
        ConfigurationSpace(variables=(Boolean(name="stem"),)).sample(3, seed=1)


@pytest.mark.parametrize(
    "declare",
    [
        lambda: Float(name="x", low=1, high=0),
        lambda: Float(name="x", low=math.nan, high=1),
        lambda: Float(name="x", low=0, high=1, log=True),
        lambda: Integer(name="x", low=0, high=1, default=2),
        lambda: Integer(name="x", low=0, high=2**63),
        lambda: Choice(name="x", options=(1, 2**70)),
        lambda: Choice(name="x", options=()),
        lambda: Choice(name="x", options=("a", "a")),
        lambda: Module(name="x", allowed=("not an import path",)),
        lambda: Float(name="not a name", low=0, high=1),
        lambda: ConfigurationSpace(variables=(Boolean(name="x"), Boolean(name="x"))),
        lambda: ConfigurationSpace(variables=(Boolean(name="x"),), constraints=(Ordered(lower="x", upper="y"),)),
        lambda: ConfigurationSpace.from_json("[]"),
    ],
)
def test_a_wrong_declaration_is_refused(declare: object) -> None:
    with pytest.raises(InvalidValue):
        declare()  # type: ignore[operator]


def test_digests_are_equal_in_another_process() -> None:
    source = (
        "from dspex_pipelines.model.space import Configuration;"
        "print(Configuration({'b': 0.5, 'a': 'x', 'c': True}).digest.hex())"
    )
    for seed in ("0", "1"):
        told = subprocess.run(
            [sys.executable, "-c", source], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        )
        assert told.stdout.strip() == Configuration({"c": True, "a": "x", "b": 0.5}).digest.hex()


def test_an_integer_and_a_float_are_different_configurations() -> None:
    assert Configuration({"x": 1}) != Configuration({"x": 1.0})


@pytest.mark.parametrize(
    ("part", "wrong", "fix"),
    [("variables", "ellipsis", "Float, Integer"), ("constraints", "words < 3", "Ordered, Implies, AtMost")],
)
def test_what_is_no_variable_or_no_constraint_is_refused(part: str, wrong: str, fix: str) -> None:
    with pytest.raises(InvalidValue, match=f"space.{part}: '{wrong}' is not accepted; give {fix}"):
        ConfigurationSpace(**{part: (wrong,)})  # type: ignore[arg-type]
