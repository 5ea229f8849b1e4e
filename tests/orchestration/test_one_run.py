"""Several partitions in one run: each has results, metadata and verdicts of its own, as if it had been run alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines import Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.analysis.results import collect_trials
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.evaluation import Upstream
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.orchestration import evaluation
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.naming import keys
from tests.orchestration.conftest import Lab, failure, steps
from tests.orchestration.declared import declare, rows
from tests.orchestration.test_checks import recorded

TOPICS = ("text", "data", "files")
ROWS = [{**row, "topic": TOPICS[row["x"] % 3], "group": f"g{row['x'] // 3}"} for row in rows(60)]
ALL = {"dagster/asset_partition_range_start": TOPICS[0], "dagster/asset_partition_range_end": TOPICS[-1]}
TELLING = ("examples", "failures", "dataset digest", "plan digest", "mean right", "dagster/partition_row_count", "path")


def divided(lab: Lab, source: Any = None, **changes: Any) -> Lab:
    return lab.declare(
        declare("Fallible", source or ROWS, partition_by="topic", partitions=TOPICS, partitions_per_run=0, **changes)
    )


def together(lab: Lab, tags: dict[str, str] | None = None, **values: Any) -> dg.ExecuteInProcessResult:
    return lab.evaluate(None, tags={**ALL, **(tags or {})}, **values)


def test_its_results_are_those_of_a_run_for_each(lab: Lab) -> None:
    divided(lab, init={"wrong": 3, "raising": 1})
    alone = {topic: lab.evaluated(topic) for topic in TOPICS}
    result = together(lab, reuse="none")
    assert result.success, failure(result)
    assert len(steps(result, "plan_trials")) == len(steps(result, "collect_evaluation")) == 1
    for topic in TOPICS:
        trials, metadata = lab.newest(topic)
        assert metadata["trials run"] == len(trials) > 0, "of this partition alone"
        before, told = alone[topic]
        assert {name: metadata[name] for name in TELLING} == {name: told[name] for name in TELLING}
        columns = ["trial_id", "partition", "status", "score.right"]
        assert trials[columns].equals(before[columns])
        assert lab.metadata(lab.dataset_key, topic)["digest"] == metadata["dataset digest"]
    assert lab.ranked()["partitions"] == ", ".join(TOPICS)


def test_what_is_done_is_not_done_again_and_one_may_follow_alone(lab: Lab) -> None:
    divided(lab)
    assert together(lab, trials_per_op=7).success
    assert together(lab).success
    assert [lab.newest(topic)[1]["trials run"] for topic in TOPICS] == [0, 0, 0]
    _, alone = lab.evaluated("data")
    assert alone["trials run"] == 0


@pytest.mark.parametrize("error", [OSError("no space left"), DspexError("not to be had")])
def test_a_collection_that_fails_leaves_nothing_behind(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails_at_the_last(plan: Plan, outcomes: Any, path: Path) -> str:
        if plan.partition == TOPICS[-1]:
            path.write_bytes(b"begun")
            raise error
        return collect_trials(plan, outcomes, path)

    divided(lab)
    monkeypatch.setattr(evaluation, "collect_trials", fails_at_the_last)
    assert not together(lab).success
    results = lab.folder / "results"
    assert [path for path in results.rglob("*") if path.parent != results / lab.evaluation.name] == [
        results / lab.evaluation.name
    ]


def test_a_check_has_a_verdict_for_each_partition_and_one_for_the_run(lab: Lab) -> None:
    wrong = [{**row, "x": 10 * row["x"], "y": 10 * row["x"]} if row["topic"] == "data" else row for row in ROWS]
    divided(lab, wrong, init={"wrong": 1}, checks=(ScoreFloor(metric="right", at_least=0.5), Coverage()))
    result = together(lab)
    floor, coverage = result.get_asset_check_evaluations()
    assert [recorded(lab, coverage.check_name, topic) for topic in TOPICS] == [["SUCCEEDED"]] * 3
    assert [recorded(lab, floor.check_name, topic) for topic in TOPICS] == [["SUCCEEDED"], ["FAILED"], ["SUCCEEDED"]]
    assert (floor.passed, coverage.passed) == (False, True)
    assert (floor.description or "").startswith("data: ")
    assert "it holds in 2 of 3 partitions" in (floor.description or "")
    table: Any = floor.metadata["partitions"].value
    assert [(one.data["partition"], one.data["holds"]) for one in table.records] == [
        ("data", False),
        ("text", True),
        ("files", True),
    ]


def test_a_verdict_on_a_range_of_one_is_that_partitions(lab: Lab) -> None:
    """So does Dagster launch the runs of a backfill that have one partition each."""
    divided(lab, checks=(Coverage(),))
    assert together(lab).success
    result = together(lab, {**ALL, "dagster/asset_partition_range_end": TOPICS[0]})
    assert result.success, failure(result)
    assert [len(recorded(lab, "coverage", topic)) for topic in TOPICS] == [2, 1, 1]
    assert set(recorded(lab, "coverage", TOPICS[0])) == {"SUCCEEDED"}


def test_small_partitions_have_a_step_each(lab: Lab) -> None:
    result = together(divided(lab), trials_per_op=0)
    assert len(steps(result, "run_trials")) == len(TOPICS)


def test_each_partition_of_an_upstream_asset_has_its_rows_and_no_others(lab: Lab) -> None:
    names = dg.StaticPartitionsDefinition(list(TOPICS))

    @dg.asset(name="source", partitions_def=names, backfill_policy=dg.BackfillPolicy.multi_run(1))
    def source(context) -> list[dict[str, Any]]:  # Dagster takes no annotation that is a text
        return [row for row in ROWS if row["topic"] == context.partition_key]

    divided(lab)
    dataset = replace(lab.evaluation.dataset, source=Upstream("source"))
    lab.declare(replace(lab.evaluation, dataset=dataset))
    lab.definitions = dg.Definitions.merge(lab.definitions, dg.Definitions(assets=[source]))
    for topic in TOPICS:
        assert lab.run([source.key], partition=topic).success
    result = together(lab)
    assert result.success, failure(result)
    assert {topic: set(lab.newest(topic)[0]["example_id"]) for topic in TOPICS} == {
        topic: {row["id"] for row in ROWS if row["topic"] == topic} for topic in TOPICS
    }


def test_a_regression_is_remembered_of_its_partition(lab: Lab) -> None:
    checks = (NoRegression(metric="right"), FailureRate(at_most=0.5))
    assert together(divided(lab, checks=checks)).success
    result = together(divided(lab, init={"wrong": 4}, checks=checks))
    told, _ = result.get_asset_check_evaluations()
    assert not told.passed
    assert {recorded(lab, told.check_name, topic)[0] for topic in TOPICS} == {"FAILED"}
    # What has failed is no standard for what comes after it.
    divided(lab, init={"wrong": 5}, checks=checks)
    told, _ = lab.evaluate("text").get_asset_check_evaluations()
    assert not told.passed


def test_a_budget_is_of_the_run_and_what_it_did_not_get_to_is_told_in_each(lab: Lab) -> None:
    divided(lab, init={"raising": 10})
    result = together(lab, {"dspex/max_concurrency": "4"}, max_errors=5)
    assert result.success, failure(result)
    assert ["partial" in lab.newest(topic)[1] for topic in TOPICS] == [True] * 3


@pytest.mark.parametrize(("most", "policy"), [(0, dg.BackfillPolicy.single_run()), (2, dg.BackfillPolicy.multi_run(2))])
def test_a_backfill_takes_as_many_as_are_declared(most: int, policy: dg.BackfillPolicy) -> None:
    evaluation = declare("Fallible", ROWS, partition_by="topic", partitions=TOPICS, partitions_per_run=most)
    graph = build_evaluation(evaluation).resolve_asset_graph()
    assert {graph.get(key).backfill_policy for key in list(keys(evaluation))[:2]} == {policy}
