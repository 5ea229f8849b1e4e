"""The evaluation asset and its leaderboard, materialised over a real pool."""

from __future__ import annotations

import base64
import io
import itertools
import logging
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import matplotlib.image
import pandas as pd
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.search import Search
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Choice, Float, Integer
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig, chosen_configurations
from dspex_pipelines.orchestration.resources import ProgressReporter, ProgressResource, WorkerPoolResource
from dspex_pipelines.orchestration.summary import _seconds
from tests.orchestration.conftest import Lab, failure, steps
from tests.orchestration.declared import PROGRAMS, declare, rows

CountLines = tuple[str, Callable[[], int]]
IDENTITY = ["trial_id", "evaluation", "partition", "example_id", "group", "repeat", "seed", "configuration"]
FOUND = [
    "status",
    "error_type",
    "error_message",
    "error_traceback",
    "run_s",
    "queue_s",
    "throttled_s",
    "attempts",
    "worker",
    "outputs",
]
SAME = [*IDENTITY, "var.k", "score.right", "status", "error_type", "error_message", "outputs"]


def test_a_fifth_of_the_trials_raises_and_the_run_is_green(lab: Lab) -> None:
    table, metadata = lab.declare(declare("fifth_raises")).evaluated()
    assert list(table.columns) == [*IDENTITY, "var.k", "score.right", *FOUND]
    planned = set(itertools.product((f"e{x}" for x in range(20)), (1, 2)))
    assert sorted(zip(table["example_id"], table["var.k"], strict=True)) == sorted(planned)
    assert table["trial_id"].is_unique
    failed = table[table["status"] == "error"]
    assert sorted(failed["example_id"]) == sorted(["e0", "e5", "e10", "e15"] * 2)
    for row in failed.to_dict("records"):
        assert row["error_type"] == "program_exception"
        assert f"example {row['example_id'][1:]} is not liked" in row["error_message"]
        assert "Traceback" in row["error_traceback"]
        assert "fifth_raises" in row["error_traceback"]
        assert pd.isna(row["score.right"])
    fine = table[table["status"] == "ok"]
    assert fine[["error_type", "error_message", "error_traceback"]].isna().all(axis=None)
    assert (fine["score.right"] == (fine["var.k"] == 1)).all()
    assert fine["outputs"].tolist() == [
        str(int(name[1:]) * k) for name, k in zip(fine["example_id"], fine["var.k"], strict=True)
    ]
    assert (table["worker"] != "").all()
    assert (table["attempts"] >= 1).all()
    assert metadata["dagster/partition_row_count"] == 40
    assert (metadata["failures"], metadata["trials run"], metadata["trials reused"]) == (8, 40, 0)
    assert (metadata["configurations"], metadata["examples"]) == (2, 20)
    assert metadata["mean right"] == pytest.approx(0.5)
    assert metadata["sample failures"].count("program_exception") == 8
    assert [column.name for column in metadata["dagster/column_schema"].columns] == list(table.columns)


def test_the_log_of_a_run_says_what_most_failures_are(lab: Lab) -> None:
    result = lab.declare(declare("fifth_raises")).evaluate()
    (warned,) = (one.user_message for one in lab.instance.all_logs(result.run_id) if one.level == logging.WARNING)
    assert warned.startswith("all: of 40 trials 8 failed, all as program_exception: ")
    assert warned.endswith("is not liked")


def test_a_step_for_each_trial_gives_the_same_rows(lab: Lab) -> None:
    lab.declare(declare("fifth_raises", rows(6)))
    one_by_one = lab.evaluate(trials_per_op=1)
    assert len(steps(one_by_one, "run_trials")) == 12
    alone, first = lab.newest()
    together = lab.evaluate(reuse="none")
    assert len(steps(together, "run_trials")) == 1
    shared, second = lab.newest()
    pd.testing.assert_frame_equal(alone[SAME], shared[SAME])
    assert first["version"] == second["version"]
    assert (first["trials run"], second["trials run"]) == (12, 12)


def test_again_with_nothing_changed_runs_nothing_and_leaves_the_leaderboard_fresh(
    lab: Lab, count_lines: CountLines
) -> None:
    log, ran = count_lines
    lab.declare(declare("logged", rows(6, log=log), inputs=("x", "log")))
    _, first = lab.evaluated()
    lab.ranked()
    assert ran() == 12
    _, again = lab.evaluated()
    assert ran() == 12
    assert (again["trials run"], again["trials reused"]) == (0, 12)
    assert again["version"] == first["version"]
    assert again["path"] == first["path"]
    assert stale_status(lab, lab.board_key) is StaleStatus.FRESH

    written = identity(first["path"])
    _, forced = lab.evaluated(reuse="none")
    assert identity(first["path"]) == written
    assert ran() == 24
    assert forced["trials run"] == 12
    assert forced["version"] == first["version"]
    assert stale_status(lab, lab.board_key) is StaleStatus.FRESH

    lab.evaluated(limit=3)
    assert ran() == 24
    assert stale_status(lab, lab.board_key) is StaleStatus.STALE


def identity(path: str) -> tuple[int, int]:
    """What changes when a file is written again."""
    found = Path(path).stat()
    return found.st_ino, found.st_mtime_ns


def stale_status(lab: Lab, key: dg.AssetKey) -> StaleStatus:
    graph = lab.definitions.resolve_asset_graph()
    resolver = CachingStaleStatusResolver(lab.instance, graph, LoadingContextForTest(lab.instance))
    return resolver.get_status(key)


def test_results_that_were_lost_are_written_again_without_a_trial(lab: Lab) -> None:
    """As after a crash between the folder and its file."""
    before, first = lab.declare(declare("fifth_raises", rows(2))).evaluated()
    Path(first["path"]).unlink()
    after, second = lab.evaluated()
    assert second["path"] == first["path"]
    assert second["trials run"] == 0
    pd.testing.assert_frame_equal(before, after)


@pytest.mark.parametrize(
    ("values", "configurations", "examples", "repeats"),
    [
        pytest.param({}, 6, 5, 1, id="grid"),
        pytest.param({"limit": 2}, 6, 2, 1, id="limit"),
        pytest.param({"limit": 50}, 6, 5, 1, id="limit-above-all"),
        pytest.param({"samples": 3, "seed": 11}, 3, 5, 1, id="sample"),
        pytest.param({"repeats": 3, "limit": 2}, 6, 2, 3, id="repeats"),
    ],
)
def test_what_is_planned_is_what_was_asked_for(
    lab: Lab, values: dict[str, Any], configurations: int, examples: int, repeats: int
) -> None:
    space = ConfigurationSpace(
        variables=(Float(name="size", low=0.0, high=1.0), Choice(name="mix", options=("a", "b")))
    )
    lab.declare(declare("chosen", rows(5), space=space))
    table, metadata = lab.evaluated(**values)
    assert len(table) == configurations * examples * repeats
    assert table["configuration"].nunique() == configurations
    assert list(table["example_id"].unique()) == [f"e{x}" for x in range(examples)]
    assert sorted(table["repeat"].unique()) == list(range(repeats))
    assert (table["seed"] == values.get("seed", 0) + table["repeat"]).all()
    assert (metadata["configurations"], metadata["examples"]) == (configurations, examples)
    grid = {"samples": 0}.items() <= {"samples": 0, **values}.items()
    assert set(table["var.size"]) <= {0.0, 0.5, 1.0} if grid else not set(table["var.size"]) & {0.0, 0.5, 1.0}


def test_each_repeat_has_its_seed_and_a_sample_is_the_same_for_its_seed(lab: Lab) -> None:
    lab.declare(declare("noisy", rows(2), space=ConfigurationSpace()))
    table, _ = lab.evaluated(repeats=3, seed=100)
    assert table["outputs"].tolist() == ["100", "101", "102", "101", "102", "103"]
    space = ConfigurationSpace(variables=(Float(name="k", low=0.0, high=1.0),))
    lab.declare(declare("fifth_raises", rows(2), space=space))
    drawn = [lab.evaluated(samples=4, seed=seed)[0]["var.k"].unique().tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1]
    assert not set(drawn[0]) & set(drawn[2])


def test_the_declared_search_holds_where_the_config_says_nothing(lab: Lab) -> None:
    space = ConfigurationSpace(variables=(Float(name="k", low=0.0, high=1.0),))
    lab.declare(declare("fifth_raises", rows(2), space=space, search=Search(samples=4, seed=2)))

    def tried(**values: int) -> tuple[list[float], set[int]]:
        table, _ = lab.evaluated(**values)
        return sorted(table["var.k"].unique()), set(table["seed"])

    declared, seeds = tried()
    assert (len(declared), seeds) == (4, {2})
    assert tried(seed=2) == tried(samples=4, seed=2) == (declared, {2})
    assert tried(samples=0) == ([0.0, 0.5, 1.0], {2})
    assert len(tried(samples=3, seed=0)[0]) == 3


def test_more_configurations_than_a_plan_can_name_are_refused_before_any_is_made(lab: Lab) -> None:
    variables = tuple(Integer(name=f"v{number}", low=1, high=100, points=tuple(range(1, 101))) for number in range(20))
    with pytest.raises(InvalidValue) as refused:
        chosen_configurations(EvaluationConfig(), Search(), ConfigurationSpace(variables=variables))
    said = str(refused.value)
    lab.declare(declare("fifth_raises", rows(2)))
    assert "a grid of 10,000,000," in said
    assert "it may have 1,000,000: declare fewer points, or draw samples of it (--samples)" in said
    assert "search.samples: 1000001 is not accepted; draw at most 1,000,000" in failure(lab.evaluate(samples=1_000_001))
    with pytest.raises(InvalidValue, match=r"search\.samples"):
        Search(samples=100_000_000)


def test_owners_are_those_of_every_asset(lab: Lab) -> None:
    lab.declare(declare("fifth_raises", owners=("team:search", "ada@example.org")))
    graph = lab.definitions.resolve_asset_graph()
    assert {tuple(graph.get(key).owners) for key in (lab.dataset_key, lab.results_key, lab.board_key)} == {
        ("team:search", "ada@example.org")
    }


def test_options_of_any_type_reach_the_table(lab: Lab) -> None:
    space = ConfigurationSpace(
        variables=(Choice(name="size", options=(1, 2)), Choice(name="mix", options=(1, 1.0, True, "1")))
    )
    table, _ = lab.declare(declare("chosen", rows(1), space=space)).evaluated()
    assert table["var.size"].tolist() == [1] * 4 + [2] * 4
    assert table["var.mix"].tolist() == ["1", "1.0", "true", '"1"'] * 2
    assert table["outputs"].tolist()[:4] == ['"1 1"', '"1 1.0"', '"1 True"', "\"1 '1'\""]


def test_the_leaderboard_never_mixes_a_smoke_run_with_the_real_one(lab: Lab) -> None:
    given = [{**row, "topic": "even" if row["x"] % 2 == 0 else "odd"} for row in rows(8)]
    evaluation = declare("fifth_raises", given, partition_by="topic", partitions=("even", "odd"))
    lab.declare(evaluation)
    _, full = lab.evaluated("even")
    assert lab.ranked()["not evaluated yet"] == "odd"
    lab.evaluated("odd")
    both = lab.ranked()
    assert "not evaluated yet" not in both
    assert (both["partitions"], both["left out (other plans)"], both["trials"]) == ("even, odd", "none", 16)
    _, smoke = lab.evaluated("odd", limit=2)
    assert smoke["plan"] != full["plan"]
    small = lab.ranked()
    assert (small["partitions"], small["left out (other plans)"], small["trials"]) == ("odd", "even", 4)
    assert small["version"] != both["version"]
    lab.evaluated("odd")
    again = lab.ranked()
    assert again["version"] == both["version"]
    assert again["trials"] == 16


def readable(table: str) -> str:
    """The table without what keeps its numbers on one line."""
    return table.replace("\N{NO-BREAK SPACE}", " ").replace("\N{WORD JOINER}", "")


def test_the_leaderboard_shows_its_table_and_a_picture(lab: Lab) -> None:
    lab.declare(declare("fifth_raises")).evaluated()
    shown = lab.ranked()
    lines = readable(shown["leaderboard"]).splitlines()
    assert lines[0] == "| # | configuration | n | ranked by | right | failures | bounds | vs best |"
    assert lines[2].startswith("| 1 | k=1 | 20 | 0.800 | 1.000 ± 0.000 | 4 | 0.800…1.000 | best |")
    assert lines[3].startswith("| 2 | k=2 | 20 | 0.000 | 0.000 ± 0.000 | 4 | 0.000…0.200 | -1.000 ± 0.000 |")
    assert (shown["trials"], shown["failures"], shown["best"]) == (40, 8, "k=1")
    assert shown["best right"] == 0.8
    encoded = shown["plot"].partition("base64,")[2].removesuffix(")")
    picture = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded)), format="png")
    assert picture.shape[0] > 100
    assert picture.shape[1] == 900
    assert picture.std() > 0


def test_the_leaderboards_version_tells_apart_what_its_table_rounds_away(lab: Lab) -> None:
    def version(x: int) -> str:
        source = [{"id": "a", "x": x, "y": 0, "group": "g"}, {"id": "b", "x": 500_000_000, "y": 0, "group": "h"}]
        space = ConfigurationSpace()
        evaluation = declare("plain", source, space=space, metrics=(f"{PROGRAMS}:size",))
        lab.declare(evaluation).evaluated()
        return lab.ranked()["version"]

    assert version(500_000_000) == version(500_000_000)
    assert version(500_000_000) != version(500_000_001)


def test_every_trial_failed_and_there_is_still_a_leaderboard(lab: Lab) -> None:
    lab.declare(declare("always_raises", rows(3), space=ConfigurationSpace())).evaluated()
    shown = lab.ranked()
    assert (shown["trials"], shown["failures"]) == (3, 3)
    assert "0.000…1.000" in readable(shown["leaderboard"])
    assert shown["best"] == "none: no trial succeeded"
    assert "best right" not in shown


def test_the_leaderboards_page_says_how_to_read_it() -> None:
    node = build_evaluation(declare("plain")).resolve_asset_graph().get(dg.AssetKey(["tested", "leaderboard"]))
    for term in ("`n`", "±", "`ranked by`", "`bounds`", "`vs best`", "counts as the worst score"):
        assert term in (node.description or "")


def test_what_the_pool_did_is_told_in_words_and_units(lab: Lab) -> None:
    _, metadata = lab.declare(declare("fifth_raises")).evaluated()
    what = "of all trials here, reused ones too"
    rows = {record.data[what]: record.data for record in metadata["pool"].records}
    assert list(rows) == ["workers that answered", "attempts", "time in the queue", "time running", "time throttled"]
    assert rows["attempts"] == {what: "attempts", "in all": "40", "median": "1", "95th percentile": "1", "most": "1"}
    for name in ("time in the queue", "time running"):
        for column in ("in all", "median", "95th percentile", "most"):
            assert re.fullmatch(r"[0-9.,e-]+ (s|ms|µs)", str(rows[name][column])), rows[name]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 s"),
        (2e-7, "0.2 µs"),
        (1.429e-05, "14.3 µs"),
        (0.0123, "12.3 ms"),
        (0.9999, "1,000 ms"),
        (1.5, "1.5 s"),
        (99.96, "100 s"),
        (4321.0, "4,321 s"),
    ],
)
def test_seconds_have_the_unit_that_they_are_read_in(seconds: float, shown: str) -> None:
    assert _seconds(seconds) == shown


def test_the_first_metric_ranks_even_when_it_gives_several_scores(lab: Lab) -> None:
    metrics = (f"{PROGRAMS}:parts", f"{PROGRAMS}:right")
    table, _ = lab.declare(declare("fifth_raises", rows(3), metrics=metrics)).evaluated()
    assert [name for name in table.columns if name.startswith("score.")] == [
        "score.parts.alpha",
        "score.parts.zeta",
        "score.right",
    ]
    assert "| n | ranked by | parts.alpha |" in lab.ranked()["leaderboard"]


def test_an_evaluation_that_lacks_an_outcome_is_refused(lab: Lab) -> None:
    """A journal row goes missing between running and collecting."""
    lab.declare(declare("fifth_raises", rows(6)), progress=ProgressResource.to(Forgets(lab)))
    result = lab.evaluate()
    assert not result.success
    assert "1 of 12 planned trials have no outcome" in failure(result)
    assert "run the evaluation again" in failure(result)
    wanted = dg.AssetRecordsFilter(asset_key=lab.results_key)
    assert lab.instance.fetch_materializations(wanted, limit=1).records == []
    lab.declare(lab.evaluation)
    _, metadata = lab.evaluated()
    assert (metadata["trials run"], metadata["trials reused"]) == (1, 11)


class Forgets(ProgressReporter):
    """Deletes an outcome as soon as all are in."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def ended(self, *, complete: bool, reused: int, rescored: int) -> None:
        with sqlite3.connect(self._lab.folder / "journal.sqlite") as journal:
            deleted = journal.execute("DELETE FROM executions WHERE id = (SELECT min(id) FROM executions)").rowcount
        assert deleted == 1


def test_a_pool_that_is_not_there_fails_the_run_and_says_what_to_do(lab: Lab) -> None:
    nowhere = WorkerPoolResource(address="unix:/nonexistent/bridge.sock", connect_timeout_s=0.2)
    result = lab.declare(declare("fifth_raises", rows(2)), worker_pool=nowhere).evaluate()
    assert not result.success
    assert "no worker pool answered at unix:/nonexistent/bridge.sock" in failure(result)
    assert "dspex pool start" in failure(result)


@pytest.mark.parametrize(
    ("changes", "ran_again", "scored_again"),
    [
        pytest.param({"version": "2"}, 6, 0, id="program"),
        pytest.param({"metrics": (f"{PROGRAMS}:right", f"{PROGRAMS}:size")}, 0, 6, id="metrics"),
    ],
)
def test_another_program_runs_all_again_and_another_metric_scores_all_again(
    lab: Lab, count_lines: CountLines, changes: dict[str, Any], ran_again: int, scored_again: int
) -> None:
    log, ran = count_lines
    source = rows(3, log=log)
    lab.declare(declare("logged", source, inputs=("x", "log"), version="1"))
    _, before = lab.evaluated()
    lab.declare(declare("logged", source, inputs=("x", "log"), **{"version": "1", **changes}))
    table, after = lab.evaluated()
    assert ran() == 6 + ran_again
    assert [after["trials run"], after["trials scored again"]] == [ran_again, scored_again]
    assert after["plan"] != before["plan"]
    assert not [name for name in table.columns if name.startswith("score.") and table[name].isna().any()]


def test_another_error_of_the_same_type_is_what_the_table_says(lab: Lab) -> None:
    """As after an edit: what was found is of the same version, but of other trials."""
    first = declare("fifth_raises", rows(6), version="1")
    before, one = lab.declare(first).evaluated()
    after, other = lab.declare(declare("fifth_raises_otherwise", rows(6), version="2")).evaluated()
    assert one["version"] == other["version"]
    assert set(before["trial_id"]) & set(after["trial_id"]) == set()
    failed = after[after["status"] == "error"]
    assert set(failed["error_message"]) == {"ValueError: something else"}
    again, third = lab.declare(first).evaluated()
    assert third["path"] == one["path"], "every version stays"
    assert list(again["error_message"].dropna()) == list(before["error_message"].dropna())


def test_outcomes_are_not_reused_in_another_environment_and_workers_of_another_refuse(
    lab: Lab, count_lines: CountLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, ran = count_lines
    monkeypatch.delenv(API_BASE, raising=False)
    lab.declare(declare("logged", rows(3, log=log), inputs=("x", "log"), environment=(API_BASE,)))
    before, unset = lab.evaluated()[1], lab.code_version()
    assert ran() == 6
    monkeypatch.setenv(API_BASE, "http://elsewhere/v1")
    lab.declare(lab.evaluation)
    assert lab.code_version() != unset
    table, metadata = lab.evaluated()
    assert set(table["error_type"]) == {"program_unavailable"}, "the pool was started without the variable"
    assert f"says otherwise of {API_BASE}" in table["error_message"].iloc[0]
    assert "elsewhere" not in str(metadata)
    assert metadata["program version"] != before["program version"]
    monkeypatch.delenv(API_BASE)
    assert lab.declare(lab.evaluation).evaluated()[1]["trials reused"] == 6
    assert ran() == 6


API_BASE = "DSPEX_TEST_API_BASE"


def test_every_column_says_what_it_means(lab: Lab) -> None:
    space = ConfigurationSpace(variables=(Integer(name="k", low=1, high=2, description="how often"),))
    _, metadata = lab.declare(declare("Fallible", space=space)).evaluated()
    meanings = {column.name: column.description for column in metadata["dagster/column_schema"].columns}
    assert [name for name, meaning in meanings.items() if not meaning] == []
    assert meanings["var.k"] == "how often"


def reading(prompt: Path) -> Evaluation:
    """Forty trials that return what a declared file says; during one of them it is edited."""
    source = rows(40, prompt=str(prompt), edited_at=25)
    inputs = ("x", "prompt", "edited_at")
    return declare("reads", source, inputs=inputs, files=(prompt,), space=ConfigurationSpace())


@pytest.mark.parametrize("more", [{}, {"max_errors": 0.99}], ids=["at-once", "in-a-thread"])
def test_what_runs_while_a_declared_file_is_edited_is_kept_under_no_version(
    lab: Lab, tmp_path: Path, more: dict[str, float]
) -> None:
    """That is so for the trial during which it is edited, too."""
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("planned")
    lab.declare(reading(prompt))
    result = lab.evaluate(max_concurrency=1, **more)
    assert not result.success
    assert f"a declared file ({prompt}) was edited since the run was planned" in failure(result)
    assert "run the evaluation again" in failure(result)
    with sqlite3.connect(lab.folder / "journal.sqlite") as journal:
        kept = [decode(outputs) for (outputs,) in journal.execute("SELECT outputs FROM executions")]
    assert kept == ["planned"] * len(kept)
    assert len(kept) < 40


def test_a_declared_file_that_is_written_again_as_it_was_is_no_other(lab: Lab, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("edited")
    frame, _ = lab.declare(reading(prompt)).evaluated(max_concurrency=1)
    assert len(frame) == 40
