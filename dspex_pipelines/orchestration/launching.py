"""What starts runs at a time, or when somebody outside asks: a schedule, and a folder of requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import dagster as dg

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig, config_of
from dspex_pipelines.orchestration.data.partitions import known_partitions
from dspex_pipelines.orchestration.naming import job_name, run_config
from dspex_pipelines.orchestration.tags import OFF

REMEMBERED = 200
"""Newest files of a folder that a cursor knows one by one; what is older than they are has been seen."""
SHOWN = 10
"""Refused files that a tick names."""


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
        '{"partition": "…", "config": {"reuse": "successes"}}; without a partition, one for each. The same file starts '
        "no second run. Off until it is turned on here.",
    )
    def triggers(context: dg.SensorEvaluationContext) -> dg.SensorResult:
        files = sorted((changed_ns(file), file.name) for file in folder.glob("*.json"))
        new = _new(files, _seen(context.cursor))
        known = known_partitions(evaluation, context.instance) if new else ()
        requests: list[dg.RunRequest] = []
        refused: list[str] = []
        for when, name in new:
            try:
                requests += _requested(evaluation, known, folder / name, when)
            except (DspexError, OSError, TypeError, ValueError, RecursionError) as error:
                refused.append(_printable(name))
                said = str(error) if isinstance(error, DspexError) else f"{name} cannot be read: {error}"
                context.log.error(_printable(said))  # noqa: TRY400 - it says itself what to do
        cursor = json.dumps({name: when for when, name in files[-REMEMBERED:]})
        skipped = None if requests else dg.SkipReason(_nothing(folder, refused))
        return dg.SensorResult(run_requests=requests, cursor=cursor, skip_reason=skipped)

    return triggers


def changed_ns(file: Path) -> int:
    """Return when the file, or a link to it, was last written or moved: not `st_mtime`, which a move keeps.

    0 for one that is gone.
    """
    when = 0
    with suppress(OSError):
        when = file.lstat().st_ctime_ns
        when = max(when, file.stat().st_ctime_ns)
    return when


def _seen(cursor: str | None) -> Mapping[str, int]:
    """Return the newest files of the last look, and when they changed; none for a cursor that is not of this sensor.

    What was requested before is then requested again, and known by its run key.
    """
    try:
        found: Any = json.loads(cursor or "{}")
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: when for name, when in cast("dict[str, Any]", found).items() if type(when) is int}


def _new(files: Sequence[tuple[int, str]], seen: Mapping[str, int]) -> list[tuple[int, str]]:
    """Return the files that were not there at the last look as they are now."""
    floor = min(seen.values()) if len(seen) >= REMEMBERED else -1
    return [(when, name) for when, name in files if when > floor and seen.get(name) != when]


def _nothing(folder: Path, refused: Sequence[str]) -> str:
    if not refused:
        return f"nothing new in {folder}"
    more = [f"{len(refused) - SHOWN:,} more"] if len(refused) > SHOWN else []
    return f"refused, and the log says why: {', '.join([*refused[:SHOWN], *more])}"


def _requested(evaluation: Evaluation, known: Sequence[str], file: Path, when: int) -> list[dg.RunRequest]:
    """Return the runs that a file asks for; raises `DspexError` that names it, and whatever reading it may."""
    file.name.encode()
    if not file.is_file():
        raise DspexError(f"{file.name}: there is no file, or none any more")
    partitions, config = _asked(file.name, file.read_text(encoding="utf-8"))
    if not known:
        raise DspexError(f"{file.name}: {evaluation.name} has no partition yet; put the file there again when it has")
    if unknown := sorted(set(partitions) - set(known)):
        fix = f"give one of {', '.join(known)}"
        raise InvalidValue(field=f"{file.name}: partition", value=unknown[0], fix=fix)
    return [
        dg.RunRequest(
            run_key=f"{file.name}:{when}:{name}", partition_key=name, run_config=run_config(evaluation, config)
        )
        for name in partitions or known
    ]


def _asked(name: str, text: str) -> tuple[Sequence[str], EvaluationConfig]:
    """Return the partitions that a file names, none for all of them, and its config."""
    try:
        document: Any = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise InvalidValue(field=name, value=text, fix=f"write a JSON object: {error}") from error
    if not isinstance(document, Mapping):
        raise InvalidValue(field=name, value=text, fix="write a JSON object")
    values = dict(cast("Mapping[str, Any]", document))
    partitions = _partitions(name, values.pop("partition")) if "partition" in values else []
    config = values.pop("config", {})
    if values:
        raise InvalidValue(field=f"{name}: {min(values)}", value=values[min(values)], fix="give partition and config")
    if not isinstance(config, Mapping):
        raise InvalidValue(field=f"{name}: config", value=config, fix="give a map")
    try:
        return partitions, config_of(cast("Mapping[str, Any]", config))
    except InvalidValue as error:
        raise InvalidValue(field=f"{name}: config.{error.field}", value=error.value, fix=error.fix) from error


def _partitions(name: str, given: Any) -> list[str]:
    named = [given] if isinstance(given, str) else given
    if not isinstance(named, list) or not named or not all(isinstance(one, str) for one in cast("list[Any]", named)):
        fix = "give a partition, or a list of them; leave it out for all of them"
        raise InvalidValue(field=f"{name}: partition", value=given, fix=fix)
    names = cast("list[str]", named)
    if len(set(names)) != len(names):
        raise InvalidValue(field=f"{name}: partition", value=given, fix="name each once")
    return names


def _printable(text: str) -> str:
    """Return *text* as UTF-8 can have it: names of files and what is in them may not be."""
    return text.encode(errors="backslashreplace").decode()
