"""The partitions that an evaluation's data set and results share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

import dagster as dg

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Evaluation, Upstream
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.orchestration.data.sources import files_left_out, source_digests

_TOLD = 10
"""Files that an error names."""
_DATES = {
    "day": dg.DailyPartitionsDefinition,
    "week": dg.WeeklyPartitionsDefinition,
    "month": dg.MonthlyPartitionsDefinition,
}


def partitions_def(evaluation: Evaluation) -> dg.PartitionsDefinition[str]:
    """Return the partitions as Dagster knows them; dynamic ones are named ``<name>_partitions`` in the instance.

    The period that has begun counts too, though it is not over.
    """
    match evaluation.dataset.partitions:
        case Dynamic():
            return dynamic_partitions(evaluation)
        case Dates(start=start, every=every):
            return _dates(every, start)
        case names:
            return dg.StaticPartitionsDefinition(list(names))


def backfill_policy(evaluation: Evaluation) -> dg.BackfillPolicy:
    """Return how many partitions a run of a backfill takes."""
    most = evaluation.partitions_per_run
    return dg.BackfillPolicy.multi_run(most) if most else dg.BackfillPolicy.single_run()


def version_of(versions: Mapping[str, str]) -> dg.DataVersion:
    """Return the data version of a run's partitions: the only one's, or a digest; Dagster has one for all of them."""
    if len(versions) == 1:
        return dg.DataVersion(next(iter(versions.values())))
    return dg.DataVersion(digest_of(dict(versions)).hex())


def dynamic_partitions(evaluation: Evaluation) -> dg.DynamicPartitionsDefinition:
    """Return the set of partitions that grows with the data."""
    return dg.DynamicPartitionsDefinition(name=f"{evaluation.name}_partitions")


@cache
def _dates(every: str, start: str) -> dg.TimeWindowPartitionsDefinition:
    return _DATES[every](start_date=start, end_offset=1)


def known_partitions(evaluation: Evaluation, instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Return the names of all partitions that the instance knows of."""
    given = evaluation.dataset.partitions
    if isinstance(given, tuple):
        return given
    return tuple(partitions_def(evaluation).get_partition_keys(dynamic_partitions_store=instance))


def present_partitions(evaluation: Evaluation, instance: dg.DagsterInstance) -> tuple[str, ...]:
    """Return the partitions that the source has now, those that are new made known to the instance.

    Raises `InvalidValue` where it has none, or cannot be read.
    """
    source = evaluation.dataset.source
    if isinstance(source, Upstream):
        fix = f"only Dagster loads it; materialise {evaluation.name}/dataset and {evaluation.name}/evaluation there"
        raise InvalidValue(field="dataset.source", value=source.asset, fix=fix)
    found = tuple(source_digests(evaluation.dataset))
    if not found:
        why = "".join(f"; {what}" for what in list(files_left_out(evaluation.dataset).values())[:_TOLD])
        raise InvalidValue(field="dataset.source", value=str(source), fix=f"it has no partition yet{why}")
    add_partitions(evaluation, instance, found)
    return found


def add_partitions(evaluation: Evaluation, instance: dg.DagsterInstance, names: Sequence[str]) -> tuple[str, ...]:
    """Make dynamic partitions known to the instance; return those that are new to it."""
    if not isinstance(evaluation.dataset.partitions, Dynamic):
        return ()
    definition = dynamic_partitions(evaluation)
    known = set(definition.get_partition_keys(dynamic_partitions_store=instance))
    new = tuple(name for name in names if name not in known)
    if new:
        instance.add_dynamic_partitions(str(definition.name), list(new))
    return new
