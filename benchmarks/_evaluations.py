"""An evaluation of so many trials that do nothing, as Dagster loads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import dagster as dg

from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Integer
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.resources import WorkerPoolResource

CONFIGURATIONS = 10
IN_FLIGHT = 1_024
WORKERS = 2
SLOTS = 512


def evaluation_of(trials: int, round_: int) -> Evaluation:
    """Return the evaluation of *trials* trials, in `CONFIGURATIONS` configurations, that no other round has."""

    def rows() -> Iterator[dict[str, int]]:
        for number in range(trials // CONFIGURATIONS):
            yield {"x": (round_ + 2) * 10_000_000 + trials + number, "y": number, "group": number % 100}

    return Evaluation(
        name=f"no_op_{trials}_{round_ + 1}",
        dataset=Dataset(source=rows, inputs=("x",), labels=("y",), group="group"),
        program="benchmarks._programs:asynchronous",
        metrics=("benchmarks._programs:same",),
        space=ConfigurationSpace(
            variables=(Integer(name="k", low=1, high=CONFIGURATIONS, points=tuple(range(1, CONFIGURATIONS + 1))),)
        ),
        max_concurrency=IN_FLIGHT,
    )


def definitions(every: Sequence[tuple[int, int]]) -> dg.Definitions:
    """Return the definitions of an evaluation for *every* size and round, over one local pool."""
    resources = {"worker_pool": WorkerPoolResource(workers=WORKERS, slots=SLOTS)}
    return dg.Definitions.merge(*(build_evaluation(evaluation_of(*one), resources=resources) for one in every))
