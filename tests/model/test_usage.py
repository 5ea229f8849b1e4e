"""What trials have used, in sums and in words."""

from __future__ import annotations

import pytest

from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.outcome import TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.usage import Usage, model_of

ONE = {
    "calls": 3.0,
    "tokens": 1_500.0,
    "input_tokens": 1_200.0,
    "output_tokens": 300.0,
    "cost_usd": 0.5,
    "openai/gpt-4.1.calls": 3.0,
    "openai/gpt-4.1.input_tokens": 1_200.0,
    "openai/gpt-4.1.output_tokens": 300.0,
    "openai/gpt-4.1.cost_usd": 0.5,
}


def outcome(usage: bytes, *, run_s: float = 1.0, throttled_s: float = 0.0) -> TrialResult:
    return TrialResult(
        trial_id=b"", configuration_digest=b"", usage_payload=usage, run_s=run_s, throttled_s=throttled_s
    )


def test_outcomes_are_summed_and_what_cannot_be_read_counts_only_its_time() -> None:
    usage = Usage()
    usage.add_outcomes([outcome(encode(ONE), throttled_s=1.0), outcome(encode(ONE)), outcome(b"\xc1"), outcome(b"")])
    assert usage.amounts == {name: 2 * amount for name, amount in ONE.items()}
    assert (usage.run_s, usage.throttled_s, usage.throttled_share) == (4.0, 1.0, 0.2)
    again = Usage.from_document(usage.to_document())
    assert again == usage
    again.merge(usage)
    assert again.amounts["calls"] == 12


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("openai/gpt-4.1.input_tokens", "openai/gpt-4.1"),
        ("m.untold_calls", "m"),
        ("calls", ""),
        ("my.own", ""),
    ],
)
def test_a_name_is_of_a_model_or_of_all(name: str, model: str) -> None:
    assert model_of(name) == model


def test_one_model_is_one_line_and_several_have_one_each() -> None:
    usage = Usage(dict(ONE), run_s=3.0, throttled_s=1.0)
    line = "Used: openai/gpt-4.1: 3 calls, 1,200 tokens in and 300 out, $0.50, throttled 25% of the time"
    assert usage.lines() == [line]
    usage.add({"calls": 1, "local/m.calls": 1, "retried_calls": 1, "cached_calls": 2})
    first = "Used: 4 calls, 1,200 tokens in and 300 out, $0.50, throttled 25% of the time"
    assert usage.lines() == [
        f"{first}, 1 call made again, 2 answered by a cache",
        "  local/m: 1 call",
        "  openai/gpt-4.1: 3 calls, 1,200 tokens in and 300 out, $0.50",
    ]
    assert usage.short() == "4 calls, 1,500 tokens, $0.50"


def test_programs_that_report_for_themselves_are_told_as_they_say_and_others_not_at_all() -> None:
    assert Usage({"tokens": 20, "cost_usd": 0.25}).lines() == ["Used: 20 tokens, $0.25"]
    assert Usage({"pages": 3}, run_s=1.0, throttled_s=1.0).lines() == []
    assert Usage().short() == Usage().spent() == ""
    assert Usage({"tokens": 2_000}).spent() == "2,000 tokens"


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        pytest.param(None, "cost leaves out 2 calls to m: give it a price", id="no-budget"),
        pytest.param(
            Budget(max_cost_usd=1.0),
            "cost leaves out 2 calls to m, and max_cost_usd does not hold for them: give it a price",
            id="money",
        ),
        pytest.param(Budget(max_tokens=1), "cost leaves out 2 calls to m: give it a price", id="tokens-are-counted"),
    ],
)
def test_calls_without_a_price_are_told_with_what_to_do(budget: Budget | None, said: str) -> None:
    (warning,) = Usage({"unpriced_calls": 2, "m.unpriced_calls": 2}).warnings(budget).values()
    assert warning == f'{said} with prices=(Price(model="m", input_usd=…, output_usd=…),)'


def test_calls_that_tell_nothing_are_in_no_budget_either() -> None:
    usage = Usage({"untold_calls": 3, "m.untold_calls": 1})
    of_m, of_others = usage.warnings(Budget(max_tokens=1, max_cost_usd=1.0)).values()
    assert "1 call to m, whose answers say no usage, and max_tokens and max_cost_usd do not hold for them" in of_m
    assert "2 calls to further models" in of_others
    before = set(usage.warnings())
    usage.add({"untold_calls": 5, "m.untold_calls": 5})
    assert set(usage.warnings()) == before
    assert Usage(dict(ONE)).warnings(Budget(max_cost_usd=1.0)) == {}
