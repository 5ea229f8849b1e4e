"""Results as Parquet, a folder for each version: ``<evaluation>/<partition>/<data_version>/``."""

import filecmp
import shutil
from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pyarrow.parquet as pq

from dspex_pipelines.analysis.trials_files import DAMAGE, TrialsFiles, column_names, told_if_damaged
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.payload import digest, digest_each
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.orchestration.resources import ResultStore
from dspex_pipelines.orchestration.tags import PARTIAL, RESULTS
from dspex_pipelines.wire.durable import durably, sync

TRIALS_FILE = "trials.parquet"
PLAN_FILE = "plan.json"
SHORT = 12
ROWS = 10_000
"""Rows that are looked at at a time."""
UNREADABLE = (*DAMAGE, DspexError)
"""What reading a damaged plan or table raises."""
_TELLING = ["trial_id", "error_type", "error_message"]
PLAN = "plan file"
"""Name of the metadata that says where the plan is whose trials the results are of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPartition:
    """The outcome of every planned trial of one partition."""

    plan: Plan
    path: Path
    """Parquet with one row per trial, alone in a folder that is the IO manager's to move or to remove."""
    data_version: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPartitions:
    """The newest results of those partitions whose plans are alike; others are left out by name."""

    ranked: TrialsFiles
    """What a leaderboard looks at of them."""
    newest: "NewestResults"
    partitions: tuple[str, ...]
    left_out: tuple[str, ...]
    partial: dict[str, str]
    """Partition to what its run did not get to, and why; complete ones are not in it."""

    @property
    def trials(self) -> pd.DataFrame:
        """All of them, read into memory: one row per trial."""
        return self.newest.load()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewestResults:
    """The newest results of each partition whose plan is like the newest plan of all."""

    paths: dict[str, Path]
    left_out: tuple[str, ...]
    missing: tuple[str, ...]
    """Partitions that have no results yet."""
    partial: dict[str, str]
    """Partition to what its run did not get to, and why; complete ones are not in it."""

    @classmethod
    def find(cls, instance: dg.DagsterInstance, evaluation: str, partitions: Iterable[str]) -> "NewestResults":
        """Look the materialisations up; there may be none."""
        found: dict[str, tuple[float, str, Path]] = {}
        partial: dict[str, str] = {}
        wanted = tuple(partitions)
        for partition in wanted:
            records = instance.fetch_materializations(
                dg.AssetRecordsFilter(asset_key=dg.AssetKey([evaluation, RESULTS]), asset_partitions=[partition]),
                limit=1,
            ).records
            if records and (materialization := records[0].asset_materialization):
                metadata = materialization.metadata
                path = Path(str(metadata["path"].value))
                found[partition] = (records[0].timestamp, str(metadata["plan"].value), path)
                if PARTIAL in metadata:
                    partial[partition] = str(metadata[PARTIAL].value)
        newest = max(found.values(), default=(0.0, "", Path()))[1]
        alike = {name: path for name, (_, plan, path) in found.items() if plan == newest}
        return cls(
            paths=alike,
            left_out=tuple(name for name in found if name not in alike),
            missing=tuple(name for name in wanted if name not in found),
            partial={name: what for name, what in partial.items() if name in alike},
        )

    def columns(self) -> list[str]:
        """Return the names of the columns of their trials; raises `DspexError` where they cannot be read."""
        return column_names(self.paths.values())

    def load(self, columns: Collection[str] | None = None, *, where: Any = None) -> pd.DataFrame:
        """Return their trials, one row each; raises `DspexError` where they cannot be read.

        Of many trials that is much: *columns* are all that is read, and *where* says by a filter of Arrow which rows.
        """
        return pd.concat([_loaded(path, columns, where) for path in self.paths.values()], ignore_index=True)

    def rows(self, numbers: Collection[int], columns: Collection[str]) -> pd.DataFrame:
        """Return these *columns* of those rows of all that `load` returns, by their numbers.

        A row group is in memory at a time, as outputs may be large.
        """
        wanted = sorted(numbers)
        found: list[pd.DataFrame] = []
        start = 0
        for path in self.paths.values():
            with told_if_damaged(path), pq.ParquetFile(path) as file:
                names = _present(file.schema_arrow.names, columns)
                for group in range(file.num_row_groups):
                    stop = start + file.metadata.row_group(group).num_rows
                    here = [row - start for row in wanted[bisect_left(wanted, start) : bisect_left(wanted, stop)]]
                    if here:
                        found.append(file.read_row_group(group, columns=names).take(here).to_pandas())
                    start = stop
        return pd.concat(found).set_axis(wanted)

    def ranked(self) -> TrialsFiles:
        """Return what a leaderboard looks at; raises `DspexError` where it cannot be read."""
        return TrialsFiles(self.paths.values())

    def plan_file(self, partition: str) -> Path:
        """Return the file that holds the partition's plan."""
        return self.paths[partition].with_name(PLAN_FILE)


def _loaded(path: Path, columns: Collection[str] | None, where: Any) -> pd.DataFrame:
    names = None if columns is None else _present(column_names([path]), columns)
    with told_if_damaged(path):
        return pq.read_table(path, columns=names, filters=where).to_pandas()


def _present(names: Iterable[str], columns: Collection[str]) -> list[str]:
    """Return those of the *columns* that a file with these *names* has: another's may have more."""
    return [name for name in names if name in columns]


def _kept_plan(plan: Plan, folder: Path) -> Path:
    """Return the file in *folder* with the plan: equal results may come of other programs, and so of other trials."""
    # When failures are run again is no part of which trials there are.
    plan = replace(plan, failures_since=0.0)
    text = plan.to_json().encode()
    path = folder / PLAN_FILE
    kept = _plan_at(path)
    if kept and replace(kept, failures_since=0.0) != plan:
        path = folder / f"plan-{digest(text).hex()}.json"
        kept = _plan_at(path)
    if not kept:
        with durably(path) as file:
            file.write(text)
    return path


def _plan_at(path: Path) -> Plan | None:
    """Return the plan that is there; None for no file, or a damaged one."""
    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except UNREADABLE:
        return None


def _is_the_same(path: Path, kept: Path) -> bool:
    """Return whether the file that is kept, if any, has the bytes of the new one, as where all trials were reused."""
    try:
        return filecmp.cmp(path, kept, shallow=False)
    except OSError:
        return False


def _told_at(path: Path) -> str:
    """Return what tells the results there from others; empty for no file, or a damaged one."""
    try:
        with pq.ParquetFile(path) as file:
            return digest_each(_telling(file)).hex()[:SHORT]
    except UNREADABLE:
        return ""


def _telling(file: Any) -> Iterator[bytes]:
    for batch in file.iter_batches(batch_size=ROWS, columns=_TELLING):
        for row in zip(*(batch.column(name).to_pylist() for name in _TELLING), strict=True):
            yield "\0".join(str(value) for value in row).encode(errors="replace")


class TrialsIOManager(dg.IOManager):
    """Keeps evaluated partitions; loads all partitions whose plan is like the newest one's."""

    def __init__(self, store: ResultStore) -> None:
        self._store = store

    def handle_output(self, context: dg.OutputContext, obj: Sequence[EvaluatedPartition]) -> None:
        """Keep each partition's results, and say where they are."""
        for one in obj:
            paths = {name: dg.MetadataValue.path(path) for name, path in self._kept(context, one).items()}
            # The output's own metadata would be that of every partition.
            context.step_context.add_asset_metadata(paths, partition_key=one.plan.partition)

    def _kept(self, context: dg.OutputContext, obj: EvaluatedPartition) -> dict[str, Path]:
        """Make the folder the version's own unless that is there, and whole: equal versions have equal results.

        Which trials they are of, and what the failed ones said, is not in the version: where that differs, as after an
        edit that changes one error for another of its type, the folder's name says so.
        """
        instance = context.step_context.instance
        folder = self._store.results(instance, obj.plan.evaluation, obj.plan.partition) / obj.data_version
        kept = _is_the_same(obj.path, folder / TRIALS_FILE)
        if not kept and (there := _told_at(folder / TRIALS_FILE)):
            told = _told_at(obj.path)
            if there != told:
                folder = folder.with_name(f"{obj.data_version}-{told}")
                there = _told_at(folder / TRIALS_FILE)
            kept = bool(there)
        unfinished = obj.path.parent
        if kept:
            shutil.rmtree(unfinished)
        else:
            with durably(unfinished / PLAN_FILE) as file:
                file.write(obj.plan.to_json().encode())
            sync(obj.path)
            try:
                unfinished.rename(folder)
            except OSError:
                # Another run was first, with equal results; or a file was lost or damaged, and is whole again.
                for name in (PLAN_FILE, TRIALS_FILE):
                    (unfinished / name).replace(folder / name)
                unfinished.rmdir()
                sync(folder)
            sync(folder.parent)
        return {"path": folder / TRIALS_FILE, PLAN: _kept_plan(obj.plan, folder)}

    def load_input(self, context: dg.InputContext) -> EvaluatedPartitions:
        """Return the newest like-planned results of all partitions there are any of."""
        newest = NewestResults.find(context.instance, context.asset_key.path[0], context.asset_partition_keys)
        if not newest.paths:
            raise dg.Failure("no partition has been evaluated yet; materialise one first")
        try:
            ranked = newest.ranked()
        except DspexError as error:
            raise dg.Failure(str(error)) from error
        return EvaluatedPartitions(
            ranked=ranked,
            newest=newest,
            partitions=tuple(newest.paths),
            left_out=newest.left_out,
            partial=newest.partial,
        )


@dg.io_manager(
    required_resource_keys={"store"}, description="Results of an evaluation: a folder of Parquet for each version."
)
def trials_io_manager(context: dg.InitResourceContext) -> TrialsIOManager:
    """Return the IO manager over whichever ``store`` the definitions have."""
    return TrialsIOManager(context.resources.store)
