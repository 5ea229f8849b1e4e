"""What a source has of each partition: read once, and what is wrong with one costs no other."""

from __future__ import annotations

import csv
import datetime as dt
import json
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Dataset
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.orchestration.data import sources
from dspex_pipelines.orchestration.data.datasets import read_partition
from dspex_pipelines.orchestration.data.partitions import known_partitions, present_partitions
from dspex_pipelines.orchestration.data.sources import source_digests
from dspex_pipelines.orchestration.freshness import reading_digests
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import declare

NAMES = tuple(f"p{number:02}" for number in range(12))
RANGE = {"dagster/asset_partition_range_start": NAMES[0], "dagster/asset_partition_range_end": NAMES[-1]}
ROWS = [{"id": f"{name}{x}", "x": x, "y": x, "group": "g", "topic": name} for x in range(3) for name in NAMES]


def dataset(source: Any, **changes: Any) -> Dataset:
    given: dict[str, Any] = {"partitions": Dynamic(), **changes}
    return Dataset(source=source, inputs=("x",), labels=("y",), example_id="id", **given)


def declared(lab: Lab, source: Any, **changes: Any) -> Lab:
    evaluation = declare("fifth_raises", partitions_per_run=0)
    return lab.declare(replace(evaluation, dataset=dataset(source, **changes)))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def warnings(lab: Lab, result: dg.ExecuteInProcessResult) -> list[str]:
    records = lab.instance.all_logs(result.run_id)
    return [record.user_message for record in records if record.level == 30]


def test_a_function_is_called_once_for_all_partitions_of_a_run(lab: Lab) -> None:
    calls: list[int] = []

    def source() -> list[dict[str, Any]]:
        calls.append(1)
        return ROWS

    declared(lab, source, partition_by="topic", partitions=NAMES)
    result = lab.run([lab.dataset_key], partition=None, tags=RANGE)
    assert result.success, failure(result)
    assert len(calls) == 1
    counts = [lab.metadata(lab.dataset_key, name)["dagster/partition_row_count"] for name in NAMES]
    assert counts == [3] * len(NAMES)


def test_a_file_is_read_once_for_all_partitions_of_a_run(lab: Lab, tmp_path: Path, monkeypatch: Any) -> None:
    declared(lab, write(tmp_path / "all.csv", ROWS), partition_by="topic", partitions=NAMES)
    read: list[int] = []
    reader = csv.reader

    def counting(*given: Any, **options: Any) -> Any:
        read.append(1)
        return reader(*given, **options)

    monkeypatch.setattr(csv, "reader", counting)
    result = lab.run([lab.dataset_key], partition=None, tags=RANGE)
    assert result.success, failure(result)
    assert len(read) == 1


def test_a_run_looks_at_the_files_of_its_own_partitions(lab: Lab, tmp_path: Path, monkeypatch: Any) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in NAMES:
        write(folder / f"{name}.csv", [row for row in ROWS if row["topic"] == name])
    declared(lab, folder)
    lab.instance.add_dynamic_partitions("tested_partitions", list(NAMES))
    looked: Counter[str] = Counter()
    file_digest = sources.file_digest

    def counting(path: Path) -> str:
        looked[path.stem] += 1
        return file_digest(path)

    monkeypatch.setattr(sources, "file_digest", counting)
    assert lab.run([lab.dataset_key], partition="p03").success
    assert looked == {"p03": 1}
    digest = reading_digests(lab.evaluation.dataset)["p03"]
    assert lab.metadata(lab.dataset_key, "p03")["source digest"] == digest


def test_a_row_that_says_no_possible_partition_is_told_and_costs_no_other(lab: Lab, tmp_path: Path) -> None:
    rows = [{**row, "topic": "en/us" if number == 5 else "en"} for number, row in enumerate(ROWS)]
    declared(lab, write(tmp_path / "all.csv", rows), partition_by="topic")
    assert present_partitions(lab.evaluation, lab.instance) == ("en",)
    result = lab.run([lab.dataset_key], partition="en")
    assert result.success, failure(result)
    assert warnings(lab, result) == ["1 row is in no partition: 'en/us'"]
    assert lab.metadata(lab.dataset_key, "en")["rows in no partition"] == 1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One good file, and others that can be no partition."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("good.csv", "a...b.csv", "two\nlines.csv", "x.csv"):
        write(folder / name, ROWS)
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


def test_a_file_that_can_be_no_partition_is_told_and_costs_no_other(lab: Lab, folder: Path) -> None:
    declared(lab, folder)
    assert present_partitions(lab.evaluation, lab.instance) == ("good",)
    result = lab.run([lab.dataset_key], partition="good")
    assert result.success, failure(result)
    assert warnings(lab, result) == [
        "left out: 'a...b.csv': a partition names a folder: leave out /, ... and controls",
        "left out: 'two\\nlines.csv': a partition names a folder: leave out /, ... and controls",
        "left out: 'x.csv' and 'x.jsonl' would be one partition; rename one of them",
    ]


def test_a_folder_without_a_partition_says_what_was_left_out(lab: Lab, folder: Path) -> None:
    (folder / "good.csv").unlink()
    declared(lab, folder)
    with pytest.raises(InvalidValue, match=r"it has no partition yet; 'a\.\.\.b\.csv': a partition names a folder"):
        present_partitions(lab.evaluation, lab.instance)
    with pytest.raises(InvalidValue, match="it has no examples; 'x.csv' and 'x.jsonl' would be one partition"):
        read_partition(lab.evaluation.dataset, "x")
    with pytest.raises(InvalidValue, match="it has no examples; there is no file of that name"):
        read_partition(lab.evaluation.dataset, "good")


def test_a_file_that_cannot_be_read_costs_no_other(folder: Path, monkeypatch: Any) -> None:
    write(folder / "secret.csv", ROWS)
    write(folder / "vanishing.csv", ROWS)
    access, file_digest = os.access, sources.file_digest

    def refused(path: Path, mode: int) -> bool:
        return path.name != "secret.csv" and access(path, mode)

    def gone(path: Path) -> str:
        if path.name != "good.csv":
            path.unlink()
        return file_digest(path)

    monkeypatch.setattr(os, "access", refused)
    monkeypatch.setattr(sources, "file_digest", gone)
    assert list(source_digests(dataset(folder))) == ["good"]


def test_a_row_of_the_future_is_told_and_is_in_no_partition(lab: Lab, tmp_path: Path) -> None:
    today = dt.datetime.now(dt.UTC).date()
    days = [today - dt.timedelta(days=1), today, today + dt.timedelta(days=400), today + dt.timedelta(days=500)]
    rows = [{**row, "topic": days[number % 4].isoformat()} for number, row in enumerate(ROWS)]
    dates = Dates(start=(today - dt.timedelta(days=3)).isoformat())
    declared(lab, write(tmp_path / "all.csv", rows), partition_by="topic", partitions=dates)
    present = present_partitions(lab.evaluation, lab.instance)
    assert present == (days[0].isoformat(), days[1].isoformat())
    assert set(present) <= set(known_partitions(lab.evaluation, lab.instance))
    result = lab.run([lab.dataset_key], partition=present[0])
    assert result.success, failure(result)
    assert warnings(lab, result) == [f"18 rows are in no partition: '{days[2]}', '{days[3]}'"]
