"""Providers that misbehave: what becomes of each trial, and what its history says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from dspex_pipelines.loopback.process import serving
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome
from tests.providers.field import field

COUNT = 600


@pytest.mark.timeout(180)
@pytest.mark.parametrize("program", ["AnswersLater", "Answers"])
async def test_in_a_mixture_of_faults_every_trial_has_its_outcome_and_its_history(program: str) -> None:
    faults = {"error_rate": 0.05, "hang_rate": 0.02, "malformed_rate": 0.02, "drop_rate": 0.01}
    async with field() as pool:
        with serving(latency_s=0.1, **faults) as server:
            questions = [{"question": f"q {number}", "base": server.base_url} for number in range(COUNT)]
            outcomes = await pool.run(program, questions, at_once=100, metric="said_something")
            stats = server.stats()
    assert stats["errors"].keys() == {"error"} or stats["errors"]
    assert len(outcomes) == COUNT
    failed = [outcome for outcome in outcomes if isinstance(outcome, TrialError)]
    # Three tries of a call and then another attempt: what fails by chance does not do so that often.
    assert {outcome.type for outcome in failed} <= {ErrorType.PROVIDER_UNAVAILABLE, ErrorType.MALFORMED_OUTPUT}
    assert len(failed) <= 0.01 * COUNT
    past = [one for outcome in outcomes for one in outcome.history]
    assert {one.type for one in past} <= {ErrorType.PROVIDER_UNAVAILABLE, ErrorType.MALFORMED_OUTPUT}
    lost = sum(one.type is ErrorType.PROVIDER_UNAVAILABLE for one in past if one.call)
    lost += sum(one.type is ErrorType.PROVIDER_UNAVAILABLE for one in past if not one.call)
    lost += sum(outcome.type is ErrorType.PROVIDER_UNAVAILABLE for outcome in failed)
    happened = sum(stats["errors"].values()) + stats["hung"] + stats["dropped"]
    assert lost == happened > 0, "each failure of the provider is somebody's history, or his end"
    assert all(outcome.usage["tokens"] > 0 for outcome in outcomes)
    assert max(outcome.run_s for outcome in outcomes) < 20


def always(outcomes: list[TrialOutcome]) -> TrialError:
    (outcome,) = outcomes
    assert isinstance(outcome, TrialError), outcome
    return outcome


@pytest.mark.parametrize(
    ("options", "kind", "said", "attempts"),
    [
        pytest.param({"malformed_rate": 1.0}, ErrorType.MALFORMED_OUTPUT, "malformed output", 3, id="malformed"),
        pytest.param({"context_tokens": 3}, ErrorType.PROGRAM_EXCEPTION, "context length", 1, id="context-length"),
        pytest.param({"filter": "forbidden"}, ErrorType.PROGRAM_EXCEPTION, "content filter", 1, id="content-filter"),
        pytest.param({"api_key": "another"}, ErrorType.PROVIDER_UNAVAILABLE, "authentication", 1, id="key"),
        pytest.param({"hang_rate": 1.0}, ErrorType.PROVIDER_UNAVAILABLE, "provider failed", 2, id="hangs"),
    ],
)
@pytest.mark.parametrize("program", ["AnswersLater", "Answers"])
async def test_what_a_provider_says_is_of_a_type(
    program: str, options: dict[str, Any], kind: ErrorType, said: str, attempts: int
) -> None:
    async with field(workers=1) as pool:
        with serving(**options) as server:
            question = {"question": "is it forbidden?", "base": server.base_url}
            outcome = always(await pool.run(program, [question], at_once=1))
    assert (outcome.type, outcome.attempts) == (kind, attempts)
    assert outcome.message.startswith(said), outcome.message
    assert outcome.ends_run is (said == "authentication")
    assert outcome.type.is_final is (kind is not ErrorType.PROVIDER_UNAVAILABLE)
    if kind is ErrorType.MALFORMED_OUTPUT:
        assert outcome.outputs["raw"]
    if kind is ErrorType.PROVIDER_UNAVAILABLE and attempts > 1:
        assert Counter(bool(one.call) for one in outcome.history) == {True: 4, False: 1}
