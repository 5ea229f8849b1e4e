"""A code location: evaluations of one trial that is held, of different models, over the pool of the tests."""

import os

import dagster as dg
from dagster_shared.record import copy

from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.resources import WorkerPoolResource
from tests.orchestration.declared import declare, rows

POOL, FOLDER = "TESTED_POOL", "TESTED_FOLDER"
"""Environment variables: the address of the pool, and where the program says that it is there."""
PARTITIONS = ("a", "b", "c", "d")
MODELS = {"plain": "", "small": "local/small", "large": "local/large"}
"""By evaluation, which model it declares."""


def _evaluation(name: str, model: str) -> Evaluation:
    examples = rows(len(PARTITIONS), folder=os.environ.get(FOLDER, ""))
    return declare(
        "held",
        [{**row, "part": part} for row, part in zip(examples, PARTITIONS, strict=True)],
        name=name,
        partition_by="part",
        partitions=PARTITIONS,
        space=ConfigurationSpace(),
        inputs=("x", "folder"),
        limits=(RateLimit(model=model, max_concurrency=100),) if model else (),
        timeout_s=100.0,
    )


def _merged() -> dg.Definitions:
    pool = WorkerPoolResource(address=dg.EnvVar(POOL))
    built = [build_evaluation(_evaluation(*item), resources={"worker_pool": pool}) for item in MODELS.items()]
    return dg.Definitions.merge(*built)


# Steps in the run's own process: what is tested starts and ends runs, and a process for each step costs seconds.
defs = copy(_merged(), executor=dg.in_process_executor)
