"""A code location: evaluations of one trial that is held, of different models, over the pool of the tests."""

import os

import dagster as dg

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


_POOL = WorkerPoolResource(address=dg.EnvVar(POOL))
defs = dg.Definitions.merge(
    *(build_evaluation(_evaluation(*item), resources={"worker_pool": _POOL}) for item in MODELS.items())
)
