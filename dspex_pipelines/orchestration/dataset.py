"""The data set asset: one immutable file for each partition and content."""

from typing import Any

import dagster as dg

from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.datasets import read_examples, store_examples
from dspex_pipelines.orchestration.resources import ResultStore
from dspex_pipelines.orchestration.secrecy import without_secrets


def partitions(evaluation: Evaluation) -> dg.StaticPartitionsDefinition:
    """Return the partitions that data set and evaluation share."""
    return dg.StaticPartitionsDefinition(list(evaluation.dataset.partitions))


def dataset_asset(evaluation: Evaluation) -> dg.AssetsDefinition:
    """Return the asset that reads the declared source; its data version is the content's digest."""

    @dg.asset(
        name="dataset",
        key_prefix=evaluation.name,
        partitions_def=partitions(evaluation),
        backfill_policy=dg.BackfillPolicy.multi_run(1),
        group_name=evaluation.name,
        kinds={"parquet"},
        description=evaluation.dataset.description or f"The examples of {evaluation.name}.",
    )
    def dataset(context: dg.AssetExecutionContext, store: ResultStore) -> dg.MaterializeResult[Any]:
        partition = context.partition_key
        with without_secrets():
            try:
                examples = read_examples(evaluation.dataset, partition)
            except DspexError as error:
                raise dg.Failure(str(error), allow_retries=False) from error
        folder = store.datasets(context.instance, evaluation.name, partition)
        stored = store_examples(examples, folder)
        return dg.MaterializeResult(
            data_version=dg.DataVersion(stored.digest),
            metadata={
                "dagster/partition_row_count": stored.rows,
                "digest": stored.digest,
                "groups": len({example.cluster for example in examples}),
                "path": dg.MetadataValue.path(stored.path),
            },
        )

    return dataset
