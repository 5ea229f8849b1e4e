"""Results as Parquet, a folder for each version: ``<evaluation>/<partition>/<data_version>/``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import dagster as dg
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.model.plan import Plan
from dspex_pipelines.orchestration.datasets import write_table
from dspex_pipelines.orchestration.resources import ResultStore

TRIALS_FILE = "trials.parquet"
PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPartition:
    """The outcome of every planned trial of one partition: one row per trial."""

    plan: Plan
    trials: pa.Table
    data_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPartitions:
    """The newest results of those partitions whose plans are alike; others are left out by name."""

    trials: pd.DataFrame
    partitions: tuple[str, ...]
    left_out: tuple[str, ...]


class TrialsIOManager(dg.ConfigurableIOManager):
    """Writes an evaluated partition; loads all partitions whose plan is like the newest one's."""

    store: dg.ResourceDependency[ResultStore]

    def handle_output(self, context: dg.OutputContext, obj: EvaluatedPartition) -> None:
        """Write the version's folder unless it is there: equal versions have equal results."""
        instance = context.step_context.instance
        folder = (
            self.store.results(instance, obj.plan.evaluation, obj.plan.partition) / obj.data_version
        )
        if not (folder / TRIALS_FILE).exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / PLAN_FILE).write_text(obj.plan.to_json(), encoding="utf-8")
            write_table(obj.trials, folder / TRIALS_FILE)
        context.add_output_metadata({"path": dg.MetadataValue.path(folder / TRIALS_FILE)})

    def load_input(self, context: dg.InputContext) -> EvaluatedPartitions:
        """Return the newest materialisation of every partition that there is one of."""
        found: dict[str, tuple[float, str, Path]] = {}
        for partition in context.asset_partition_keys:
            event = context.instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=context.asset_key, asset_partitions=[partition]),
                limit=1,
            ).records
            if event and (materialization := event[0].asset_materialization):
                metadata = materialization.metadata
                found[partition] = (
                    event[0].timestamp,
                    str(metadata["plan"].value),
                    Path(str(metadata["path"].value)),
                )
        if not found:
            raise dg.Failure("no partition has been evaluated yet; materialise one first")
        _, newest, _ = max(found.values())
        alike = {name: path for name, (_, plan, path) in found.items() if plan == newest}
        frames = [pq.read_table(path).to_pandas() for path in alike.values()]
        return EvaluatedPartitions(
            trials=cast("pd.DataFrame", pd.concat(cast("list[Any]", frames), ignore_index=True)),
            partitions=tuple(alike),
            left_out=tuple(name for name in found if name not in alike),
        )
