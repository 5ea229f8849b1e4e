"""The rows of a file or of an iterable: each where it is, or what is wrong with it."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Dataset, Row

SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}
"""What else than commas a CSV file may have between its cells."""
_COLUMNS_TOLD = 50
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """A row that is no example, and why."""

    where: str
    """Such as ``data.csv row 3 (line 4)``; the first row after a header is 1, and a file's first line."""
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
    of_cells: bool = False
    """Whether its values are the cells of a CSV: an empty one may be a text, or none."""


class SourceRefused(InvalidValue):
    """A source is not what is declared of it; the message is *said* alone."""

    def __init__(self, said: str, *, field: str = "dataset.source", value: object) -> None:
        super().__init__(field=field, value=value, fix=said)
        DspexError.__init__(self, said)


def read_file(dataset: Dataset, file: Path, prefix: str = "") -> Iterator[NumberedRow | BadRow]:
    """Yield the rows of one file, whose numbers begin with *prefix*. Raises `InvalidValue`, as `read_rows` does."""
    readers = {".parquet": _parquet_rows, ".csv": _csv_rows}
    with refusing(file):
        rows = readers.get(file.suffix.lower(), _json_rows)(dataset, file, prefix)
        yield from with_columns(dataset, str(file), rows)


def numbered_rows(rows: Iterable[Row], where: str, prefix: str) -> Iterator[NumberedRow | BadRow]:
    """Yield each row with its number, which begins with *prefix*; what is no map is bad."""
    for number, row in enumerate(rows, start=1):
        if isinstance(row, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - whatever the user's own function yields
            yield NumberedRow(where=f"{where} {number}", number=f"{prefix}{number}", row=row)
        else:
            fix = "give a map of columns to values"
            yield BadRow(where=f"{where} {number}", column="", value=tellable(row), fix=fix, content=str(tellable(row)))


@contextmanager
def refusing(source: Path) -> Generator[None]:
    """Raise `InvalidValue` for a file that cannot be read."""
    try:
        yield
    except InvalidValue:
        raise
    except UnicodeDecodeError as error:
        fix = f"it is not UTF-8 ({error}); save it as UTF-8"
        raise InvalidValue(field="dataset.source", value=str(source), fix=fix) from error
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        raise InvalidValue(field="dataset.source", value=str(source), fix=f"it cannot be read: {error}") from error


def with_columns(dataset: Dataset, name: str, rows: Iterable[NumberedRow | BadRow]) -> Iterator[NumberedRow | BadRow]:
    """Yield the rows; raise at their end where none has a column that is declared."""
    lacking = set(_roles(dataset))
    columns: dict[str, None] = {}
    for one in rows:
        if lacking and isinstance(one, NumberedRow):
            columns.update(dict.fromkeys(one.row))
            lacking -= one.row.keys()
        yield one
    if lacking and columns:
        _check_columns(dataset, name, list(columns))


def check_unlike(name: str, columns: Iterable[str]) -> None:
    """Raise where two columns have one name; those without any are nobody's."""
    seen: set[str] = set()
    for column in columns:
        if column and column in seen:
            raise SourceRefused(f"{name} has two columns {column!r}; rename one of them", value=column)
        seen.add(column)


def _roles(dataset: Dataset) -> dict[str, str]:
    """Return the columns that are declared, and where."""
    roles = {
        dataset.partition_by: "partition_by",
        dataset.group: "group",
        dataset.example_id: "example_id",
        **dict.fromkeys(dataset.labels, "labels"),
        **dict.fromkeys(dataset.inputs, "inputs"),
    }
    return {column: role for column, role in roles.items() if column}


def _check_columns(dataset: Dataset, name: str, columns: list[str]) -> None:
    """Raise where a declared column is not there."""
    roles = _roles(dataset)
    lacking = [column for column in roles if column not in columns]
    if not lacking:
        return
    texts = [str(column) for column in columns]
    # In small letters: a name in others is the likeliest of all.
    folded = {text.casefold(): text for text in texts}
    near = (get_close_matches(column.casefold(), folded, n=1) for column in lacking)
    close = list(dict.fromkeys(folded[like] for likes in near for like in likes))
    what = ", ".join(f"{column!r} ({roles[column]})" for column in lacking)
    said = f"{name} has no column {what}; "
    separated = next((word for mark, word in SEPARATORS.items() if len(texts) == 1 and mark in texts[0]), "")
    if separated:
        said += f"it seems to be separated by {separated}: save it with commas"
    else:
        meant = f"did you mean {', '.join(close)}? " if close else ""
        said += f"{meant}the columns are {', '.join(texts[:_COLUMNS_TOLD])}"
    raise SourceRefused(said, field=f"dataset.{roles[lacking[0]]}", value=lacking[0])


def _parquet_rows(dataset: Dataset, source: Path, prefix: str) -> Iterator[NumberedRow | BadRow]:
    def rows() -> Iterator[Row]:
        with pq.ParquetFile(source) as file:
            names = cast("list[str]", file.schema_arrow.names)
            check_unlike(str(source), names)
            _check_columns(dataset, str(source), names)
            for batch in file.iter_batches():
                yield from cast("list[Row]", batch.to_pylist())

    return numbered_rows(rows(), f"{source.name} row", prefix)


def _csv_rows(dataset: Dataset, source: Path, prefix: str) -> Iterator[NumberedRow | BadRow]:
    with source.open(encoding="utf-8-sig", newline="") as file:
        rows = _csv_cells(source, file)
        header, fault, _ = next(rows, ([], "", 1))
        if fault:
            raise InvalidValue(field="dataset.source", value=str(source), fix=f"its header cannot be read: {fault}")
        if header:
            check_unlike(str(source), header)
            _check_columns(dataset, str(source), header)
        for number, (cells, wrong, line) in enumerate(rows, start=1):
            where = f"{source.name} row {number} (line {line})"
            if not wrong and len(cells) == len(header):
                row = dict(zip(header, cells, strict=True))
                yield NumberedRow(where=where, number=f"{prefix}{number}", row=row, of_cells=True)
                continue
            value = cells[len(header) :] or cells
            fix = wrong or (
                "the row has more cells than the header; put quotes around cells with commas"
                if len(cells) > len(header)
                else "the row has fewer cells than the header; is it whole?"
            )
            content = json.dumps(cells, ensure_ascii=False)
            yield BadRow(where=where, column="", value=value, fix=fix, content=content)


def _csv_cells(source: Path, file: Iterator[str]) -> Iterator[tuple[list[str], str, int]]:
    """Yield the cells of each row that is not blank, what is wrong with its quotes, and the line that it begins in.

    Where its quotes are wrong, its cells are one, the line.
    """
    lines = _Lines(file)
    rows = csv.reader(lines, strict=True)
    while True:
        began = rows.line_num + 1
        try:
            if cells := next(rows):
                yield cells, "", began
        except StopIteration:
            return
        except csv.Error as error:
            fix = f'a quote (") in line {began} is not closed as it should be: {error}; mend it, or write it twice'
            if lines.ended or rows.line_num > began:
                # It has taken along the rows after it.
                raise InvalidValue(field="dataset.source", value=str(source), fix=fix) from error
            yield [lines.last], fix, began


class _Lines:
    """The lines of a file, and the last of them."""

    def __init__(self, file: Iterator[str]) -> None:
        self._file = file
        self.last = ""
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        for line in self._file:
            self.last = line
            return line
        self.ended = True
        raise StopIteration


def _json_rows(dataset: Dataset, source: Path, prefix: str) -> Iterator[NumberedRow | BadRow]:
    del dataset
    with source.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            where = f"{source.name} line {number}"
            try:
                row: Any = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield BadRow(where=where, column="", value=line, fix=f"write JSON: {error}", content=line)
                continue
            if isinstance(row, dict):
                yield NumberedRow(where=where, number=f"{prefix}{number}", row=cast("Row", row))
            else:
                yield BadRow(where=where, column="", value=line, fix="write a JSON object", content=line)


def is_missing(value: object) -> bool:
    """Return whether a value is none: null, NaN, or what pandas has for them."""
    if value is None or value is pd.NaT or value is pd.NA:
        return True
    return isinstance(value, float) and math.isnan(value)


def as_text(values: Mapping[str, Any]) -> str:
    """Return *values* as JSON for people, whatever they are; what JSON has no way to write, as Python does."""
    try:
        return json.dumps(values, default=str, ensure_ascii=False)
    except Exception:  # noqa: BLE001 - also what the values' own methods raise
        return str(tellable(values))


def tellable(value: object) -> object:
    """Return *value*, or what it is where it cannot be shown."""
    try:
        repr(value)
    except Exception:  # noqa: BLE001 - also what the value's own method raises
        return f"a {type(value).__name__} that cannot be shown"
    return value
