"""One declaration in, everything out: data set, evaluation and leaderboard assets, checks, job, resources."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import dagster as dg

from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.checks import evaluation_checks
from dspex_pipelines.orchestration.data.dataset import dataset_asset
from dspex_pipelines.orchestration.evaluation import evaluation_asset
from dspex_pipelines.orchestration.executor import shipped_executor
from dspex_pipelines.orchestration.freshness import KeepFreshSensor, freshness_policy
from dspex_pipelines.orchestration.io_managers import trials_io_manager
from dspex_pipelines.orchestration.launching import schedules, trigger_sensors
from dspex_pipelines.orchestration.leaderboard import leaderboard_asset
from dspex_pipelines.orchestration.naming import job_name
from dspex_pipelines.orchestration.resources import (
    ProgressResource,
    ResultStore,
    WorkerPoolResource,
)
from dspex_pipelines.orchestration.secrecy import check_resources
from dspex_pipelines.orchestration.tags import RETRIES, evaluation_tags, pool_tag


def build_evaluation(evaluation: Evaluation, *, resources: Mapping[str, Any] | None = None) -> dg.Definitions:
    """Return the definitions of *evaluation*: three assets, jobs over them, and what may start them.

    The assets are ``<name>/dataset`` and ``<name>/evaluation``, partitioned alike, and
    ``<name>/leaderboard`` over all partitions. What *evaluation* declares in `checks` are asset checks of
    ``<name>/evaluation``, which the job runs as well. *resources* replace the standard ones by key:
    ``worker_pool``, ``store``, ``progress``, ``trials_io_manager``. Definitions of several evaluations
    become one by `dagster.Definitions.merge`; a resource that is replaced must be the same object in all.
    Raises `InvalidValue` for a resource that is given a secret as it is, in place of `dagster.EnvVar`.
    """
    check_resources(resources or {})
    reached = {**standard_resources(), **(resources or {})}
    # Of what a run works on, partition and pool may be said at its launch: those tags are the run coordinator's.
    tags = evaluation_tags(evaluation)
    pool = reached["worker_pool"]
    declared = pool_tag(pool.name) if isinstance(pool, WorkerPoolResource) else {}
    dataset = dataset_asset(evaluation)
    trials = evaluation_asset(evaluation, run_tags={**declared, **tags})
    if policy := freshness_policy(evaluation):
        trials = trials.map_asset_specs(lambda spec: spec.replace_attributes(freshness_policy=policy))
    leaderboard = leaderboard_asset(evaluation)
    checks = evaluation_checks(evaluation)
    job = dg.define_asset_job(
        name=job_name(evaluation),
        # An asset's checks come with it.
        selection=dg.AssetSelection.assets(dataset.key, trials.key),
        description=f"Reads the data set and evaluates a partition of {evaluation.name}.",
        tags={**tags, **RETRIES},
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
        schedules=schedules(evaluation),
        sensors=[KeepFreshSensor(evaluation), *trigger_sensors(evaluation)],
        resources=reached,
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
