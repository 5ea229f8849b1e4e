"""When a budget is used up, and what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dspex_pipelines.errors import InvalidValue, ProviderRefused
from dspex_pipelines.model.budget import Budget, Spent, dollars


@pytest.mark.parametrize(
    ("budget", "spent", "said"),
    [
        pytest.param(
            Budget(), Spent(trials=10**9, failed=10**9, elapsed_s=1e9, tokens=10**9, cost_usd=1e9), "", id="none"
        ),
        pytest.param(Budget(max_errors=3), Spent(trials=50, failed=2), "", id="errors-below"),
        pytest.param(
            Budget(max_errors=3),
            Spent(trials=50, failed=3),
            "3 of the first 50 trials failed; the limit is 3",
            id="errors",
        ),
        pytest.param(
            Budget(max_errors=1),
            Spent(trials=1, failed=1),
            "1 of the first 1 trials failed; the limit is 1",
            id="first-error",
        ),
        pytest.param(Budget(max_errors=0.1), Spent(trials=99, failed=99), "", id="fraction-of-few"),
        pytest.param(Budget(max_errors=0.1), Spent(trials=200, failed=20), "", id="fraction-just-not"),
        pytest.param(
            Budget(max_errors=0.1),
            Spent(trials=200, failed=21),
            "21 of the first 200 trials failed; the limit is 10.0%",
            id="fraction",
        ),
        pytest.param(Budget(max_errors=0.5, min_trials=2), Spent(trials=2, failed=2), "is 50.0%", id="fraction-of-two"),
        pytest.param(Budget(max_time_s=5), Spent(elapsed_s=4.99), "", id="time-below"),
        pytest.param(Budget(max_time_s=5), Spent(elapsed_s=5.0), "5 s are over", id="time"),
        pytest.param(Budget(max_tokens=1_000), Spent(tokens=999), "", id="tokens-below"),
        pytest.param(Budget(max_tokens=1_000), Spent(tokens=1_234), "1,234 of 1,000 tokens", id="tokens"),
        pytest.param(Budget(max_cost_usd=2.5), Spent(cost_usd=2.49), "", id="cost-below"),
        pytest.param(Budget(max_cost_usd=2.5), Spent(cost_usd=2.5), "$2.50 of $2.50", id="cost"),
    ],
)
def test_a_budget_says_which_bound_is_reached(budget: Budget, spent: Spent, said: str) -> None:
    found = budget.exceeded_by(spent)
    assert said in found
    assert bool(found) is bool(said)
    assert budget.is_bounded is (budget != Budget())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_errors", -1),
        ("max_errors", math.nan),
        ("max_errors", 2.5),
        ("max_errors", True),
        ("min_trials", 0),
        ("min_trials", 1.5),
        ("max_time_s", math.inf),
        ("max_tokens", -1),
        ("max_tokens", 1.5),
        ("max_cost_usd", -0.01),
        ("max_cost_usd", math.nan),
        ("max_cost_usd", 10**400),
        ("max_cost_usd", "5"),
        ("max_tokens", 2**63),
    ],
)
def test_a_bound_that_is_none_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidValue) as refused:
        Budget(**{field: value})
    assert (refused.value.field, refused.value.value) == (f"budget.{field}", value)


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        (0, "$0.00"),
        (0.000001, "$0.000001"),
        (0.000_049_6, "$0.00005"),
        (0.25, "$0.25"),
        (0.0021, "$0.0021"),
        (0.255, "$0.2550"),
        (1234.5678, "$1,234.57"),
    ],
)
def test_small_amounts_are_told_in_full(amount: float, said: str) -> None:
    assert dollars(amount) == said


def test_a_missing_key_is_not_said_to_be_refused() -> None:
    told = str(ProviderRefused("no key: LMNotConfiguredError: [m] empty credential."))
    assert told.startswith("there is no key for a model, so nothing more is run: LMNotConfiguredError: [m] empty")
    assert "refused" not in told


def test_a_refused_key_is_told_in_one_line() -> None:
    told = str(ProviderRefused("authentication: Incorrect key.\n\n  To fix:\n    - Check it"))
    assert "nothing more is run: authentication: Incorrect key. Check the key" in told
    assert "\n" not in told
