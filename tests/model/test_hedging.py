"""What can be said of second copies, and what is refused."""

from __future__ import annotations

import math

import pytest

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.hedging import Hedging, hedged_in_words


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("quantile", value) for value in (0, 1, 1.5, -0.5, math.nan, "0.95", True, None)),
        *(("fraction", value) for value in (0, 1.01, -0.5, math.nan, "0.1", True, None)),
        *(("after", value) for value in (0, -1, 10.0, "100", True, None)),
    ],
    ids=str,
)
def test_a_refusal_names_the_field_the_value_and_the_fix(field: str, value: object) -> None:
    with pytest.raises(InvalidValue) as refusal:
        Hedging(**{field: value})  # type: ignore[arg-type]
    assert refusal.value.field == f"hedging.{field}"
    assert refusal.value.value is value
    assert refusal.value.fix.startswith("give a")


def test_the_ends_of_what_can_be() -> None:
    assert Hedging(quantile=0.001, fraction=1, after=1).fraction == 1


def test_in_words() -> None:
    assert hedged_in_words(0, 0) == "0 trials had a second copy"
    assert hedged_in_words(1, 1) == "1 trial had a second copy, and 1 of them an answer from it first"
