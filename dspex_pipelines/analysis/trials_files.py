"""Results as they lie in Parquet files, read a few configurations at a time and no more than is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from dspex_pipelines.analysis.leaderboard import ranking_columns
from dspex_pipelines.errors import DspexError

ROWS = 100_000
"""Trials of several configurations that are in memory together; of one, all are."""
BATCH = 10_000
DAMAGE = (OSError, ValueError, LookupError, TypeError, pa.ArrowException)
"""What reading a damaged table raises."""


class TrialsFiles:
    """What `leaderboard` looks at of the results in files whose plans are alike.

    Raises `DspexError`, then or when they are read, where one is damaged.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = tuple(paths)
        self.columns: Sequence[str] = ranking_columns(column_names(self._paths))
        self._rows: Counter[str] = Counter()
        self._variables: dict[str, dict[str, Any]] = {}
        self._places: dict[str, list[tuple[Path, int]]] = {}
        """File and row group of each configuration's trials: few, as trials lie in the order of configurations."""
        for path in self._paths:
            with told_if_damaged(path):
                self._look(path)

    def __len__(self) -> int:
        return self._rows.total()

    def configurations(self) -> dict[str, dict[str, Any]]:
        """Return the variables of each configuration, by its digest."""
        return self._variables

    def frames(self) -> Iterator[pd.DataFrame]:
        """Yield the trials of some configurations at a time."""
        together: list[str] = []
        rows = 0
        for configuration, count in self._rows.items():
            if together and rows + count > ROWS:
                yield self._table(together)
                together, rows = [], 0
            together.append(configuration)
            rows += count
        yield self._table(together)

    def frame(self, configuration: str) -> pd.DataFrame:
        """Return the trials of one."""
        return self._table([configuration])

    def scored(self) -> list[str]:
        """Return the columns of scores that any trial has."""
        return [name for name in self.columns if name.startswith("score.") and self._has(name)]

    def _has(self, name: str) -> bool:
        batches = (batch for path in self._paths for batch in _batches(path, [name]))
        return any(batch[name].to_pandas().notna().any() for batch in batches if name in batch.schema.names)

    def _table(self, together: Sequence[str]) -> pd.DataFrame:
        compute: Any = pyarrow.compute  # its functions are made at run time
        columns = [name for name in self.columns if not name.startswith("var.")]
        groups: dict[Path, set[int]] = {}
        for configuration in together:
            for path, group in self._places[configuration]:
                groups.setdefault(path, set()).add(group)
        wanted = pa.array(together, pa.string())
        found = [
            pa.table(batch.filter(compute.is_in(batch["configuration"], value_set=wanted)))
            for path, numbers in groups.items()
            for batch in _batches(path, columns, sorted(numbers))
        ]
        return pa.concat_tables(found, promote_options="default").to_pandas().reindex(columns=columns)

    def _look(self, path: Path) -> None:
        """Find the configurations of a file, where they are, how many trials each has, and its variables."""
        names = [name for name in self.columns if name.startswith("var.")]
        for group in range(pq.read_metadata(path).num_row_groups):
            for batch in _batches(path, ["configuration", *names], [group]):
                configurations = batch["configuration"].to_pylist()
                self._rows.update(configurations)
                for configuration in dict.fromkeys(configurations):
                    places = self._places.setdefault(configuration, [])
                    if (path, group) not in places[-1:]:
                        places.append((path, group))
                for row, configuration in enumerate(configurations):
                    if configuration not in self._variables:
                        self._variables[configuration] = {
                            name.removeprefix("var."): batch[name][row].as_py() if name in batch.schema.names else None
                            for name in names
                        }


def _batches(path: Path, columns: Sequence[str], groups: Sequence[int] | None = None) -> Iterator[Any]:
    """Yield those of the *columns* that the file has, of its row groups with these numbers or all."""
    with told_if_damaged(path), pq.ParquetFile(path) as file:
        yield from file.iter_batches(BATCH, row_groups=groups, columns=list(columns))


def column_names(paths: Iterable[Path]) -> list[str]:
    """Return the names of the columns of all files; raises `DspexError` where one is damaged."""
    names: dict[str, None] = {}
    for path in paths:
        with told_if_damaged(path):
            names |= dict.fromkeys(pq.read_schema(path).names)
    return list(names)


@contextmanager
def told_if_damaged(path: Path) -> Generator[None]:
    """Make an error that says what to do of what reading damaged results raises."""
    try:
        yield
    except DAMAGE as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> DspexError:
    """Return the error that says what to do about newest results that cannot be read."""
    what = f"{type(error).__name__}: {error}"
    return DspexError(f"{path} is damaged ({what}); evaluate the partition again, which writes it anew")
