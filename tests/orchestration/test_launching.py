"""What starts runs at a time, or when somebody outside asks."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.model.automation import Automation
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.partitions import Dynamic
from dspex_pipelines.orchestration import launching
from dspex_pipelines.orchestration.build import build_evaluation
from tests.orchestration.declared import declare

NOW = dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC)


@pytest.fixture
def evaluation(tmp_path: Path) -> Evaluation:
    triggers = tmp_path / "triggers"
    triggers.mkdir()
    automation = Automation(schedule="0 3 * * *", latest=2, timezone="Europe/Berlin", triggers=triggers)
    given = declare("fifth_raises", partition_by="topic", partitions=("a", "b", "c"))
    return replace(given, automation=automation)


def schedule_of(evaluation: Evaluation) -> dg.ScheduleDefinition:
    (schedule,) = build_evaluation(evaluation).get_repository_def().schedule_defs
    return schedule


def requested(evaluation: Evaluation, instance: dg.DagsterInstance) -> list[dg.RunRequest]:
    schedule = schedule_of(evaluation)
    repository = build_evaluation(evaluation).get_repository_def()
    context = dg.build_schedule_context(
        instance=instance, instance_ref=instance.get_ref(), repository_def=repository, scheduled_execution_time=NOW
    )
    return list(schedule.evaluate_tick(context).run_requests or ())


def test_the_latest_partitions_are_scheduled_once_for_each_time(evaluation: Evaluation) -> None:
    schedule = schedule_of(evaluation)
    assert (schedule.cron_schedule, schedule.execution_timezone) == ("0 3 * * *", "Europe/Berlin")
    assert schedule.default_status is dg.DefaultScheduleStatus.STOPPED
    with dg.instance_for_test() as instance:
        runs = requested(evaluation, instance)
        assert [run.partition_key for run in runs] == ["b", "c"]
        assert len({run.run_key for run in runs}) == 2
        every = replace(evaluation, automation=replace(evaluation.automation, latest=0))
        assert [run.partition_key for run in requested(every, instance)] == ["a", "b", "c"]


def test_a_schedule_of_partitions_that_have_yet_to_come_skips(evaluation: Evaluation) -> None:
    dynamic = replace(evaluation, dataset=replace(evaluation.dataset, partitions=Dynamic()))
    with dg.instance_for_test() as instance:
        assert requested(dynamic, instance) == []
        instance.add_dynamic_partitions("tested_partitions", ["x", "y", "z"])
        assert [run.partition_key for run in requested(dynamic, instance)] == ["y", "z"]


def test_without_a_declaration_there_is_the_one_switch_alone(evaluation: Evaluation) -> None:
    repository = build_evaluation(replace(evaluation, automation=Automation())).get_repository_def()
    assert repository.schedule_defs == []
    assert [sensor.name for sensor in repository.sensor_defs] == ["tested_keep_fresh"]


class Triggers:
    def __init__(self, evaluation: Evaluation, instance: dg.DagsterInstance) -> None:
        self.definitions = build_evaluation(evaluation)
        self.folder = evaluation.automation.triggers or Path()
        self.instance = instance
        self.cursor: str | None = None
        self.skipped = ""

    def put(self, name: str, document: Any) -> None:
        """Write a file elsewhere, and move it in."""
        text = document if isinstance(document, str) else json.dumps(document)
        (self.folder.parent / name).write_text(text)
        (self.folder.parent / name).replace(self.folder / name)

    def tick(self) -> list[dg.RunRequest]:
        (sensor,) = (one for one in self.definitions.get_repository_def().sensor_defs if one.name == "tested_triggers")
        assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
        repository = self.definitions.get_repository_def()
        context = dg.build_sensor_context(instance=self.instance, repository_def=repository, cursor=self.cursor)
        data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
        self.skipped = data.skip_message or ""
        return list(data.run_requests or ())


@pytest.fixture
def triggers(evaluation: Evaluation) -> Any:
    with dg.instance_for_test() as instance:
        yield Triggers(evaluation, instance)


def test_a_file_starts_a_run_with_its_config(triggers: Triggers) -> None:
    assert triggers.tick() == []
    triggers.put("one.json", {"partition": "b", "config": {"limit": 3, "reuse": "successes"}})
    (run,) = triggers.tick()
    assert run.partition_key == "b"
    config = run.run_config["ops"]["tested__evaluation"]["config"]
    assert (config["limit"], config["reuse"]) == (3, "successes")
    job = triggers.definitions.resolve_job_def("tested_job")
    assert dg.validate_run_config(job, run.run_config)


def test_without_a_partition_there_is_one_for_each(triggers: Triggers) -> None:
    triggers.put("all.json", "")
    assert [run.partition_key for run in triggers.tick()] == ["a", "b", "c"]
    triggers.put("some.json", {"partition": ["a", "c"]})
    assert {run.partition_key for run in triggers.tick() if run.run_key.startswith("some")} == {"a", "c"}


def test_the_same_file_starts_no_second_run_and_another_of_its_name_does(triggers: Triggers) -> None:
    triggers.put("one.json", {"partition": "b"})
    (first,) = triggers.tick()
    assert triggers.tick() == []
    triggers.put("one.json", {"partition": "b"})
    (again,) = triggers.tick()
    assert again.run_key != first.run_key


@pytest.mark.parametrize("dated", [0, 2**32], ids=["long ago", "in the future"])
def test_a_file_counts_from_when_it_was_moved_in_whatever_its_date(triggers: Triggers, dated: int) -> None:
    elsewhere = triggers.folder.parent / "dated.json"
    elsewhere.write_text('{"partition": "a"}')
    os.utime(elsewhere, (dated, dated))
    triggers.put("one.json", {"partition": "b"})
    assert [run.partition_key for run in triggers.tick()] == ["b"]
    elsewhere.replace(triggers.folder / "dated.json")
    assert [run.partition_key for run in triggers.tick()] == ["a"]
    triggers.put("two.json", {"partition": "c"})
    assert [run.partition_key for run in triggers.tick()] == ["c"]
    assert triggers.tick() == []


def test_a_link_counts_from_when_it_was_made(triggers: Triggers) -> None:
    (triggers.folder.parent / "target").write_text('{"partition": "a"}')
    triggers.put("one.json", {"partition": "b"})
    triggers.tick()
    (triggers.folder / "link.json").symlink_to(triggers.folder.parent / "target")
    assert [run.partition_key for run in triggers.tick()] == ["a"]


def test_a_clock_that_is_set_back_loses_no_request(triggers: Triggers, monkeypatch: pytest.MonkeyPatch) -> None:
    triggers.put("one.json", {"partition": "b"})
    triggers.tick()
    triggers.put("two.json", {"partition": "a"})
    an_hour_before = (triggers.folder / "one.json").stat().st_ctime_ns - 3_600 * 10**9
    changed_ns = launching.changed_ns
    monkeypatch.setattr(
        launching, "changed_ns", lambda file: an_hour_before if file.name == "two.json" else changed_ns(file)
    )
    assert [run.partition_key for run in triggers.tick()] == ["a"]


def test_a_cursor_stays_small_and_no_file_is_requested_twice(
    triggers: Triggers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "REMEMBERED", 3)
    when = {f"{number}.json": number for number in range(9)}
    monkeypatch.setattr(launching, "changed_ns", lambda file: when[file.name])
    for name in list(when)[:8]:
        triggers.put(name, {"partition": "a"})
    assert len(triggers.tick()) == 8
    assert json.loads(triggers.cursor or "") == {"5.json": 5, "6.json": 6, "7.json": 7}
    assert triggers.tick() == []
    triggers.put("8.json", {"partition": "b"})
    assert [run.partition_key for run in triggers.tick()] == ["b"]
    for name in ("6.json", "7.json"):
        (triggers.folder / name).unlink()
    assert triggers.tick() == triggers.tick() == []


@pytest.mark.parametrize(
    "cursor", ["rubbish", "12", "[1]", '{"one.json": "x"}', pytest.param("[" * 100_000, id="nested too deeply")]
)
def test_a_cursor_that_cannot_be_read_is_none(triggers: Triggers, cursor: str) -> None:
    triggers.put("one.json", {"partition": "b"})
    (first,) = triggers.tick()
    triggers.cursor = cursor
    assert [run.run_key for run in triggers.tick()] == [first.run_key], "known to Dagster, which starts no second one"
    assert triggers.tick() == []


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "bad.json: '{' is not accepted; write a JSON object"),
        ("[]", "bad.json: '[]' is not accepted; write a JSON object"),
        ({"partition": "d"}, "bad.json: partition: 'd' is not accepted; give one of a, b, c"),
        *(
            ({"partition": given}, "bad.json: partition: " + f"{given!r} is not accepted; give a partition, or a list")
            for given in (3, 0, False, None, [], {}, [["x"]], [1, "a"])
        ),
        ({"partition": ["a", "a"]}, "bad.json: partition: ['a', 'a'] is not accepted; name each once"),
        ({"config": []}, "bad.json: config: [] is not accepted; give a map"),
        ({"config": {"reuse": ["all"]}}, "bad.json cannot be read: unhashable type"),
        ('{"config": {"\\ud800": 1}}', "bad.json: config.\\ud800: 1 is not accepted"),
        pytest.param("[" * 100_000, "bad.json: '[[", id="nested too deeply"),
        ({"partitions": ["a"]}, "bad.json: partitions: ['a'] is not accepted; give partition and config"),
        ({"config": {"limits": 3}}, "bad.json: config.limits: 3 is not accepted; there is no such setting"),
        ({"config": {"reuse": "some"}}, "bad.json: config.reuse: 'some' is not accepted; give all, successes or none"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_once_and_stops_nothing_else(
    triggers: Triggers, document: Any, said: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    triggers.put("good.json", {"partition": "a"})
    triggers.put("bad.json", document)
    assert [run.partition_key for run in triggers.tick()] == ["a"]
    assert said in caplog.text + capsys.readouterr().err
    caplog.clear()
    assert triggers.tick() == []
    assert "bad.json" not in caplog.text + capsys.readouterr().err
    assert triggers.skipped.startswith("nothing new")


def is_a_folder(path: Path) -> None:
    path.mkdir()


def is_a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def is_a_link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def is_a_pipe(path: Path) -> None:
    os.mkfifo(path)


def is_no_text(path: Path) -> None:
    path.write_bytes(b"\xff")


@pytest.mark.parametrize("make", [is_a_folder, is_a_link_to_nothing, is_a_link_to_itself, is_a_pipe, is_no_text])
@pytest.mark.parametrize("name", ["bad.json", os.fsdecode(b"bad\xff.json")], ids=ascii)
def test_what_is_no_file_of_text_is_refused_once_by_name(
    triggers: Triggers,
    make: Callable[[Path], None],
    name: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make(triggers.folder / name)
    assert triggers.tick() == []
    assert triggers.skipped == f"refused, and the log says why: {ascii(name)[1:-1]}"
    assert ascii(name)[1:-1] in caplog.text + capsys.readouterr().err
    triggers.put("good.json", {"partition": "a"})
    assert [run.partition_key for run in triggers.tick()] == ["a"]
    caplog.clear()
    assert triggers.tick() == []
    assert triggers.skipped.startswith("nothing new")
    assert caplog.text + capsys.readouterr().err == ""


def test_a_refused_file_is_looked_at_again_when_it_is_mended(triggers: Triggers) -> None:
    triggers.put("one.json", "{")
    assert triggers.tick() == []
    triggers.put("one.json", {"partition": "b"})
    assert [run.partition_key for run in triggers.tick()] == ["b"]


def test_a_tick_names_no_more_refused_files_than_can_be_read(triggers: Triggers) -> None:
    for number in range(30):
        triggers.put(f"{number}.json", "{")
    triggers.tick()
    assert triggers.skipped.count(".json") == 10
    assert triggers.skipped.endswith(", 20 more")


def test_a_request_for_all_of_no_partitions_is_told(
    evaluation: Evaluation, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    dynamic = replace(evaluation, dataset=replace(evaluation.dataset, partitions=Dynamic()))
    with dg.instance_for_test() as instance:
        triggers = Triggers(dynamic, instance)
        triggers.put("all.json", "")
        assert triggers.tick() == []
    assert "all.json: tested has no partition yet" in caplog.text + capsys.readouterr().err
