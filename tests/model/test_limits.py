"""What may be declared of a provider: numbers that every clock and every message can take."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dspex_pipelines.engine.throttling.throttle import Throttle, Verdict
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.calls import CallPolicy, Price
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.wire.codec import policy_from_wire, policy_to_wire

NO_NUMBERS: list[Any] = [-1, math.nan, math.inf, 10**400, 1e308, "5", True, None]


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1e-323, 1e-9])
@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_rate_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=name):
        RateLimit(model="m", **{name: value})


@pytest.mark.parametrize("value", [*NO_NUMBERS, 1.5, 2**32])
def test_a_number_of_calls_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(InvalidValue, match="max_concurrency"):
        RateLimit(model="m", max_concurrency=value)


@pytest.mark.parametrize("value", NO_NUMBERS[:-1])
@pytest.mark.parametrize("name", ["input_usd", "output_usd", "cached_input_usd"])
def test_a_price_that_is_none_is_refused(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=name):
        Price(**{"model": "m", "input_usd": 0, "output_usd": 0, name: value})


@pytest.mark.parametrize("rate", [1e-6, 1e15])
def test_the_outermost_numbers_can_be_sent_and_kept(rate: float) -> None:
    limit = RateLimit(model="m", requests_per_minute=rate, tokens_per_minute=rate, max_concurrency=2**31 - 1)
    policy = CallPolicy(limits=(limit,), prices=(Price(model="m", input_usd=1e9, output_usd=0),))
    assert policy_from_wire(policy_to_wire(policy)) == policy
    throttle = Throttle()
    throttle.declare(1, policy.limits, 0.0)
    for number in range(3):
        throttle.ask(number, "m", 2**26, 0.0)
    throttle.done(0, Verdict.OK, 1.0, tokens=2**26)
    due = throttle.next_due()
    assert due is None or 0.0 <= due < math.inf
