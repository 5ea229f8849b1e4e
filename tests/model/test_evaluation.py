"""Evaluations and data sets: what is refused where they are declared, and what is taken."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dspex_pipelines.engine.program_versions import program_version
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable
from dspex_pipelines.model.evaluation import Dataset, Evaluation
from dspex_pipelines.model.search import Search


def dataset(**changes: Any) -> Dataset:
    return Dataset(**{"source": Path("rows.csv"), "inputs": ("x",), "partition_by": "topic", **changes})


def declare(**changes: Any) -> Evaluation:
    given = {"name": "tested", "dataset": dataset(), "program": "tests.programs:echo", "metrics": ("a.b:good",)}
    return Evaluation(**{**given, **changes})


@pytest.mark.parametrize(
    "partition",
    ["", ".", "..", "a/b", "/", "a\0b", "two\nlines", "a...b", "\ud800", "x" * 101, "\U0001f600" * 70, 3, None, ("a",)],
    ids=repr,
)
def test_a_partition_that_cannot_name_a_folder_is_refused(partition: object) -> None:
    with pytest.raises(InvalidValue) as refusal:
        dataset(partitions=("text", partition))
    assert refusal.value.field == "dataset.partitions"
    assert refusal.value.value == partition


def test_partitions_are_named_as_the_values_of_a_column_are() -> None:
    names = ("x" * 100, "two words", "a.b", "..a", "é" * 100, "1", "-", "a\\b")
    assert dataset(partitions=names).partitions == names


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param("evaluation.name", "x" * 101, id="long-name"),
        pytest.param("evaluation.name", 3, id="name-is-no-string"),
        pytest.param("files", "prompt.txt", id="one-file"),
        pytest.param("environment", "API_BASE", id="one-variable"),
        pytest.param("environment", ("API BASE",), id="no-variable"),
        pytest.param("environment", (3,), id="variable-is-no-string"),
        pytest.param("environment", ("OPENAI_API_KEY",), id="key"),
        pytest.param("environment", ("HF_TOKEN",), id="token"),
        pytest.param("environment", ("db_password",), id="password"),
        pytest.param("files", Path("prompt.txt"), id="one-path"),
        pytest.param("files", (3,), id="no-file"),
        pytest.param("files", ("",), id="empty-file"),
        pytest.param("files", ("a\0b",), id="nul-file"),
        pytest.param("timeout_s", "60", id="timeout-is-a-string"),
        pytest.param("timeout_s", True, id="timeout-is-a-boolean"),
        pytest.param("timeout_s", math.nan, id="timeout-is-nan"),
        pytest.param("timeout_s", None, id="no-timeout"),
        pytest.param("timeout_s", 0, id="timeout-of-nothing"),
        pytest.param("max_concurrency", "8", id="concurrency-is-a-string"),
        pytest.param("max_concurrency", 8.0, id="concurrency-is-a-float"),
        pytest.param("max_concurrency", True, id="concurrency-is-a-boolean"),
        pytest.param("weight", 0, id="weight-is-nothing"),
        pytest.param("weight", 1_001, id="weight-is-too-much"),
        pytest.param("weight", True, id="weight-is-a-boolean"),
        pytest.param("hedging", 0.05, id="hedging-is-a-number"),
        pytest.param("dataset", "data.csv", id="dataset-is-a-path"),
        pytest.param("space", {"variables": ()}, id="space-is-a-map"),
        pytest.param("score_range", (0.0,), id="one-score"),
        pytest.param("score_range", (0.0, 0.5, 1.0), id="three-scores"),
        pytest.param("score_range", ("0", "1"), id="scores-are-strings"),
        pytest.param("score_range", "01", id="score-range-is-a-string"),
        pytest.param("score_range", 1.0, id="score-range-is-a-number"),
        pytest.param("score_range", (0.0, math.inf), id="infinite-score"),
        pytest.param("score_range", (math.nan, 1.0), id="nan-score"),
        pytest.param("score_range", (1.0, 0.0), id="best-first"),
    ],
)
def test_a_refusal_names_the_field_the_value_and_the_fix(field: str, value: object) -> None:
    with pytest.raises(InvalidValue) as refusal:
        declare(**{field.removeprefix("evaluation."): value})
    assert refusal.value.field == field
    assert refusal.value.fix


@pytest.mark.parametrize("second", ["c.d:good", "a.b:Judge.good", "a.b:good"])
def test_two_metrics_of_one_name_are_refused(second: str) -> None:
    with pytest.raises(InvalidValue) as refusal:
        declare(metrics=("a.b:good", "a.b:better", second))
    assert refusal.value.value == second
    assert "a.b:good" in refusal.value.fix


def test_files_may_be_given_as_strings(tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Be brief.")
    files = declare(files=[str(prompt)]).files
    assert files == (prompt,)
    before = program_version("tests.programs:echo", {}, files=files)
    prompt.write_text("Be kind.")
    assert program_version("tests.programs:echo", {}, files=files) != before


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    files = declare(files=(str(tmp_path / "nothing.txt"),)).files
    with pytest.raises(ProgramUnavailable, match=r"nothing\.txt"):
        program_version("tests.programs:echo", {}, files=files)


def test_what_is_declared_is_kept() -> None:
    evaluation = declare(
        name="x" * 100, timeout_s=3, max_concurrency=1, score_range=[-1, 1], environment=["MAX_TOKENS"]
    )
    assert evaluation.environment == ("MAX_TOKENS",)
    assert (evaluation.timeout_s, evaluation.max_concurrency, evaluation.score_range) == (3, 1, (-1, 1))


@pytest.mark.parametrize("owners", [("ada",), ("team:",), ("@example.org",), (5,), "team:search"])
def test_an_owner_is_an_address_or_a_team(owners: object) -> None:
    with pytest.raises(InvalidValue, match="owners"):
        declare(owners=owners)


def test_owners_are_what_dagster_takes() -> None:
    assert declare(owners=["ada@example.org", "team:search"]).owners == ("ada@example.org", "team:search")


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"samples": 1.0}, {"samples": True}, {"seed": 2**31}])
def test_a_search_is_of_whole_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=f"search.{next(iter(wrong))}"):
        Search(**wrong)
