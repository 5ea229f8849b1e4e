"""The earlier results of a partition that its newest ones can be held against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pyarrow.parquet as pq
from dagster import EventLogRecord
from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.event_api import PartitionKeyFilter  # what asks for one partition's checks is not public

from dspex_pipelines.analysis.checks import Baseline, NotLookedAt, columns_of, lacks_scores
from dspex_pipelines.analysis.trials_files import damaged
from dspex_pipelines.model.checks import Check, NoRegression
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.trial import MetricSpec
from dspex_pipelines.orchestration.io_managers import PLAN, PLAN_FILE, UNREADABLE

MOST = 200
"""Earlier results that are looked at, however often each was materialised; those deleted take no time to look at."""
_PAGE = 20
_VERDICTS = 200
"""Read at once."""
_CONTENT = ["example_id", "payload"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Materialised:
    """Results of a partition as one run materialised them."""

    storage_id: int
    run_id: str
    timestamp: float
    path: Path
    plan_path: Path

    @classmethod
    def read(cls, record: EventLogRecord) -> Materialised | None:
        """Return what the event tells; None for one that is not of these assets' making."""
        metadata = record.asset_materialization.metadata if record.asset_materialization else {}
        if "path" not in metadata:
            return None
        path = Path(str(metadata["path"].value))
        plan = metadata.get(PLAN)
        return cls(
            storage_id=record.storage_id,
            run_id=record.event_log_entry.run_id,
            timestamp=record.timestamp,
            path=path,
            plan_path=Path(str(plan.value)) if plan else path.with_name(PLAN_FILE),
        )

    def target(self) -> AssetCheckEvaluationTargetMaterializationData:
        """Return what a verdict on them refers to."""
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=self.storage_id, run_id=self.run_id, timestamp=self.timestamp
        )

    def plan(self) -> Plan:
        """Return the plan whose trials they are of; raises one of `UNREADABLE` for a damaged file."""
        return Plan.from_json(self.plan_path.read_text(encoding="utf-8"))

    def trials(self, checks: Sequence[Check]) -> pd.DataFrame:
        """Return what *checks* are told by; raises one of `UNREADABLE` for a damaged file."""
        columns = columns_of(checks, pq.read_schema(self.path).names)
        return pq.read_table(self.path, columns=columns).to_pandas()


def materialised(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str) -> Iterator[Materialised]:
    """Yield the results of a partition, newest first."""
    wanted = dg.AssetRecordsFilter(asset_key=key, asset_partitions=[partition])
    cursor: str | None = None
    while True:
        page = instance.fetch_materializations(wanted, limit=_PAGE, cursor=cursor)
        for record in page.records:
            if found := Materialised.read(record):
                yield found
        if not page.has_more:
            return
        cursor = page.cursor


def find_baseline(
    instance: dg.DagsterInstance, folder: Path, newest: Materialised, key: dg.AssetCheckKey, check: NoRegression
) -> Baseline | NotLookedAt | str:
    """Return the newest earlier results that *newest* is held against, or why there are none.

    They asked the same, *check* has not failed them, and they are others: results that are materialised again, as by a
    retry, are no standard for themselves, so what the check says of them stays. Data sets are looked for in *folder*.
    Raises `DspexError` where the plan of *newest* cannot be read.
    """
    try:
        plan = newest.plan()
    except UNREADABLE as error:
        raise damaged(newest.plan_path, error) from error
    failed = _failed(instance, key, plan.partition)
    why = "there are no earlier results"
    looked_at: set[Path] = set()
    for one in materialised(instance, key.asset_key, plan.partition):
        if one.storage_id >= newest.storage_id or one.path == newest.path:
            continue
        if not (one.path.exists() and one.plan_path.exists()):
            why = "the earlier results have been deleted"
            continue
        if one.path not in looked_at and len(looked_at) == MOST:
            return NotLookedAt(
                why=f"of the newest {MOST:,} earlier results none will do ({why}), and older ones are not looked at",
                fix="`dspex journal prune --results TARGET` deletes earlier results: what then passes is the standard",
            )
        looked_at.add(one.path)
        try:
            found = _held(folder, one, plan, check, failed)
        except UNREADABLE:
            found = "the earlier results are damaged"
        if isinstance(found, Baseline):
            return found
        why = found
    return why


def _held(folder: Path, one: Materialised, plan: Plan, check: NoRegression, failed: AbstractSet[int]) -> Baseline | str:
    """Return earlier results as what those of *plan* are held against, or why they cannot be."""
    earlier = one.plan()
    if earlier.question != plan.question:
        return "earlier results are of another limit or seed, or of other configurations or repeats"
    if (judge := _metric(earlier, check)) is None:
        return f"earlier results have no scores of {check.metric}"
    if one.storage_id in failed:
        return "this check has failed all earlier results"
    if not _is_kept(folder, earlier, plan):
        return "the data set has changed, and what it was is deleted"
    trials = one.trials([check])
    if lacks_scores(trials, check.metric):
        return f"earlier results have no scores of {check.metric}"
    return Baseline(
        trials=trials,
        run_id=one.run_id,
        unchanged=_unchanged(folder, earlier, plan),
        metric_changed=judge != _metric(plan, check),
    )


def _metric(plan: Plan, check: NoRegression) -> MetricSpec | None:
    name = check.metric.partition(".")[0]
    return next((metric for metric in plan.metrics if metric.name == name), None)


def _failed(instance: dg.DagsterInstance, key: dg.AssetCheckKey, partition: str) -> set[int]:
    """Return the storage ids of the materialisations of which the check has last said that they fail."""
    passed: dict[int, bool] = {}
    history = instance.event_log_storage.get_asset_check_execution_history
    cursor: int | None = None
    while records := history(key, limit=_VERDICTS, cursor=cursor, partition_filter=PartitionKeyFilter(key=partition)):
        for record in records:
            event = record.event.dagster_event if record.event else None
            told = event.event_specific_data if event else None
            if isinstance(told, dg.AssetCheckEvaluation) and told.target_materialization_data:
                passed.setdefault(told.target_materialization_data.storage_id, told.passed)
        cursor = records[-1].id
    return {storage_id for storage_id, held in passed.items() if not held}


def _is_kept(folder: Path, *plans: Plan) -> bool:
    """Return whether it can be told which examples the plans have in common."""
    digests = {plan.dataset_digest for plan in plans}
    return len(digests) == 1 or all((folder / f"{digest}.parquet").exists() for digest in digests)


def _unchanged(folder: Path, earlier: Plan, plan: Plan) -> frozenset[str] | None:
    """Return the ids of the examples whose content is the same in both; None where all of it is."""
    if earlier.dataset_digest == plan.dataset_digest:
        return None
    before, now = (
        pq.read_table(folder / f"{one.dataset_digest}.parquet", columns=_CONTENT).to_pandas() for one in (earlier, plan)
    )
    return frozenset(before.merge(now, on=_CONTENT)["example_id"])
