"""The rows of a declared source, the partitions that it has, and a digest by which a change is seen."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Dataset, Row, Upstream, check_partition
from dspex_pipelines.model.partitions import Dates, Dynamic

READERS = (".csv", ".jsonl", ".parquet")
_TOO_MANY = "\0"
_CHUNK = 1 << 20
_FILES_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that is no example, and why."""

    where: str
    """Such as ``dataset row 3``; the first row after a header is 1."""
    column: str
    """Empty where the row as a whole is wrong."""
    value: object
    fix: str
    content: str
    """The row as JSON, or the line as it is."""

    @property
    def field(self) -> str:
        """Where the value is."""
        return f"{self.where}, column {self.column!r}" if self.column else self.where

    @property
    def reason(self) -> str:
        """What is said of it."""
        return str(InvalidValue(field=self.field, value=self.value, fix=self.fix))


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedRow:
    """A row, where it is, and the id that it has where no column says."""

    where: str
    number: str
    row: Row


def read_rows(dataset: Dataset, partition: str, given: object = None) -> Iterator[NumberedRow | BadRow]:
    """Yield the rows that may belong to *partition*; *given* is the value of an `Upstream` asset.

    Raises `InvalidValue` for a source that is not there or cannot be read.
    """
    source = dataset.source
    if isinstance(source, Upstream) and isinstance(given, str | Path):
        yield from _read(Path(given), "dataset row", "")
    elif not isinstance(source, Path):
        yield from _numbered(_rows_of(given, source) if isinstance(source, Upstream) else source(), "dataset row", "")
    else:
        files = source_files(dataset)
        if dataset.a_partition_is_a_file:
            files = [file for file in files if file.stem == partition]
        for file in files:
            several = len(files) > 1
            yield from _read(file, f"{file.name} row" if several else "dataset row", f"{file.stem}:" if several else "")


def source_files(dataset: Dataset) -> list[Path]:
    """Return the files of a source that is a file, a folder or a pattern, by name; none for others.

    Raises `InvalidValue` where there is no such file or folder, and where two files would be one partition.
    """
    source = dataset.source
    if not isinstance(source, Path):
        return []
    if any(letter in source.name for letter in "*?["):
        files = _readable(source.parent.glob(source.name))
    elif source.is_dir():
        files = _readable(source.iterdir())
    else:
        files = [source]
    if source.suffix not in READERS and files == [source]:
        fix = f"give a file that ends in {', '.join(READERS)}, or a folder of such files"
        raise InvalidValue(field="dataset.source", value=str(source), fix=fix)
    if not all(file.exists() for file in files):
        raise InvalidValue(field="dataset.source", value=str(source), fix=f"there is no such file in {Path.cwd()}")
    if dataset.a_partition_is_a_file:
        _check_names(files)
    return files


def source_digests(dataset: Dataset) -> Mapping[str, str]:
    """Return the partitions that a source has now, each with a digest of the files that it is made of.

    Empty digests where the source is no file. Of an `Upstream` asset nothing is known. Raises `InvalidValue`.
    """
    files = source_files(dataset)
    if dataset.a_partition_is_a_file:
        return {file.stem: file_digest(file) for file in files}
    whole = blake2b("\0".join(file_digest(file) for file in files).encode(), digest_size=16).hexdigest()
    return dict.fromkeys(_partitions(dataset, whole), whole if files else "")


def partition_of(dataset: Dataset, row: Row) -> str:
    """Return the partition that the row's own value says; empty where it says none."""
    value = row.get(dataset.partition_by)
    if isinstance(dataset.partitions, Dates):
        return dataset.partitions.partition_of(value) or ""
    return "" if value is None or value != value else str(value)  # noqa: PLR0124 - NaN is not itself


def file_digest(path: Path) -> str:
    """Return a digest of the file's content; a file that has not been touched is not read again."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


@lru_cache(maxsize=_FILES_REMEMBERED)
def _digest(path: Path, *_: int) -> str:
    found = blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _partitions(dataset: Dataset, whole: str) -> tuple[str, ...]:
    if isinstance(dataset.source, Upstream):
        return ()
    if not isinstance(dataset.partitions, Dates | Dynamic):
        return dataset.partitions
    return _found_in_files(dataset, whole) if isinstance(dataset.source, Path) else _found(dataset)


@lru_cache(maxsize=64)
def _found_in_files(dataset: Dataset, whole: str) -> tuple[str, ...]:
    """Files of the same content (*whole*) have the same partitions, and are not read again for them."""
    del whole
    return _found(dataset)


def _found(dataset: Dataset) -> tuple[str, ...]:
    """Return the partitions that the rows themselves say, in their order."""
    rows = (one.row for one in read_rows(dataset, "") if isinstance(one, NumberedRow))
    found = dict.fromkeys(partition_of(dataset, row) for row in rows)
    for name in found:
        if name:
            check_partition(name)
    return tuple(name for name in found if name)


def _check_names(files: list[Path]) -> None:
    named: dict[str, Path] = {}
    for file in files:
        check_partition(file.stem)
        if file.stem in named:
            fix = f"{named[file.stem].name} has the same name, and both would be one partition; rename one of them"
            raise InvalidValue(field="dataset.source", value=file.name, fix=fix)
        named[file.stem] = file


def _readable(files: Iterable[Path]) -> list[Path]:
    return sorted(file for file in files if file.suffix in READERS and not file.name.startswith(".") and file.is_file())


def _rows_of(given: object, source: Upstream) -> Iterable[Row]:
    if isinstance(given, pd.DataFrame):
        return cast("list[Row]", given.astype(object).where(given.notna(), None).to_dict("records"))
    if isinstance(given, pa.Table | pa.RecordBatch):
        return cast("list[Row]", cast("Any", given).to_pylist())
    if isinstance(given, Iterable) and not isinstance(given, Mapping | bytes):
        return cast("Iterable[Row]", given)
    fix = f"{source.asset} is to give a data frame, a table, maps, or the path of a file"
    raise InvalidValue(field="dataset.source", value=type(given).__name__, fix=fix)


def _numbered(rows: Iterable[Row], where: str, prefix: str) -> Iterator[NumberedRow | BadRow]:
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - whatever the user's own function yields
            yield NumberedRow(where=f"{where} {number}", number=f"{prefix}{number}", row=row)
        else:
            fix = "give a map of columns to values"
            yield BadRow(where=f"{where} {number}", column="", value=row, fix=fix, content=repr(row))


def _read(source: Path, where: str, prefix: str) -> Iterator[NumberedRow | BadRow]:
    try:
        match source.suffix:
            case ".parquet":
                yield from _numbered(_parquet_rows(source), where, prefix)
            case ".csv":
                yield from _csv_rows(source, where, prefix)
            case _:
                yield from _json_rows(source, where, prefix)
    except InvalidValue:
        raise
    except (OSError, ValueError, csv.Error) as error:
        raise InvalidValue(field="dataset.source", value=str(source), fix=f"it cannot be read: {error}") from error


def _parquet_rows(source: Path) -> Iterator[Row]:
    with pq.ParquetFile(source) as file:
        for batch in file.iter_batches():
            yield from cast("list[Row]", batch.to_pylist())


def _csv_rows(source: Path, where: str, prefix: str) -> Iterator[NumberedRow | BadRow]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        for one in _numbered(csv.DictReader(file, restkey=_TOO_MANY), where, prefix):
            if isinstance(one, NumberedRow) and _TOO_MANY in one.row:
                more = one.row[_TOO_MANY]
                fix = "the row has more cells than the header; put quotes around cells with commas"
                yield BadRow(where=one.where, column="", value=more, fix=fix, content=as_text(one.row))
            else:
                yield one


def _json_rows(source: Path, where: str, prefix: str) -> Iterator[NumberedRow | BadRow]:
    with source.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            place = f"{where.removesuffix(' row')} line {number}"
            try:
                row: Any = json.loads(line)
            except ValueError as error:
                yield BadRow(where=place, column="", value=line, fix=f"write JSON: {error}", content=line)
                continue
            if isinstance(row, dict):
                yield NumberedRow(where=place, number=f"{prefix}{number}", row=cast("Row", row))
            else:
                yield BadRow(where=place, column="", value=line, fix="write a JSON object", content=line)


def as_text(values: Mapping[str, Any]) -> str:
    """Return *values* as JSON for people, whatever they are."""
    return json.dumps(values, default=str, ensure_ascii=False)
