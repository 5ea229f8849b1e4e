"""What a trial reports that it has used."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
from concurrent.futures import Future
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from dspex_pipelines import Price, call_model, report_usage
from dspex_pipelines.engine.calls.trial_calls import (
    MOST_AMOUNT,
    MOST_FAILED,
    MOST_NAMES,
    Call,
    Caller,
    TrialCalls,
    begin_trial,
)
from dspex_pipelines.engine.calls.used import Used
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.payload import decode, encode


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


def test_what_threads_of_one_trial_use_at_once_is_all_counted() -> None:
    calls, threads, each = TrialCalls(None), 8, 2_000
    together = threading.Barrier(threads)

    def use() -> None:
        begin_trial(calls)
        together.wait()
        for _ in range(each):
            report_usage(pages=1)
            calls.add(Call("sim/model", used=Used(input_tokens=2, output_tokens=1)))

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        working = [threading.Thread(target=use) for _ in range(threads)]
        for one in working:
            one.start()
        for one in working:
            one.join()
    finally:
        sys.setswitchinterval(before)
    total = threads * each
    assert (calls.used["pages"], calls.used["tokens"], calls.used["calls"]) == (total, 3 * total, total)
    assert calls.calls is not None
    assert len(calls.calls) == total


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


def asked(answer: object, *, prices: tuple[Price, ...] = (), fails: int = 0) -> dict[str, float]:
    """What a trial has used after one call of openai/m that is answered so, after so many failures."""
    calls = TrialCalls(Caller(Grants(), CallPolicy(prices=prices)))
    begin_trial(calls)
    left = [ConnectionError("lost")] * fails

    def make() -> object:
        if left:
            raise left.pop()
        return answer

    assert call_model("openai/m@http://here", make) is answer
    return calls.used


class Grants:
    """Leave for everybody at once."""

    def ask(self, trial: int, model: str, tokens: int, *, again: bool) -> Grants:
        self.granted = Future[None]()
        self.granted.set_result(None)
        return self

    def end(self, verdict: Verdict, *, retry_after_s: float = 0.0, tokens: int = 0) -> None:
        pass


TOLD = {"usage": {"prompt_tokens": 1_000, "completion_tokens": 500}}
COUNTED = {"calls": 1, "openai/m.calls": 1, "tokens": 1_500}
COUNTED |= {"input_tokens": 1_000, "openai/m.input_tokens": 1_000, "output_tokens": 500, "openai/m.output_tokens": 500}


def test_tokens_and_cost_are_counted_by_model_too() -> None:
    used = asked(TOLD, prices=(Price(model="openai/*", input_usd=1.0, output_usd=2.0),))
    assert used == {**COUNTED, "cost_usd": 0.002, "openai/m.cost_usd": 0.002}


def test_a_call_without_a_price_is_counted_as_such() -> None:
    assert asked(TOLD) == {**COUNTED, "unpriced_calls": 1, "openai/m.unpriced_calls": 1}


def test_a_call_that_tells_no_tokens_is_not_free() -> None:
    used = asked("an answer", prices=(Price(model="openai/*", input_usd=1.0, output_usd=2.0),))
    assert (used["untold_calls"], used["openai/m.untold_calls"]) == (1, 1)
    assert "cost_usd" not in used
    assert "unpriced_calls" not in used


def test_calls_that_are_made_again_are_counted() -> None:
    used = asked(TOLD, fails=2)
    assert (used["calls"], used["retried_calls"]) == (1, 2)


def test_names_by_model_give_way_where_there_are_too_many() -> None:
    calls = TrialCalls(None)
    begin_trial(calls)
    for number in range(MOST_NAMES):
        call_model(f"m{number}", lambda: TOLD)
    assert len(calls.used) <= MOST_NAMES
    assert calls.used["calls"] == MOST_NAMES
    assert calls.used["unpriced_calls"] == MOST_NAMES


def test_a_program_with_many_names_of_its_own_may_call_models() -> None:
    calls = TrialCalls(None)
    begin_trial(calls)
    report_usage(**{f"name_{number}": 1 for number in range(MOST_NAMES)})
    call_model("m", lambda: TOLD)
    assert (calls.used["calls"], calls.used["tokens"], calls.used["unpriced_calls"]) == (1, 1_500, 1)
    assert "m.calls" not in calls.used


@pytest.mark.parametrize(
    "said", [2**70, 10**400, 1e300, -1, math.nan, math.inf, "5", None, True, {"a": [1]}, [1], b"5"]
)
def test_tokens_that_are_no_count_leave_the_answer_as_it_is(said: Any) -> None:
    usage = dict.fromkeys(("prompt_tokens", "completion_tokens"), said)
    used = asked(
        {"usage": {**usage, "prompt_tokens_details": said}}, prices=(Price(model="*", input_usd=1, output_usd=1),)
    )
    assert used["calls"] == 1
    assert used["tokens"] == (2 if said is True else 0)
    encode(used)


class Unspeakable:
    @property
    def usage(self) -> Any:
        raise RuntimeError("says nothing")


@pytest.mark.parametrize("answer", [Unspeakable(), {"usage": "5"}, {"usage": [1]}, {"usage": math.nan}, 2**70])
def test_an_answer_that_cannot_be_looked_at_says_nothing_of_its_usage(answer: Any) -> None:
    assert asked(answer)["untold_calls"] == 1


def test_sums_stay_what_can_be_sent() -> None:
    used = begin()
    for _ in range(3):
        report_usage(tokens=2**63 - 1, pages=10**30, cost_usd=1.7e308)
        report_usage(tokens=Decimal("1.5"), pages=Fraction(1, 2))
    assert decode(encode(used)) == dict.fromkeys(("tokens", "pages", "cost_usd"), MOST_AMOUNT)


@pytest.mark.parametrize(
    "amounts",
    [
        pytest.param({"\ud800": 1}, id="lone-surrogate"),
        pytest.param({"a\x1b[0m": 1}, id="unprintable"),
        pytest.param({"a" * 1_000_000: 1}, id="long"),
        pytest.param({"a": 10**400}, id="beyond-floats"),
        pytest.param({"a": "1"}, id="text"),
        pytest.param({"a": None}, id="nothing"),
    ],
)
def test_what_cannot_be_sent_is_refused(amounts: dict[str, Any]) -> None:
    used = begin()
    with pytest.raises(InvalidValue):
        report_usage(**amounts)
    assert used == {}


@pytest.mark.parametrize("tokens", [2**70, -1, math.nan, math.inf, "5", None])
def test_an_estimate_that_is_none_is_no_estimate(tokens: Any) -> None:
    estimates: list[int] = []

    class Notes(Grants):
        def ask(self, trial: int, model: str, tokens: int, *, again: bool) -> Grants:
            estimates.append(tokens)
            return super().ask(trial, model, tokens, again=again)

    begin_trial(TrialCalls(Caller(Notes(), CallPolicy())))
    call_model("m", lambda: TOLD, tokens=tokens)
    assert estimates == [0]


def test_of_calls_that_were_made_again_the_last_are_told() -> None:
    calls = TrialCalls(Caller(Grants(), CallPolicy()))
    begin_trial(calls)

    def fails(number: int) -> None:
        raise ConnectionError(f"lost {number}")

    for number in range(MOST_FAILED):
        with pytest.raises(ConnectionError):
            call_model("m", lambda number=number: fails(number))
    assert calls.failed is not None
    assert len(calls.failed) == MOST_FAILED
    assert f"lost {MOST_FAILED - 1}" in calls.failed[-1].message
    assert calls.used["retried_calls"] == 2 * MOST_FAILED
