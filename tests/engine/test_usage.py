"""What a trial reports that it has used."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest

from dspex_pipelines import report_usage
from dspex_pipelines.engine.calls import MOST_NAMES, TrialCalls, begin_trial
from dspex_pipelines.errors import InvalidValue


def begin() -> dict[str, float]:
    calls = TrialCalls(None)
    begin_trial(calls)
    return calls.used


async def test_interleaved_trials_report_each_its_own() -> None:
    async def trial(tokens: int) -> dict[str, float]:
        used = begin()
        for _ in range(3):
            report_usage(tokens=tokens)
            await asyncio.sleep(0)
            await asyncio.create_task(call(tokens))
        return used

    async def call(tokens: int) -> None:
        report_usage(cost_usd=tokens / 1_000)

    found = await asyncio.gather(*(trial(tokens) for tokens in range(1, 20)))
    assert [used["tokens"] for used in found] == [3 * tokens for tokens in range(1, 20)]
    assert [used["cost_usd"] for used in found] == pytest.approx([3 * tokens / 1_000 for tokens in range(1, 20)])


def test_outside_a_trial_nothing_happens() -> None:
    report_usage(tokens=5)


@pytest.mark.parametrize("amount", [-1, math.nan, math.inf, True])
def test_what_is_no_amount_is_refused_by_name(amount: Any) -> None:
    with pytest.raises(InvalidValue) as refused:
        report_usage(tokens=amount)
    assert refused.value.field == "tokens"


def test_names_are_few() -> None:
    used = begin()
    with pytest.raises(InvalidValue, match=f"at most {MOST_NAMES} names"):
        for number in range(MOST_NAMES + 1):
            report_usage(**{f"name_{number}": 1})
    assert len(used) == MOST_NAMES
    report_usage(name_0=1)
    assert used["name_0"] == 2
