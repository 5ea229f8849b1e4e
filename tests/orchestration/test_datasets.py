"""Data sets: what is refused and why, and files that are written once."""

from __future__ import annotations

import datetime as dt
import gc
import json
import math
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex_pipelines.cli.doctor import evaluation as doctor
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Dataset
from dspex_pipelines.model.partitions import Dynamic
from dspex_pipelines.model.trial import Example
from dspex_pipelines.orchestration.data import datasets
from dspex_pipelines.orchestration.data.datasets import load_examples, read_partition, store_examples, store_rejected
from dspex_pipelines.orchestration.data.sources import source_digests
from dspex_pipelines.orchestration.resources import ProgressReporter
from dspex_pipelines.wire.codec import example_from_wire
from tests.cli.conftest import EVALUATION
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import declare, rows

NAN = math.nan


def dataset(source: Any, **changes: Any) -> Dataset:
    given: dict[str, Any] = {"inputs": ("x",), "labels": ("y",), "example_id": "id", "group": "group", **changes}
    return Dataset(source=source if isinstance(source, Path) else lambda: source, **given)


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "x": 1, "y": 1, "group": "g", **changes}


def write(path: Path, table: list[dict[str, Any]]) -> None:
    kinds: dict[str, Callable[[], object]] = {
        ".csv": lambda: pd.DataFrame(table).to_csv(path, index=False),
        ".jsonl": lambda: path.write_text("\n".join(json.dumps(one) for one in table) + "\n\n"),
        ".parquet": lambda: pq.write_table(pa.Table.from_pylist(table), path),
    }
    kinds[path.suffix]()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param([], "partition: 'all' is not accepted; it has no examples; the source is empty", id="empty"),
        pytest.param([row(x=None)], "row 1, column 'x': None", id="no-input"),
        pytest.param([row(), row(id="b", x="")], "row 2, column 'x': ''", id="blank-input"),
        pytest.param([row(x=NAN)], "row 1, column 'x': nan is not accepted; give every example", id="nan-input"),
        pytest.param([row(y=NAN)], "row 1, column 'y': nan is not accepted; give a number, or null", id="nan-label"),
        pytest.param(
            [{"id": "a", "y": 1, "group": "g"}],
            "has no column 'x' (inputs); the columns are id, y, group",
            id="no-column",
        ),
        pytest.param(
            [row(), {"id": "b", "y": 1, "group": "g"}],
            "row 2, column 'x': None is not accepted; the columns are id, y, group",
            id="no-column-in-one-row",
        ),
        pytest.param(
            [row(), row()],
            "row 2, column 'id': 'a' is not accepted; dataset row 1 has it already; give each an id of its own",
            id="twice",
        ),
        pytest.param([row(id=None)], "row 1, column 'id': '' is not accepted; give every example an id", id="no-id"),
        pytest.param([row(id=NAN)], "row 1, column 'id': ''", id="nan-id"),
        pytest.param([row(x=dt.date(2024, 1, 2))], "row 1, column 'x': datetime.date(2024, 1, 2)", id="not-sendable"),
        pytest.param([row(y=2**70)], "row 1, column 'y'", id="label-too-large"),
    ],
)
def test_a_bad_row_is_named(source: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_partition(dataset(source), "all")
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        pytest.param("a.csv", b"id,x,y,group\na,1,2,g,more\n", "a.csv row 1 (line 2): ['more']", id="csv-long-row"),
        pytest.param("a.csv", b"id,x,y,group\na,\xff,2,g\n", "save it as UTF-8", id="csv-not-utf8"),
        pytest.param("a.csv", b"id,x,y,group\na,1\n", "a.csv row 1 (line 2): ['a', '1']", id="csv-short-row"),
        pytest.param("a.csv", b"id,x,x,y,group\n", "a.csv has two columns 'x'; rename one", id="csv-column-twice"),
        pytest.param("a.csv", b"id;x;y;group\na;1,5;2;g\n", "it seems to be separated by semicolons", id="semicolons"),
        pytest.param("a.csv", b"id\tx\ty\tgroup\na\t1\t2\tg\n", "separated by tabs", id="tabs"),
        pytest.param(
            "a.csv",
            b"id,x,Y,group\n" + b"a,1,2,g\n" * 20,
            "a.csv has no column 'y' (labels); did you mean Y? the columns are id, x, Y, group",
            id="csv-no-column",
        ),
        pytest.param(
            "a.csv",
            b'id,x,y,group\na,1,2,g\nb,"1,2,g\n' + b"c,1,2,g\n" * 997,
            "a.csv' is not accepted; a quote (\") in line 3 is not closed",
            id="csv-quote-to-the-end",
        ),
        pytest.param(
            "a.csv",
            b'id,x,y,group\na,1,2,g\nb,"1,2,g\n' + b"c,1,2,g\n" * 9 + b'd,"1",2,g\n',
            "a.csv' is not accepted; a quote (\") in line 3 is not closed",
            id="csv-quote-to-another",
        ),
        pytest.param(
            "a.jsonl", b'{"id": "a", "x": ' + b"[" * 99_999, 'a.jsonl line 1: \'{"id": "a"', id="jsonl-too-deep"
        ),
        pytest.param("a.csv", b"id,x,y,group\n", "the source is empty", id="csv-header-alone"),
        pytest.param(
            "a.jsonl",
            b'{"id": "a", "x": 1, "y": 1, "group": ""}\n{"id"',
            "a.jsonl line 2: '{\"id\"' is not accepted; write JSON",
            id="jsonl-half",
        ),
        pytest.param("a.jsonl", b"[1, 2]\n", "write a JSON object", id="jsonl-list"),
        pytest.param("a.jsonl", b'{"id": "a", "x": NaN, "y": 1, "group": "g"}\n', "column 'x': nan", id="jsonl-nan"),
        pytest.param("a.parquet", b"not parquet", "it cannot be read", id="parquet-broken"),
        pytest.param("a.xlsx", b"", "give a file that ends in .csv, .jsonl, .parquet", id="unknown-kind"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidValue) as refused:
        read_partition(dataset(path), "all")
    assert message in str(refused.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_partition(dataset(tmp_path / "gone.csv"), "all")
    assert str(tmp_path / "gone.csv") in str(refused.value)
    assert "there is no such file" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("lable", "has no column 'lable' (labels); did you mean label? ", id="label"),
        pytest.param("LABEL", "has no column 'LABEL' (labels); did you mean label? ", id="case"),
        pytest.param("weather", "has no column 'weather' (labels); the columns are id, x, label", id="unlike-any"),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_a_column_that_no_row_has_is_told_once(tmp_path: Path, kind: str, name: str, message: str) -> None:
    path = tmp_path / f"given.{kind}"
    write(path, [{"id": f"e{x}", "x": x, "label": x} for x in range(20)])
    with pytest.raises(InvalidValue) as refused:
        read_partition(dataset(path, labels=(name,), group=""), "all")
    assert str(refused.value).startswith(f"{path} {message}")
    assert "\n" not in str(refused.value)


def test_a_file_in_no_folder_but_its_own_is_said_to_be_missing_there(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for path, there in ((tmp_path / "gone.csv", "such file"), (Path("gone.csv"), f"such file in {tmp_path}")):
        with pytest.raises(InvalidValue) as refused:
            read_partition(dataset(path), "all")
        assert str(refused.value).endswith(there)


def test_a_row_with_too_few_cells_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y,group\n" + "".join(f"e{x},{x},1,g\n" for x in range(9)) + "e9,9")
    read = read_partition(dataset(path), "all")
    assert len(read.examples) == 9
    (bad,) = read.rejected
    assert (bad.where, bad.content) == ("a.csv row 10 (line 11)", '["e9", "9"]')
    assert "fewer cells" in bad.fix


def test_a_quote_that_spoils_one_line_costs_that_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y,group\n" + "".join(f"e{x},{x},1,g\n" for x in range(9)) + 'z,"a"b,1,g\ny,"a\nb",1,g\n')
    read = read_partition(dataset(path), "all")
    assert [one.inputs["x"] for one in read.examples][-1] == "a\nb"
    assert [(one.where, "quote" in one.fix) for one in read.rejected] == [("a.csv row 10 (line 11)", True)]


def test_a_row_is_told_by_the_line_that_it_begins_in(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('id,x,y,group\r\n\na,"1\n2\n3",1,g\n\nb,2,1,g\nb,"3\n4",1,g\nb,5,1,g\n' + "c,6,1,g\n,7,1,g\n")
    read = read_partition(dataset(path, max_bad_rows=9), "all")
    assert [(one.where, one.fix.partition(";")[0]) for one in read.rejected] == [
        ("a.csv row 3 (line 8)", "a.csv row 2 (line 7) has it already"),
        ("a.csv row 4 (line 10)", "a.csv row 2 (line 7) has it already"),
        ("a.csv row 6 (line 12)", "give every example an id"),
    ]


def test_an_empty_cell_of_a_label_is_a_text_and_warned_of(lab: Lab, tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,x,y,group\na,1,1,g\nb,2,,g\nc,,,g\nd,4,4,g\ne,5,,g\nf,6,6,g\n")
    declared = dataset(path)
    read = read_partition(declared, "all")
    assert [one.labels["y"] for one in read.examples] == ["1", "", "4", "", "6"]
    ((what, fix),) = read.doubts
    assert what == "2 of 5 examples have an empty label in column 'y', the first in a.csv row 2 (line 3)"
    evaluation = replace(EVALUATION, dataset=declared)
    found = [(one.level.value, one.found, one.fix) for one in doctor.dataset(evaluation)]
    assert found[1:] == [("warning", f"all: {what}", fix)]
    said: list[str] = []
    monkeypatch.setattr(ProgressReporter, "warns", lambda _, told, about: said.append(told))
    evaluation = declare("fifth_raises")
    lab.declare(replace(evaluation, dataset=declared))
    assert lab.run([lab.dataset_key]).success
    assert said[-1].endswith(f"all: {what}: {fix}")
    assert len(said) == 2, "and the row that is left out"


def test_an_empty_label_that_somebody_has_written_is_not_warned_of() -> None:
    assert read_partition(dataset([row(y="")]), "all").doubts == []


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"id,x,y,group\na,{'x' * 200_000},1,g\n")
    (one,) = read_partition(dataset(path), "all").examples
    assert len(one.inputs["x"]) == 200_000


def test_a_path_that_is_there_is_no_pattern(tmp_path: Path) -> None:
    for name, x in (("c[1].csv", "own"), ("c1.csv", "other")):
        (tmp_path / name).write_text(f"id,x,y,group\na,{x},1,g\n")
    (one,) = read_partition(dataset(tmp_path / "c[1].csv"), "all").examples
    assert one.inputs["x"] == "own"
    (one,) = read_partition(dataset(tmp_path / "c[0-9].csv"), "all").examples
    assert one.inputs["x"] == "other"
    folder = tmp_path / "f[1]"
    folder.mkdir()
    (folder / "A.CSV").write_text("id,x,y,group\na,1,1,g\n")
    assert list(source_digests(dataset(folder, partitions=Dynamic()))) == ["A"]


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError


def nested(levels: int) -> dict[str, Any]:
    return {"a": nested(levels - 1)} if levels else {}


CIRCULAR: list[Any] = []
CIRCULAR.append(CIRCULAR)


@pytest.mark.parametrize(
    ("value", "column"),
    [
        pytest.param(CIRCULAR, "x", id="circular"),
        pytest.param({(1, 2): 3}, "x", id="tuple-key"),
        pytest.param(Unshowable(), "x", id="unshowable"),
        pytest.param("cut emoji \ud83d", "x", id="lone-surrogate"),
        pytest.param(nested(480), "x", id="deep"),
    ],
)
def test_a_value_that_cannot_be_kept_costs_its_row(tmp_path: Path, value: object, column: str) -> None:
    source = [row(id=f"e{x}") for x in range(9)] + [row(x=value)]
    read = read_partition(dataset(source), "all")
    assert len(read.examples) == 9
    assert [(one.where, one.column) for one in read.rejected] == [("dataset row 10", column)]
    assert read.rejected[0].reason
    path = store_rejected(read.rejected, tmp_path)
    kept = pd.read_csv(path)
    assert kept.columns.tolist() == ["row", "column", "reason", "content"]
    assert kept["row"].tolist() == ["dataset row 10"]
    path.write_bytes(path.read_bytes()[:-3])
    assert len(pd.read_csv(store_rejected(read.rejected, tmp_path))) == 1, "half a file is written anew"
    assert path.read_bytes().endswith(b"\n")
    stored = store_examples(read.examples, tmp_path)
    assert list(load_examples(tmp_path, stored.digest, limit=None)) == read.examples


def test_a_row_whose_columns_are_no_texts_is_left_out() -> None:
    read = read_partition(dataset([row(id=f"e{x}") for x in range(9)] + [{5: 77}]), "all")
    assert [one.fix for one in read.rejected] == ["the columns are 5"]


def test_half_an_emoji_in_a_file_costs_its_row(lab: Lab, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row(id=f"e{x}", x="\ud83d" if x == 3 else x)) + "\n" for x in range(9)))
    evaluation = declare("fifth_raises")
    lab.declare(replace(evaluation, dataset=replace(evaluation.dataset, source=path)))
    result = lab.run([lab.dataset_key])
    assert result.success, failure(result)
    assert lab.metadata(lab.dataset_key, "all")["rows rejected"] == 1


def raising() -> list[Any]:
    msg = "no such table"
    raise RuntimeError(msg)


def breaking_off() -> Iterator[Any]:
    yield row()
    raising()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        pytest.param(raising, "`{module}:raising` raised RuntimeError: no such table", id="raises"),
        pytest.param(breaking_off, "`{module}:breaking_off` raised RuntimeError: no such table", id="breaks-off"),
        pytest.param(lambda: 5, "returned int; give an iterable of rows", id="integer"),
        pytest.param(lambda: None, "returned NoneType; give an iterable of rows", id="nothing"),
        pytest.param(lambda: {"x": 1}, "returned dict; give an iterable of rows", id="one-map"),
    ],
)
def test_what_a_function_does_wrong_is_told_in_a_line(source: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidValue) as refused:
        read_partition(Dataset(source=source, inputs=("x",)), "all")
    assert message.format(module=__name__) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_partition_without_rows_says_which_there_are() -> None:
    source = [row(topic="text"), row(id="b", topic=None), row(id="c", topic="data")]
    with pytest.raises(InvalidValue) as refused:
        read_partition(dataset(source, partition_by="topic", partitions=("text", "files")), "files")
    assert str(refused.value).startswith("partition: 'files' is not accepted; it has no examples; column 'topic' has ")
    assert "data, text" in str(refused.value)


@pytest.mark.parametrize("group", [None, "", NAN])
def test_examples_without_a_group_are_clusters_of_their_own(group: object) -> None:
    examples = read_partition(dataset([row(group=group), row(id="b", group=group)]), "all").examples
    assert [example.cluster for example in examples] == ["a", "b"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_every_kind_of_file_gives_the_same_examples(tmp_path: Path, kind: str) -> None:
    table = [{"id": "a", "x": "1, 2", "y": "é\n", "group": "g"}, {"id": "b", "x": "3", "y": "4", "group": ""}]
    path = tmp_path / f"given.{kind}"
    write(path, table)
    assert read_partition(dataset(path), "all") == read_partition(dataset(table), "all")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
EXAMPLES = st.lists(
    st.builds(
        Example,
        example_id=st.text(min_size=1),
        inputs=st.dictionaries(st.text(), VALUES, max_size=2),
        labels=st.dictionaries(st.text(), VALUES, max_size=2),
        group=st.text(),
    ),
    min_size=1,
    max_size=4,
)


@settings(deadline=None)
@given(EXAMPLES)
def test_what_is_stored_is_loaded_unchanged(tmp_path_factory: pytest.TempPathFactory, examples: list[Example]) -> None:
    folder = tmp_path_factory.getbasetemp() / "stored"
    stored = store_examples(examples, folder)
    loaded = load_examples(folder, stored.digest, limit=None)
    assert [example.payload for example in loaded] == [example.payload for example in examples]
    assert load_examples(folder, stored.digest, limit=1)[0].digest == examples[0].digest
    assert stored.rows == len(examples)


@pytest.mark.parametrize(("passes", "groups"), [(1, 1), (2, 3)])
def test_of_a_large_data_set_only_what_was_read_last_is_in_memory_and_what_is_read_again_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: int, groups: int
) -> None:
    monkeypatch.setattr(datasets, "KEPT_BYTES", 5_000_000)
    rows = 10 * datasets.GROUP_ROWS
    stored = store_examples([Example(example_id=f"many-{row}", inputs={"x": row}) for row in range(rows)], tmp_path)
    loaded = load_examples(tmp_path, stored.digest, limit=rows - 1, passes=passes)
    assert sum(1 for _ in loaded) == len(loaded) == rows - 1
    held = sum(isinstance(one, Example) and one.example_id.startswith("many-") for one in gc.get_objects())
    assert held == groups * datasets.GROUP_ROWS - 1, "the last, and two that stay"
    assert [loaded[-1].inputs["x"], loaded[7].inputs["x"]] == [rows - 2, 7]
    assert [example.inputs["x"] for example in loaded[5 : rows : datasets.GROUP_ROWS]] == list(
        range(5, rows - 1, datasets.GROUP_ROWS)
    )
    with pytest.raises(IndexError):
        loaded[rows - 1]


def test_of_a_row_group_only_what_is_wanted_is_decoded(tmp_path: Path, monkeypatch: Any) -> None:
    stored = store_examples([Example(example_id=str(row), inputs={"x": row}) for row in range(50)], tmp_path)
    decoded: list[bytes] = []

    def counted(payload: bytes) -> Any:
        decoded.append(payload)
        return example_from_wire(payload)

    monkeypatch.setattr(datasets, "example_from_wire", counted)
    assert [one.inputs["x"] for one in load_examples(tmp_path, stored.digest, limit=3)] == [0, 1, 2]
    assert len(decoded) == 3


def test_a_row_group_of_a_data_set_is_bounded_in_bytes(tmp_path: Path) -> None:
    text = "x" * (datasets.GROUP_BYTES // 3)
    path = store_examples([Example(example_id=str(row), inputs={"x": text}) for row in range(5)], tmp_path).path
    metadata = pq.read_metadata(path)
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == [2, 2, 1]


def test_a_stored_data_set_is_never_written_again(tmp_path: Path) -> None:
    examples = [Example(example_id="a", inputs={"x": 1})]
    first = store_examples(examples, tmp_path)
    before = (first.path.stat().st_ino, first.path.stat().st_mtime_ns)
    again = store_examples(examples, tmp_path)
    assert again == first
    assert (first.path.stat().st_ino, first.path.stat().st_mtime_ns) == before
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.digest}.parquet"]


@pytest.mark.parametrize("left", [0, 99])
def test_a_file_that_was_cut_is_written_again(tmp_path: Path, left: int) -> None:
    examples = [Example(example_id=f"e{x}", inputs={"x": x}) for x in range(5)]
    path = store_examples(examples, tmp_path).path
    whole = path.read_bytes()
    path.write_bytes(whole[:left])
    with pytest.raises(DspexError, match="is damaged .*; materialise the data set asset again"):
        load_examples(tmp_path, path.stem, limit=None)
    stored = store_examples(examples, tmp_path)
    assert path.read_bytes() == whole
    assert list(load_examples(tmp_path, stored.digest, limit=None)) == examples


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: Any) -> None:
    done: list[str] = []
    fsync, replace_ = os.fsync, Path.replace

    def synced(handle: int) -> None:
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append("name")
        return replace_(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    store_examples([Example(example_id="a", inputs={"x": 1})], tmp_path)
    assert done == ["file", "name", "folder"]


def test_a_data_set_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DspexError, match="materialise the data set asset again"):
        load_examples(tmp_path, "0" * 32, limit=None)


def test_a_bad_data_set_fails_its_run_before_any_trial(lab: Lab) -> None:
    result = lab.declare(declare("fifth_raises", [row(x=None)])).evaluate()
    assert not result.success
    said, where = failure(result).splitlines()
    assert said == "dataset row 1, column 'x': None is not accepted; give every example its input"
    (kept,) = pd.read_csv(where.removeprefix("They are in ")).to_dict("records")
    assert (kept["row"], kept["column"], json.loads(kept["content"])["x"]) == ("dataset row 1", "x", None)
    assert not (lab.folder / "journal.sqlite").exists()


def test_an_evaluation_without_its_data_set_says_so(lab: Lab) -> None:
    result = lab.declare(declare("fifth_raises")).evaluate(read=False)
    assert not result.success
    assert failure(result) == "tested/dataset has no partition 'all' yet; materialise it first"


def test_a_changed_label_is_another_data_set_and_scores_that_example_again(
    lab: Lab, count_lines: tuple[str, Callable[[], int]]
) -> None:
    log, ran = count_lines
    source = rows(4, log=log)
    lab.declare(declare("logged", source, inputs=("x", "log")))
    before, first = lab.evaluated()
    folder = lab.folder / "datasets" / "tested" / "all"
    (file,) = folder.iterdir()
    content = file.read_bytes()
    assert first["dataset digest"] == file.stem == lab.metadata(lab.dataset_key, "all")["version"]

    source[3]["y"] = 6
    after, second = lab.evaluated()
    assert ran() == 8, "no program runs for a label"
    assert [second[f"trials {what}"] for what in ("run", "scored again", "reused")] == [0, 2, 6]
    assert second["version"] != first["version"]
    assert second["dataset digest"] != first["dataset digest"]
    assert before["score.right"].tolist() == [1, 1, 1, 1, 1, 0, 0, 0]
    assert after["score.right"].tolist() == [1, 1, 1, 0, 1, 0, 0, 1]
    assert after["trial_id"].tolist() == before["trial_id"].tolist()
    assert file.read_bytes() == content
    assert {path.stem for path in folder.iterdir()} == {first["dataset digest"], second["dataset digest"]}
    pd.testing.assert_frame_equal(pd.read_parquet(first["path"]), before)


def test_a_data_set_that_changes_meanwhile_does_not_change_what_was_planned(lab: Lab) -> None:
    """Only the data set that was materialised counts, whatever the source has become since."""
    source = rows(2)
    lab.declare(declare("fifth_raises", source))
    _, first = lab.evaluated()
    source.append({"id": "late", "x": 9, "y": 9, "group": "g"})
    table, second = lab.evaluated(read=False)
    assert "late" not in set(table["example_id"])
    assert second["version"] == first["version"]
