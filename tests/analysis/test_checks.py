"""What results say to a check, held against plain arithmetic and against what the interval promises."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex_pipelines.analysis.checks import Baseline, Finding, columns_of, judge
from dspex_pipelines.model.checks import Coverage, FailureRate, NoRegression, ScoreFloor

RANGE = (0.0, 1.0)
OUTCOMES = st.one_of(
    st.floats(0, 1).map(lambda value: round(value, 3)), st.just("program_exception"), st.just("budget_exhausted")
)
RESULTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from("abc"), OUTCOMES),
    min_size=1,
    max_size=20,
    unique_by=lambda one: one[:2],
)
Row = tuple[int, str, Any]


def frame(rows: list[Row]) -> pd.DataFrame:
    """Rows of example, configuration, and score or type of error."""
    return pd.DataFrame(
        {
            "partition": "p",
            "example_id": [f"e{example}" for example, _, _ in rows],
            "group": [f"g{example // 2}" for example, _, _ in rows],
            "repeat": 0,
            "configuration": [configuration for _, configuration, _ in rows],
            "status": ["error" if isinstance(found, str) else "ok" for _, _, found in rows],
            "error_type": [found if isinstance(found, str) else None for _, _, found in rows],
            "score.good": pd.array(
                [math.nan if isinstance(found, str) else found for _, _, found in rows], dtype=float
            ),
        }
    )


def found(
    check: Any, trials: list[Row] | pd.DataFrame, baseline: Any = "none", score_range: tuple[float, float] = RANGE
) -> Finding:
    trials = trials if isinstance(trials, pd.DataFrame) else frame(trials)
    if not isinstance(baseline, str):
        baseline = Baseline(trials=baseline if isinstance(baseline, pd.DataFrame) else frame(baseline), run_id="r")
    return judge(check, trials, score_range=score_range, baseline=baseline)


@settings(max_examples=25, deadline=None)
@given(rows=RESULTS, bound=st.floats(0, 0.99), data=st.data())
def test_rates_floors_and_coverage_are_counted_over_what_they_are_of(rows: list[Row], bound: float, data: Any) -> None:
    outcomes = [outcome for _, _, outcome in rows]
    run = [outcome for outcome in outcomes if outcome != "budget_exhausted"]
    failed = [outcome for outcome in run if isinstance(outcome, str)]
    rate = found(FailureRate(at_most=bound), rows)
    assert rate.passed is (not run or len(failed) / len(run) <= bound)
    assert math.isnan(rate.value) is not bool(run)
    covered = found(Coverage(at_least=bound or 1.0), rows)
    assert covered.value == len(run) / len(rows)
    assert covered.passed is (covered.value >= (bound or 1.0))
    means = [
        np.mean([0.0 if isinstance(outcome, str) else outcome for _, name, outcome in rows if name == configuration])
        for configuration in {configuration for _, configuration, _ in rows}
    ]
    floor = found(ScoreFloor(metric="good", at_least=bound), rows)
    assert floor.value == pytest.approx(max(means))
    if abs(max(means) - bound) > 1e-6:
        assert floor.passed == (max(means) >= bound)
    assert found(ScoreFloor(metric="good", at_least=floor.value), data.draw(st.permutations(rows))).passed


@settings(max_examples=25, deadline=None)
@given(rows=RESULTS)
def test_nothing_is_worse_than_itself(rows: list[Row]) -> None:
    assert found(NoRegression(metric="good"), rows, rows).passed


@settings(max_examples=25, deadline=None)
@given(rows=RESULTS, before=RESULTS, margins=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_what_is_worse_by_more_is_worse_by_less(
    rows: list[Row], before: list[Row], margins: tuple[float, float]
) -> None:
    less, more = (found(NoRegression(metric="good", margin=margin), rows, before) for margin in sorted(margins))
    assert more.passed or not less.passed
    back = found(NoRegression(metric="good", margin=margins[0]), before, rows)
    assert back.passed or found(NoRegression(metric="good", margin=margins[0]), rows, before).passed, "both are worse"
    assert less.facts.get("pairs", 0) == len(
        {one[:2] for one in rows if one[2] != "budget_exhausted"}
        & {one[:2] for one in before if one[2] != "budget_exhausted"}
    )


@pytest.mark.parametrize(
    ("difference", "margin", "most"),
    [
        pytest.param(0.0, 0.0, 0.06, id="no-difference"),
        pytest.param(-0.1, 0.1, 0.06, id="just-the-margin"),
        pytest.param(-0.05, 0.1, 0.005, id="less-than-the-margin"),
    ],
)
def test_a_tolerated_difference_is_seldom_taken_for_more(difference: float, margin: float, most: float) -> None:
    """One in 40 by right; the examples of a group, and the configurations of an example, go together."""
    generator = np.random.default_rng(7)
    rows = [(example, configuration, 0.5) for example in range(60) for configuration in "ab"]
    trials = frame(rows)
    trials["group"] = [f"g{example // 3}" for example, _, _ in rows]
    wrong = 0
    for _ in range(100):
        group = np.repeat(generator.normal(scale=0.1, size=20), 6)
        example = np.repeat(generator.normal(scale=0.1, size=60), 2)
        changed = trials.assign(**{"score.good": 0.5 + difference + group + example})
        wrong += not found(NoRegression(metric="good", margin=margin), changed, trials, (-1.0, 2.0)).passed
    assert wrong / 100 <= most


def test_a_difference_beyond_the_margin_is_found() -> None:
    generator = np.random.default_rng(7)
    trials = frame([(example, "a", 0.5) for example in range(60)])
    changed = trials.assign(**{"score.good": 0.3 + generator.normal(scale=0.1, size=60)})
    assert not found(NoRegression(metric="good", margin=0.1), changed, trials).passed
    assert found(NoRegression(metric="good", margin=0.2), changed, trials).passed


def test_what_may_be_worse_says_by_how_much() -> None:
    before = frame([(example, "a", 0.5) for example in range(4)])
    after = frame([(example, "a", score) for example, score in enumerate((0.2, 0.4, 0.6, 0.8))])
    finding = found(NoRegression(metric="good", margin=0.01), after, before)
    assert finding.passed
    assert f"though it may be, by up to {-finding.facts['95% interval, low']:.4g}" in finding.said
    assert "not worse" not in finding.said


@settings(max_examples=25, deadline=None)
@given(rows=RESULTS)
def test_an_example_without_a_pair_is_counted(rows: list[Row]) -> None:
    finding = judge(
        NoRegression(metric="good"),
        frame(rows),
        score_range=RANGE,
        baseline=Baseline(trials=frame(rows), run_id="r", unchanged=frozenset({"e0", "e1"})),
    )
    assert finding.facts["examples without a pair"] == len(
        {example for example, _, _ in rows}
        - {example for example, _, found in rows if example < 2 and found != "budget_exhausted"}
    )


def test_only_the_columns_that_tell_are_read() -> None:
    names = ["trial_id", *frame([(0, "a", 1.0)]).columns, "score.other", "outputs", "error_traceback"]
    assert columns_of([FailureRate(at_most=0.1), Coverage()], names) == ["status", "error_type"]
    assert columns_of([ScoreFloor(metric="good", at_least=0.5)], names) == list(frame([(0, "a", 1.0)]).columns)


def test_a_failed_trial_scores_the_worst_of_the_declared_range() -> None:
    rows: list[Row] = [(0, "a", 1.0), (1, "a", "program_exception")]
    finding = judge(ScoreFloor(metric="good", at_least=0.5), frame(rows), score_range=(-1.0, 1.0))
    assert (finding.value, finding.passed) == (0.0, False)
    assert dataclasses.asdict(finding)["facts"]["failures of the best configuration"] == 1


@pytest.mark.parametrize(
    "check", [ScoreFloor(metric="good", at_least=-4), NoRegression(metric="good")], ids=lambda check: check.name
)
@pytest.mark.parametrize("failures", [0, 4])
@pytest.mark.parametrize("score", [-5.0, 1.5, 1e308])
def test_scores_outside_their_range_cannot_tell(check: Any, failures: int, score: float) -> None:
    """A failure that counts as 0 beside scores of -5 would be a gain."""
    before = [(example, "a", score) for example in range(6)]
    after = [(example, "a", "program_exception" if example < failures else score) for example in range(6)]
    finding = found(check, after, before)
    assert not finding.passed
    assert finding.said.startswith(f"cannot tell: Scores of good go from {score:g} to {score:g}")
    assert "score_range is (0, 1)" in finding.said
    assert "Declare it: Evaluation(..., score_range=(worst, best))" in finding.said
    assert "score_range" in finding.fix
    assert math.isnan(finding.value)
    assert not found(check, after).passed, "nor without a baseline: what passes is the standard"


def test_earlier_scores_outside_their_range_cannot_tell_either() -> None:
    before: list[Row] = [(example, "a", -5.0) for example in range(6)]
    finding = found(NoRegression(metric="good"), [(example, "a", 0.5) for example in range(6)], before)
    assert not finding.passed
    assert finding.said.startswith("cannot tell: in the previous run: Scores of good go from -5 to -5")
    assert finding.facts["previous run"] == "r"


def test_what_is_more_than_a_float_holds_does_not_pass() -> None:
    rows: list[Row] = [(example, "a", 1.7e308) for example in range(6)]
    before = frame([(example, "a", -1.7e308) for example in range(6)])
    for check in (ScoreFloor(metric="good", at_least=0.5), NoRegression(metric="good")):
        finding = found(check, rows, before, (-1.7e308, 1.7e308))
        assert not finding.passed
        assert finding.said.startswith("cannot tell: ")
        assert finding.fix == "have the metric return smaller numbers"


@pytest.mark.parametrize(
    ("scores", "margin", "passed", "verdict"),
    [
        ((0.5, 0.25), 0.0, False, "good by -0.25 (no interval: all examples are of one group) in 2 pairs: worse"),
        ((0.5, 0.25), 0.2, False, "worse by more than 0.2"),
        ((0.5, 0.25), 0.25, True, "not worse by more than 0.25"),
        ((0.5, 0.5), 0.0, True, "good by +0 (no interval: all examples are of one group) in 2 pairs: not worse"),
    ],
)
def test_without_an_interval_the_mean_is_held_against_the_margin(
    scores: tuple[float, float], margin: float, passed: bool, verdict: str
) -> None:
    before, after = ([(example, "a", score) for example in (0, 1)] for score in scores)  # both of group g0
    finding = found(NoRegression(metric="good", margin=margin), after, before)
    assert (finding.passed, finding.value) == (passed, scores[1] - scores[0])
    assert finding.said.endswith(verdict)
    assert "95% interval, low" not in finding.facts


def test_shares_are_told_in_percent() -> None:
    rows: list[Row] = [(example, "a", 1.0) for example in range(300)]
    assert found(Coverage(), rows).said == "300 of 300 planned trials were run: 100%, at least 100% is asked for"
    rows[0] = (0, "a", "program_exception")
    said = found(FailureRate(at_most=0.005), rows).said
    assert said == "1 of 300 trials failed: 0.333333%, at most 0.5% is asked for"


def test_where_nothing_succeeded_no_configuration_is_best() -> None:
    facts = found(ScoreFloor(metric="good", at_least=0.5), [(0, "a", "program_exception")]).facts
    assert facts["failures of the best configuration"] == 1
    assert "best configuration" not in facts
