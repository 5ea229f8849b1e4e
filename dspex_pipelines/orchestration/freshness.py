"""The one switch that keeps an evaluation fresh, and the conditions it goes by.

``<name>_keep_fresh`` looks at the data set's files, makes new partitions known, reads what has changed, evaluates what
that makes stale, and ranks again.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import SensorEvaluationContext
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.instance.types import DynamicPartitionsStoreAfterRequests
from dagster_shared.record import copy

from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.orchestration.data.partitions import dynamic_partitions, known_partitions
from dspex_pipelines.orchestration.data.sources import source_digests
from dspex_pipelines.orchestration.naming import keys
from dspex_pipelines.orchestration.tags import OFF, RETRIES, SOURCE, evaluation_tags, run_tags

_Condition = dg.AutomationCondition


def stale_results() -> dg.AutomationCondition[Any]:
    """Return the condition under which a partition is evaluated: its data or the program's code is another."""
    changed = _Condition.any_deps_match(_Condition.data_version_changed()) | _Condition.code_version_changed()
    due = _until_requested(changed | _Condition.missing().newly_true())
    return (due & ~_Condition.any_deps_missing() & ~_Condition.in_progress()).with_label(
        "its data set or its program has changed"
    )


def stale_leaderboard() -> dg.AutomationCondition[Any]:
    """Return the condition under which the leaderboard is made again: other results, and no more on their way."""
    lacking = _Condition.missing() & _Condition.any_deps_match(~_Condition.missing())
    due = _until_requested(_Condition.any_deps_match(_Condition.data_version_changed()) | lacking.newly_true())
    return (due & ~_Condition.any_deps_in_progress() & ~_Condition.in_progress()).with_label(
        "results have changed, and no more are on their way"
    )


def _until_requested(event: dg.AutomationCondition[Any]) -> dg.AutomationCondition[Any]:
    """Hold that *event* has happened until a run has been requested for it.

    Not `eager()`, which fires on an unchanged version, nor `since(newly_requested())`: both lose what happens between
    the tick that requests a run and the next one.
    """
    return event.since(_Condition.newly_requested() & ~event)


class KeepFreshSensor(dg.AutomationConditionSensorDefinition):
    """The automation conditions of an evaluation's assets, and before them a look at the files of its data set."""

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        looks = isinstance(evaluation.dataset.source, Path)
        noticed = "notices new and changed files of the data set by their content, " if looks else ""
        unread = "" if looks else "The data set has no files to look at: runs that something else starts read it. "
        super().__init__(
            name=f"{evaluation.name}_keep_fresh",
            target=list(keys(evaluation)),
            use_user_code_server=True,
            emit_backfills=False,
            minimum_interval_seconds=evaluation.automation.look_every_s,
            default_status=dg.DefaultSensorStatus(OFF),
            run_tags={**evaluation.tags, **RETRIES},
            description=f"Keeps {evaluation.name} fresh: {noticed}evaluates each partition whose data or program has "
            f"changed, and ranks again. {unread}Off until it is turned on here.",
        )

    def evaluate_tick(self, context: SensorEvaluationContext) -> SensorExecutionData:
        """Look at the files, then evaluate the conditions."""
        evaluation = self._evaluation
        try:
            new, stale = look(evaluation, context.instance)
        except (DspexError, OSError) as error:
            # What is there already is kept fresh all the same.
            context.log.error(f"the files of the data set cannot be looked at: {error}")  # noqa: TRY400 - it says it all
            new, stale = list[str](), list[dg.RunRequest]()
        _forget_rubbish(context)
        data = super().evaluate_tick(context)
        added = [dynamic_partitions(evaluation).build_add_request(new)] if new else []
        # What gives a request for a partition its tags; those of the conditions have been through it.
        after = DynamicPartitionsStoreAfterRequests.from_requests(context.instance, added)
        with partition_loading_context(dynamic_partitions_store=after):
            read = self.resolve_run_requests(stale, context, self.asset_selection, added)
        requests = [*read, *(_tagged(evaluation, one) for one in data.run_requests or ())]
        return copy(
            data,
            run_requests=requests,
            skip_message=None if requests else data.skip_message,
            dynamic_partitions_requests=[*added, *(data.dynamic_partitions_requests or ())],
        )

    def with_attributes(self, **_: Any) -> dg.AutomationConditionSensorDefinition:
        """Return itself anew; there is nothing else about it."""
        return KeepFreshSensor(self._evaluation)


def look(evaluation: Evaluation, instance: dg.DagsterInstance) -> tuple[list[str], list[dg.RunRequest]]:
    """Return the partitions that files have brought, and a request to read each whose files are not what was read.

    Raises `InvalidValue` for a source that is not there, and `OSError` for a file that cannot be read, or no more.
    """
    if not isinstance(evaluation.dataset.source, Path):
        return [], []
    digests = reading_digests(evaluation.dataset)
    known = set(known_partitions(evaluation, instance))
    new = [name for name in digests if name not in known] if isinstance(evaluation.dataset.partitions, Dynamic) else []
    dataset, _, _ = keys(evaluation)
    wiped = _last_wipe(instance, dataset)
    return new, [
        dg.RunRequest(
            # A file that is changed back is read again, and one that was refused is not, until it changes.
            run_key=f"{name}:{digest}:{number or wiped}",
            partition_key=name,
            asset_selection=[dataset],
            tags=dict(evaluation.tags),
        )
        for name, digest in digests.items()
        if name in known or name in new
        for number, read in [_last_read(instance, dataset, name)]
        if read != digest
    ]


def reading_digests(dataset: Dataset, only: Collection[str] | None = None) -> Mapping[str, str]:
    """Return the partitions that a source has now, or *only* those, each with a digest of files and reading.

    What is empty where `source_digests` is; raises as it does.
    """
    by = dataset.partitions
    declared = [
        dataset.inputs,
        dataset.labels,
        dataset.example_id,
        dataset.group,
        dataset.partition_by,
        # A partition of the same name has other rows by another period; that there are more partitions changes none.
        by.every if isinstance(by, Dates) else "",
        dataset.max_bad_rows,
    ]
    how = digest_of(declared).hex()
    return {name: f"{digest}:{how}" if digest else "" for name, digest in source_digests(dataset, only).items()}


def _last_read(instance: dg.DagsterInstance, dataset: dg.AssetKey, partition: str) -> tuple[int, str]:
    """Return which materialisation was the partition's last, and the digest of the files that it was read from."""
    wanted = dg.AssetRecordsFilter(asset_key=dataset, asset_partitions=[partition])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        metadata = record.asset_materialization.metadata if record.asset_materialization else {}
        return record.storage_id, str(metadata[SOURCE].value) if SOURCE in metadata else ""
    return 0, ""


def _last_wipe(instance: dg.DagsterInstance, dataset: dg.AssetKey) -> int:
    """Return which event was the last that wiped the data set; 0 for none."""
    wanted = dg.EventRecordsFilter(dg.DagsterEventType.ASSET_WIPED, asset_key=dataset)
    return next((one.storage_id for one in instance.event_log_storage.get_event_records(wanted, limit=1)), 0)


def _forget_rubbish(context: SensorEvaluationContext) -> None:
    """Have the conditions start anew where their cursor cannot be read: every tick would fail."""
    # A second to import, which the sensor's own tick imports too.
    from dagster._daemon.asset_daemon import asset_daemon_cursor_from_instigator_serialized_cursor

    graph = context.repository_def.asset_graph if context.repository_def else None
    try:
        asset_daemon_cursor_from_instigator_serialized_cursor(context.cursor, graph)
    except Exception as error:  # noqa: BLE001 - whatever base64, zlib and Dagster say to it
        context.log.warning(
            f"the sensor's cursor cannot be read ({error}), and is begun anew: what changed before is not evaluated by "
            "itself; materialise what the UI shows as stale"
        )
        # Not by `update_cursor`: the conditions give a new one, and there may be only one.
        context._cursor = None  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]


def _tagged(evaluation: Evaluation, request: dg.RunRequest) -> dg.RunRequest:
    """Return the request with the tags of an evaluation run, if it is one: what queues limit by."""
    _, results, _ = keys(evaluation)
    if results not in (request.asset_selection or ()):
        return request
    tags = run_tags([evaluation_tags(evaluation)], request.partition_key or "")
    return request.with_replaced_attrs(tags={**tags, **request.tags})


def freshness_policy(evaluation: Evaluation) -> dg.FreshnessPolicy | None:
    """Return when results count as stale in the UI; none where the evaluation declares nothing."""
    hours = evaluation.automation.stale_after_h
    return dg.FreshnessPolicy.time_window(fail_window=dt.timedelta(hours=hours)) if hours else None
