"""Reads a declared data set into examples, and keeps each as an immutable file named by its digest."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.errors import DspexError, InvalidValue, SerializationError
from dspex_pipelines.model.evaluation import Dataset, Row
from dspex_pipelines.model.payload import decode, digest, encode
from dspex_pipelines.model.trial import Example
from dspex_pipelines.orchestration.sources import BadRow, NumberedRow, as_text, partition_of, read_rows

_TOLD = 10
"""Bad rows that an error names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPartition:
    """What a source has for a partition."""

    examples: list[Example]
    rejected: list[BadRow]
    """Rows that are left out."""
    elsewhere: Counter[str]
    """What the rows say that are in no partition at all, and how many say it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """One partition's examples as written: `digest` is of their content, in order."""

    path: Path
    digest: str
    rows: int


class TooManyBadRows(InvalidValue):
    """More rows of a partition are bad than may be; `rejected` are all of them."""

    def __init__(self, rejected: Sequence[BadRow], *, rows: int, allowed: int) -> None:
        first = rejected[0]
        super().__init__(field=first.field, value=first.value, fix=first.fix)
        self.rejected = rejected
        if len(rejected) > 1:
            told = [one.reason for one in rejected[:_TOLD]]
            more = [f"and {len(rejected) - _TOLD:,} more"] if len(rejected) > _TOLD else []
            what = f"{len(rejected):,} of {rows:,} rows are bad, and at most {allowed:,} may be (dataset.max_bad_rows):"
            self.args = ("\n".join([what, *told, *more]),)


def read_partition(dataset: Dataset, partition: str, given: object = None) -> ReadPartition:
    """Return the examples of *partition* in the source's order, and what was left out.

    *given* is the value of an upstream asset. Raises `InvalidValue` for a source that cannot be read and a partition
    without rows, and `TooManyBadRows`, which names row, column and fix: a missing column, an empty input, a
    value that is not a number or cannot be sent to a worker, a missing or repeated id.
    """
    read = ReadPartition(examples=[], rejected=[], elsewhere=Counter())
    found: set[str] = set()
    seen: set[str] = set()
    for one in read_rows(dataset, partition, given):
        if isinstance(one, NumberedRow) and dataset.partition_by and dataset.partition_by in one.row:
            name = partition_of(dataset, one.row)
            found.add(name)
            if not _is_partition(dataset, name):
                read.elsewhere[str(one.row[dataset.partition_by])] += 1
            if name != partition:
                continue
        example = one if isinstance(one, BadRow) else _example(dataset, one, seen)
        if isinstance(example, BadRow):
            read.rejected.append(example)
        else:
            seen.add(example.example_id)
            read.examples.append(example)
    rows = len(read.examples) + len(read.rejected)
    allowed = int(dataset.max_bad_rows if dataset.max_bad_rows >= 1 else dataset.max_bad_rows * rows)
    if len(read.rejected) > allowed or (read.rejected and not read.examples):
        raise TooManyBadRows(read.rejected, rows=rows, allowed=allowed)
    if not rows:
        there = "the source is empty"
        if dataset.partition_by:
            there = f"column {dataset.partition_by!r} has {', '.join(sorted(found - {''})) or 'no values'}"
        raise InvalidValue(field="partition", value=partition, fix=f"it has no examples; {there}")
    return read


def _is_partition(dataset: Dataset, name: str) -> bool:
    return name in dataset.partitions if isinstance(dataset.partitions, tuple) else bool(name)


def _example(dataset: Dataset, one: NumberedRow, seen: set[str]) -> Example | BadRow:
    """Return the row as an example, or what is wrong with it."""
    row = one.row

    def bad(column: str, value: object, fix: str) -> BadRow:
        return BadRow(where=one.where, column=column, value=value, fix=fix, content=as_text(row))

    needed = (*dataset.inputs, *dataset.labels, dataset.example_id, dataset.group, dataset.partition_by)
    for name in needed:
        if name and name not in row:
            return bad(name, None, f"the columns are {', '.join(row)}")
    for name in dataset.inputs:
        if row[name] is None or row[name] == "" or _is_nan(row[name]):
            return bad(name, row[name], "give every example its input")
    for name in dataset.labels:
        if _is_nan(row[name]):
            return bad(name, row[name], "give a number, or null for no label")
    example_id = _text(row[dataset.example_id]) if dataset.example_id else one.number
    if not example_id or example_id in seen:
        return bad(dataset.example_id, example_id, "give each example an id of its own")
    example = Example(
        example_id=example_id,
        inputs={name: row[name] for name in dataset.inputs},
        labels={name: row[name] for name in dataset.labels},
        group=_text(row[dataset.group]) if dataset.group else "",
    )
    try:
        _ = example.payload
    except SerializationError as error:
        return next(
            (
                bad(name, row[name], why)
                for name in (*dataset.inputs, *dataset.labels)
                if (why := _unsendable(row, name))
            ),
            bad("", example_id, error.reason),
        )
    return example


def _unsendable(row: Row, name: str) -> str:
    try:
        encode(row[name])
    except SerializationError as error:
        return error.reason
    return ""


def _text(value: object) -> str:
    return "" if value is None or _is_nan(value) else str(value)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def store_examples(examples: Sequence[Example], folder: Path) -> StoredDataset:
    """Write *examples* to ``<folder>/<digest>.parquet``, renamed into place; a file there is kept."""
    content = digest(*(example.payload for example in examples)).hex()
    path = folder / f"{content}.parquet"
    if not path.exists():
        table = pa.table(
            {
                "example_id": [example.example_id for example in examples],
                "group": [example.group for example in examples],
                "inputs": [as_text(example.inputs) for example in examples],
                "labels": [as_text(example.labels) for example in examples],
                "payload": pa.array([example.payload for example in examples], pa.binary()),
            }
        )
        write_table(table, path)
    return StoredDataset(path=path, digest=content, rows=len(examples))


def store_rejected(rejected: Sequence[BadRow], folder: Path, content: str = "") -> Path:
    """Write the rows that were left out of the data set with digest *content*, or of none; return where they are."""
    told = [(one.where, one.column, one.reason, one.content) for one in rejected]
    own = digest(*("\0".join(one).encode(errors="replace") for one in told)).hex()
    path = folder / f"{content or own}.rejected-{own}.parquet"
    if not path.exists():
        names = ("row", "column", "reason", "content")
        columns = zip(*told, strict=True)
        write_table(pa.table({name: pa.array(column) for name, column in zip(names, columns, strict=True)}), path)
    return path


def load_examples(folder: Path, content: str, *, limit: int | None) -> list[Example]:
    """Return the first *limit* examples of the data set with that digest; raises when it is gone."""
    path = folder / f"{content}.parquet"
    if not path.exists():
        raise DspexError(f"{path} is gone; materialise the data set asset again")
    payloads = cast("list[bytes]", pq.read_table(path, columns=["payload"])["payload"].to_pylist())
    examples: list[Example] = []
    for payload in payloads[:limit]:
        example_id, inputs, labels, group, metadata = cast("list[Any]", decode(payload))
        examples.append(Example(example_id=example_id, inputs=inputs, labels=labels, group=group, metadata=metadata))
    return examples


def write_table(table: Any, path: Path) -> None:
    """Write Parquet beside *path* and rename it into place, so that nobody sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    pq.write_table(table, unfinished)
    unfinished.replace(path)
