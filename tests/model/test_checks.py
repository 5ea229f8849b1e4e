"""Checks that cannot be are refused where they are declared."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from dspex_pipelines import Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.errors import InvalidValue
from tests.model.test_evaluation import declare

METRICS = {"metrics": ("a.b:good", "a.b:better")}


@pytest.mark.parametrize(
    ("make", "field", "fix"),
    [
        pytest.param(lambda: ScoreFloor(metric="", at_least=0.5), "ScoreFloor.metric", "name of a metric", id="none"),
        pytest.param(
            lambda: ScoreFloor(metric="good", at_least=math.nan), "score_floor_good.at_least", "finite", id="nan"
        ),
        pytest.param(lambda: ScoreFloor(metric="good", at_least="1"), "score_floor_good.at_least", "finite", id="text"),
        pytest.param(lambda: FailureRate(at_most=math.nan), "failure_rate.at_most", "0 to below 1", id="nan-rate"),
        pytest.param(lambda: FailureRate(at_most=5), "failure_rate.at_most", "0 to below 1", id="percent"),
        pytest.param(lambda: FailureRate(at_most=-0.1), "failure_rate.at_most", "0 to below 1", id="negative-rate"),
        pytest.param(lambda: FailureRate(at_most=True), "failure_rate.at_most", "0 to below 1", id="boolean"),
        pytest.param(lambda: Coverage(at_least=0), "coverage.at_least", "above 0", id="covers-nothing"),
        pytest.param(lambda: Coverage(at_least=100), "coverage.at_least", "above 0", id="covers-too-much"),
        pytest.param(
            lambda: NoRegression(metric="good", margin=-0.1), "no_regression_good.margin", "0 or more", id="margin"
        ),
        pytest.param(
            lambda: NoRegression(metric="good", margin=math.inf), "no_regression_good.margin", "finite", id="endless"
        ),
        pytest.param(lambda: Coverage(severity="fatal"), "coverage.severity", "warn, error", id="severity"),
        pytest.param(lambda: Coverage(blocking="yes"), "coverage.blocking", "True or False", id="blocking"),
        pytest.param(
            lambda: Coverage(blocking=True, severity="warn"),
            "coverage.blocking",
            "severity='error'",
            id="warns-and-blocks",
        ),
        pytest.param(lambda: Coverage(name="all of it"), "Coverage.name", "letters, digits", id="name"),
        pytest.param(lambda: Coverage(name=None), "Coverage.name", "letters, digits", id="no-name"),
    ],
)
def test_a_check_that_cannot_be_says_what_would_do(make: Callable[[], Any], field: str, fix: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        make()
    assert refusal.value.field == field
    assert fix in refusal.value.fix


@pytest.mark.parametrize(
    ("checks", "field", "fix"),
    [
        pytest.param(Coverage(), "checks", "needs a comma", id="one-alone"),
        pytest.param(("coverage",), "checks", "give ScoreFloor, FailureRate", id="a-string"),
        pytest.param((Coverage(), Coverage(at_least=0.5)), "checks", "name=", id="two-of-a-name"),
        pytest.param(
            (ScoreFloor(metric="best", at_least=0.5),), "score_floor_best.metric", "good, better", id="no-such-metric"
        ),
        pytest.param((NoRegression(metric="best"),), "no_regression_best.metric", "good, better", id="none-regresses"),
        pytest.param(
            (ScoreFloor(metric="good", at_least=70),), "score_floor_good.at_least", "1 at most", id="never-reached"
        ),
        pytest.param(
            (ScoreFloor(metric="good", at_least=0),), "score_floor_good.at_least", "above 0", id="always-reached"
        ),
        pytest.param(
            (NoRegression(metric="good", margin=1),), "no_regression_good.margin", "less than 1", id="never-worse"
        ),
    ],
)
def test_checks_that_an_evaluation_cannot_have_are_refused(checks: Any, field: str, fix: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        declare(**METRICS, checks=checks)
    assert refusal.value.field == field
    assert fix in refusal.value.fix


def test_what_is_declared_is_kept() -> None:
    checks = [
        ScoreFloor(metric="better.deep", at_least=70),
        FailureRate(at_most=0.01),
        FailureRate(at_most=0.1, name="many_failures", blocking=True),
        Coverage(severity="warn"),
        NoRegression(metric="good", margin=0.02),
    ]
    declared = declare(**METRICS, checks=checks).checks
    assert declared == tuple(checks)
    assert [check.name for check in declared] == [
        "score_floor_better_deep",
        "failure_rate",
        "many_failures",
        "coverage",
        "no_regression_good",
    ]
    assert all(check.statement.endswith(".") for check in declared)


def test_the_range_of_the_ranking_metric_is_the_declared_one() -> None:
    (check,) = declare(**METRICS, checks=(ScoreFloor(metric="good", at_least=70),), score_range=(0, 100)).checks
    assert check.at_least == 70
