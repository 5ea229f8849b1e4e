"""Tags evaluation runs on every route, so that run-tag limits reach the UI's "Materialize" too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dagster import DagsterRun, QueuedRunCoordinator, SubmitRunContext

from dspex_pipelines.orchestration.tags import EVALUATION, pool_tag, run_tags


class EvaluationRunCoordinator(QueuedRunCoordinator):
    """A `QueuedRunCoordinator` that adds an evaluation's tags to every run that plans its trials."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run by what its steps evaluate, then queue it; tags that it has stay as they are."""
        run = context.dagster_run
        tags = self._tags(run)
        missing = {name: value for name, value in tags.items() if name not in run.tags}
        if missing:
            self._instance.add_run_tags(run.run_id, missing)
        return super().submit_run(context)

    def _tags(self, run: DagsterRun) -> dict[str, str]:
        if run.execution_plan_snapshot_id is None:
            return {}
        # The plan of the run knows what it does on every route; a job of the user's own has no asset selection.
        plan = self._instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id)
        launched = _launched_pool(run.run_config)
        planning = [{**step.tags, **launched} for step in plan.steps if step.tags and EVALUATION in step.tags]
        return run_tags(planning, _partition(run.tags))


def _launched_pool(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the tag of the worker pool that the launchpad names in place of the declared one; none otherwise."""
    address: Any = config
    for name in ("resources", "worker_pool", "config", "address"):
        address = address.get(name) if isinstance(address, Mapping) else None
    if isinstance(address, Mapping):
        address = address.get("env")
    return pool_tag(address) if isinstance(address, str) else {}


def _partition(tags: Mapping[str, str]) -> str:
    """Return the partition of a run; a backfill says it as a range of one. Empty for several, or none."""
    first, last = tags.get("dagster/asset_partition_range_start"), tags.get("dagster/asset_partition_range_end")
    return tags.get("dagster/partition") or (first if first and first == last else "")
