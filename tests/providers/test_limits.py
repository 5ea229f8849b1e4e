"""Providers that allow so many requests a second, and one that goes away for half a minute: all at once, in one pool.

Each scenario has a provider of its own, and so a lane of its own in the throttle.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from dspex_pipelines.engine.dispatch.retries import MOST_ATTEMPTS
from dspex_pipelines.loopback.process import Server, serving
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.outcome import ErrorType, TrialOutcome, TrialResult
from tests.providers.field import Field, field

PER_S = 50
TRIALS = 2_000
AT_ONCE = 200
LIMITED = {"latency_s": 0.3, "requests_per_s": PER_S, "burst": 10}
DOWN_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Played:
    """What a scenario came to."""

    runs: list[list[TrialOutcome]]
    stats: dict[str, Any]

    @property
    def outcomes(self) -> list[TrialOutcome]:
        return [outcome for run in self.runs for outcome in run]

    @property
    def refused(self) -> float:
        return self.stats["refused"] / self.stats["requests"]

    @property
    def reached(self) -> float:
        """Of the rate that the provider permits, while it was called."""
        return self.stats["answered"] / (PER_S * self.stats["active_s"])


def questions(tag: str, server: Server, count: int) -> list[dict[str, object]]:
    return [{"question": f"{tag} {number}", "base": server.base_url} for number in range(count)]


async def declared(pool: Field) -> Played:
    with serving(**LIMITED) as server:
        policy = CallPolicy(limits=(RateLimit(model=f"*@{server.base_url}", requests_per_minute=60 * PER_S),))
        run = await pool.run("asks", questions("a", server, TRIALS), at_once=AT_ONCE, policy=policy)
        return Played(runs=[run], stats=server.stats())


async def discovered(pool: Field) -> Played:
    with serving(**LIMITED) as server:
        run = await pool.run("asks", questions("b", server, TRIALS), at_once=AT_ONCE)
        return Played(runs=[run], stats=server.stats())


async def shared(pool: Field) -> Played:
    with serving(**LIMITED) as server:
        policy = CallPolicy(limits=(RateLimit(model=f"*@{server.base_url}", requests_per_minute=60 * PER_S),))
        both = [pool.run("asks", questions(tag, server, 600), at_once=100, policy=policy) for tag in ("c", "d")]
        return Played(runs=list(await asyncio.gather(*both)), stats=server.stats())


async def of_many_calls(pool: Field) -> Played:
    with serving(**LIMITED) as server:
        run = await pool.run("asks_five_times", questions("e", server, 100), at_once=100)
        return Played(runs=[run], stats=server.stats())


async def down(pool: Field) -> Played:
    with serving(latency_s=0.3) as server:
        running = asyncio.create_task(pool.run("asks", questions("f", server, 4_000), at_once=60))
        while server.stats()["answered"] < 1_000:
            await asyncio.sleep(0.1)
        server.control(down=True)
        await asyncio.sleep(DOWN_S)
        server.control(down=False)
        return Played(runs=[await running], stats=server.stats())


SCENARIOS: dict[str, Callable[[Field], Any]] = {
    scenario.__name__: scenario for scenario in (declared, discovered, shared, of_many_calls, down)
}


@pytest.fixture(scope="module")
def played() -> dict[str, Played]:
    async def play() -> dict[str, Played]:
        async with field() as pool:
            found = await asyncio.gather(*(scenario(pool) for scenario in SCENARIOS.values()))
        return dict(zip(SCENARIOS, found, strict=True))

    return asyncio.run(play())


pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_trial_succeeds(played: dict[str, Played], name: str) -> None:
    outcomes = played[name].outcomes
    assert Counter(type(outcome) for outcome in outcomes) == {TrialResult: len(outcomes)}


def test_a_declared_limit_is_used_and_hardly_ever_passed(played: dict[str, Played]) -> None:
    assert played["declared"].reached >= 0.95
    assert played["declared"].refused <= 0.01


def test_a_limit_that_nobody_declared_is_found(played: dict[str, Played]) -> None:
    assert played["discovered"].reached >= 0.85
    assert played["discovered"].refused <= 0.08


def test_two_runs_at_once_share_a_limit(played: dict[str, Played]) -> None:
    both = played["shared"]
    assert both.refused <= 0.01
    assert both.reached >= 0.95
    # Neither waited for the other: half of its trials were done when half of all were.
    waits = [sorted(outcome.throttled_s for outcome in run)[300] for run in both.runs]
    assert max(waits) <= 1.5 * min(waits)


def test_time_throttled_is_a_column_of_its_own_and_no_run_time(played: dict[str, Played]) -> None:
    for outcome in played["declared"].outcomes:
        assert outcome.run_s < 5
    assert sum(outcome.throttled_s for outcome in played["declared"].outcomes) > 1_000


def test_a_refused_call_waits_where_it_is_and_no_other_is_bought_again(played: dict[str, Played]) -> None:
    stats = played["of_many_calls"].stats
    assert stats["refused"] > 0
    assert (stats["answered"], stats["distinct_contents"]) == (500, 500)
    assert stats["max_answered_of_one_content"] == 1
    assert {outcome.attempts for outcome in played["of_many_calls"].outcomes} == {1}
    waited = [outcome for outcome in played["of_many_calls"].outcomes if outcome.history]
    assert waited, "what was refused is told"
    assert {(one.type, bool(one.call)) for outcome in waited for one in outcome.history} == {
        (ErrorType.RATE_LIMITED, True)
    }


def test_trials_wait_for_a_provider_that_is_down(played: dict[str, Played]) -> None:
    most = MOST_ATTEMPTS[ErrorType.PROVIDER_UNAVAILABLE]
    tries = [1 + len(outcome.history) for outcome in played["down"].outcomes]
    assert max(tries) <= most
    assert 0 < played["down"].stats["dropped"] <= 60 + 20, "what was in flight, and a probe now and then"
    assert max(outcome.throttled_s for outcome in played["down"].outcomes) > DOWN_S / 2
    assert all(outcome.run_s < DOWN_S / 2 for outcome in played["down"].outcomes)
