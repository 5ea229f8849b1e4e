"""The one switch: what changes is read, evaluated and ranked without a click, and nothing else is."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from dspex_pipelines.model.evaluation import Dataset, Evaluation, Upstream
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.orchestration.data import sources
from dspex_pipelines.orchestration.freshness import KeepFreshSensor, reading_digests
from tests.orchestration.conftest import Lab
from tests.orchestration.declared import PROGRAMS, SPACE

PATIENCE = 6
"""Ticks in which everything has come to rest."""


class Daemon:
    """Does what Dagster's daemon does at each tick of the one sensor, and runs what it asks for at once."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.cursor: str | None = None
        self.keys: set[str] = set()

    def tick(self) -> list[str]:
        """Return what ran: `asset partition`."""
        repository = self.lab.definitions.get_repository_def()
        (sensor,) = (one for one in repository.sensor_defs if one.name == "tested_keep_fresh")
        instance = self.lab.instance
        context = dg.build_sensor_context(
            instance=instance, repository_def=repository, cursor=self.cursor, sensor_name=sensor.name
        )
        # As the code server does that the daemon asks.
        with partition_loading_context(dynamic_partitions_store=instance):
            data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        for request in data.dynamic_partitions_requests or ():
            instance.add_dynamic_partitions(request.partitions_def_name, list(request.partition_keys))
        ran: list[str] = []
        for request in data.run_requests or ():
            if request.run_key and request.run_key in self.keys:
                continue
            self.keys.update([request.run_key] if request.run_key else [])
            selection = list(request.asset_selection or ())
            assert request.tags.get("dagster/partition") == request.partition_key, "the daemon goes by the tag"
            result = self.lab.run(selection, partition=request.partition_key, tags=dict(request.tags))
            ran += [
                f"{key.path[-1]} {request.partition_key or '-'}{'' if result.success else ' failed'}"
                for key in selection
            ]
        return ran

    def rest(self) -> list[str]:
        """Tick until nothing runs any more; return what did."""
        ran: list[str] = []
        for _ in range(PATIENCE):
            now = self.tick()
            if not now:
                return ran
            ran += now
        raise AssertionError(f"it does not come to rest: {ran}")


def write(path: Path, *rows: tuple[str, int, int]) -> None:
    lines = "".join(f"{name},{x},{y}\n" for name, x, y in rows)
    path.write_text(f"id,x,y\n{lines}")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


def declared(source: Any, **changes: Any) -> Evaluation:
    return Evaluation(
        name="tested",
        dataset=Dataset(
            source=source,
            inputs=("x",),
            labels=("y",),
            example_id="id",
            **{"partitions": Dynamic(), **changes},
        ),
        program=f"{PROGRAMS}:text_times",
        metrics=(f"{PROGRAMS}:right",),
        space=SPACE,
    )


@pytest.fixture
def daemon(lab: Lab, data: Path) -> Daemon:
    lab.declare(declared(data))
    daemon = Daemon(lab)
    assert daemon.rest() == []
    return daemon


def test_it_is_off_until_it_is_turned_on(data: Path, lab: Lab) -> None:
    repository = lab.declare(declared(data)).definitions.get_repository_def()
    (sensor,) = repository.sensor_defs
    assert isinstance(sensor, KeepFreshSensor)
    assert sensor.default_status is dg.DefaultSensorStatus.STOPPED


def test_a_new_file_is_a_new_partition_that_is_evaluated_and_ranked(daemon: Daemon, data: Path, lab: Lab) -> None:
    write(data / "monday.csv", ("a", 1, 1), ("b", 2, 2))
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]
    write(data / "tuesday.csv", ("c", 3, 3))
    assert daemon.rest() == ["dataset tuesday", "evaluation tuesday", "leaderboard -"]
    assert lab.metadata(lab.board_key)["partitions"] == "monday, tuesday"


def test_a_file_that_is_touched_leads_to_nothing(daemon: Daemon, data: Path) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    daemon.rest()
    os.utime(data / "monday.csv", ns=(1, 1))
    write(data / "monday.csv", ("a", 1, 1))
    assert daemon.rest() == []


def test_one_changed_row_runs_the_trials_of_that_row_alone(daemon: Daemon, data: Path, lab: Lab) -> None:
    write(data / "monday.csv", ("a", 1, 1), ("b", 2, 2), ("c", 3, 3))
    daemon.rest()
    write(data / "monday.csv", ("a", 1, 1), ("b", 20, 20), ("c", 3, 3))
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]
    _, metadata = lab.newest("monday")
    assert (metadata["trials run"], metadata["trials reused"]) == (2, 4)


def test_a_row_that_changes_back_is_noticed_too(daemon: Daemon, data: Path, lab: Lab) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    daemon.rest()
    for x in (2, 1):
        write(data / "monday.csv", ("a", x, x))
        assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]
    table, _ = lab.newest("monday")
    assert table["example_id"].tolist() == ["a", "a"]


def test_another_program_evaluates_every_partition(daemon: Daemon, data: Path, lab: Lab) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    write(data / "tuesday.csv", ("b", 2, 2))
    daemon.rest()
    lab.declare(replace(lab.evaluation, version="2"))
    assert sorted(daemon.rest()) == ["evaluation monday", "evaluation tuesday"], "results are equal, so is their rank"


def test_a_file_that_is_refused_is_read_once_and_again_when_it_is_mended(daemon: Daemon, data: Path, lab: Lab) -> None:
    (data / "monday.csv").write_text("id,x,y\na,,1\n")
    assert daemon.rest() == ["dataset monday failed"]
    assert daemon.rest() == []
    write(data / "monday.csv", ("a", 1, 1))
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]


def test_a_change_during_a_run_is_not_lost(daemon: Daemon, data: Path, lab: Lab, monkeypatch: Any) -> None:
    """The data set is read anew while its evaluation runs: the evaluation is then of the older one, and stale."""
    write(data / "monday.csv", ("a", 1, 1))
    assert daemon.tick() == ["dataset monday"]
    run = lab.run

    def change_meanwhile(selection: list[dg.AssetKey], **options: Any) -> dg.ExecuteInProcessResult:
        result = run(selection, **options)
        if selection == [lab.results_key]:
            monkeypatch.setattr(lab, "run", run)
            write(data / "monday.csv", ("a", 5, 5))
            assert run([lab.dataset_key], partition="monday").success
        return result

    monkeypatch.setattr(lab, "run", change_meanwhile)
    ran = daemon.rest()
    assert ran.count("evaluation monday") == 2
    assert ran[-1] == "leaderboard -"
    _, metadata = lab.newest("monday")
    assert metadata["dataset digest"] == lab.metadata(lab.dataset_key, "monday")["digest"]


def test_switched_on_late_it_finds_what_was_missed(lab: Lab, data: Path) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    lab.declare(declared(data))
    daemon = Daemon(lab)
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]


def test_a_source_that_is_gone_is_told_and_what_is_there_is_kept_fresh(lab: Lab, data: Path) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    lab.declare(declared(data))
    daemon = Daemon(lab)
    assert daemon.tick() == ["dataset monday"]
    (data / "monday.csv").unlink()
    data.rmdir()
    assert daemon.rest() == ["evaluation monday", "leaderboard -"]


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone"), OSError(5, "Input/output error")])
def test_a_file_that_goes_during_the_look_or_cannot_be_read_costs_nobody_else(
    lab: Lab, data: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    lab.declare(declared(data))
    daemon = Daemon(lab)
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]
    write(data / "tuesday.csv", ("a", 1, 1))
    write(data / "monday.csv", ("a", 2, 1))
    digest = sources.file_digest

    def failing(file: Path) -> str:
        if file.name == "tuesday.csv":
            raise error
        return digest(file)

    with monkeypatch.context() as during:
        during.setattr(sources, "file_digest", failing)
        assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]
    assert daemon.rest() == ["dataset tuesday", "evaluation tuesday", "leaderboard -"]


@pytest.mark.parametrize("cursor", ["rubbish", "0rubbish", "0eJw=", "1", "{", "12"])
def test_a_cursor_that_cannot_be_read_is_told_and_begun_anew(
    daemon: Daemon, data: Path, cursor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    daemon.rest()
    assert "cursor" not in capsys.readouterr().err
    daemon.cursor = cursor
    assert daemon.rest() == []
    assert capsys.readouterr().err.count("the sensor's cursor cannot be read") == 1
    write(data / "monday.csv", ("a", 2, 2))
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]


def test_a_data_set_that_is_wiped_is_read_again_each_time(daemon: Daemon, data: Path, lab: Lab) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    daemon.rest()
    for _ in range(2):
        lab.instance.wipe_assets([lab.dataset_key])
        assert "dataset monday" in daemon.rest()


def test_a_file_that_is_refused_is_read_once_after_a_wipe(daemon: Daemon, data: Path, lab: Lab) -> None:
    (data / "monday.csv").write_text("id,x,y\na,,1\n")
    assert daemon.rest() == ["dataset monday failed"]
    lab.instance.wipe_assets([lab.dataset_key])
    assert daemon.rest() == ["dataset monday failed"]


CHANGES: dict[str, Any] = {
    "labels": ("z",),
    "inputs": ("x", "z"),
    "example_id": "z",
    "group": "z",
    "max_bad_rows": 0.5,
}


@pytest.mark.parametrize("changed", CHANGES)
def test_another_declaration_reads_every_partition_again(lab: Lab, data: Path, changed: str) -> None:
    for day in ("monday", "tuesday"):
        (data / f"{day}.csv").write_text("id,x,y,z\na,1,1,2\n")
    lab.declare(declared(data))
    daemon = Daemon(lab)
    daemon.rest()
    lab.declare(
        replace(lab.evaluation, dataset=replace(lab.evaluation.dataset, description="told otherwise")),
    )
    assert daemon.rest() == []
    lab.declare(replace(lab.evaluation, dataset=replace(lab.evaluation.dataset, **{changed: CHANGES[changed]})))
    ran = daemon.rest()
    assert sorted(ran)[:2] == ["dataset monday", "dataset tuesday"]
    evaluated = any(one.startswith("evaluation monday") for one in ran)
    assert evaluated == (changed != "max_bad_rows"), "by its content"


def test_a_refused_file_is_read_again_when_the_declaration_allows_it(daemon: Daemon, data: Path, lab: Lab) -> None:
    write(data / "monday.csv", ("a", 1, 1))
    (data / "monday.csv").write_text("id,x,y\na,,1\nb,1,1\n")
    assert daemon.rest() == ["dataset monday failed"]
    lab.declare(replace(lab.evaluation, dataset=replace(lab.evaluation.dataset, max_bad_rows=1)))
    assert daemon.rest() == ["dataset monday", "evaluation monday", "leaderboard -"]


def test_one_more_partition_reads_no_other_again(lab: Lab, data: Path) -> None:
    file = data / "all.csv"
    file.write_text("id,x,y,topic\na,1,1,text\nb,2,2,files\n")
    lab.declare(declared(file, partition_by="topic", partitions=("text",)))
    daemon = Daemon(lab)
    daemon.rest()
    lab.declare(declared(file, partition_by="topic", partitions=("text", "files")))
    assert daemon.rest() == ["dataset files", "evaluation files", "leaderboard -"]


def test_partitions_of_another_period_are_read_again(data: Path) -> None:
    file = data / "all.csv"
    file.write_text("id,x,y,day\na,1,1,2026-01-01\nb,2,2,2026-01-02\n")
    day, month = (
        reading_digests(declared(file, partition_by="day", partitions=Dates(start="2026-01-01", every=every)).dataset)
        for every in ("day", "month")
    )
    assert day["2026-01-01"] != month["2026-01-01"]


@pytest.mark.parametrize("source", [lambda: iter([]), Upstream("raw/rows")], ids=["function", "asset"])
def test_of_a_data_set_without_files_it_says_that_it_does_not_look(data: Path, source: Any) -> None:
    files, none = (KeepFreshSensor(declared(one, partitions=("all",))).description or "" for one in (data, source))
    assert "notices new and changed files" in files
    assert "no files to look at" not in files
    assert "The data set has no files to look at: runs that something else starts read it." in none
    assert "notices" not in none


def test_one_file_with_a_column_of_partitions_reads_all_and_evaluates_what_has_changed(lab: Lab, data: Path) -> None:
    file = data / "all.csv"
    file.write_text("id,x,y,topic\na,1,1,text\nb,2,2,files\n")
    lab.declare(declared(file, partition_by="topic"))
    daemon = Daemon(lab)
    assert sorted(daemon.rest()) == sorted(
        ["dataset text", "dataset files", "evaluation text", "evaluation files", "leaderboard -"]
    )
    file.write_text("id,x,y,topic\na,1,1,text\nb,3,3,files\nc,4,4,new\n")
    assert sorted(daemon.rest()) == sorted(
        ["dataset text", "dataset files", "dataset new", "evaluation files", "evaluation new", "leaderboard -"]
    )


def test_dates_are_partitions_from_the_first_on(lab: Lab, data: Path) -> None:
    file = data / "all.csv"
    file.write_text(
        "id,x,y,day\na,1,1,2026-01-01\nb,2,2,2026-01-01T23:59:00\nc,3,3,2026-01-02\nd,4,4,2025-12-31\ne,5,5,?\n"
    )
    lab.declare(declared(file, partition_by="day", partitions=Dates(start="2026-01-01")))
    daemon = Daemon(lab)
    ran = daemon.rest()
    dated = [f"{what} 2026-01-0{day}" for what in ("dataset", "evaluation") for day in (1, 2)]
    assert sorted(ran) == sorted([*dated, "leaderboard -"])
    table, _ = lab.newest("2026-01-01")
    assert table["example_id"].tolist() == ["a", "b", "a", "b"]
    assert lab.metadata(lab.dataset_key, "2026-01-01")["rows in no partition"] == 2
