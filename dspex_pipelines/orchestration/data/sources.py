"""The files and rows of a declared source, the partitions that it has, and a digest by which a change is seen."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import pandas as pd
import pyarrow as pa

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Dataset, Row, Upstream, check_partition
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.orchestration.data.rows import (
    BadRow,
    NumberedRow,
    SourceRefused,
    check_unlike,
    is_missing,
    numbered_rows,
    read_file,
    refusing,
    with_columns,
)

READERS = (".csv", ".jsonl", ".parquet")
_CHUNK = 1 << 20
_FILES_REMEMBERED = 10_000


def read_rows(dataset: Dataset, given: object = None) -> Iterator[NumberedRow | BadRow]:
    """Yield all rows of the source; *given* is the value of an `Upstream` asset.

    Raises `InvalidValue` for a source that is not there, cannot be read or lacks a column.
    """
    source = dataset.source
    if isinstance(source, Path):
        files = source_files(dataset)
        for file in files:
            yield from read_file(dataset, file, f"{file.stem}:" if len(files) > 1 else "")
    elif isinstance(source, Upstream) and isinstance(given, str | Path):
        yield from read_file(dataset, Path(given))
    else:
        name = source.asset if isinstance(source, Upstream) else _name(source)
        rows = _rows_of(given, source.asset) if isinstance(source, Upstream) else _called(source)
        yield from with_columns(dataset, f"`{name}`", numbered_rows(rows, "dataset row", ""))


def source_files(dataset: Dataset) -> list[Path]:
    """Return the files of a source that is a file, a folder or a pattern, by name; none for others.

    Raises `InvalidValue` where there is no such file or folder.
    """
    files = _files(dataset)
    if not dataset.a_partition_is_a_file:
        return files
    left_out = _left_out(files)
    return [file for file in files if file.stem not in left_out]


def files_left_out(dataset: Dataset) -> Mapping[str, str]:
    """Return the files that would be partitions but cannot be, by the partition's name, and why; raises as above."""
    return _left_out(_files(dataset)) if dataset.a_partition_is_a_file else {}


def _files(dataset: Dataset) -> list[Path]:
    source = dataset.source
    if not isinstance(source, Path):
        return []
    with refusing(source):
        if source.is_dir():
            return _readable(source.iterdir())
        # A path that is there is no pattern, whatever its letters.
        if not source.exists() and any(letter in source.name for letter in "*?["):
            return _readable(source.parent.glob(source.name))
        if source.suffix.lower() not in READERS:
            fix = f"give a file that ends in {', '.join(READERS)}, or a folder of such files"
            raise InvalidValue(field="dataset.source", value=str(source), fix=fix)
        if not source.exists():
            where = "" if source.is_absolute() else f" in {Path.cwd()}"
            raise InvalidValue(field="dataset.source", value=str(source), fix=f"there is no such file{where}")
    return [source]


def _readable(files: Iterable[Path]) -> list[Path]:
    shown = (file for file in files if file.suffix.lower() in READERS and not file.name.startswith("."))
    return sorted(file for file in shown if file.is_file())


def _left_out(files: list[Path]) -> dict[str, str]:
    found: dict[str, str] = {}
    named: dict[str, Path] = {}
    for file in files:
        name = file.stem
        other = named.setdefault(name, file)
        if other != file:
            found[name] = f"{other.name!r} and {file.name!r} would be one partition; rename one of them"
        elif fix := _not_a_name(name):
            found[name] = f"{file.name!r}: {fix}"
        elif not os.access(file, os.R_OK):
            found[name] = f"{file.name!r} cannot be read"
    return found


def source_digests(dataset: Dataset, only: Collection[str] | None = None) -> Mapping[str, str]:
    """Return the partitions that a source has now, each with a digest of the files that it is made of.

    Those named by *only*, if it is given: then no other's file is looked at. Empty digests where the source is no
    file. Of an `Upstream` asset nothing is known. Raises `InvalidValue`.
    """
    files = source_files(dataset)
    if dataset.a_partition_is_a_file:
        wanted = [file for file in files if only is None or file.stem in only]
        return {file.stem: found for file in wanted if (found := _digest_if_there(file))}
    digests: list[str] = []
    for file in files:
        with refusing(file):
            digests.append(file_digest(file))
    whole = blake2b("\0".join(digests).encode(), digest_size=16).hexdigest()
    return dict.fromkeys(_partitions(dataset, whole) if only is None else only, whole if files else "")


def partition_of(dataset: Dataset, row: Row) -> str:
    """Return the partition that the row's own value says; empty where it says none."""
    value = row.get(dataset.partition_by)
    if isinstance(dataset.partitions, Dates):
        return dataset.partitions.partition_of(value) or ""
    if isinstance(value, str):
        return value
    return "" if is_missing(value) else str(value)


def is_partition(dataset: Dataset, name: str) -> bool:
    """Return whether there can be a partition of that name: one that is declared, has begun, or names a folder."""
    if isinstance(dataset.partitions, Dynamic):
        return not _not_a_name(name)
    if isinstance(dataset.partitions, Dates):
        return "" < name <= dt.datetime.now(dt.UTC).date().isoformat()
    return name in dataset.partitions


def file_digest(path: Path) -> str:
    """Return a digest of the file's content; a file that has not been touched is not read again."""
    stat = path.stat()
    return _digest(path, stat.st_mtime_ns, stat.st_size, stat.st_ino)


def _digest_if_there(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError:
        return ""


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
    found = _found_in_files(dataset, whole) if isinstance(dataset.source, Path) else _found(dataset)
    return tuple(name for name in found if is_partition(dataset, name))


@lru_cache(maxsize=64)
def _found_in_files(dataset: Dataset, whole: str) -> tuple[str, ...]:
    """Files of the same content (*whole*) say the same partitions, and are not read again for them."""
    del whole
    return _found(dataset)


def _found(dataset: Dataset) -> tuple[str, ...]:
    """Return what the rows themselves say, in their order."""
    rows = (one.row for one in read_rows(dataset) if isinstance(one, NumberedRow))
    return tuple(dict.fromkeys(partition_of(dataset, row) for row in rows))


def _not_a_name(name: str) -> str:
    """Return why a partition cannot be named so; empty where it can."""
    try:
        check_partition(name)
    except InvalidValue as error:
        return error.fix
    return ""


def _name(source: Callable[..., object]) -> str:
    module, name = getattr(source, "__module__", ""), getattr(source, "__qualname__", "")
    return f"{module}:{name}" if module and name else repr(source)


def _called(source: Callable[[], Iterable[Row]]) -> Iterator[Row]:
    """Yield the rows of a user's function; what it raises is told in a line."""
    name = _name(source)
    try:
        yield from _rows_of(source(), name)
    except DspexError:
        raise
    except Exception as error:
        raise SourceRefused(f"`{name}` raised {type(error).__name__}: {error}", value=name) from error


def _rows_of(given: object, name: str) -> Iterable[Row]:
    if isinstance(given, pd.DataFrame):
        check_unlike(f"`{name}`", map(str, given.columns))
        return cast("list[Row]", given.astype(object).where(given.notna(), None).to_dict("records"))
    if isinstance(given, pa.Table | pa.RecordBatch):
        check_unlike(f"`{name}`", cast("list[str]", cast("Any", given).schema.names))
        return cast("list[Row]", cast("Any", given).to_pylist())
    if isinstance(given, Iterable) and not isinstance(given, Mapping | str | bytes):
        return cast("Iterable[Row]", given)
    fix = "give an iterable of rows: maps, a data frame or a table"
    raise SourceRefused(f"`{name}` returned {type(given).__name__}; {fix}", value=name)
