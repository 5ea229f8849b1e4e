"""What a run of an evaluation leaves in Dagster: events and bytes of metadata, which do not grow with the trials.

make bench BENCH=events        10³, 10⁵ and 10⁶ no-op trials; the last takes minutes and some GB
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
from dagster_shared.serdes import serialize_value

from benchmarks._report import report
from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Integer
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig
from dspex_pipelines.orchestration.naming import keys, run_config
from dspex_pipelines.orchestration.resources import ResultStore

SIZES = (1_000, 100_000, 1_000_000)
CONFIGURATIONS = 10
BOUND = 2_000
"""Events that a run of a million trials may leave."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=SIZES)
    for trials in parser.parse_args().trials:
        measure(trials)


def measure(trials: int) -> None:
    examples = trials // CONFIGURATIONS

    def rows() -> Iterator[dict[str, int]]:
        return ({"x": number, "y": number, "group": number % 100} for number in range(examples))

    evaluation = Evaluation(
        name="events",
        dataset=Dataset(source=rows, inputs=("x",), labels=("y",), group="group"),
        program="benchmarks._programs:asynchronous",
        metrics=("benchmarks._programs:same",),
        space=ConfigurationSpace(
            variables=(Integer(name="k", low=1, high=CONFIGURATIONS, points=tuple(range(1, CONFIGURATIONS + 1))),)
        ),
        max_concurrency=2_000,
    )
    with tempfile.TemporaryDirectory() as folder, dg.DagsterInstance.local_temp(folder) as instance:
        definitions = build_evaluation(evaluation, resources={"store": ResultStore(root=str(Path(folder) / "store"))})
        dataset, results, board = keys(evaluation)
        job = definitions.resolve_implicit_global_asset_job_def()
        quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
        done = job.execute_in_process(
            instance=instance,
            asset_selection=[dataset, results, board],
            partition_key="all",
            run_config={**quiet, **run_config(evaluation, EvaluationConfig())},
        )
        events = instance.all_logs(done.run_id)
        size = sum(len(serialize_value(event)) for event in events)
        largest = max(
            len(serialize_value(one))
            for key in (dataset, results, board)
            for record in instance.fetch_materializations(key, limit=1).records
            if (one := record.asset_materialization)
        )
    for case, value, unit, bound in (
        ("events", len(events), "events", BOUND),
        ("event log", size / 1_000, "kB", 5_000.0),
        ("largest materialisation", largest / 1_000, "kB", 300.0),
    ):
        report(
            benchmark="events",
            case=f"{case} of {trials:,} trials",
            value=value,
            unit=unit,
            reference="bound",
            reference_value=bound,
        )


if __name__ == "__main__":
    main()
