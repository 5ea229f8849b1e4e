"""The one switch that keeps an evaluation fresh, and the conditions it goes by.

``<name>_keep_fresh`` looks at the data set's files, makes new partitions known, reads what has changed, evaluates what
that makes stale, and ranks again.
"""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import SensorEvaluationContext
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.definitions.sensor_definition import SensorExecutionData
from dagster._core.instance.types import DynamicPartitionsStoreAfterRequests
from dagster_shared.record import copy

from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.partitions import Dynamic
from dspex_pipelines.orchestration.naming import keys
from dspex_pipelines.orchestration.partitions import dynamic_partitions, known_partitions
from dspex_pipelines.orchestration.sources import source_digests
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
        super().__init__(
            name=f"{evaluation.name}_keep_fresh",
            target=list(keys(evaluation)),
            use_user_code_server=True,
            emit_backfills=False,
            minimum_interval_seconds=evaluation.automation.look_every_s,
            default_status=dg.DefaultSensorStatus(OFF),
            run_tags={**evaluation.tags, **RETRIES},
            description=f"Keeps {evaluation.name} fresh: notices new and changed files of the data set by their "
            "content, evaluates each partition whose data or program has changed, and ranks again. Off until it is "
            "turned on here.",
        )

    def evaluate_tick(self, context: SensorEvaluationContext) -> SensorExecutionData:
        """Look at the files, then evaluate the conditions."""
        evaluation = self._evaluation
        try:
            new, stale = look(evaluation, context.instance)
        except DspexError as error:
            # What is there already is kept fresh all the same.
            context.log.error(str(error))  # noqa: TRY400 - it says itself what to do
            new, stale = list[str](), list[dg.RunRequest]()
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

    Raises `InvalidValue` for a source that is not there.
    """
    if not isinstance(evaluation.dataset.source, Path):
        return [], []
    digests = source_digests(evaluation.dataset)
    known = set(known_partitions(evaluation, instance))
    new = [name for name in digests if name not in known] if isinstance(evaluation.dataset.partitions, Dynamic) else []
    dataset, _, _ = keys(evaluation)
    return new, [
        dg.RunRequest(
            # A file that is changed back is read again, and one that was refused is not, until it changes.
            run_key=f"{name}:{digest}:{number}",
            partition_key=name,
            asset_selection=[dataset],
            tags=dict(evaluation.tags),
        )
        for name, digest in digests.items()
        if name in known or name in new
        for number, read in [_last_read(instance, dataset, name)]
        if read != digest
    ]


def _last_read(instance: dg.DagsterInstance, dataset: dg.AssetKey, partition: str) -> tuple[int, str]:
    """Return which materialisation was the partition's last, and the digest of the files that it was read from."""
    wanted = dg.AssetRecordsFilter(asset_key=dataset, asset_partitions=[partition])
    for record in instance.fetch_materializations(wanted, limit=1).records:
        metadata = record.asset_materialization.metadata if record.asset_materialization else {}
        return record.storage_id, str(metadata[SOURCE].value) if SOURCE in metadata else ""
    return 0, ""


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
