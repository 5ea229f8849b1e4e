"""Reads a declared data set into examples, and keeps each as an immutable file named by its digest."""

from __future__ import annotations

import csv
import io
from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any, overload

import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.errors import DspexError, InvalidValue, SerializationError
from dspex_pipelines.model.evaluation import Dataset, Row
from dspex_pipelines.model.payload import canonical, decode, digest, digest_each
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.trial import Example
from dspex_pipelines.orchestration.data.rows import BadRow, NumberedRow, as_text, is_missing, read_file, tellable
from dspex_pipelines.orchestration.data.sources import (
    files_left_out,
    is_partition,
    partition_of,
    read_rows,
    source_files,
)
from dspex_pipelines.wire.codec import example_from_wire
from dspex_pipelines.wire.durable import durably

_TOLD = 10
"""Bad rows that an error names."""
_NAMED = 20
"""Partitions that an error names."""
GROUP_ROWS = 2_000
GROUP_BYTES = 4_000_000
"""A row group of a data set's file has at most so many examples, and of several at most so many bytes."""
KEPT_BYTES = 64_000_000
"""So much of a data set that is gone over again stays in memory, each value counted twice as it is encoded: as it is,
many small ones take several times that. What was read first stays: of a larger data set nothing of what was read last
is wanted next."""
_EXAMPLE_BYTES = 1_000
"""What an example takes in memory besides its values."""
_SCHEMA = pa.schema(
    {
        "example_id": pa.string(),
        "group": pa.string(),
        "inputs": pa.string(),
        "labels": pa.string(),
        "payload": pa.binary(),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPartition:
    """What a source has for a partition."""

    examples: list[Example]
    rejected: list[BadRow]
    """Rows that are left out."""
    elsewhere: Counter[str]
    """What the rows say that are in no partition at all, and how many say it."""
    unlabelled: dict[str, tuple[int, str]] = field(default_factory=dict[str, tuple[int, str]])
    """How many examples have an empty cell for a label, and where the first is, by the label."""

    @property
    def doubts(self) -> list[tuple[str, str]]:
        """What is said of examples that are taken as they are and may not be meant so, and what to do."""
        total, fix = len(self.examples), "where no empty answer is expected, give the label or leave the row out"

        def said(label: str, count: int, first: str) -> str:
            have = "has" if count == 1 else "have"
            return f"{count:,} of {total:,} examples {have} an empty label in column {label!r}, the first in {first}"

        return [(said(label, *found), fix) for label, found in self.unlabelled.items()]


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

    *given* is the value of an upstream asset. Raises `InvalidValue` for a source that cannot be read or lacks a column
    and for a partition without rows, and `TooManyBadRows`, which names row, column and fix: an empty input, a value
    that is not a number or cannot be sent to a worker, a missing or repeated id.
    """
    ((_, read),) = read_partitions(dataset, [partition], given)
    if isinstance(read, InvalidValue):
        raise read
    return read


def read_partitions(
    dataset: Dataset, partitions: Sequence[str], given: object = None
) -> Iterator[tuple[str, ReadPartition | InvalidValue]]:
    """Yield of each of *partitions* what `read_partition` returns or raises; the source is read once for all of them.

    Raises `InvalidValue` for a source that cannot be read at all.
    """
    if dataset.a_partition_is_a_file:
        files = {file.stem: file for file in source_files(dataset)}
        left_out = files_left_out(dataset)
        for name in partitions:
            there = left_out.get(name, "the source is empty" if name in files else "there is no file of that name")
            try:
                rows = read_file(dataset, files[name]) if name in files else iter(())
                yield name, _verdict(dataset, name, _divided(dataset, [name], rows)[name], there)
            except InvalidValue as error:
                yield name, error
        return
    found: set[str] = set()
    divided = _divided(dataset, partitions, read_rows(dataset, given), found)
    there = "the source is empty"
    if dataset.partition_by:
        names = sorted(found - {""})
        more = [f"and {len(names) - _NAMED:,} more"] if len(names) > _NAMED else []
        there = f"column {dataset.partition_by!r} has {', '.join([*names[:_NAMED], *more]) or 'no values'}"
    for name in partitions:
        yield name, _verdict(dataset, name, divided[name], there)


def _divided(
    dataset: Dataset, partitions: Sequence[str], rows: Iterable[NumberedRow | BadRow], found: set[str] | None = None
) -> dict[str, ReadPartition]:
    """Return the rows by partition, a bad one in all that it may belong to; *found* gets the names that rows say."""
    elsewhere: Counter[str] = Counter()
    divided = {name: ReadPartition(examples=[], rejected=[], elsewhere=elsewhere) for name in partitions}
    seen: dict[str, dict[str, str]] = {name: {} for name in partitions}
    known: dict[str, bool] = {}
    for one in rows:
        names: Sequence[str] = partitions
        if isinstance(one, NumberedRow) and dataset.partition_by and dataset.partition_by in one.row:
            name = partition_of(dataset, one.row)
            if name not in known:
                known[name] = is_partition(dataset, name)
            if not known[name]:
                elsewhere[str(one.row[dataset.partition_by])] += 1
            names = (name,) if name in divided else ()
        for name in names:
            example = one if isinstance(one, BadRow) else _example(dataset, one, seen[name])
            if isinstance(example, BadRow):
                divided[name].rejected.append(example)
            else:
                seen[name][example.example_id] = one.where
                divided[name].examples.append(example)
                for label in dataset.labels if isinstance(one, NumberedRow) and one.of_cells else ():
                    if example.labels[label] == "":
                        count, first = divided[name].unlabelled.get(label, (0, one.where))
                        divided[name].unlabelled[label] = count + 1, first
    if found is not None:
        found.update(known)
    return divided


def _verdict(dataset: Dataset, partition: str, read: ReadPartition, there: str) -> ReadPartition | InvalidValue:
    """Return what was read, or why it cannot be used; *there* is what the source has instead."""
    rows = len(read.examples) + len(read.rejected)
    allowed = int(dataset.max_bad_rows if dataset.max_bad_rows >= 1 else dataset.max_bad_rows * rows)
    if len(read.rejected) > allowed or (read.rejected and not read.examples):
        return TooManyBadRows(read.rejected, rows=rows, allowed=allowed)
    if not rows:
        return InvalidValue(field="partition", value=partition, fix=f"it has no examples; {there}")
    return read


def _example(dataset: Dataset, one: NumberedRow, seen: Mapping[str, str]) -> Example | BadRow:
    """Return the row as an example, or what is wrong with it; *seen* says where each id of a row before it is."""
    row = one.row

    def bad(column: str, value: object, fix: str) -> BadRow:
        return BadRow(where=one.where, column=column, value=tellable(value), fix=fix, content=as_text(row))

    needed = (*dataset.inputs, *dataset.labels, dataset.example_id, dataset.group, dataset.partition_by)
    for name in needed:
        if name and name not in row:
            return bad(name, None, f"the columns are {', '.join(map(str, row))}")
    for name in dataset.inputs:
        if is_missing(row[name]) or (isinstance(row[name], str) and not row[name]):
            return bad(name, row[name], "give every example its input")
    for name in dataset.labels:
        if row[name] is not None and is_missing(row[name]):
            return bad(name, row[name], "give a number, or null for no label")
    example_id = _text(row[dataset.example_id]) if dataset.example_id else one.number
    if not example_id or example_id in seen:
        twice = f"{seen.get(example_id)} has it already; give each an id of its own"
        return bad(dataset.example_id, example_id, twice if example_id else "give every example an id")
    example = Example(
        example_id=example_id,
        inputs={name: row[name] for name in dataset.inputs},
        labels={name: row[name] for name in dataset.labels},
        group=_text(row[dataset.group]) if dataset.group else "",
    )
    try:
        if any(isinstance(row[name], Mapping | list | tuple) for name in (*dataset.inputs, *dataset.labels)):
            # What is packed may be what nobody unpacks.
            decode(example.payload)
            _ = example.digest
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
        decode(canonical(row[name]))
    except SerializationError as error:
        return error.reason
    return ""


def _text(value: object) -> str:
    return "" if is_missing(value) else str(value)


def store_examples(examples: Sequence[Example], folder: Path) -> StoredDataset:
    """Write *examples* to ``<folder>/<digest>.parquet``, renamed into place; a whole file there is kept."""
    content = digest_each(example.payload for example in examples).hex()
    path = folder / f"{content}.parquet"
    if not _has_content(path, content):
        folder.mkdir(parents=True, exist_ok=True)
        with durably(path) as file, pq.ParquetWriter(file, _SCHEMA) as writer:
            for group in _row_groups(examples):
                rows = [
                    [
                        example.example_id,
                        example.group,
                        as_text(example.inputs),
                        as_text(example.labels),
                        example.payload,
                    ]
                    for example in group
                ]
                columns = zip(_SCHEMA, zip(*rows, strict=True), strict=True)
                writer.write_table(
                    pa.table([pa.array(values, field.type) for field, values in columns], schema=_SCHEMA)
                )
    return StoredDataset(path=path, digest=content, rows=len(examples))


def _row_groups(examples: Iterable[Example]) -> Iterator[list[Example]]:
    """Yield the examples in as many as are read at a time."""
    group: list[Example] = []
    size = 0
    for example in examples:
        if group and (len(group) == GROUP_ROWS or size + len(example.payload) > GROUP_BYTES):
            yield group
            group, size = [], 0
        group.append(example)
        size += len(example.payload)
    if group:
        yield group


def _has_content(path: Path, content: str) -> bool:
    """Return whether the file is there and whole."""
    try:
        with pq.ParquetFile(path) as file:
            groups = (file.read_row_group(group, columns=["payload"]) for group in range(file.num_row_groups))
            return digest_each(payload for group in groups for payload in group["payload"].to_pylist()).hex() == content
    except (OSError, pa.ArrowException):
        return False


def store_rejected(rejected: Sequence[BadRow], folder: Path, content: str = "") -> Path:
    """Write the rows that were left out of the data set with digest *content*, or of none; return where they are.

    In a CSV, which whoever is to mend them can open.
    """
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(("row", "column", "reason", "content"))
    writer.writerows((one.where, one.column, one.reason, one.content) for one in rejected)
    # What UTF-8 cannot write, such as half an emoji, is an escape.
    told = lines.getvalue().encode(errors="backslashreplace")
    own = digest(told).hex()
    path = folder / f"{content or own}.rejected-{own}.csv"
    if not (path.is_file() and path.read_bytes() == told):
        folder.mkdir(parents=True, exist_ok=True)
        with durably(path) as file:
            file.write(told)
    return path


def planned_examples(folder: Path, plan: Plan) -> Sequence[Example]:
    """Return the examples of *plan*, of which each configuration takes all; raises when they are gone."""
    return load_examples(folder, plan.dataset_digest, limit=plan.rows, passes=len(plan.configurations))


def load_examples(folder: Path, content: str, *, limit: int | None, passes: int = 1) -> Sequence[Example]:
    """Return the first *limit* examples of the data set with that digest; raises when it is gone.

    Of many, only those that were last looked at are in memory, and the first where they are gone over in several
    *passes*: the rest stays in the file.
    """
    path = folder / f"{content}.parquet"
    with _reading(path), pq.ParquetFile(path) as file:
        return _StoredExamples(path, file.metadata, limit, keep_bytes=KEPT_BYTES if passes > 1 else 0)


class _StoredExamples(Sequence[Example]):
    """Examples of a file, read a row group at a time as they are asked for, at their best in order."""

    def __init__(self, path: Path, metadata: Any, limit: int | None, *, keep_bytes: int) -> None:
        self._path = path
        self._keep_bytes = keep_bytes
        self._metadata = metadata
        self._count = metadata.num_rows if limit is None else min(limit, metadata.num_rows)
        rows = (metadata.row_group(group).num_rows for group in range(metadata.num_row_groups))
        self._starts = list(accumulate(rows, initial=0))
        self._kept: dict[int, list[Example]] = {}
        self._last: tuple[int, list[Example]] = 0, []

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | Sequence[Example]:
        if isinstance(index, int) and 0 <= index < self._count:
            return self._at(index)
        chosen = range(self._count)[index]
        return self._at(chosen) if isinstance(chosen, int) else [self._at(row) for row in chosen]

    def _at(self, row: int) -> Example:
        start, examples = self._last
        if not 0 <= row - start < len(examples):
            group = bisect_right(self._starts, row) - 1
            start, examples = self._last = self._starts[group], self._group(group)
        return examples[row - start]

    def _group(self, group: int) -> list[Example]:
        examples = self._kept.get(group)
        if examples is None:
            examples, size = self._read(group)
            if size <= self._keep_bytes:
                self._kept[group] = examples
                self._keep_bytes -= size
        return examples

    def _read(self, group: int) -> tuple[list[Example], int]:
        """Return its examples, and about how many bytes they take."""
        with _reading(self._path), pq.ParquetFile(self._path, metadata=self._metadata) as file:
            payloads = file.read_row_group(group, columns=["payload"])["payload"].to_pylist()
        # Of a file from before, a row group may be all of it.
        payloads = payloads[: self._count - self._starts[group]]
        # Its values, and what is sent of it.
        size = 2 * sum(map(len, payloads)) + _EXAMPLE_BYTES * len(payloads)
        return [example_from_wire(payload) for payload in payloads], size


@contextmanager
def _reading(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise DspexError(f"{path} is gone; materialise the data set asset again") from error
    except (OSError, pa.ArrowException) as error:
        said = " ".join(str(error).split())
        raise DspexError(f"{path} is damaged ({said}); materialise the data set asset again") from error
