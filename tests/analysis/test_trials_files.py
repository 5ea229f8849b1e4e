"""A leaderboard of files is the one of the same trials in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dspex_pipelines.analysis import trials_files
from dspex_pipelines.analysis.leaderboard import leaderboard
from dspex_pipelines.analysis.trials_files import TrialsFiles
from dspex_pipelines.errors import DspexError, InvalidValue
from tests.damaged import damage


def trials(partition: str, *, names: tuple[str, ...]) -> pd.DataFrame:
    rows = [
        {
            "partition": partition,
            "example_id": f"e{example}",
            "group": f"g{example % 4}",
            "repeat": 0,
            "configuration": f"{(7 * k) % 5}",
            "status": "error" if (example + k) % 6 == 0 else "ok",
            "error_type": "program_exception" if (example + k) % 6 == 0 else None,
            "var.k": k,
            **dict.fromkeys(names, None if (example + k) % 6 == 0 else (example * 3 + k) % 7 / 7),
            "outputs": "x",
        }
        for k in range(5)
        for example in range(12)
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(names, float))


def written(folder: Path, *tables: pd.DataFrame) -> list[Path]:
    paths = [folder / f"{number}.parquet" for number in range(len(tables))]
    for path, table in zip(paths, tables, strict=True):
        pq.write_table(pa.Table.from_pandas(table, preserve_index=False), path, row_group_size=7)
    return paths


@pytest.mark.parametrize("together", [1, 50, 1_000])
def test_files_rank_as_the_same_trials_in_memory_do(tmp_path: Path, monkeypatch: Any, together: int) -> None:
    monkeypatch.setattr(trials_files, "ROWS", together)
    tables = [trials("p", names=("score.a", "score.b")), trials("q", names=("score.a",))]
    files = TrialsFiles(written(tmp_path, *tables))
    board = leaderboard(files, score_range=(0, 1))
    assert repr(board) == repr(leaderboard(pd.concat(tables, ignore_index=True), score_range=(0, 1)))
    assert [len(files), len(board.standings), board.grouped] == [120, 5, True]
    assert "outputs" not in files.columns


def test_of_many_trials_only_some_configurations_are_in_memory(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(trials_files, "ROWS", 24)
    files = TrialsFiles(written(tmp_path, trials("p", names=("score.a",))))
    read: list[int] = []
    table = TrialsFiles._table

    def counted(self: TrialsFiles, together: Any) -> pd.DataFrame:
        found = table(self, together)
        read.append(len(found))
        return found

    monkeypatch.setattr(TrialsFiles, "_table", counted)
    assert [frame["configuration"].nunique() for frame in files.frames()] == [2, 2, 1]
    assert read == [24, 24, 12]


def test_row_groups_are_read_for_the_configurations_in_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(trials_files, "ROWS", 12)
    files = TrialsFiles(written(tmp_path, trials("p", names=("score.a",)), trials("q", names=("score.a",))))
    read: list[int] = []
    batches = trials_files._batches

    def counted(path: Path, columns: Any, groups: Any = None) -> Any:
        read.extend(groups)
        return batches(path, columns, groups)

    monkeypatch.setattr(trials_files, "_batches", counted)
    assert [len(frame) for frame in files.frames()] == [24] * 5
    assert len(read) == 2 * (9 + 4), "all nine once, and those again that two configurations share"


def test_a_variable_may_be_of_another_type_in_another_file(tmp_path: Path) -> None:
    tables = [trials("p", names=("score.a",)), trials("q", names=("score.a",)).astype({"var.k": str})]
    board = leaderboard(TrialsFiles(written(tmp_path, *tables)))
    assert sorted(standing.variables["k"] for standing in board.standings) == [0, 1, 2, 3, 4]
    assert {standing.n for standing in board.standings} == {24}


def test_scores_that_nobody_has_are_no_metrics_of_the_leaderboard(tmp_path: Path) -> None:
    table = trials("p", names=("score.a", "score.b"))
    table["score.a"] = float("nan")
    (path,) = written(tmp_path, table)
    raw = pq.read_table(path)
    place = raw.column_names.index("score.a")
    pq.write_table(raw.set_column(place, "score.a", pa.array([float("nan"), *[None] * 59])), path)
    files = TrialsFiles([path])
    assert leaderboard(files).metrics == ("b",)
    with pytest.raises(InvalidValue):
        leaderboard(files, metric="a")


@pytest.mark.parametrize("column", ["configuration", "score.a"])
def test_what_is_damaged_is_told_by_its_file_whenever_it_is_read(tmp_path: Path, column: str) -> None:
    whole, path = written(tmp_path, trials("p", names=("score.a",)), trials("q", names=("score.a",)))
    damage(path, column, [8])
    with pytest.raises(DspexError, match="evaluate the partition again") as caught:
        leaderboard(TrialsFiles([whole, path]))
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).count("is damaged") == 1
