"""Launches runs as the UI does."""

from __future__ import annotations

from typing import Any

import dagster as dg
from dagster._core.workspace.context import WorkspaceRequestContext
from dagster_graphql.client.query import LAUNCH_PIPELINE_EXECUTION_MUTATION
from dagster_graphql.test.utils import execute_dagster_graphql, infer_job_selector

IMPLICIT_JOB = "__ASSET_JOB"
"""What "Materialize" launches."""


def launch(
    workspace: WorkspaceRequestContext,
    job: str,
    *assets: str,
    tags: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> dg.DagsterRun:
    """Launch by GraphQL; return the run as it is queued."""
    selector = infer_job_selector(workspace, job, asset_selection=[{"path": key.split("/")} for key in assets] or None)
    answer = execute_dagster_graphql(
        workspace,
        LAUNCH_PIPELINE_EXECUTION_MUTATION,
        variables={
            "executionParams": {
                "selector": selector,
                "mode": "default",
                "runConfigData": config or {},
                "executionMetadata": {"tags": [{"key": key, "value": value} for key, value in (tags or {}).items()]},
            }
        },
    )
    launched: dict[str, Any] = answer.data["launchPipelineExecution"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    run = workspace.instance.get_run_by_id(launched["run"]["runId"])
    assert run
    assert run.status is dg.DagsterRunStatus.QUEUED
    return run
