"""One declaration in, everything out: data set, evaluation and leaderboard assets, checks, job, resources."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import dagster as dg

from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.checks import evaluation_checks
from dspex_pipelines.orchestration.config import EvaluationConfig
from dspex_pipelines.orchestration.dataset import dataset_asset
from dspex_pipelines.orchestration.evaluation import evaluation_asset
from dspex_pipelines.orchestration.io_managers import trials_io_manager
from dspex_pipelines.orchestration.leaderboard import leaderboard_asset
from dspex_pipelines.orchestration.resources import (
    ProgressResource,
    ResultStore,
    WorkerPoolResource,
)
from dspex_pipelines.orchestration.secrecy import check_resources
from dspex_pipelines.orchestration.tags import EVALUATION, KIND, RESULTS

# Step processes fork from a server that has imported all this already; importing it in each costs seconds.
PRELOADED = [
    "dagster",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "sqlalchemy.dialects.sqlite",
    "alembic.runtime.migration",
    "dspex_pipelines.orchestration.build",
]


def build_evaluation(evaluation: Evaluation, *, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Return the definitions of *evaluation*: three assets, and a job over them.

    The assets are ``<name>/dataset`` and ``<name>/evaluation``, partitioned alike, and
    ``<name>/leaderboard`` over all partitions. What *evaluation* declares in `checks` are asset checks of
    ``<name>/evaluation``, which the job runs as well. *resources* replace the standard ones by key:
    ``worker_pool``, ``store``, ``progress``, ``trials_io_manager``. Definitions of several evaluations
    become one by `dagster.Definitions.merge`; a resource that is replaced must be the same object in all.
    Raises `InvalidValue` for a resource that is given a secret as it is, in place of `dagster.EnvVar`.
    """
    check_resources(resources or {})
    dataset = dataset_asset(evaluation)
    trials = evaluation_asset(evaluation)
    leaderboard = leaderboard_asset(evaluation)
    # What the run works on depends on its partition, so that tag is the run coordinator's.
    tags = {KIND: "evaluation", EVALUATION: evaluation.name}
    checks = evaluation_checks(evaluation)
    job = dg.define_asset_job(
        name=f"{evaluation.name}_job",
        # An asset's checks come with it.
        selection=dg.AssetSelection.assets(dataset.key, trials.key),
        description=f"Reads the data set and evaluates one partition of {evaluation.name}.",
        tags={**tags, **evaluation.tags, "dagster/max_retries": "2", "dagster/retry_strategy": "ALL_STEPS"},
    )
    leaderboard_job = dg.define_asset_job(
        name=f"{evaluation.name}_leaderboard_job",
        selection=dg.AssetSelection.assets(leaderboard.key),
        description=f"Ranks the configurations of {evaluation.name} over all evaluated partitions.",
    )
    return dg.Definitions(
        assets=[dataset, trials, leaderboard],
        asset_checks=checks,
        jobs=[job, leaderboard_job],
        resources={**standard_resources(), **(resources or {})},
        executor=shipped_executor(),
    )


@cache
def standard_resources() -> Mapping[str, Any]:
    """Return the resources that evaluations ask for, with their defaults."""
    return {
        "worker_pool": WorkerPoolResource(),
        "store": ResultStore(),
        "progress": ProgressResource(),
        "trials_io_manager": trials_io_manager,
    }


@cache
def shipped_executor() -> dg.ExecutorDefinition:
    """Return the multiprocess executor over a warm forkserver, one `run_trials` step at a time.

    One at a time makes `max_concurrency` hold for the run; the step itself fills the pool.
    """
    return dg.multiprocess_executor.configured(
        {
            "max_concurrent": 2,
            "start_method": {"forkserver": {"preload_modules": PRELOADED}},
            "tag_concurrency_limits": [{"key": "dspex/step", "value": "run_trials", "limit": 1}],
        }
    )


def run_config(evaluation: Evaluation, config: EvaluationConfig) -> dict[str, Any]:
    """Return the run config that gives *config* to the evaluation's asset."""
    return {"ops": {f"{evaluation.name}__{RESULTS}": {"config": config.model_dump()}}}


def keys(evaluation: Evaluation) -> Iterator[dg.AssetKey]:
    """Yield the keys of the evaluation's assets, upstream first."""
    for part in ("dataset", RESULTS, "leaderboard"):
        yield dg.AssetKey([evaluation.name, part])
