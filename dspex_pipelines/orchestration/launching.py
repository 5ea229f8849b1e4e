"""What starts runs at a time, or when somebody outside asks: a schedule, and a folder of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import dagster as dg

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig, config_of
from dspex_pipelines.orchestration.naming import job_name, run_config
from dspex_pipelines.orchestration.partitions import known_partitions
from dspex_pipelines.orchestration.tags import OFF


def schedules(evaluation: Evaluation) -> list[dg.ScheduleDefinition]:
    """Return the declared schedule, if any: a run for each partition, or for the latest."""
    automation = evaluation.automation
    if not automation.schedule:
        return []
    which = f"the latest {automation.latest:,} partitions" if automation.latest else "every partition"

    @dg.schedule(
        name=f"{evaluation.name}_schedule",
        job_name=job_name(evaluation),
        cron_schedule=automation.schedule,
        execution_timezone=automation.timezone,
        default_status=dg.DefaultScheduleStatus(OFF),
        description=f"Reads and evaluates {which} of {evaluation.name} at {automation.schedule} "
        f"({automation.timezone}). Only what has changed is run again. Off until it is turned on here.",
    )
    def schedule(context: dg.ScheduleEvaluationContext) -> Iterator[dg.RunRequest | dg.SkipReason]:
        names = known_partitions(evaluation, context.instance)[-automation.latest :]
        if not names:
            yield dg.SkipReason(f"{evaluation.name} has no partition yet")
        for name in names:
            yield dg.RunRequest(run_key=f"{name}:{context.scheduled_execution_time.isoformat()}", partition_key=name)

    return [schedule]


def trigger_sensors(evaluation: Evaluation) -> list[dg.SensorDefinition]:
    """Return the sensor of a folder of requests, if one is declared."""
    folder = evaluation.automation.triggers
    return [_triggers(evaluation, folder)] if folder else []


def _triggers(evaluation: Evaluation, folder: Path) -> dg.SensorDefinition:
    @dg.sensor(
        name=f"{evaluation.name}_triggers",
        job_name=job_name(evaluation),
        minimum_interval_seconds=evaluation.automation.look_every_s,
        default_status=dg.DefaultSensorStatus(OFF),
        description=f"Starts a run of {evaluation.name} for each JSON file that is put into {folder}: "
        '{"partition": "…", "config": {"limit": 100}}; without a partition, one for each. The same file starts no '
        "second run. Off until it is turned on here.",
    )
    def triggers(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        seen = int(context.cursor or 0)
        files = sorted((file.stat().st_mtime_ns, file) for file in folder.glob("*.json"))
        requests: list[dg.RunRequest] = []
        # Files of the moment that was seen last may have come after the look; their run keys are known then.
        for _, file in (one for one in files if one[0] >= seen):
            try:
                requests += _requested(evaluation, context.instance, file)
            except DspexError as error:
                context.log.error(str(error))  # noqa: TRY400 - it says itself what to do
        cursor = str(max([seen, *(when for when, _ in files)]))
        skipped = None if requests else dg.SkipReason(f"nothing new in {folder}")
        return dg.SensorResult(run_requests=requests, cursor=cursor, skip_reason=skipped)

    return triggers


def _requested(evaluation: Evaluation, instance: dg.DagsterInstance, file: Path) -> list[dg.RunRequest]:
    """Return the runs that a file asks for; raises `InvalidValue` that names it for what cannot be."""
    text = file.read_text(encoding="utf-8")
    known = known_partitions(evaluation, instance)
    partitions, config = _asked(file.name, text)
    if unknown := sorted(set(partitions) - set(known)):
        fix = f"give one of {', '.join(known) or 'the partitions, of which there are none yet'}"
        raise InvalidValue(field=f"{file.name}: partition", value=unknown[0], fix=fix)
    return [
        dg.RunRequest(
            run_key=f"{file.name}:{file.stat().st_mtime_ns}:{name}",
            partition_key=name,
            run_config=run_config(evaluation, config),
        )
        for name in partitions or known
    ]


def _asked(name: str, text: str) -> tuple[Sequence[str], EvaluationConfig]:
    try:
        document: Any = json.loads(text or "{}")
    except ValueError as error:
        raise InvalidValue(field=name, value=text, fix=f"write a JSON object: {error}") from error
    if not isinstance(document, Mapping):
        raise InvalidValue(field=name, value=text, fix="write a JSON object")
    values = dict(cast("Mapping[str, Any]", document))
    partition, config = values.pop("partition", None), values.pop("config", {})
    if values:
        raise InvalidValue(field=f"{name}: {min(values)}", value=values[min(values)], fix="give partition and config")
    partitions = [partition] if isinstance(partition, str) else partition or []
    if not isinstance(partitions, list) or not isinstance(config, Mapping):
        raise InvalidValue(field=name, value=text, fix="give a partition, or a list of them, and a map as config")
    try:
        return cast("list[str]", partitions), config_of(cast("Mapping[str, Any]", config))
    except InvalidValue as error:
        raise InvalidValue(field=f"{name}: config.{error.field}", value=error.value, fix=error.fix) from error
