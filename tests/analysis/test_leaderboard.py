"""Means, intervals and ranks, held against statsmodels and against plain arithmetic."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dspex_pipelines.analysis import leaderboard as module
from dspex_pipelines.analysis.leaderboard import Estimate, estimate, leaderboard, paired_difference
from dspex_pipelines.errors import InvalidValue


def trial(configuration: str = "a", score: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    """A row of the results table; a score of None is a failed trial."""
    return {
        "partition": "p",
        "example_id": "e",
        "group": "g",
        "repeat": 0,
        "configuration": configuration,
        "status": "error" if score is None else "ok",
        "error_type": "program_exception" if score is None else None,
        "var.k": configuration,
        "score.good": score,
        **changes,
    }


def frame(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"score.good": float})


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["p", "q"]),
        st.sampled_from(["g", "h", "i", "j"]),
        st.floats(-10, 10, allow_nan=False).map(lambda value: round(value, 3)),
        st.floats(-10, 10, allow_nan=False).map(lambda value: round(value, 3)),
        st.sampled_from(["both", "both", "both", "this", "best"]),
    ),
    min_size=2,
    max_size=40,
)


def by_statsmodels(values: list[float], clusters: list[str]) -> tuple[float, float, float]:
    """Mean and interval of a regression on a constant with a cluster-robust covariance and Student's t."""
    codes = pd.Series(clusters).astype(str).astype("category").cat.codes.to_numpy()
    fit = sm.OLS(np.array(values), np.ones(len(values))).fit(
        cov_type="cluster",
        cov_kwds={"groups": codes, "use_correction": True, "df_correction": True},
        use_t=True,
    )
    low, high = fit.conf_int(alpha=0.05)[0]
    return float(fit.params[0]), float(low), float(high)


def check(found: Estimate, values: list[float], clusters: list[str]) -> None:
    assert (found.n, found.clusters) == (len(values), len(set(clusters)))
    if len(set(clusters)) < 2:
        assert math.isnan(found.low)
        assert math.isnan(found.high)
        assert math.isnan(found.mean) if not values else found.mean == pytest.approx(sum(values) / len(values))
        return
    expected = by_statsmodels(values, clusters)
    assert (found.mean, found.low, found.high) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(ROWS)
def test_means_and_intervals_are_those_of_statsmodels(rows: list[tuple[str, str, float, float, str]]) -> None:
    table = frame([trial(score=score, partition=p, group=g) for p, g, score, _, _ in rows])
    check(estimate(table, "score.good"), [row[2] for row in rows], [row[1] for row in rows])


@settings(deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_a_difference_is_that_of_the_pairs_where_both_succeeded(
    rows: list[tuple[str, str, float, float, str]], rng: random.Random
) -> None:
    def table(configuration: str, column: int) -> pd.DataFrame:
        found = [
            trial(
                configuration,
                row[column],
                partition=row[0],
                group=row[1],
                example_id=f"e{number // 2}",
                repeat=number % 2,
            )
            for number, row in enumerate(rows)
            if row[4] in ("both", configuration)
        ]
        rng.shuffle(found)
        return frame(found or [trial()]).iloc[: len(found)]

    both = [row for row in rows if row[4] == "both"]
    found = paired_difference(table("this", 2), table("best", 3), "score.good")
    check(found, [row[2] - row[3] for row in both], [row[1] for row in both])


@settings(max_examples=25, deadline=None)
@given(ROWS, st.randoms(use_true_random=False))
def test_the_order_of_rows_changes_nothing(rows: list[tuple[str, str, float, float, str]], rng: random.Random) -> None:
    table = [
        trial(configuration, score, partition=row[0], group=row[1], example_id=str(number))
        for number, row in enumerate(rows)
        for configuration, score in (("a", row[2]), ("b", row[3] if row[4] == "both" else None))
    ]
    assume(any(row["score.good"] is not None for row in table))
    before = leaderboard(frame(table), score_range=(-10, 10))
    rng.shuffle(table)
    after = leaderboard(frame(table), score_range=(-10, 10))
    for one, other in zip(before.standings, after.standings, strict=True):
        assert (one.configuration, one.n, one.failures) == (other.configuration, other.n, other.failures)
        assert one.bounds == pytest.approx(other.bounds)
        for left, right in ((one.scores["good"], other.scores["good"]), (one.difference, other.difference)):
            assert (left.mean, left.low, left.high) == pytest.approx(
                (right.mean, right.low, right.high), nan_ok=True, abs=1e-9
            )


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.none() | st.floats(-2, 3), min_size=1, max_size=20),
    st.tuples(st.floats(-5, -2), st.floats(3, 5)),
)
def test_bounds_are_the_means_had_every_failure_scored_worst_and_best(
    scores: list[float | None], score_range: tuple[float, float]
) -> None:
    table = frame([trial(score=score, example_id=str(number)) for number, score in enumerate(scores)])
    (standing,) = leaderboard(table, score_range=score_range).standings
    low, high = (np.mean([filled if score is None else score for score in scores]) for filled in score_range)
    assert standing.bounds == pytest.approx((low, high), abs=1e-12)
    assert (standing.n, standing.failures) == (len(scores), scores.count(None))


def test_a_trial_that_lacks_the_score_counts_as_a_failure_for_the_bounds() -> None:
    """A metric that gives several scores may leave one out of a trial that went well."""
    table = frame([trial(score=4.0), trial(score=None, status="ok", example_id="f")])
    (standing,) = leaderboard(table, score_range=(1.0, 5.0)).standings
    assert standing.bounds == (2.5, 4.5)
    assert (standing.failures, standing.scores["good"].n) == (0, 1)


def test_failing_on_what_is_hard_gains_nothing() -> None:
    easy = [trial("shirks", 1.0, example_id="easy"), trial("shirks", None, example_id="hard")]
    fair = [trial("tries", 1.0, example_id="easy"), trial("tries", 0.2, example_id="hard")]
    board = leaderboard(frame([*easy, *fair]))
    assert [standing.configuration for standing in board.standings] == ["tries", "shirks"]
    assert board.standings[1].scores["good"].mean > board.standings[0].scores["good"].mean
    assert [standing.rank for standing in board.standings] == [1, 2]
    assert board.standings[1].difference.n == 1
    assert board.standings[1].difference.mean == 0.0


def test_equals_are_ranked_by_their_successes_then_by_name() -> None:
    table = [trial("c", 0.0), trial("b", None), trial("a", 0.0)]
    assert [standing.configuration for standing in leaderboard(frame(table)).standings] == ["a", "c", "b"]


@pytest.mark.parametrize(
    ("rows", "clusters"),
    [
        pytest.param([("p", "g", "1"), ("q", "g", "1"), ("q", "h", "2")], 2, id="a-group-in-two-partitions"),
        pytest.param([("p", "1", "1"), ("q", "1", "1"), ("q", "2", "2")], 3, id="no-groups"),
        pytest.param([("p", "g", "1"), ("p", "2", "2"), ("q", "2", "2"), ("q", "g", "3")], 3, id="some-have-none"),
        pytest.param([("p", "1", "1"), ("q", "1", "2")], 1, id="a-group-named-like-an-example-of-it"),
    ],
)
def test_a_group_is_a_cluster_over_all_partitions(rows: list[tuple[str, str, str]], clusters: int) -> None:
    table = [
        trial(configuration, number / 10, partition=partition, group=group, example_id=example_id)
        for number, (partition, group, example_id) in enumerate(rows)
        for configuration in "ab"
    ]
    for standing in leaderboard(frame(table)).standings:
        assert (standing.scores["good"].clusters, standing.difference.clusters) == (clusters, clusters)


def test_one_row_has_a_mean_and_no_interval() -> None:
    board = leaderboard(frame([trial(score=0.25)]))
    (standing,) = board.standings
    found = standing.scores["good"]
    assert (found.mean, found.n, found.clusters) == (0.25, 1, 1)
    assert math.isnan(found.low)
    assert board.rows()[0]["good"] == "0.250 (one cluster)"
    assert board.rows()[0]["vs best"] == "best"


def test_where_everything_failed_there_is_no_mean_and_everything_is_possible() -> None:
    table = [trial(name, None, example_id=example) for name in "ab" for example in "xy"]
    board = leaderboard(frame(table))
    assert [standing.bounds for standing in board.standings] == [(0.0, 1.0)] * 2
    assert all(math.isnan(standing.scores["good"].mean) for standing in board.standings)
    assert [row["good"] for row in board.rows()] == ["–", "–"]
    assert [row["vs best"] for row in board.rows()] == ["–", "–"], "none is best"
    assert board.best is None


def test_scores_that_no_trial_has_are_left_out_where_others_are() -> None:
    """A partition in which every trial failed does not know what a metric's scores are called."""
    failed = pd.DataFrame([trial(score=None)]).rename(columns={"score.good": "score.parts"})
    fine = pd.DataFrame([trial(score=0.5, partition="q")]).rename(columns={"score.good": "score.parts.one"})
    board = leaderboard(pd.concat([failed, fine]))
    assert (board.metric, board.metrics) == ("parts.one", ("parts.one",))
    assert board.standings[0].bounds == (0.25, 0.75)


@pytest.mark.parametrize(
    ("table", "metric", "field"),
    [
        (frame([trial()]).iloc[:0], None, "trials"),
        (frame([trial()]).drop(columns="score.good"), None, "trials"),
        (frame([trial()]), "bad", "metric"),
    ],
    ids=["no-rows", "no-scores", "unknown-metric"],
)
def test_what_cannot_be_ranked_is_refused(table: pd.DataFrame, metric: str | None, field: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        leaderboard(table, metric=metric)
    assert refused.value.field == field


def test_another_metric_can_rank() -> None:
    table = frame([{**trial("a", 1.0), "score.other": 0.0}, {**trial("b", 0.0), "score.other": 1.0}])
    assert leaderboard(table).standings[0].configuration == "a"
    board = leaderboard(table, metric="other")
    assert board.standings[0].configuration == "b"
    assert board.metrics == ("other", "good")
    assert board.standings[1].difference.mean == -1.0


def test_a_long_text_of_several_lines_stays_in_its_cell() -> None:
    rows = [trial(name, 1.0) for name in ("first line\n\nsecond | line", "x" * 1_000)]
    board = leaderboard(frame(rows))
    assert [row["configuration"] for row in board.rows()] == ["k=first line second | line", f"k={'x' * 39}…"]
    assert len(board.to_markdown().splitlines()) == 4
    assert board.standings[1].variables == {"k": "x" * 1_000}


def test_values_that_are_alike_once_they_are_cut_are_told_apart_by_digest() -> None:
    rows = [
        {**trial(name.ljust(32, "0"), score), "var.k": f"{'the same words of a long prompt ' * 3}{name}"}
        for name, score in (("1", 1.0), ("2", 0.5))
    ]
    rows.append({**trial("3", 0.0), "var.k": "short"})
    cut = f"k={('the same words of a long prompt ' * 3)[:39]}…"
    board = leaderboard(frame(rows))
    assert board.labels() == [f"{cut} {'1' + '0' * 11}", f"{cut} {'2' + '0' * 11}", "k=short"]
    assert [row["configuration"] for row in board.rows(1)] == [f"{cut} {'1' + '0' * 11}"]


def test_what_the_rank_goes_by_is_shown_where_it_is_not_the_mean_beside_it() -> None:
    risky = [trial("b", 1.0), trial("b", None, example_id="2")]
    board = leaderboard(frame([trial("a", 0.5), trial("a", 1.0, example_id="2"), *risky]))
    first, second = board.rows()
    assert (first["ranked by"], first["good"]) == ("0.750", "0.750 (one cluster)")
    assert (second["ranked by"], second["good"]) == ("0.500", "1.000 (one cluster)")
    assert board.caveat.startswith("Ranked by the mean in which a trial without good scores 0;")
    whole = leaderboard(frame([trial("a", 0.5)]))
    assert "ranked by" not in whole.rows()[0]
    assert not whole.caveat


def test_the_mean_with_failures_at_their_worst_is_there_for_every_metric() -> None:
    rows = [
        {**trial("a", 1.0), "score.other": 4.0},
        {**trial("a", 0.5, example_id="2"), "score.other": None},
    ]
    (only,) = leaderboard(frame(rows), score_range=(-2.0, 4.0)).standings
    assert (only.worst_mean("good", -2.0), only.worst_mean("other", -2.0)) == (0.75, 1.0)


def test_where_nothing_differs_a_configuration_is_named_by_all_its_values() -> None:
    (alone,) = leaderboard(frame([{**trial("c0ffee", 1.0), "var.k": 3, "var.words": "x"}])).labels()
    assert alone == "k=3 words=x"
    without = frame([trial("c0ffee", 1.0)]).drop(columns="var.k")
    assert leaderboard(without).labels() == ["no variables"]


def test_the_table_names_what_differs_and_says_how_much_is_left_out() -> None:
    rows = [
        {**trial(name, score), "var.same": 7, "var.p": f"x|{name}"}
        for name, score in (("a", 1.0), ("b", 0.5), ("c", 0.0))
    ]
    board = leaderboard(frame(rows))
    lines = board.to_markdown(limit=2).splitlines()
    assert lines[0] == "| # | configuration | n | good | failures | bounds | vs best |"
    assert lines[2].startswith("| 1 | k=a p=x/a | 1 |")
    assert len(lines) == 6
    assert lines[-1] == "… and 1 more"
    assert [row["vs best"] for row in board.rows()] == ["best", "-0.500", "-1.000"]


def test_what_a_row_of_the_table_costs_does_not_grow_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    board = leaderboard(frame([trial(f"c{number}", float(number)) for number in range(300)]))
    looked_at: list[int] = []
    varying_names = module.varying_names

    def counted(variables: Sequence[Mapping[str, Any]]) -> list[str]:
        looked_at.append(len(variables))
        return varying_names(variables)

    monkeypatch.setattr(module, "varying_names", counted)
    assert [row["configuration"] for row in board.rows()] == [f"k=c{number}" for number in reversed(range(300))]
    assert looked_at == [300], "which variables differ is found once, and not for each row"


def test_what_was_not_run_is_no_failure_and_no_score() -> None:
    rows = [trial(example_id=str(x), score=1.0) for x in range(6)]
    rows += [trial(example_id="6", score=None)]
    rows += [trial(example_id=str(x), score=None, error_type="budget_exhausted") for x in (7, 8, 9)]
    board = leaderboard(frame(rows))
    (standing,) = board.standings
    assert (standing.n, standing.failures, standing.not_run) == (10, 1, 3)
    assert standing.scores["good"].mean == 1.0
    assert standing.bounds == (0.6, 1.0)
    assert board.rows()[0]["not run"] == "3"
    complete = leaderboard(frame(rows[:7]))
    assert "not run" not in complete.rows()[0]


def test_scores_that_are_not_in_their_range_are_told() -> None:
    table = frame([trial(score=1.0), trial(score=7.5, example_id="f"), trial(score=-2.0, example_id="g")])
    said = leaderboard(table).outside
    assert said.startswith(
        "Scores of good go from -2 to 7.5, and score_range is (0, 1): failures do not rank as the worst"
    )
    assert "too narrow" in said
    assert "rank" not in leaderboard(table, score_range=(-2.0, 1.0)).outside
    assert leaderboard(table, score_range=(-2.0, 7.5)).outside == ""
    assert leaderboard(frame([trial(score=1 + 2e-16), trial(score=1.0, example_id="f")])).outside == ""


def test_groups_are_told_of_where_there_are_some() -> None:
    alone = frame([trial(example_id=name, group=name) for name in "xy"])
    assert leaderboard(alone).interval == "95% interval"
    assert leaderboard(alone.assign(group="g")).interval == "95% interval clustered by group"


def test_a_score_that_a_failed_trial_has_left_counts_for_nothing() -> None:
    rows = [trial(name, score, example_id=e, group=e) for name, score in (("a", 0.9), ("b", 0.5)) for e in "efgh"]
    for number in (0, 5):
        rows[number] |= {"status": "error", "error_type": "timeout_run"}
    without = [row if row["status"] == "ok" else {**row, "score.good": None} for row in rows]
    board = leaderboard(frame(rows))
    assert board == leaderboard(frame(without))
    assert board.standings[1].difference.n == 2


def test_where_a_configuration_has_failed_does_not_rank_it() -> None:
    rows = [
        trial(name, None if number == failed else 0.3, example_id=str(number), group=str(number))
        for name, failed in (("d", 12), ("b", 9), ("a", 3), ("c", 0))
        for number in range(13)
    ]
    board = leaderboard(frame(rows))
    assert [standing.configuration for standing in board.standings] == ["a", "b", "c", "d"]
    assert len({standing.bounds for standing in board.standings}) == 1
