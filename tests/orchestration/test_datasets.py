"""Data sets: what is refused and why, and files that are written once."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Dataset
from dspex_pipelines.model.trial import Example
from dspex_pipelines.orchestration.datasets import load_examples, read_partition, store_examples
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import declare, rows

NAN = math.nan


def dataset(source: Any, **changes: Any) -> Dataset:
    given = {"inputs": ("x",), "labels": ("y",), "example_id": "id", "group": "group", **changes}
    return Dataset(source=source if isinstance(source, Path) else lambda: source, **given)


def row(**changes: Any) -> dict[str, Any]:
    return {"id": "a", "x": 1, "y": 1, "group": "g", **changes}


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
            "column 'x': None is not accepted; the columns are id, y, group",
            id="no-column",
        ),
        pytest.param(
            [row(), row()], "row 2, column 'id': 'a' is not accepted; give each example an id of its own", id="twice"
        ),
        pytest.param([row(id=None)], "row 1, column 'id': ''", id="no-id"),
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
        pytest.param("a.csv", b"id,x,y,group\na,1,2,g,more\n", "dataset row 1: ['more']", id="csv-long-row"),
        pytest.param("a.csv", b"id,x,y,group\na,\xff,2,g\n", "it cannot be read", id="csv-not-utf8"),
        pytest.param("a.csv", b"id,x,y,group\n", "the source is empty", id="csv-header-alone"),
        pytest.param(
            "a.jsonl",
            b'{"id": "a", "x": 1, "y": 1, "group": ""}\n{"id"',
            "dataset line 2: '{\"id\"' is not accepted; write JSON",
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
    write: dict[str, Callable[[], object]] = {
        "csv": lambda: pd.DataFrame(table).to_csv(path, index=False),
        "jsonl": lambda: path.write_text("\n".join(json.dumps(one) for one in table) + "\n\n"),
        "parquet": lambda: pq.write_table(pa.Table.from_pylist(table), path),
    }
    write[kind]()
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


def test_a_stored_data_set_is_never_written_again(tmp_path: Path) -> None:
    examples = [Example(example_id="a", inputs={"x": 1})]
    first = store_examples(examples, tmp_path)
    before = (first.path.stat().st_ino, first.path.stat().st_mtime_ns)
    again = store_examples(examples, tmp_path)
    assert again == first
    assert (first.path.stat().st_ino, first.path.stat().st_mtime_ns) == before
    assert [path.name for path in tmp_path.iterdir()] == [f"{first.digest}.parquet"]


def test_a_data_set_that_is_gone_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DspexError, match="materialise the data set asset again"):
        load_examples(tmp_path, "0" * 32, limit=None)


def test_a_bad_data_set_fails_its_run_before_any_trial(lab: Lab) -> None:
    result = lab.declare(declare("fifth_raises", [row(x=None)])).evaluate()
    assert not result.success
    said, where = failure(result).splitlines()
    assert said == "dataset row 1, column 'x': None is not accepted; give every example its input"
    (kept,) = pd.read_parquet(where.removeprefix("They are in ")).to_dict("records")
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
