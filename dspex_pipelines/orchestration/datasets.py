"""Reads a declared data set into examples, and keeps each as an immutable file named by its digest."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.errors import DspexError, InvalidValue, SerializationError
from dspex_pipelines.model.evaluation import Dataset, Row
from dspex_pipelines.model.payload import decode, digest, encode
from dspex_pipelines.model.trial import Example

_READERS = (".csv", ".jsonl", ".parquet")
_TOO_MANY = "\0"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDataset:
    """One partition's examples as written: `digest` is of their content, in order."""

    path: Path
    digest: str
    rows: int


def read_examples(dataset: Dataset, partition: str) -> list[Example]:
    """Return the examples of *partition* in the source's order.

    Raises `InvalidValue` naming the row, the column and the fix: a missing column, an empty input, a value
    that is not a number or cannot be sent to a worker, a missing or repeated id, or a partition without rows.
    """
    examples: list[Example] = []
    seen: set[str] = set()
    found: set[str] = set()
    for number, row in enumerate(_rows(dataset), start=1):
        where = f"dataset row {number}"
        if dataset.partition_by:
            value = _text(row, dataset.partition_by, where)
            found.add(value)
            if value != partition:
                continue
        inputs = {name: _cell(row, name, where) for name in dataset.inputs}
        labels = {name: _cell(row, name, where) for name in dataset.labels}
        for name, value in inputs.items():
            if value is None or value == "" or _is_nan(value):
                raise InvalidValue(field=f"{where}, column {name!r}", value=value, fix="give every example its input")
        for name, value in labels.items():
            if _is_nan(value):
                raise InvalidValue(
                    field=f"{where}, column {name!r}", value=value, fix="give a number, or null for no label"
                )
        example_id = _text(row, dataset.example_id, where) if dataset.example_id else str(number)
        if not example_id or example_id in seen:
            raise InvalidValue(
                field=f"{where}, column {dataset.example_id!r}",
                value=example_id,
                fix="give each example an id of its own",
            )
        seen.add(example_id)
        group = _text(row, dataset.group, where) if dataset.group else ""
        example = Example(example_id=example_id, inputs=inputs, labels=labels, group=group)
        _check_sendable(example, where)
        examples.append(example)
    if not examples:
        there = f"column {dataset.partition_by!r} has {', '.join(sorted(found)) or 'no values'}"
        raise InvalidValue(
            field="partition",
            value=partition,
            fix=f"it has no examples; {there if dataset.partition_by else 'the source is empty'}",
        )
    return examples


def store_examples(examples: Sequence[Example], folder: Path) -> StoredDataset:
    """Write *examples* to ``<folder>/<digest>.parquet``, renamed into place; a file there is kept."""
    content = digest(*(example.payload for example in examples)).hex()
    path = folder / f"{content}.parquet"
    if not path.exists():
        table = pa.table(
            {
                "example_id": [example.example_id for example in examples],
                "group": [example.group for example in examples],
                "inputs": [_readable(example.inputs) for example in examples],
                "labels": [_readable(example.labels) for example in examples],
                "payload": pa.array([example.payload for example in examples], pa.binary()),
            }
        )
        write_table(table, path)
    return StoredDataset(path=path, digest=content, rows=len(examples))


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


def _rows(dataset: Dataset) -> Iterator[Row]:
    source = dataset.source
    if not isinstance(source, Path):
        yield from source()
        return
    try:
        yield from _read(source)
    except InvalidValue:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidValue(field="dataset.source", value=str(source), fix=f"it cannot be read: {error}") from error


def _read(source: Path) -> Iterator[Row]:
    if source.suffix not in _READERS:
        raise InvalidValue(
            field="dataset.source", value=str(source), fix=f"give a file that ends in {', '.join(_READERS)}"
        )
    if not source.exists():
        raise InvalidValue(field="dataset.source", value=str(source), fix=f"there is no such file in {Path.cwd()}")
    if source.suffix == ".parquet":
        for batch in pq.ParquetFile(source).iter_batches():
            yield from cast("list[Row]", batch.to_pylist())
        return
    with source.open(encoding="utf-8-sig", newline="") as file:
        if source.suffix == ".csv":
            for number, cells in enumerate(csv.DictReader(file, restkey=_TOO_MANY), start=1):
                if _TOO_MANY in cells:
                    raise InvalidValue(
                        field=f"dataset row {number}",
                        value=cells[_TOO_MANY],
                        fix="the row has more cells than the header; put quotes around cells with commas",
                    )
                yield cells
            return
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise InvalidValue(
                        field=f"dataset.source line {number}", value=line, fix=f"write JSON: {error}"
                    ) from error
                if not isinstance(row, dict):
                    raise InvalidValue(field=f"dataset.source line {number}", value=line, fix="write a JSON object")
                yield cast("Row", row)


def _cell(row: Row, column: str, where: str) -> Any:
    if column not in row:
        raise InvalidValue(field=f"{where}, column {column!r}", value=None, fix=f"the columns are {', '.join(row)}")
    return row[column]


def _text(row: Row, column: str, where: str) -> str:
    value = _cell(row, column, where)
    return "" if value is None or _is_nan(value) else str(value)


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _check_sendable(example: Example, where: str) -> None:
    try:
        _ = example.payload
    except SerializationError:
        for name, value in (*example.inputs.items(), *example.labels.items()):
            try:
                encode(value)
            except SerializationError as error:
                raise InvalidValue(field=f"{where}, column {name!r}", value=value, fix=error.reason) from error
        raise


def _readable(values: Mapping[str, Any]) -> str:
    return json.dumps(values, default=str, ensure_ascii=False)
