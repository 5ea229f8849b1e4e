"""A real pool, and evaluations that are materialised over it in this process."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import pandas as pd
import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig
from dspex_pipelines.orchestration.naming import keys, run_config
from dspex_pipelines.orchestration.resources import ResultStore, WorkerPoolResource
from tests.orchestration.declared import SLOTS, WORKERS

ROOT = Path(__file__).parents[2]


class Lab:
    """One evaluation at a time on a Dagster instance of its own."""

    def __init__(self, instance: dg.DagsterInstance, folder: Path, address: str) -> None:
        self.instance = instance
        self.folder = folder
        self._resources = {
            "worker_pool": WorkerPoolResource(address=address, connect_timeout_s=30),
            "store": ResultStore(root=str(folder)),
        }

    def declare(self, evaluation: Evaluation, **resources: object) -> Lab:
        self.evaluation = evaluation
        self.definitions = build_evaluation(evaluation, resources={**self._resources, **resources})
        self.dataset_key, self.results_key, self.board_key = keys(evaluation)
        return self

    def run(
        self,
        selection: Sequence[dg.AssetKey],
        *,
        partition: str | None = "all",
        tags: dict[str, str] | None = None,
        config: dict[str, Any] | None = None,
    ) -> dg.ExecuteInProcessResult:
        job = self.definitions.resolve_implicit_global_asset_job_def()
        return job.execute_in_process(
            instance=self.instance,
            asset_selection=list(selection),
            partition_key=partition,
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}, **(config or {})},
            tags=tags,
            raise_on_error=False,
        )

    def evaluate(
        self, partition: str | None = "all", *, read: bool = True, tags: dict[str, str] | None = None, **values: Any
    ) -> dg.ExecuteInProcessResult:
        """Run data set (unless not to be read) and evaluation, in one step unless *values* say otherwise."""
        selection = [self.dataset_key, self.results_key] if read else [self.results_key]
        config = run_config(self.evaluation, EvaluationConfig(**{"trials_per_op": 1_000, **values}))
        return self.run(selection, partition=partition, tags=tags, config=config)

    def evaluated(self, partition: str = "all", **values: Any) -> tuple[pd.DataFrame, dict[str, Any]]:
        """Evaluate; return the rows and the asset's metadata."""
        result = self.evaluate(partition, **values)
        assert result.success, failure(result)
        return self.newest(partition)

    def newest(self, partition: str = "all") -> tuple[pd.DataFrame, dict[str, Any]]:
        metadata = self.metadata(self.results_key, partition)
        return pd.read_parquet(metadata["path"]), metadata

    def ranked(self) -> dict[str, Any]:
        """Materialise the leaderboard; return its metadata."""
        result = self.run([self.board_key], partition=None)
        assert result.success, failure(result)
        return self.metadata(self.board_key)

    def metadata(self, key: dg.AssetKey, partition: str | None = None) -> dict[str, Any]:
        materialization = self._record(key, partition)
        values = {name: value.value for name, value in materialization.metadata.items()}
        return {**values, "version": (materialization.tags or {})["dagster/data_version"]}

    def code_version(self) -> str | None:
        return self.definitions.resolve_asset_graph().get(self.results_key).code_version

    def _record(self, key: dg.AssetKey, partition: str | None) -> dg.AssetMaterialization:
        wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition] if partition else None)
        (record,) = self.instance.fetch_materializations(wanted, limit=1).records
        assert record.asset_materialization
        return record.asset_materialization


def failure(result: dg.ExecuteInProcessResult) -> str:
    """What the first failed step said."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            said = data.user_failure_data.description if data.user_failure_data else None
            return said or str(data.error)
    return ""


def steps(result: dg.ExecuteInProcessResult, name: str) -> list[str]:
    """The keys of the steps of that op that ran to their end."""
    done = (event.step_key or "" for event in result.all_events if event.is_step_success)
    return [key for key in done if f".{name}" in key]


@pytest.fixture(scope="session")
def runtime_root() -> Iterator[Path]:
    """A short folder: a socket's path has few bytes."""
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield folder
    local_pool.stop(runtime_root=folder / "dspex")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def pool_address(runtime_root: Path) -> Iterator[str]:
    runtime = runtime_root / "dspex"
    with local_pool.lease(workers=WORKERS, slots=SLOTS, idle_s=60, cwd=ROOT, runtime_root=runtime) as lease:
        yield lease.address


@pytest.fixture
def lab(pool_address: str, tmp_path: Path) -> Iterator[Lab]:
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path)) as instance:
        yield Lab(instance, tmp_path / "store", pool_address)


@pytest.fixture
def count_lines(tmp_path: Path) -> tuple[str, Callable[[], int]]:
    """A file for `programs.logged`, and how many trials have left their line in it."""
    log = tmp_path / "ran.txt"
    log.touch()
    return str(log), lambda: len(log.read_text().splitlines())
