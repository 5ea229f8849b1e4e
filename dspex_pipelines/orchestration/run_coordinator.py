"""Tags evaluation runs on every route, so that run-tag limits reach the UI's "Materialize" too."""

from __future__ import annotations

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
        return {**declared, **run_tags(paths, run.tags.get("dagster/partition", ""))}
