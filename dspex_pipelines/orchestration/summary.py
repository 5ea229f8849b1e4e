"""What the UI shows of an evaluated partition."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow.compute
import pyarrow.parquet as pq

from dspex_pipelines.analysis.failures import failure_kinds
from dspex_pipelines.analysis.results import column_meanings
from dspex_pipelines.errors import NOT_REUSED
from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.usage import UNPRICED, Usage, model_of
from dspex_pipelines.orchestration.tags import PARTIAL

SAMPLES = 20
MESSAGE_LENGTH = 200
USAGE = "usage."
BY_TYPE = "failures by type"
"""Metadata entry: kinds of failures, the most frequent first."""
NOT_COUNTED = "not counted"
"""Metadata entry: which calls are in no sum, and what to do about it."""
_OF_FAILURES = ["trial_id", "example_id", "error_type", "error_message"]
_WHAT = "of all trials here, reused ones too"
_POOL = {
    _WHAT: "",
    "in all": "of all trials together",
    "median": "half of the trials had no more",
    "95th percentile": "19 of 20 trials had no more",
    "most": "of any one trial",
}
_OF_TRIALS = {
    "attempts": "attempts",
    "queue_s": "time in the queue",
    "run_s": "time running",
    "throttled_s": "time throttled",
}
_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))


class TrialsFile:
    """An evaluated partition's file: one of its columns is in memory at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        metadata = pq.read_metadata(path)
        self.num_rows: int = metadata.num_rows
        self.schema: Any = metadata.schema.to_arrow_schema()
        self.column_names: list[str] = self.schema.names

    def __getitem__(self, name: str) -> Any:
        """Return a column."""
        return pq.read_table(self._path, columns=[name])[name]

    def failed(self) -> Any:
        """Return what is told of the trials that have failed, those that were not run included."""
        return pq.read_table(self._path, columns=_OF_FAILURES, filters=[("status", "!=", "ok")])


def trials_metadata(
    plan: Plan, table: TrialsFile, *, ran: int, rescored: int, elapsed_s: float, stopped: str
) -> Mapping[str, dg.MetadataValue]:
    """Return counts, versions, and a sample of failures; bounded whatever the number of trials.

    *elapsed_s* is how long the steps took that ran so many.
    """
    compute: Any = pyarrow.compute  # its functions are made at run time
    failed = table.failed()
    not_run = compute.sum(compute.equal(failed["error_type"], ErrorType.BUDGET_EXHAUSTED.value)).as_py() or 0
    meanings = column_meanings(plan, table.column_names)
    columns = [dg.TableColumn(one.name, str(one.type), meanings[one.name] or None) for one in table.schema]
    metadata: dict[str, dg.MetadataValue] = {
        "dagster/partition_row_count": dg.MetadataValue.int(table.num_rows),
        "configurations": dg.MetadataValue.int(len(plan.configurations)),
        "examples": dg.MetadataValue.int(plan.rows),
        "failures": dg.MetadataValue.int(failed.num_rows),
        "failure rate": dg.MetadataValue.float(
            round((failed.num_rows - not_run) / max(1, table.num_rows - not_run), 6)
        ),
        "trials run": dg.MetadataValue.int(ran),
        "trials scored again": dg.MetadataValue.int(rescored),
        "trials reused": dg.MetadataValue.int(table.num_rows - ran - rescored - not_run),
        "plan": dg.MetadataValue.text(plan.likeness),
        "plan digest": dg.MetadataValue.text(plan.digest),
        "dataset digest": dg.MetadataValue.text(plan.dataset_digest),
        "program version": dg.MetadataValue.text(plan.program.version),
        "dagster/column_schema": dg.MetadataValue.table_schema(dg.TableSchema(columns=columns)),
    }
    if ran and elapsed_s:
        metadata["trials/s"] = dg.MetadataValue.float(round(ran / elapsed_s, 3))
    if not_run:
        what = f"{not_run:,} of {table.num_rows:,} trials were not run: {stopped}. {how_to_go_on(plan)}"
        metadata[PARTIAL] = dg.MetadataValue.text(what)
    for name in table.column_names:
        if name.startswith("score."):
            mean = compute.mean(table[name]).as_py()
            if mean is not None:
                metadata[f"mean {name.removeprefix('score.')}"] = dg.MetadataValue.float(round(mean, 6))
    failed = failed.filter(compute.not_equal(failed["error_type"], ErrorType.BUDGET_EXHAUSTED.value))
    if failed.num_rows:
        metadata["sample failures"] = dg.MetadataValue.md(_failures(failed.slice(0, SAMPLES), plan.evaluation))
        metadata[BY_TYPE] = _failures_by_type(failed)
    metadata["pool"] = _pool_table(table)
    return metadata


def how_to_go_on(plan: Plan) -> str:
    """Return what to do about a run that has stopped: what one that reuses nothing has done is its own."""
    return f"{NOT_REUSED.capitalize()}." if plan.generation else "Evaluate it again to go on."


def hedging_metadata(hedged: int, won: int) -> Mapping[str, dg.MetadataValue]:
    """Return how many of the trials that were run had a second copy, and of how many it answered first."""
    return {"trials hedged": dg.MetadataValue.int(hedged), "hedges won": dg.MetadataValue.int(won)}


def usage_metadata(table: TrialsFile, spent: Usage, budget: Budget) -> Mapping[str, dg.MetadataValue]:
    """Return numbers that the UI plots: what the results have used, and what this run has spent on them.

    By model only where there are several. *spent* is less than what they have used where outcomes were reused.
    """
    compute: Any = pyarrow.compute
    sums = {name: float(compute.sum(table[name]).as_py() or 0.0) for name in table.column_names if _is_usage(name)}
    used = Usage(
        amounts={name.removeprefix(USAGE): amount for name, amount in sums.items() if name.startswith(USAGE)},
        run_s=sums["run_s"],
        throttled_s=sums["throttled_s"],
    )
    several = len(used.models) > 1
    metadata: dict[str, dg.MetadataValue] = {
        f"used {name}": dg.MetadataValue.float(amount)
        for name, amount in used.amounts.items()
        if several or not model_of(name)
    }
    if used.called:
        # There at each materialisation, so that the plots have no gaps.
        for name in ("retried_calls", UNPRICED):
            metadata.setdefault(f"used {name}", dg.MetadataValue.float(0.0))
        metadata["throttled share"] = dg.MetadataValue.float(round(used.throttled_share, 6))
        for name in ("calls", "tokens", "cost_usd"):
            if name in used.amounts:
                metadata[f"spent {name}"] = dg.MetadataValue.float(float(spent.amounts.get(name, 0.0)))
    if warnings := used.warnings(budget):
        metadata[NOT_COUNTED] = dg.MetadataValue.md("\n".join(f"- {what}" for what in warnings.values()))
    return metadata


def _is_usage(column: str) -> bool:
    return column.startswith(USAGE) or column in ("run_s", "throttled_s")


def _failures(failed: Any, evaluation: str) -> str:
    lines = ["| trial | example | type | message |", "|---|---|---|---|"]
    rows = failed.to_pylist()
    for row in rows:
        message = str(row["error_message"])[:MESSAGE_LENGTH].replace("\n", " ").replace("|", "\\|")
        lines.append(f"| {row['trial_id'][:12]} | {row['example_id']} | {row['error_type']} | {message} |")
    first = rows[0]["trial_id"][:12]
    return "\n".join([*lines, "", f"Run one again, alone: `dspex replay {first} {evaluation}`"])


def most_failures(metadata: Mapping[str, dg.MetadataValue]) -> str:
    """Return how many trials have failed, by `trials_metadata`, and as what the most; empty where none has."""
    kinds = metadata.get(BY_TYPE)
    if not isinstance(kinds, dg.TableMetadataValue):
        return ""
    first = kinds.records[0].data
    count = sum(int(str(record.data["trials"])) for record in kinds.records)
    most = "all" if len(kinds.records) == 1 else f"{first['trials']:,}"
    return f"{count:,} failed, {most} as {first['type']}: {first['most say']}"


def _failures_by_type(failed: Any) -> dg.MetadataValue:
    kinds = failure_kinds(failed.select(["error_type", "error_message"]).to_pandas())
    records = [
        dg.TableRecord({"type": kind.type, "trials": kind.count, "most say": kind.said[:MESSAGE_LENGTH]})
        for kind in kinds
    ]
    columns = [
        dg.TableColumn("type", "string", "one of a closed set"),
        dg.TableColumn("trials", "int"),
        dg.TableColumn("most say", "string", "first line of the commonest message, and of how many where not of all"),
    ]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))


def _pool_table(table: TrialsFile) -> dg.MetadataValue:
    """Return what the pool did for the results, whichever run it did it in."""
    compute: Any = pyarrow.compute
    rows = [{_WHAT: "workers that answered", "in all": f"{compute.count_distinct(table['worker']).as_py():,}"}]
    for column, what in _OF_TRIALS.items():
        shown = "{:,.0f}".format if column == "attempts" else _seconds
        values = table[column]
        found = [compute.sum(values).as_py(), *compute.quantile(values, q=[0.5, 0.95, 1.0]).to_pylist()]
        texts = ("–" if one is None else shown(one) for one in found)
        rows.append({_WHAT: what, **dict(zip(list(_POOL)[1:], texts, strict=True))})
    records = [dg.TableRecord({name: row.get(name, "") for name in _POOL}) for row in rows]
    columns = [dg.TableColumn(name, "string", text or None) for name, text in _POOL.items()]
    return dg.MetadataValue.table(records, dg.TableSchema(columns=columns))


def _seconds(value: float) -> str:
    """Return seconds in the unit that they are read in."""
    size, unit = next((one for one in _UNITS if value >= one[0] or not value), _UNITS[-1])
    return f"{value / size:,.0f} {unit}" if value >= 100 * size else f"{value / size:.3g} {unit}"
