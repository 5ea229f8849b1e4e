"""Results as they lie in Parquet files, read a few configurations at a time and no more than is looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from dspex_pipelines.analysis.leaderboard import ranking_columns

ROWS = 100_000
"""Trials of several configurations that are in memory together; of one, all are."""
BATCH = 10_000


class TrialsFiles:
    """What `leaderboard` looks at of the results in files whose plans are alike."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._paths = [str(path) for path in paths]
        schema: Any = pa.unify_schemas([pq.read_schema(path) for path in self._paths])
        self.columns: Sequence[str] = ranking_columns(schema.names)
        self._dataset: Any = pyarrow.dataset.dataset(self._paths, schema=schema, format="parquet")
        self._rows: Counter[str] = Counter()
        self._variables: dict[str, dict[str, Any]] = {}
        self._look()

    def __len__(self) -> int:
        return self._rows.total()

    def configurations(self) -> dict[str, dict[str, Any]]:
        """Return the variables of each configuration, by its digest."""
        return self._variables

    def frames(self) -> Iterator[tuple[str, pd.DataFrame]]:
        """Yield each configuration with its trials."""
        together: list[str] = []
        rows = 0
        for configuration, count in self._rows.items():
            if together and rows + count > ROWS:
                yield from self._of(together)
                together, rows = [], 0
            together.append(configuration)
            rows += count
        yield from self._of(together)

    def frame(self, configuration: str) -> pd.DataFrame:
        """Return the trials of one."""
        ((_, found),) = self._of([configuration])
        return found

    def scored(self) -> list[str]:
        """Return the columns of scores that any trial has."""
        return [name for name in self.columns if name.startswith("score.") and self._has(name)]

    def _has(self, name: str) -> bool:
        return any(batch[name].to_pandas().notna().any() for batch in self._batches([name]))

    def _of(self, together: list[str]) -> Iterator[tuple[str, pd.DataFrame]]:
        wanted = pyarrow.dataset.field("configuration").isin(together)
        for configuration, found in self._table(wanted).groupby("configuration"):
            yield str(configuration), found

    def _table(self, wanted: Any) -> pd.DataFrame:
        batches = self._batches(self.columns, wanted)
        schema = pa.schema([self._dataset.schema.field(name) for name in self.columns])
        return pa.Table.from_batches(list(batches), schema=schema).to_pandas()

    def _batches(self, columns: Sequence[str], wanted: Any = None) -> Iterator[Any]:
        yield from self._dataset.to_batches(
            columns=list(columns), filter=wanted, batch_size=BATCH, batch_readahead=1, fragment_readahead=1
        )

    def _look(self) -> None:
        """Find the configurations, how many trials each has, and its variables."""
        names = [name for name in self.columns if name.startswith("var.")]
        for batch in self._batches(["configuration", *names]):
            for found in batch["configuration"].value_counts().to_pylist():
                configuration = found["values"]
                self._rows[configuration] += found["counts"]
                if configuration not in self._variables:
                    first = batch["configuration"].index(configuration).as_py()
                    self._variables[configuration] = {
                        name.removeprefix("var."): batch[name][first].as_py() for name in names
                    }
