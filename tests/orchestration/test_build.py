"""One call makes an evaluation; several live side by side."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.engine.executor import Progress
from dspex_pipelines.model.search import Search
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Integer
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.executor import PRELOADED
from dspex_pipelines.orchestration.resources import ProgressReporter, ProgressResource
from tests.orchestration.conftest import Lab
from tests.orchestration.declared import PROGRAMS, declare, rows


def test_a_second_evaluation_is_one_call() -> None:
    one, two = (build_evaluation(declare("fifth_raises", name=name)) for name in ("one", "two"))
    both = dg.Definitions.merge(one, two)
    dg.Definitions.validate_loadable(both)
    assert {key.to_user_string() for key in both.resolve_all_asset_keys()} == {
        f"{name}/{part}" for name in ("one", "two") for part in ("dataset", "evaluation", "leaderboard")
    }
    repository = both.get_repository_def()
    assert {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")} == {
        "one_job",
        "one_leaderboard_job",
        "two_job",
        "two_leaderboard_job",
    }
    shared = dg.Definitions.merge(both, dg.Definitions(jobs=[dg.define_asset_job("all_of_it")]))
    dg.Definitions.validate_loadable(shared)


def test_two_evaluations_of_one_name_are_refused() -> None:
    twice = dg.Definitions.merge(*(build_evaluation(declare("fifth_raises")) for _ in range(2)))
    with pytest.raises(dg.DagsterInvalidDefinitionError, match="tested"):
        dg.Definitions.validate_loadable(twice)


def test_each_of_two_merged_evaluations_plans_its_own_trials(lab: Lab) -> None:
    first = lab.declare(declare("fifth_raises", rows(2), name="first")).definitions
    second = lab.declare(declare("noisy", rows(3), name="second", space=ConfigurationSpace())).definitions
    lab.definitions = dg.Definitions.merge(first, second)
    table, _ = lab.evaluated()
    assert table["evaluation"].tolist() == ["second"] * 3
    lab.evaluation = declare("fifth_raises", rows(2), name="first")
    lab.dataset_key, lab.results_key = dg.AssetKey(["first", "dataset"]), dg.AssetKey(["first", "evaluation"])
    table, _ = lab.evaluated()
    assert table["evaluation"].tolist() == ["first"] * 4


def test_everything_lies_below_the_store_that_was_given(lab: Lab) -> None:
    _, metadata = lab.declare(declare("fifth_raises", rows(2))).evaluated()
    assert Path(metadata["path"]).relative_to(lab.folder).parts == (
        "results",
        "tested",
        "all",
        metadata["version"],
        "trials.parquet",
    )
    assert Path(lab.metadata(lab.dataset_key, "all")["path"]).is_relative_to(lab.folder)
    assert (lab.folder / "journal.sqlite").exists()


OTHER_SPACE = ConfigurationSpace(variables=(Integer(name="k", low=1, high=3, points=(1, 3)),))


@pytest.mark.parametrize(
    "changes",
    [
        {"program": f"{PROGRAMS}:logged", "inputs": ("x", "log")},
        {"version": "2"},
        {"space": OTHER_SPACE},
        {"metrics": (f"{PROGRAMS}:size",)},
        {"search": Search(samples=2)},
    ],
    ids=["entry-point", "declared-version", "space", "metrics", "search"],
)
def test_the_code_version_follows_program_space_and_metrics(lab: Lab, changes: dict[str, Any]) -> None:
    before = lab.declare(declare("fifth_raises")).code_version()
    assert before
    assert (
        lab.declare(declare("fifth_raises", timeout_s=1.0, max_concurrency=2, description="d")).code_version() == before
    )
    program = changes.pop("program", f"{PROGRAMS}:fifth_raises").partition(":")[2]
    assert lab.declare(declare(program, **changes)).code_version() not in (None, before)


@pytest.mark.parametrize("what", ["program", "metric"])
def test_the_code_version_follows_the_source(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    names = {name: f"moving_{name}_of_{what}" for name in ("program", "metric")}
    files = {name: tmp_path / f"{module}.py" for name, module in names.items()}
    files["program"].write_text("def run(x, k):\n    return x\n")
    files["metric"].write_text("def good(example, outputs):\n    return 1.0\n")

    def version() -> str | None:
        entry_points = {"program": f"{names['program']}:run", "metrics": (f"{names['metric']}:good",)}
        return lab.declare(dataclasses.replace(declare("x"), **entry_points)).code_version()

    before = version()
    assert before
    assert version() == before
    files[what].write_text(files[what].read_text() + "\nanother = 1\n")
    assert version() not in (None, before)


def test_progress_reaches_the_reporter_that_was_given(lab: Lab) -> None:
    told = Listens()
    lab.declare(declare("fifth_raises", rows(5)), progress=ProgressResource.to(told)).evaluated()
    assert told.events[0] == ("started", "all", 10)
    assert told.events[-2:] == [("moved", 10, 2), ("ended",)]


class Listens(ProgressReporter):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    def started(self, partition: str, planned: int, total: int) -> None:
        assert total >= planned
        self.events.append(("started", partition, planned))

    def moved(self, progress: Progress) -> None:
        self.events.append(("moved", progress.done, progress.failed))

    def ended(self, *, complete: bool, reused: int, rescored: int) -> None:
        self.events.append(("ended",))


def test_a_forked_step_has_nothing_left_to_import() -> None:
    """What is not preloaded costs every step seconds; a thread at the fork would cost it its life."""
    script = (
        "import importlib, json, sys, threading\n"
        f"for name in {PRELOADED!r}: importlib.import_module(name)\n"
        "before = set(sys.modules)\n"
        "import dspex_pipelines.definitions\n"
        "new = sorted({name.split('.')[0] for name in set(sys.modules) - before})\n"
        "print(json.dumps([new, threading.active_count()]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=100, check=True)
    new, threads = json.loads(done.stdout.splitlines()[-1])
    assert set(new) <= {"dagster", "dagster_shared", "dspex_pipelines", "pydantic"}  # they load some of their own late
    assert threads == 1


def test_the_results_say_where_their_code_is() -> None:
    (references,) = (
        spec.metadata["dagster/code_references"]
        for spec in build_evaluation(declare("fifth_raises")).resolve_all_asset_specs()
        if spec.key.path[-1] == "evaluation"
    )
    found = {one.label: (Path(one.file_path), one.line_number) for one in references.code_references}
    file, line = found[f"program {PROGRAMS}:fifth_raises"]
    assert file.read_text().splitlines()[line - 1].startswith("def fifth_raises")
    assert f"metric {PROGRAMS}:right" in found
