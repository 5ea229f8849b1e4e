"""The data set asset: one immutable file for each partition and content."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from dspex_pipelines.analysis.profile import ColumnProfile, profile
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Dataset, Evaluation, Upstream
from dspex_pipelines.orchestration.data.datasets import (
    ReadPartition,
    StoredDataset,
    TooManyBadRows,
    read_partitions,
    store_examples,
    store_rejected,
)
from dspex_pipelines.orchestration.data.partitions import backfill_policy, partitions_def, version_of
from dspex_pipelines.orchestration.data.sources import files_left_out
from dspex_pipelines.orchestration.failing import step_failure
from dspex_pipelines.orchestration.freshness import reading_digests
from dspex_pipelines.orchestration.resources import ProgressResource, ResultStore
from dspex_pipelines.orchestration.secrecy import without_secrets
from dspex_pipelines.orchestration.tags import SOURCE

SAMPLES = 20
"""Bad rows, and values of a label, that the metadata shows; the files have all."""
SHOWN = 100
"""Characters of a value that a warning shows."""


def dataset_asset(evaluation: Evaluation) -> dg.AssetsDefinition:
    """Return the asset that reads the declared source; its data version is the content's digest."""
    source = evaluation.dataset.source
    upstream = {"source": dg.AssetIn(key=dg.AssetKey(source.path))} if isinstance(source, Upstream) else {}

    @dg.asset(
        name="dataset",
        key_prefix=evaluation.name,
        ins=upstream,
        partitions_def=partitions_def(evaluation),
        backfill_policy=backfill_policy(evaluation),
        group_name=evaluation.name,
        kinds={"parquet"},
        owners=list(evaluation.owners),
        description=evaluation.dataset.description or f"The examples of {evaluation.name}.",
    )
    def dataset(
        context: dg.AssetExecutionContext,
        store: ResultStore,
        progress: dg.ResourceParam[ProgressResource],
        **given: Any,
    ) -> dg.MaterializeResult[Any]:
        rows = given.get("source")
        names = context.partition_keys
        # Of several partitions of an upstream asset, each has a value.
        values = rows if isinstance(rows, Mapping) and len(names) > 1 and set(rows) == set(names) else None
        versions: dict[str, str] = {}
        said: set[str] = set()
        with without_secrets():
            try:
                # Before the rows are read: a file that changes meanwhile is seen to have changed.
                digests = reading_digests(evaluation.dataset, names) if isinstance(source, Path) else {}
                for what in list(files_left_out(evaluation.dataset).values())[:SAMPLES]:
                    context.log.warning(f"left out: {what}")
                for partition, read in _read(evaluation.dataset, names, rows, values):
                    folder = store.datasets(context.instance, evaluation.name, partition)
                    stored, metadata, warnings = _kept(read, folder)
                    for what in warnings:
                        if what not in said:
                            said.add(what)
                            context.log.warning(what)
                            about = f"{partition}: {what}"
                            progress.reporter.warns(f"{evaluation.name}/dataset, {about}", about)
                    if digests.get(partition):
                        metadata = {**metadata, SOURCE: dg.MetadataValue.text(digests[partition])}
                    context.add_asset_metadata(metadata, partition_key=partition)
                    versions[partition] = stored.digest
            except DspexError as error:
                raise step_failure(context.instance, context.run.run_id, error) from error
        return dg.MaterializeResult(data_version=version_of(versions))

    return dataset


def _read(
    dataset: Dataset, names: Sequence[str], rows: object, values: Mapping[str, object] | None
) -> Iterator[tuple[str, ReadPartition | InvalidValue]]:
    """Yield each partition as it is read from *rows*, or from its own of *values*."""
    if values is None:
        yield from read_partitions(dataset, names, rows)
        return
    for name in names:
        yield from read_partitions(dataset, [name], values[name])


def _kept(
    read: ReadPartition | InvalidValue, folder: Path
) -> tuple[StoredDataset, Mapping[str, dg.MetadataValue], list[str]]:
    """Keep a partition's examples and its bad rows; return what is to be told of them."""
    if isinstance(read, TooManyBadRows):
        raise DspexError(f"{read}\nThey are in {store_rejected(read.rejected, folder)}") from read
    if isinstance(read, InvalidValue):
        raise read
    stored = store_examples(read.examples, folder)
    rejected = store_rejected(read.rejected, folder, stored.digest) if read.rejected else None
    return stored, dataset_metadata(read, stored, rejected), _warnings(read, rejected)


def dataset_metadata(
    read: ReadPartition, stored: StoredDataset, rejected: Path | None
) -> Mapping[str, dg.MetadataValue]:
    """Return counts, the columns and what is in them; bounded whatever the number of rows."""
    columns = profile((example.inputs, example.labels) for example in read.examples)
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/partition_row_count": dg.MetadataValue.int(stored.rows),
        "dagster/column_schema": dg.MetadataValue.table_schema(
            dg.TableSchema(columns=[dg.TableColumn(one.name, one.type, description=one.role) for one in columns])
        ),
        "digest": dg.MetadataValue.text(stored.digest),
        "groups": dg.MetadataValue.int(len({example.cluster for example in read.examples})),
        "path": dg.MetadataValue.path(stored.path),
        "columns": _columns_table(columns),
        "rows rejected": dg.MetadataValue.int(len(read.rejected)),
        "rows in no partition": dg.MetadataValue.int(read.elsewhere.total()),
    }
    if balance := _balance(columns):
        metadata["label balance"] = dg.MetadataValue.md(balance)
    if rejected:
        metadata["rejected"] = dg.MetadataValue.md(_rejected(read))
        metadata["rejected path"] = dg.MetadataValue.path(rejected)
    return metadata


def _warnings(read: ReadPartition, rejected: Path | None) -> list[str]:
    told: list[str] = []
    if rejected:
        one = read.rejected[0].reason
        told.append(f"{_rows(len(read.rejected))} left out, the first: {one}. See {rejected}")
    if read.elsewhere:
        values = ", ".join(repr(value[:SHOWN]) for value, _ in read.elsewhere.most_common(SAMPLES))
        told.append(f"{_rows(read.elsewhere.total())} in no partition: {values}")
    return [*told, *(f"{what}: {fix}" for what, fix in read.doubts)]


def _rows(count: int) -> str:
    return f"{count:,} {'row is' if count == 1 else 'rows are'}"


def _columns_table(columns: list[ColumnProfile]) -> dg.MetadataValue:
    described = {
        "column": "",
        "role": "input or label",
        "type": "types of its values, the commonest first",
        "missing": "rows without a value",
        "distinct": "values that differ",
        "sizes": "of its values: characters of a text, items of a list, or the number itself",
    }
    records = [
        dg.TableRecord(
            {
                "column": one.name,
                "role": one.role,
                "type": one.type,
                "missing": one.missing,
                "distinct": one.distinct,
                "sizes": one.sizes,
            }
        )
        for one in columns
    ]
    schema = [dg.TableColumn(name, "int" if name == "missing" else "string", text) for name, text in described.items()]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=schema))


def _balance(columns: list[ColumnProfile]) -> str:
    lines: list[str] = []
    for column in columns:
        total = sum(column.values.values())
        for value, count in column.balance(SAMPLES) if column.role == "label" else ():
            lines.append(f"| {column.name} | {_cell(value)} | {count:,} | {count / total:.1%} |")
    return "\n".join(["| label | value | rows | share |", "|---|---|---:|---:|", *lines]) if lines else ""


def _rejected(read: ReadPartition) -> str:
    lines = [
        f"| {one.where} | {_cell(one.column)} | {_cell(repr(one.value))} | {_cell(one.fix)} |"
        for one in read.rejected[:SAMPLES]
    ]
    more = [f"\n… and {len(read.rejected) - SAMPLES:,} more"] if len(read.rejected) > SAMPLES else []
    return "\n".join(["| row | column | value | what to do |", "|---|---|---|---|", *lines, *more])


def _cell(text: str) -> str:
    return text[:200].replace("\n", " ").replace("|", "\\|")
