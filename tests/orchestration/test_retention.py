"""Pruning after real evaluations: what is live stays whole, and nothing of it is run again."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.test_utils import create_run_for_test

from dspex_pipelines.engine.journal import retention as journal_retention
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.journal.retention import Count
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.orchestration.resources import ProgressReporter, ProgressResource, ResultStore
from dspex_pipelines.orchestration.retention import DAY_S, Pruned, Pruning, Survey
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import PROGRAMS, declare, rows

CountLines = tuple[str, Callable[[], int]]


@contextmanager
def opened(lab: Lab, **options: Any) -> Iterator[tuple[Pruning, Journal]]:
    store = ResultStore(root=str(lab.folder))
    with store.journal(lab.instance) as journal, Pruning(lab.instance, store, journal, **options) as pruning:
        yield pruning, journal


def prune(lab: Lab, **options: Any) -> tuple[Survey, Pruned]:
    with opened(lab, **options) as (pruning, journal):
        before = journal.count()
        survey, pruned = pruning.survey(), pruning.prune()
        assert pruned.deleted == survey.stale
        assert journal.count() == before - pruned.deleted.executions
        assert pruned.not_reclaimed == ""
    return survey, pruned


def recorded(lab: Lab) -> int:
    with ResultStore(root=str(lab.folder)).journal(lab.instance) as journal:
        return journal.count()


def versions(lab: Lab, count: int, source: Any, **changes: Any) -> list[dict[str, Any]]:
    """Evaluate so many versions of a program; return the metadata of each, oldest first."""
    found = []
    for number in range(count):
        lab.declare(declare("logged", source, inputs=("x", "log"), version=str(number), **changes))
        found.append(lab.evaluated()[1])
    return found


def test_an_earlier_versions_outcomes_go_and_nothing_is_run_again(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    *_, newest = versions(lab, 3, rows(6, log=log))
    assert recorded(lab) == ran() == 36
    survey, pruned = prune(lab)
    assert pruned.deleted == Count(executions=24, scores=0)
    assert (survey.live, survey.recent, pruned.paths) == (1, 24, 0)
    _, again = lab.evaluated()
    assert (ran(), again["trials reused"], again["version"]) == (36, 12, newest["version"])
    assert prune(lab)[0].is_empty


def test_the_newest_few_are_kept_when_that_is_asked_for(lab: Lab) -> None:
    lab.declare(declare("noisy", rows(6), space=ConfigurationSpace()))
    for seed in (1, 2, 3, 3):  # the same results once more are not others
        lab.evaluated(seed=seed)
    assert prune(lab, keep=2)[1].deleted.executions == 6
    assert [lab.evaluated(seed=seed)[1]["trials run"] for seed in (3, 2, 1)] == [0, 0, 6]


def test_equal_results_of_several_runs_keep_what_the_newest_one_recorded(lab: Lab, count_lines: CountLines) -> None:
    """They share a folder, in which each run that reused nothing has left its plan."""
    log, ran = count_lines
    lab.declare(declare("logged", rows(6, log=log), inputs=("x", "log")))
    first, second, third = (lab.evaluated(reuse="none")[1] for _ in range(3))
    assert first["path"] == second["path"] == third["path"]
    plans = [Path(metadata["plan file"]) for metadata in (first, second, third)]
    assert len({plan.read_text() for plan in plans}) == 3
    survey, pruned = prune(lab, with_results=True)
    assert pruned.deleted.executions == 24
    assert survey.paths == (plans[1],), "the first one's lies beside the rows"
    with ResultStore(root=str(lab.folder)).journal(lab.instance) as journal:
        (kept,) = journal_retention.groups(journal)
    assert kept.generation == Plan.from_json(plans[2].read_text()).generation
    assert prune(lab, with_results=True)[0].is_empty
    assert ran() == 36


def test_every_evaluation_and_partition_of_the_instance_is_live(lab: Lab) -> None:
    given = [{**row, "topic": "even" if row["x"] % 2 == 0 else "odd"} for row in rows(8)]
    lab.declare(declare("fifth_raises", given, partition_by="topic", partitions=("even", "odd")))
    lab.evaluated("even")
    lab.evaluated("odd")
    lab.declare(declare("fifth_raises", rows(4), name="other"))
    lab.evaluated()
    stranger = dg.AssetMaterialization(["finance", "evaluation"], metadata={"path": "/nowhere", "plan": "none"})
    lab.instance.report_runless_asset_event(stranger)
    survey, _ = prune(lab)
    assert (survey.is_empty, survey.live) == (True, 3)


def test_results_that_reused_nothing_keep_theirs_and_what_would_be_reused(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    lab.declare(declare("logged", rows(6, log=log), inputs=("x", "log")))
    lab.evaluated()
    lab.evaluated(reuse="none")
    lab.evaluated(limit=3, reuse="none")
    assert recorded(lab) == ran() == 30
    assert prune(lab)[1].deleted.executions == 6 + 12
    assert lab.evaluated(limit=3)[1]["trials run"] == 0
    assert ran() == 30


def test_scores_by_another_metric_go_and_the_newest_stay(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    source = rows(6, log=log)
    for metric in ("right", "size", "parts"):
        lab.declare(declare("logged", source, inputs=("x", "log"), metrics=(f"{PROGRAMS}:{metric}",)))
        lab.evaluated()
    assert prune(lab)[1].deleted == Count(executions=0, scores=12)
    _, again = lab.evaluated()
    assert (ran(), again["trials reused"]) == (12, 12)
    lab.declare(declare("logged", source, inputs=("x", "log"), metrics=(f"{PROGRAMS}:size",)))
    _, other = lab.evaluated()
    assert (ran(), other["trials scored again"]) == (12, 12)


def test_what_is_recent_may_be_kept(lab: Lab, count_lines: CountLines) -> None:
    log, _ = count_lines
    versions(lab, 2, rows(3, log=log))
    assert prune(lab, older_than_s=DAY_S, with_results=True)[0].is_empty
    with ResultStore(root=str(lab.folder)).journal(lab.instance) as journal, journal.database.writing() as connection:
        connection.exec_driver_sql(f"UPDATE executions SET recorded_at = recorded_at - {2 * DAY_S}")
    survey, pruned = prune(lab, older_than_s=DAY_S)
    assert (survey.recent, pruned.deleted.executions) == (0, 6)


def test_older_results_and_data_sets_go_when_that_is_asked_for(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    for count in (3, 4, 5):
        lab.declare(declare("logged", rows(count, log=log), inputs=("x", "log")))
        lab.evaluated()
    unfinished = lab.folder / "results" / "tested" / "all" / ".abc-run"
    unfinished.mkdir()
    (unfinished / "plan.json").write_text("{}")
    path = Path(lab.newest()[1]["path"])
    survey, pruned = prune(lab, with_results=True)
    assert pruned.deleted.executions == 0, "the trials of fewer examples are among those of more"
    assert pruned.paths == len(survey.paths) == 2 + 1 + 2
    assert survey.path_bytes > 1_000
    assert list(path.parent.parent.iterdir()) == [path.parent]
    assert len(list((lab.folder / "datasets" / "tested" / "all").iterdir())) == 1
    assert len(lab.newest()[0]) == 10
    lab.ranked()
    assert lab.evaluated()[1]["trials run"] == 0
    assert ran() == 10


def test_a_run_in_progress_is_named_and_forcing_it_keeps_what_the_run_records(
    lab: Lab, count_lines: CountLines
) -> None:
    log, ran = count_lines
    source = rows(6, log=log)
    versions(lab, 2, source)
    seen: list[str] = []

    class Prunes(ProgressReporter):
        """Prunes as soon as all outcomes are in, and before they are collected."""

        def ended(self, *, complete: bool, reused: int, rescored: int) -> None:
            try:
                prune(lab)
            except DspexError as error:
                seen.append(str(error))
            seen.append(str(prune(lab, despite_runs=True)[1].deleted.executions))

    lab.declare(declare("logged", source, inputs=("x", "log"), version="new"), progress=ProgressResource.to(Prunes()))
    result = lab.evaluate()
    assert result.success, failure(result)
    assert "run " in seen[0]
    assert "is in progress and may need what would be deleted" in seen[0]
    assert "--force" in seen[0]
    assert seen[1] == "12", "the outcomes of the first version; the run's own stay"
    assert ran() == 36
    assert recorded(lab) == 24


@pytest.mark.parametrize(
    ("status", "tags", "refused"),
    [
        pytest.param(dg.DagsterRunStatus.NOT_STARTED, {"dspex/kind": "evaluation"}, True, id="not-started"),
        pytest.param(dg.DagsterRunStatus.CANCELING, {"dspex/kind": "evaluation"}, True, id="canceling"),
        pytest.param(dg.DagsterRunStatus.FAILURE, {"dspex/kind": "evaluation"}, False, id="over"),
        pytest.param(dg.DagsterRunStatus.STARTED, {"team": "finance"}, False, id="not-an-evaluation"),
    ],
)
def test_only_evaluation_runs_that_are_not_over_are_in_the_way(
    lab: Lab, status: dg.DagsterRunStatus, tags: dict[str, str], refused: bool
) -> None:
    lab.declare(declare("fifth_raises", rows(2))).evaluated()
    create_run_for_test(lab.instance, status=status, tags={**tags, "dspex/target": "tested/all"})
    if not refused:
        assert prune(lab)[0].is_empty
        return
    with pytest.raises(DspexError, match=r"of tested/all \(since .*is in progress"):
        prune(lab)


def test_a_run_that_begins_meanwhile_ends_it(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_retention, "CHUNK", 2)
    lab.declare(declare("fifth_raises", rows(6), version="0")).evaluated()
    lab.declare(declare("fifth_raises", rows(6), version="1")).evaluated()

    def begin(what: str, done: int, total: int) -> None:
        if (what, done) == ("deleting", 4):
            create_run_for_test(lab.instance, status=dg.DagsterRunStatus.STARTED, tags={"dspex/kind": "evaluation"})

    with opened(lab, on_progress=begin) as (pruning, journal):
        # Of the second version's twelve none goes; of the first one's, what two chunks hold.
        with pytest.raises(DspexError, match="in progress since; the rest is kept"):
            pruning.prune()
        assert journal.count() == 24 - 4


def test_what_is_materialised_while_somebody_thinks_is_live(lab: Lab, count_lines: CountLines) -> None:
    log, ran = count_lines
    source = rows(6, log=log)
    versions(lab, 2, source)
    with opened(lab) as (pruning, _):
        assert pruning.survey().stale.executions == 12
        lab.declare(declare("logged", source, inputs=("x", "log"), version="0"))
        assert lab.evaluated()[1]["trials run"] == 0
        assert pruning.prune().deleted.executions == 0
    assert lab.evaluated()[1]["trials run"] == 0
    assert ran() == 24


def test_newest_results_that_are_gone_are_refused_until_they_are_back(lab: Lab) -> None:
    lab.declare(declare("fifth_raises", rows(2)))
    _, metadata = lab.evaluated()
    Path(metadata["path"]).unlink()
    with pytest.raises(DspexError, match=r"newest results of tested/all are gone.*materialise them again"):
        prune(lab)
    assert lab.evaluated()[1]["trials run"] == 0
    assert prune(lab)[0].is_empty


def test_a_lost_data_set_keeps_every_scoring(lab: Lab) -> None:
    lab.declare(declare("fifth_raises", rows(2))).evaluated()
    lab.declare(declare("fifth_raises", rows(2), metrics=(f"{PROGRAMS}:right", f"{PROGRAMS}:parts"))).evaluated()
    lab.declare(declare("fifth_raises", rows(2), metrics=(f"{PROGRAMS}:parts",))).evaluated()
    for file in (lab.folder / "datasets" / "tested" / "all").iterdir():
        file.unlink()
    assert prune(lab)[0].is_empty


@pytest.mark.parametrize("options", [{"keep": 0}, {"older_than_s": -1.0}, {"older_than_s": float("nan")}])
def test_bounds_are_checked(lab: Lab, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue), opened(lab, **options):
        pass


def test_results_that_are_being_written_are_let_be(lab: Lab) -> None:
    """What is newer than the look that was taken is somebody's work."""
    lab.declare(declare("fifth_raises", rows(2))).evaluated()
    with opened(lab, with_results=True) as (pruning, _):
        unfinished = lab.folder / "results" / "tested" / "all" / ".new-run"
        unfinished.mkdir()
        os.utime(unfinished, (time.time() + 1, time.time() + 1))
        assert pruning.survey().paths == ()
        assert pruning.prune().paths == 0
    assert unfinished.exists()


def test_a_journal_that_is_damaged_before_it_is_collected_is_named(lab: Lab) -> None:
    class Damages(ProgressReporter):
        def ended(self, *, complete: bool, reused: int, rescored: int) -> None:
            for end in ("", "-wal", "-shm"):
                lab.folder.joinpath(f"journal.sqlite{end}").unlink(missing_ok=True)
            lab.folder.joinpath("journal.sqlite").write_text("damaged " * 1_000)

    lab.declare(declare("fifth_raises", rows(2)), progress=ProgressResource.to(Damages()))
    result = lab.evaluate()
    assert not result.success
    assert "is not an SQLite database, or is damaged" in failure(result)
    assert "restore it from a back-up" in failure(result)
