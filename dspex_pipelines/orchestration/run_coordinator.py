"""Tags evaluation runs on every route, so that run-tag limits reach the UI's "Materialize" too."""

from __future__ import annotations

from dagster import DagsterRun, QueuedRunCoordinator, SubmitRunContext

from dspex_pipelines.orchestration.tags import run_tags


class EvaluationRunCoordinator(QueuedRunCoordinator):
    """A `QueuedRunCoordinator` that adds an evaluation's tags to runs of its assets."""

    def submit_run(self, context: SubmitRunContext) -> DagsterRun:
        """Tag the run by what it materialises, then queue it."""
        run = context.dagster_run
        keys = run.asset_selection or frozenset()
        partition = run.tags.get("dagster/partition", "")
        tags = run_tags([key.path for key in keys], partition)
        missing = {name: value for name, value in tags.items() if name not in run.tags}
        if missing:
            self._instance.add_run_tags(run.run_id, missing)
        return super().submit_run(context)
