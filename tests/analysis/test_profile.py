"""What a data set is like, column by column."""

from __future__ import annotations

from typing import Any

from dspex_pipelines.analysis.profile import MOST_DISTINCT, ColumnProfile, profile


def column(*values: Any) -> ColumnProfile:
    (found,) = profile(({"x": value}, {}) for value in values)
    return found


def test_a_column_of_texts() -> None:
    texts = column("a", "bbb", "", "a", None)
    assert (texts.name, texts.role, texts.type) == ("x", "input", "str")
    assert (texts.missing, texts.distinct, texts.sizes) == (2, "2", "1 to 3 characters, mean 1.667")


def test_numbers_are_measured_themselves_and_lists_by_their_items() -> None:
    assert column(2, 3.5, float("nan"), True).sizes == "2 to 3.5, mean 2.75"
    assert column(2, 2.0, 3).type == "int, float"
    assert column([1, 2], []).sizes == "0 to 2 items, mean 1"
    assert column([1, 2], "abc").sizes == "2 to 3, mean 2.5", "no one unit"
    assert column(None).sizes == ""


def test_the_balance_of_labels_is_of_those_that_are_there_more_than_once() -> None:
    inputs, labels = profile(({"x": number}, {"y": "ab"[number % 3 == 0]}) for number in range(9))
    assert labels.role == "label"
    assert labels.balance(5) == [("a", 6), ("b", 3)]
    assert inputs.balance(5) == []


def test_what_it_keeps_does_not_grow_with_the_rows() -> None:
    many = column(*(str(number) for number in range(5 * MOST_DISTINCT)))
    assert (len(many.values), many.distinct, many.balance(5)) == (MOST_DISTINCT, "1,000 or more", [])
