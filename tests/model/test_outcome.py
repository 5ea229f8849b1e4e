"""What a worker says of scores is a map of names to finite numbers, or an error that says so."""

from __future__ import annotations

import math

import pytest

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.outcome import scores_of
from dspex_pipelines.model.payload import encode


@pytest.mark.parametrize("scores", [{}, {"a": 1, "b": 0.5, "c": True}])
def test_numbers_by_name_are_scores(scores: dict[str, float]) -> None:
    assert scores_of(encode(scores)) == scores
    assert scores_of(encode(None)) == {}


@pytest.mark.parametrize(
    "wrong", [{1: 1.0}, {"a": "1"}, {"a": None}, {"a": 1.0, "b": math.nan}, {"a": math.inf}, [1.0], 1.0], ids=str
)
def test_anything_else_is_refused(wrong: object) -> None:
    with pytest.raises(SerializationError, match="scores.*not a map of names to finite numbers"):
        scores_of(encode(wrong))
