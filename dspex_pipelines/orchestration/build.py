"""One declaration in, everything out: data set, evaluation and leaderboard assets, job, resources."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import dagster as dg

from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig
from dspex_pipelines.orchestration.dataset import dataset_asset
from dspex_pipelines.orchestration.evaluation import evaluation_asset
from dspex_pipelines.orchestration.io_managers import TrialsIOManager
from dspex_pipelines.orchestration.leaderboard import leaderboard_asset
from dspex_pipelines.orchestration.resources import (
    ProgressResource,
    ResultStore,
    WorkerPoolResource,
)
from dspex_pipelines.orchestration.tags import RESULTS, run_tags

# Step processes fork from a server that has imported all this already; importing it in each costs seconds.
PRELOADED = [
    "dagster",
    "dagster._core.storage.sqlite_storage",
    "dagster._core.storage.event_log.sqlite.sqlite_event_log",
    "sqlalchemy",
    "alembic",
    "pandas",
    "pyarrow.parquet",
    "dspex_pipelines.engine.batch",
]


def build_evaluation(evaluation: Evaluation, *, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Return the definitions of *evaluation*: three assets, and a job over them.

    The assets are ``<name>/dataset`` and ``<name>/evaluation``, partitioned alike, and
    ``<name>/leaderboard`` over all partitions. *resources* replace the standard ones by key:
    ``worker_pool``, ``store``, ``progress``.
    """
    dataset = dataset_asset(evaluation)
    trials = evaluation_asset(evaluation)
    leaderboard = leaderboard_asset(evaluation)
    tags = run_tags([[evaluation.name, RESULTS]], "")
    job = dg.define_asset_job(
        name=f"{evaluation.name}_job",
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
        jobs=[job, leaderboard_job],
        resources={**standard_resources(), **(resources or {})},
        executor=shipped_executor(),
    )


def standard_resources() -> dict[str, Any]:
    """Return the resources that evaluations ask for, with their defaults."""
    store = ResultStore()
    return {
        "worker_pool": WorkerPoolResource(),
        "store": store,
        "progress": ProgressResource(),
        "trials_io_manager": TrialsIOManager(store=store),
    }


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


def merge(definitions: Iterable[dg.Definitions]) -> dg.Definitions:
    """Return one definitions object of several evaluations, with the standard resources once."""
    parts = list(definitions)
    return dg.Definitions(
        assets=[asset for part in parts for asset in part.assets or ()],
        jobs=[job for part in parts for job in part.jobs or ()],
        resources=parts[0].resources if parts else {},
        executor=shipped_executor(),
    )


def run_config(evaluation: Evaluation, config: EvaluationConfig) -> dict[str, Any]:
    """Return the run config that gives *config* to the evaluation's asset."""
    values: dict[str, Any] = json.loads(config.model_dump_json())
    return {"ops": {f"{evaluation.name}__{RESULTS}": {"config": values}}}


def keys(evaluation: Evaluation) -> Iterator[dg.AssetKey]:
    """Yield the keys of the evaluation's assets, upstream first."""
    for part in ("dataset", RESULTS, "leaderboard"):
        yield dg.AssetKey([evaluation.name, part])
