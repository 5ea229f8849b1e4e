"""Declared checks, recorded by Dagster for each partition of real evaluations."""

from __future__ import annotations

import os
from typing import Any

import dagster as dg
import pyarrow.parquet as pq
import pytest
from dagster._core.event_api import PartitionKeyFilter

from dspex_pipelines import Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.checks import Check
from dspex_pipelines.orchestration.baseline import MOST
from dspex_pipelines.orchestration.build import build_evaluation
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import PROGRAMS, declare, rows

PARTITIONS = {"partition_by": "topic", "partitions": ("text", "data")}
TOPICS = [{**row, "topic": ("text", "data")[row["x"] % 2]} for row in rows(40)]
REGRESSION = NoRegression(metric="right")


def fallible(lab: Lab, *checks: Check, source: Any = None, **changes: Any) -> Lab:
    """Declare these checks on a program that is wrong, or raises, for as many of ten examples as *changes* say."""
    init = {name: changes.pop(name) for name in ("wrong", "raising") if name in changes}
    return lab.declare(declare("Fallible", rows(60) if source is None else source, init=init, checks=checks, **changes))


def told(result: dg.ExecuteInProcessResult) -> dict[str, dg.AssetCheckEvaluation]:
    """Each check's verdict."""
    evaluations = result.get_asset_check_evaluations()
    assert evaluations, failure(result)
    return {one.check_name: one for one in evaluations}


def judged(lab: Lab, partition: str = "all", **values: Any) -> tuple[bool, str, dict[str, Any]]:
    """Evaluate; return the verdict of the only check, what it says, and its metadata."""
    (one,) = told(lab.evaluate(partition, **values)).values()
    return one.passed, one.description or "", {name: value.value for name, value in one.metadata.items()}


def recorded(lab: Lab, name: str, partition: str) -> list[str]:
    """What the instance says of a check in a partition, newest first."""
    records = lab.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(lab.results_key, name), limit=MOST, partition_filter=PartitionKeyFilter(key=partition)
    )
    return [record.status.value for record in records]


@pytest.mark.parametrize(
    ("check", "program", "passed", "value"),
    [
        pytest.param(ScoreFloor(metric="right", at_least=0.7), {"wrong": 3}, True, 0.7, id="floor-just-met"),
        pytest.param(ScoreFloor(metric="right", at_least=0.71), {"wrong": 3}, False, 0.7, id="floor-missed"),
        pytest.param(ScoreFloor(metric="right", at_least=0.9), {"raising": 2}, False, 0.8, id="failures-score-worst"),
        pytest.param(ScoreFloor(metric="right", at_least=0.1), {"raising": 10}, False, 0.0, id="all-failed"),
        pytest.param(FailureRate(at_most=0.2), {"raising": 2}, True, 0.2, id="as-many-failures-as-may-be"),
        pytest.param(FailureRate(at_most=0.19), {"raising": 2}, False, 0.2, id="too-many-failures"),
        pytest.param(Coverage(), {"raising": 2}, True, 1.0, id="an-error-is-an-outcome"),
    ],
)
def test_a_value_is_held_against_its_bound(
    lab: Lab, check: Check, program: dict[str, int], passed: bool, value: float
) -> None:
    held, said, metadata = judged(fallible(lab, check, **program))
    assert held is passed, said
    assert metadata["value"] == pytest.approx(value)
    assert (f"{value:.4g}" if isinstance(check, ScoreFloor) else f"{value:.0%}") in said
    assert metadata["bound"] in said
    assert ("what to do" in metadata) is not passed


def test_a_stopped_run_is_covered_in_part(lab: Lab) -> None:
    checks = (Coverage(), FailureRate(at_most=0.9), ScoreFloor(metric="right", at_least=0.5))
    fallible(lab, *checks, raising=10)
    verdicts = told(lab.evaluate(max_errors=5, tags={"dspex/max_concurrency": "4"}))
    run = verdicts["coverage"].metadata["trials run"].value
    assert not verdicts["coverage"].passed
    assert verdicts["coverage"].metadata["value"].value == pytest.approx(run / 120)
    assert 5 <= run < 120
    assert verdicts["failure_rate"].metadata["value"].value == 1.0, "what was not run has not failed"
    floor = verdicts["score_floor_right"]
    lost = ("trials of the best configuration that were not run", "failures of the best configuration")
    assert sum(int(str(floor.metadata[name].value)) for name in lost) == 60
    assert told(lab.evaluate())["coverage"].passed


def test_a_score_that_no_trial_has_fails(lab: Lab) -> None:
    metrics = (f"{PROGRAMS}:right", f"{PROGRAMS}:parts")
    checks = [ScoreFloor(metric=name, at_least=0.5) for name in ("parts.alpha", "parts.beta", "parts")]
    verdicts = told(fallible(lab, *checks, metrics=metrics).evaluate())
    assert verdicts["score_floor_parts_alpha"].metadata["value"].value == pytest.approx(0.75)
    for name in ("parts.beta", "parts"):
        verdict = verdicts[f"score_floor_{name.replace('.', '_')}"]
        assert not verdict.passed
        assert f"no trial has a score called {name}" in (verdict.description or "")


def test_a_worse_program_regresses_until_it_is_mended(lab: Lab) -> None:
    passed, said, metadata = judged(fallible(lab, REGRESSION))
    assert (passed, said) == (True, "nothing to compare with: there are no earlier results")
    assert "previous run" not in metadata
    passed, said, _ = judged(fallible(lab, REGRESSION))
    assert (passed, said) == (True, "nothing to compare with: there are no earlier results"), "but itself"
    (good,) = {run.run_id for run in lab.instance.get_runs(limit=1)}

    for _ in range(2):  # a retry, or whoever presses the button again, does not make it right
        passed, said, metadata = judged(fallible(lab, REGRESSION, wrong=4))
        assert not passed
        assert said.startswith("right by -0.2083 (95%: ")  # x = 0 is right for either k
        assert said.endswith("in 120 pairs: worse")
        assert metadata["previous run"] == good
        assert metadata["95% interval, low"] < metadata["mean difference"] < metadata["95% interval, high"] < 0
        assert (metadata["pairs"], metadata["examples without a pair"], metadata["margin"]) == (120, 0, 0.0)
    passed, said, metadata = judged(fallible(lab, REGRESSION, wrong=3))
    assert not passed, "better than what failed, and still worse than what passed"
    assert metadata["previous run"] == good
    passed, said, _ = judged(fallible(lab, REGRESSION, version="mended"))
    assert (passed, said) == (True, "right by +0 (95%: +0 … +0) in 120 pairs: not worse")
    assert recorded(lab, "no_regression_right", "all") == ["SUCCEEDED", *["FAILED"] * 3, *["SUCCEEDED"] * 2]


@pytest.mark.parametrize("raising", [0, 4])
def test_failing_is_worse_than_being_right(lab: Lab, raising: int) -> None:
    assert judged(fallible(lab, REGRESSION))[0]
    passed, _, metadata = judged(fallible(lab, REGRESSION, raising=raising, version="again"))
    assert passed is (raising == 0)
    assert metadata["pairs"] == 120, "a failed trial has a pair: it scored worst"
    assert metadata["failures"] == raising * 12
    assert metadata["failures in the previous run"] == 0


def test_noise_is_no_regression(lab: Lab) -> None:
    verdicts = []
    for salt in range(6):
        lab.declare(declare("Drawn", rows(200), init={"salt": salt}, checks=(REGRESSION,)))
        verdicts.append(judged(lab))
    assert all(passed for passed, _, _ in verdicts)
    assert any("not shown to be worse, though it may be, by up to 0.0" in said for _, said, _ in verdicts)
    assert all("previous run" in metadata for _, _, metadata in verdicts[1:])


@pytest.mark.parametrize(("margin", "passed"), [(0.05, False), (0.3, True)])
def test_a_margin_is_what_is_tolerated(lab: Lab, margin: float, passed: bool) -> None:
    check = NoRegression(metric="right", margin=margin)
    assert judged(fallible(lab, check))[0]
    held, said, metadata = judged(fallible(lab, check, wrong=4))
    assert held is passed, said
    assert metadata["margin"] == margin
    assert f"by more than {margin}" in said
    assert f"by more than {margin}" in check.statement


def test_a_wider_margin_accepts_what_had_failed(lab: Lab) -> None:
    assert judged(fallible(lab, REGRESSION))[0]
    assert not judged(fallible(lab, REGRESSION, wrong=4))[0]
    accepted = only_checks(fallible(lab, NoRegression(metric="right", margin=0.5), wrong=4), "no_regression_right")
    assert all(one.passed for one in told(accepted).values())
    passed, _, metadata = judged(fallible(lab, REGRESSION, wrong=4, version="touched"))
    assert passed
    assert metadata["mean difference"] == 0


def only_checks(lab: Lab, *names: str, partition: str = "all") -> dg.ExecuteInProcessResult:
    """Run these checks on what is there, as *Execute* does in the UI."""
    checks = {dg.AssetCheckKey(lab.results_key, name) for name in names}
    job = lab.definitions.resolve_implicit_global_asset_job_def().get_subset(
        asset_selection=set(), asset_check_selection=checks
    )
    return job.execute_in_process(instance=lab.instance, partition_key=partition, raise_on_error=False)


def test_only_examples_that_are_what_they_were_are_compared(lab: Lab) -> None:
    before = rows(60)
    after = [{**row, "y": -1} if row["x"] < 30 else row for row in before] + [{**rows(61)[60], "id": "new"}]
    assert judged(fallible(lab, REGRESSION, source=before))[0]
    passed, said, metadata = judged(fallible(lab, REGRESSION, source=after, wrong=0))
    assert (passed, said) == (True, "right by +0 (95%: +0 … +0) in 60 pairs: not worse")
    assert metadata["examples without a pair"] == 31
    newest = lab.metadata(lab.dataset_key, "all")["path"]
    (old,) = [path for path in lab.folder.glob("datasets/tested/all/*.parquet") if str(path) != newest]
    old.unlink()
    passed, said, _ = judged(lab)
    assert (passed, said) == (True, "nothing to compare with: the data set has changed, and what it was is deleted")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"limit": 20}, "earlier results are of another limit or seed, or of other configurations or repeats"),
        ({"seed": 1}, "earlier results are of another limit or seed, or of other configurations or repeats"),
    ],
    ids=["limit", "seed"],
)
def test_other_plans_are_not_compared(lab: Lab, change: dict[str, int], why: str) -> None:
    assert judged(fallible(lab, REGRESSION))[0]
    passed, said, _ = judged(fallible(lab, REGRESSION, wrong=4), **change)
    assert (passed, said) == (True, f"nothing to compare with: {why}")
    assert not judged(fallible(lab, REGRESSION, wrong=4))[0], "the earlier ones of the same plan are still there"


def test_a_metric_that_has_changed_too_is_told_of(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where program and metric are in one file: editing it gives both another version."""
    judged(fallible(lab, REGRESSION))
    monkeypatch.setattr("dspex_pipelines.orchestration.evaluation.metric_version", lambda _: "edited")
    passed, said, _ = judged(fallible(lab, REGRESSION, wrong=4))
    assert not passed
    assert said.endswith("worse; the metric's source has changed too, so it may be that")
    passed, said, _ = judged(fallible(lab, NoRegression(metric="size"), metrics=(f"{PROGRAMS}:size",)))
    assert (passed, said) == (True, "nothing to compare with: earlier results have no scores of size")


def test_deleted_results_are_not_compared(lab: Lab) -> None:
    _, _, _ = judged(fallible(lab, REGRESSION))
    for path in lab.folder.glob("results/*/*/*/trials.parquet"):
        path.unlink()
    passed, said, _ = judged(fallible(lab, REGRESSION, wrong=4))
    assert (passed, said) == (True, "nothing to compare with: the earlier results have been deleted")


@pytest.mark.parametrize("name", ["trials.parquet", "plan.json"])
@pytest.mark.parametrize("size", [0, 100])
def test_damaged_results_are_not_compared(lab: Lab, name: str, size: int) -> None:
    judged(fallible(lab, REGRESSION))
    (path,) = lab.folder.glob(f"results/*/*/*/{name}")
    os.truncate(path, size)
    passed, said, _ = judged(fallible(lab, REGRESSION, wrong=4))
    assert (passed, said) == (True, "nothing to compare with: the earlier results are damaged")


@pytest.mark.parametrize("name", ["trials.parquet", "plan.json"])
@pytest.mark.parametrize("size", [0, 100])
def test_newest_results_that_are_damaged_say_what_to_do_and_that_mends_them(lab: Lab, name: str, size: int) -> None:
    judged(fallible(lab, REGRESSION))
    (path,) = lab.folder.glob(f"results/*/*/*/{name}")
    whole = path.read_bytes()
    os.truncate(path, size)
    said = failure(only_checks(lab, REGRESSION.name))
    assert f"{path} is damaged" in said
    assert "evaluate the partition again" in said
    assert judged(lab)[0]
    assert path.stat().st_size == pytest.approx(len(whole), abs=100), "times are not in the version"
    assert only_checks(lab, REGRESSION.name).success
    assert [one.name for one in path.parent.iterdir() if one.name.startswith(".")] == []


def test_earlier_results_without_the_score_are_not_compared(lab: Lab) -> None:
    check = NoRegression(metric="parts.alpha")
    metrics = (f"{PROGRAMS}:parts",)
    judged(fallible(lab, check, metrics=metrics))
    (path,) = lab.folder.glob("results/*/*/*/trials.parquet")
    pq.write_table(pq.read_table(path).drop_columns(["score.parts.alpha"]), path)
    passed, said, _ = judged(fallible(lab, check, metrics=metrics, version="again"))
    assert (passed, said) == (True, "nothing to compare with: earlier results have no scores of parts.alpha")


def test_results_materialised_again_and_again_stay_worse(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspex_pipelines.orchestration.baseline.MOST", 2)
    monkeypatch.setattr("dspex_pipelines.orchestration.baseline._VERDICTS", 2)
    assert judged(fallible(lab, REGRESSION))[0]
    fallible(lab, REGRESSION, wrong=4)
    assert [judged(lab)[0] for _ in range(5)] == [False] * 5
    assert not judged(fallible(lab, REGRESSION, wrong=3))[0], "other results, held against the same"


def test_where_not_all_earlier_results_are_looked_at_nothing_passes(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspex_pipelines.orchestration.baseline.MOST", 2)
    assert judged(fallible(lab, REGRESSION))[0]
    for wrong in (3, 4):
        assert not judged(fallible(lab, REGRESSION, wrong=wrong))[0]
    passed, said, metadata = judged(fallible(lab, REGRESSION, wrong=5))
    assert not passed
    assert said == (
        "cannot tell: of the newest 2 earlier results none will do (this check has failed all earlier results), "
        "and older ones are not looked at"
    )
    assert metadata["what to do"].startswith("`dspex journal prune --results")
    for path in lab.folder.glob("results/*/*/*/trials.parquet"):
        if str(path) != lab.metadata(lab.results_key, "all")["path"]:
            path.unlink()
    passed, said, _ = judged(lab)
    assert (passed, said) == (True, "nothing to compare with: the earlier results have been deleted")


def test_examples_of_one_group_are_held_against_the_margin_without_an_interval(lab: Lab) -> None:
    source = [{**row, "group": "one"} for row in rows(20)]
    judged(fallible(lab, REGRESSION, source=source))
    passed, said, metadata = judged(fallible(lab, REGRESSION, source=source, wrong=4))
    assert not passed
    assert said == "right by -0.225 (no interval: all examples are of one group) in 40 pairs: worse"
    assert "95% interval, low" not in metadata


def test_each_partition_has_verdicts_of_its_own(lab: Lab) -> None:
    floor = ScoreFloor(metric="right", at_least=0.7)
    fallible(lab, floor, REGRESSION, source=TOPICS, wrong=5, **PARTITIONS)
    # Examples 0 to 4 of ten are wrong: of the even ones three in five, of the odd ones two.
    assert [told(lab.evaluate(name))[floor.name].passed for name in ("text", "data")] == [False, False]
    fallible(lab, floor, REGRESSION, source=TOPICS, wrong=3, **PARTITIONS)
    verdicts = {name: told(lab.evaluate(name)) for name in ("text", "data")}
    assert [verdicts[name][floor.name].passed for name in ("text", "data")] == [False, True]
    assert {one.partition for one in verdicts["data"].values()} == {"data"}
    assert recorded(lab, floor.name, "text") == ["FAILED", "FAILED"]
    assert recorded(lab, floor.name, "data") == ["SUCCEEDED", "FAILED"]
    target = verdicts["text"][floor.name].target_materialization_data
    (record,) = lab.instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=lab.results_key, asset_partitions=["text"]), limit=1
    ).records
    assert target is not None
    assert target.storage_id == record.storage_id


def test_all_checks_are_one_step_of_the_job(lab: Lab) -> None:
    fallible(lab, REGRESSION, Coverage(), FailureRate(at_most=0.1), ScoreFloor(metric="right", at_least=0.1))
    result = lab.definitions.resolve_job_def("tested_job").execute_in_process(
        instance=lab.instance, partition_key="all"
    )
    assert len(told(result)) == 4
    done = [event.step_key for event in result.all_events if event.is_step_success]
    assert [key for key in done if "." not in (key or "")] == ["tested__dataset", "tested__checks"]


def test_one_check_can_be_run_alone(lab: Lab) -> None:
    fallible(lab, REGRESSION, Coverage()).evaluate()
    assert set(told(only_checks(lab, "coverage"))) == {"coverage"}
    lab.declare(declare("Fallible", name="untouched", checks=(Coverage(),)))
    assert "no results of 'all'" in failure(only_checks(lab, "coverage"))


@pytest.mark.parametrize("blocking", [False, True])
def test_a_blocking_check_keeps_the_leaderboard_from_being_made(lab: Lab, blocking: bool) -> None:
    fallible(lab, ScoreFloor(metric="right", at_least=0.9, blocking=blocking), wrong=3)
    result = lab.run([lab.dataset_key, lab.results_key, lab.board_key])
    assert not told(result)["score_floor_right"].passed
    assert result.success is not blocking
    assert len(lab.newest()[0]) == 120, "the results are there"
    boards = lab.instance.fetch_materializations(lab.board_key, limit=1).records
    assert bool(boards) is not blocking
    if blocking:
        fallible(lab, ScoreFloor(metric="right", at_least=0.9, blocking=True))
        assert lab.run([lab.dataset_key, lab.results_key, lab.board_key]).success
        assert lab.instance.fetch_materializations(lab.board_key, limit=1).records


def test_a_warning_is_one(lab: Lab) -> None:
    fallible(lab, Coverage(severity="warn"), FailureRate(at_most=0.0), raising=1)
    verdicts = told(lab.evaluate())
    assert verdicts["coverage"].severity is dg.AssetCheckSeverity.WARN
    assert verdicts["failure_rate"].severity is dg.AssetCheckSeverity.ERROR


def test_what_is_declared_is_what_dagster_shows() -> None:
    checks = (REGRESSION, Coverage(name="all_of_it", blocking=True))
    graph = build_evaluation(declare("Fallible", checks=checks)).resolve_asset_graph()
    shown = {graph.get_check_spec(key).name: graph.get_check_spec(key) for key in graph.asset_check_keys}
    assert {name: (spec.description, spec.blocking) for name, spec in shown.items()} == {
        "no_regression_right": (REGRESSION.statement, False),
        "all_of_it": (checks[1].statement, True),
    }


def test_where_nothing_is_declared_nothing_is_added(lab: Lab) -> None:
    definitions = lab.declare(declare("Fallible")).definitions
    assert not definitions.resolve_asset_graph().asset_check_keys
    assert not list(definitions.asset_checks or ())
    assert not lab.evaluate().get_asset_check_evaluations()
