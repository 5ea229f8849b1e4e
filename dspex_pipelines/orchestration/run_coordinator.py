"""Tags evaluation runs on every route, so that run-tag limits reach the UI's "Materialize" too."""

from __future__ import annotations

from collections.abc import Mapping

from dagster import DagsterRun, QueuedRunCoordinator, SubmitRunContext

from dspex_pipelines.orchestration.tags import EVALUATION, RESULTS, run_tags


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
        planning = [step.tags for step in plan.steps if step.tags and EVALUATION in step.tags]
        declared = {name: value for tags in planning for name, value in tags.items()}
        paths = [[tags[EVALUATION], RESULTS] for tags in planning]
        return {**declared, **run_tags(paths, _partition(run.tags))}


def _partition(tags: Mapping[str, str]) -> str:
    """Return the partition of a run; a backfill says it as a range of one. Empty for several, or none."""
    first, last = tags.get("dagster/asset_partition_range_start"), tags.get("dagster/asset_partition_range_end")
    return tags.get("dagster/partition") or (first if first and first == last else "")
