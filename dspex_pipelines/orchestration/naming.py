"""What an evaluation's assets, job and settings are called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import dagster as dg

from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig
from dspex_pipelines.orchestration.tags import RESULTS


def keys(evaluation: Evaluation) -> Iterator[dg.AssetKey]:
    """Yield the keys of the evaluation's assets, upstream first."""
    for part in ("dataset", RESULTS, "leaderboard"):
        yield dg.AssetKey([evaluation.name, part])


def job_name(evaluation: Evaluation) -> str:
    """Return the name of the job that reads the data set and evaluates a partition."""
    return f"{evaluation.name}_job"


def run_config(evaluation: Evaluation, config: EvaluationConfig) -> dict[str, Any]:
    """Return the run config that gives *config* to the evaluation's asset."""
    return {"ops": {f"{evaluation.name}__{RESULTS}": {"config": config.model_dump(mode="json")}}}
