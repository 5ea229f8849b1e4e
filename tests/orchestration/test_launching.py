"""What starts runs at a time, or when somebody outside asks."""

from __future__ import annotations

import datetime as dt
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.model.automation import Automation
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.partitions import Dynamic
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

    def put(self, name: str, document: Any) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        (self.folder / name).write_text(text)

    def tick(self) -> list[dg.RunRequest]:
        (sensor,) = (one for one in self.definitions.get_repository_def().sensor_defs if one.name == "tested_triggers")
        assert sensor.default_status is dg.DefaultSensorStatus.STOPPED
        repository = self.definitions.get_repository_def()
        context = dg.build_sensor_context(instance=self.instance, repository_def=repository, cursor=self.cursor)
        data = sensor.evaluate_tick(context)
        self.cursor = data.cursor
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
    first = triggers.tick()
    # Files of the newest moment are looked at again, so that none that came after the look is missed.
    assert {run.run_key for run in triggers.tick()} <= {run.run_key for run in first}
    later = (triggers.folder / "one.json").stat().st_mtime_ns + 1
    os.utime(triggers.folder / "one.json", ns=(later, later))
    (again,) = triggers.tick()
    assert again.run_key != first[0].run_key


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "bad.json: '{' is not accepted; write a JSON object"),
        ("[]", "bad.json: '[]' is not accepted; write a JSON object"),
        ({"partition": "d"}, "bad.json: partition: 'd' is not accepted; give one of a, b, c"),
        ({"partition": 3}, "give a partition, or a list of them, and a map as config"),
        ({"partitions": ["a"]}, "bad.json: partitions: ['a'] is not accepted; give partition and config"),
        ({"config": {"limits": 3}}, "bad.json: config.limits: 3 is not accepted; there is no such setting"),
        ({"config": {"reuse": "some"}}, "bad.json: config.reuse: 'some' is not accepted; give all, successes or none"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told_and_stops_nothing_else(
    triggers: Triggers, document: Any, said: str, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    triggers.put("bad.json", document)
    triggers.put("good.json", {"partition": "a"})
    assert [run.partition_key for run in triggers.tick()] == ["a"]
    told = caplog.text + capsys.readouterr().err
    assert said in told
