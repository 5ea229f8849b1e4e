"""What an instance's newest results refer to, and deleting the rest of its journal, results and data sets."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
from dagster import DagsterRun, RunRecord

from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.journal.retention import ANY_SCORING, Count, Retention
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.trial import Example
from dspex_pipelines.orchestration.data.datasets import planned_examples
from dspex_pipelines.orchestration.io_managers import PLAN, PLAN_FILE, TRIALS_FILE
from dspex_pipelines.orchestration.resources import ResultStore
from dspex_pipelines.orchestration.tags import EVALUATION, KIND, RESULTS, TARGET

DAY_S = 86_400.0
ROWS = 10_000
"""Rows of results that are read at a time."""
NAMED = 3
"""Runs that an error names."""
_OVER = (dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED)
_ACTIVE = [status for status in dg.DagsterRunStatus if status not in _OVER]
OnProgress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""


def _quiet(what: str, done: int, total: int) -> None:
    del what, done, total


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveResult:
    """Results that count: the newest of an evaluation's partition, or one of the newest."""

    evaluation: str
    partition: str
    path: Path
    """The file with a row for each trial."""
    plan_path: Path
    """The file with the plan whose trials they are."""

    @property
    def name(self) -> str:
        """Evaluation and partition."""
        return f"{self.evaluation}/{self.partition}"

    def plan(self) -> Plan:
        """Return that plan."""
        return Plan.from_json(self.plan_path.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What may go."""

    live: int
    """Results that are kept, with all that they refer to."""
    stale: Count
    recent: int
    """Of the stale executions, those of the last 24 hours: an interrupted run's are among them."""
    paths: tuple[Path, ...]
    """Folders of results and files of data sets that nothing refers to; none unless they were asked for."""
    path_bytes: int

    @property
    def is_empty(self) -> bool:
        """Whether nothing would go."""
        return not (self.stale.executions or self.stale.scores or self.paths)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """What has gone."""

    deleted: Count
    paths: int
    not_reclaimed: str
    """Why the journal's file could not be made smaller; empty when it was."""


def live_results(instance: dg.DagsterInstance, *, keep: int) -> list[LiveResult]:
    """Return the *keep* newest results of each partition of each evaluation that *instance* has ever materialised."""
    return [
        LiveResult(evaluation=key.path[0], partition=partition, path=path, plan_path=plan_path)
        for key in instance.get_asset_keys()
        if len(key.path) > 1 and key.path[-1] == RESULTS
        for partition in sorted(instance.get_materialized_partitions(key))
        for path, plan_path in _newest(instance, key, partition, keep).items()
        if path.name == TRIALS_FILE
    ]


def active_runs(instance: dg.DagsterInstance) -> list[RunRecord]:
    """Return the evaluation runs that are not over, oldest first."""
    records = instance.get_run_records(dg.RunsFilter(statuses=_ACTIVE), ascending=True)
    return [record for record in records if _evaluates(instance, record.dagster_run)]


def _evaluates(instance: dg.DagsterInstance, run: DagsterRun) -> bool:
    if run.tags.get(KIND) == "evaluation" or any(key.path[-1] == RESULTS for key in run.asset_selection or ()):
        return True
    if run.execution_plan_snapshot_id is None:
        return False
    # A job of the user's own carries no tags of ours, but its steps do.
    steps = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).steps
    return any(step.tags and EVALUATION in step.tags for step in steps)


def _newest(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str, keep: int) -> dict[Path, Path]:
    """Return the *keep* newest different files of a partition, newest first, each with where its newest plan is."""
    found: dict[Path, Path] = {}
    cursor: str | None = None
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    while len(found) < keep:
        page = instance.fetch_materializations(wanted, limit=max(keep, 10), cursor=cursor)
        for record in page.records:
            metadata = record.asset_materialization.metadata if record.asset_materialization else {}
            if "path" in metadata and len(found) < keep:
                path = Path(str(metadata["path"].value))
                plan = metadata.get(PLAN)
                found.setdefault(path, Path(str(plan.value)) if plan else path.with_name(PLAN_FILE))
        if not page.has_more:
            break
        cursor = page.cursor
    return found


class Pruning:
    """Tells what of a store its live results refer to, and deletes the rest of it.

    Live are the *keep* newest results of each partition. Nothing goes that was recorded in the last *older_than_s*
    seconds. While evaluation runs are in progress, entering raises `DspexError` that names them, unless it is done
    *despite_runs*: then all stays that was recorded since the oldest of them was made.
    """

    def __init__(
        self,
        instance: dg.DagsterInstance,
        store: ResultStore,
        journal: Journal,
        *,
        keep: int = 1,
        older_than_s: float = 0.0,
        with_results: bool = False,
        despite_runs: bool = False,
        on_progress: OnProgress = _quiet,
    ) -> None:
        if keep < 1:
            raise InvalidValue(field="keep", value=keep, fix="give an integer of 1 or more: the newest results stay")
        if not older_than_s >= 0:
            raise InvalidValue(field="older-than", value=older_than_s / DAY_S, fix="give days, 0 or more")
        self._instance = instance
        self._store = store
        self._journal = journal
        self._keep = keep
        self._older_than_s = older_than_s
        self._with_results = with_results
        self._despite_runs = despite_runs
        self._on_progress = on_progress
        self._kept: set[Path] = set()

    def __enter__(self) -> Pruning:
        runs = self._check_runs()
        now = time.time()
        self._known_runs = {record.dagster_run.run_id for record in runs}
        self._before = min(now - self._older_than_s, *(_made_at(record) for record in runs), now)
        self._retention = Retention(self._journal, recorded_before=self._before)
        self._retention.__enter__()
        try:
            self._live = self._keep_live()
        except BaseException as error:
            self._retention.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._retention.__exit__(kind, error, traceback)

    def survey(self) -> Survey:
        """Return what would go."""
        stale = self._retention.unreferenced()
        old = self._retention.unreferenced(recorded_before=min(self._before, time.time() - DAY_S))
        paths = tuple(self._stale_paths()) if self._with_results else ()
        return Survey(
            live=len(self._live),
            stale=stale,
            recent=stale.executions - old.executions,
            paths=paths,
            path_bytes=sum(_bytes(path) for path in paths),
        )

    def prune(self) -> Pruned:
        """Delete it. A run that has begun meanwhile ends that with a `DspexError`; what is deleted by then is."""
        self._check_new_runs()
        # Somebody may have thought for a while: what was materialised meanwhile is live too.
        self._live = self._keep_live()

        def looked_at(done: int, total: int) -> None:
            self._on_progress("deleting", done, total)
            self._check_new_runs()

        deleted = self._retention.delete(looked_at)
        paths = list(self._stale_paths()) if self._with_results else []
        for number, path in enumerate(paths, start=1):
            _remove(path)
            self._on_progress("deleting results", number, len(paths))
        not_reclaimed = ""
        if deleted.executions or deleted.scores:
            self._on_progress("reclaiming room", 0, 0)
            try:
                self._retention.reclaim()
            except DspexError as error:
                not_reclaimed = str(error)
        return Pruned(deleted=deleted, paths=len(paths), not_reclaimed=not_reclaimed)

    def _check_runs(self) -> list[RunRecord]:
        runs = active_runs(self._instance)
        if runs and not self._despite_runs:
            raise DspexError(
                f"{_named(runs)} in progress and may need what would be deleted; wait, or end what is not needed (in "
                "the UI: Runs, Terminate), or give --force to delete only what was recorded before"
            )
        return runs

    def _check_new_runs(self) -> None:
        runs = [run for run in active_runs(self._instance) if run.dagster_run.run_id not in self._known_runs]
        if runs:
            raise DspexError(f"{_named(runs)} in progress since; the rest is kept. Prune again when it is over")

    def _keep_live(self) -> list[LiveResult]:
        live = live_results(self._instance, keep=self._keep)
        for number, result in enumerate(live):
            self._on_progress("reading results", number, len(live))
            if result.plan_path not in self._kept:
                self._keep_result(result)
                self._kept.add(result.plan_path)
        self._on_progress("reading results", len(live), len(live))
        return live

    def _keep_result(self, result: LiveResult) -> None:
        try:
            plan = result.plan()
            scorings = self._scorings(plan)
            # Whoever materialises it again without another word reuses generation 0.
            for generation in {plan.generation, ""}:
                self._retention.keep(generation, self._trials(result, plan, scorings))
        except (OSError, pa.ArrowInvalid) as error:
            raise DspexError(
                f"the newest results of {result.name} are gone ({error}), so what they refer to is not known; "
                "materialise them again, which runs no trial, or wipe that asset's materializations in the UI"
            ) from error

    def _trials(self, result: LiveResult, plan: Plan, scorings: Mapping[str, bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Yield trial and scoring of each row; raises `OSError` when they cannot be known."""
        if result.plan_path.name == PLAN_FILE:
            return _written_trials(result.path, scorings)
        # The rows are of the trials of the program that was first to have these results.
        return _planned_trials(plan, self._examples(plan), scorings)

    def _examples(self, plan: Plan) -> Sequence[Example]:
        file = self._dataset_file(plan)
        if not file.exists():
            raise FileNotFoundError(f"no {file}")
        return planned_examples(file.parent, plan)

    def _scorings(self, plan: Plan) -> Mapping[str, bytes]:
        """Return the scoring of each example; empty where there is nothing to tell apart by it."""
        if not self._retention.has_scores():
            return {}
        try:
            examples = self._examples(plan)
        except FileNotFoundError:
            return {}  # without its data set, all scores of a trial are kept
        return {example.example_id: plan.scoring_of(example) for example in examples}

    def _stale_paths(self) -> Iterator[Path]:
        root = self._store.folder(self._instance)
        folders = {result.path.parent.resolve() for result in self._live}
        files = {self._dataset_file(result.plan()).resolve() for result in self._live} | set(self._newest_datasets())
        plans = {
            path.resolve() for result in self._live for path in (result.plan_path, result.path.with_name(PLAN_FILE))
        }
        for pattern, live in (("results/*/*/*", folders), ("datasets/*/*/*", files), ("results/*/*/*/plan-*", plans)):
            for path in sorted(root.glob(pattern)):
                # What was left out of a data set stays as long as that does.
                kept = (
                    path.with_name(f"{path.name.partition('.rejected-')[0]}.parquet")
                    if ".rejected-" in path.name
                    else path
                )
                gone = pattern.endswith("plan-*") and path.parent.resolve() not in folders
                if kept.resolve() not in live and not gone and path.stat().st_mtime < self._before:
                    yield path

    def _dataset_file(self, plan: Plan) -> Path:
        folder = self._store.datasets(self._instance, plan.evaluation, plan.partition)
        return folder / f"{plan.dataset_digest}.parquet"

    def _newest_datasets(self) -> Iterator[Path]:
        for key in self._instance.get_asset_keys():
            if len(key.path) > 1 and key.path[-1] == "dataset":
                for partition in self._instance.get_materialized_partitions(key):
                    for path in _newest(self._instance, key, partition, self._keep):
                        yield path.resolve()


def _written_trials(path: Path, scorings: Mapping[str, bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Yield trial and scoring of each row."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=ROWS, columns=["trial_id", "example_id"]):
            columns = (batch.column(name).to_pylist() for name in ("trial_id", "example_id"))
            for trial_id, example_id in zip(*columns, strict=True):
                yield bytes.fromhex(trial_id), scorings.get(example_id, ANY_SCORING)


def _planned_trials(
    plan: Plan, examples: Sequence[Example], scorings: Mapping[str, bytes]
) -> Iterator[tuple[bytes, bytes]]:
    for spec in plan.trials(Batch(start=0, stop=plan.total), examples):
        yield spec.trial_id, scorings.get(spec.example.example_id, ANY_SCORING)


def _made_at(record: RunRecord) -> float:
    return record.create_timestamp.timestamp()


def _named(runs: Iterable[RunRecord]) -> str:
    def one(record: RunRecord) -> str:
        run = record.dagster_run
        what = run.tags.get(TARGET) or run.tags.get(EVALUATION) or run.job_name
        since = datetime.fromtimestamp(_made_at(record)).astimezone()
        return f"run {run.run_id[:8]} of {what} (since {since:%Y-%m-%d %H:%M})"

    names = [one(record) for record in runs]
    more = " and others" if len(names) > NAMED else ""
    return f"{', '.join(names[:NAMED])}{more} {'is' if len(names) == 1 else 'are'}"


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files)


def _remove(path: Path) -> None:
    if path.is_file():
        path.unlink()
        return
    # First out of sight, so that nobody loads half a folder.
    hidden = path if path.name.startswith(".") else path.with_name(f".pruned-{path.name}")
    if hidden != path:
        path.rename(hidden)
    shutil.rmtree(hidden)
