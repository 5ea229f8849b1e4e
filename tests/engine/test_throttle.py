from __future__ import annotations

import math
import random

import pytest

from dspex_pipelines.engine.throttling.throttle import Throttle, Tuning, Verdict
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.limits import RateLimit
from tests.engine.provider import MODEL, Provider, Run, World

WANTED = 200
JITTER_S = 0.005
SHAPES = [
    pytest.param(rate, latency_s, spread, whole, id=f"{rate}-{latency_s}-{'whole' if whole else 'exact'}")
    for rate in (5, 50, 500)
    for latency_s, spread in ((0.05, 0.0), (0.3, 0.0), (2.0, 0.5))
    for whole in (True, False)
]


def reached(world: World, run: Run) -> float:
    """The permitted rate's time for all calls, the last one's latency included, as a part of what it took."""
    provider, ended = world.provider, max(run.ended)
    rate = provider.rate_at(0.0)
    return (run.calls / min(rate, WANTED / provider.latency_s) + provider.latency_s) / ended


def one_run(
    rate: float, latency_s: float, spread: float, *, whole: bool, seed: int, declared: bool
) -> tuple[World, Run]:
    provider = Provider(rate=rate, latency_s=latency_s, spread=spread, whole_seconds=whole)
    world = World(provider, seed=seed, jitter_s=JITTER_S)
    if declared:
        world.throttle.declare("run", [RateLimit(model="sim/*", requests_per_minute=60 * rate)], world.clock.now)
    # As long as 2,000 calls take at 50/s: a second's pause is nothing to be measured within four.
    run = Run(calls=max(2_000, 40 * int(rate)), wanted=WANTED)
    world.play(run)
    assert len(run.ended) == run.calls
    return world, run


@pytest.mark.parametrize(("rate", "latency_s", "spread", "whole"), SHAPES)
def test_a_declared_limit_is_used_and_kept(rate, latency_s, spread, whole):
    world, run = one_run(rate, latency_s, spread, whole=whole, seed=1, declared=True)
    assert reached(world, run) >= 0.95
    assert run.refused <= 0.01


@pytest.mark.parametrize(("rate", "latency_s", "spread", "whole"), SHAPES)
def test_a_limit_that_nobody_declared_is_found(rate, latency_s, spread, whole):
    for seed in range(2):
        world, run = one_run(rate, latency_s, spread, whole=whole, seed=seed, declared=False)
        # Of 40 s, each whole second of a pause is a fortieth.
        assert reached(world, run) >= (0.85 if (rate, latency_s) == (50, 0.3) else 0.8)
        assert run.refused <= 0.08


@pytest.mark.parametrize("latency_s", [2.0, 0.2])
def test_a_provider_without_limits_is_soon_at_full_speed(latency_s):
    run = Run(calls=4_000, wanted=WANTED)
    World(Provider(latency_s=latency_s), jitter_s=JITTER_S).play(run)
    assert run.calls / WANTED * (latency_s + JITTER_S) / max(run.ended) >= (0.95 if latency_s > 1 else 0.93), (
        "the first latency finds out"
    )


def test_what_has_refused_nothing_for_long_need_not_be_asked():
    run = Run(calls=4_000, wanted=WANTED)
    world = World(Provider(latency_s=0.2), jitter_s=JITTER_S, leaves=True).play(run)
    assert world.unasked >= 3_000
    assert len(run.ended) == run.calls
    assert not world.throttle.stats(), "with nothing in flight, it is forgotten when it has been idle"


def test_a_limit_that_begins_while_calls_go_unasked_is_found():
    run = Run(calls=6_000, wanted=WANTED)
    world = World(
        Provider(rate=lambda now: math.inf if now < 4.0 else 50.0, latency_s=0.3), jitter_s=JITTER_S, leaves=True
    ).play(run)
    assert world.unasked >= 1_000
    assert not world.throttle.is_open(MODEL, world.clock.now)
    limited = run.calls - sum(ended < 4.0 for ended in run.ended)
    assert (run.verdicts[Verdict.REFUSED] - WANTED) / limited <= 0.08, "besides those that had gone"
    assert limited / 50.0 / (max(run.ended) - 4.0) >= 0.8


@pytest.mark.parametrize("verdict", [Verdict.REFUSED, Verdict.OVERLOADED, Verdict.FAILED])
def test_one_call_that_goes_wrong_closes_what_was_open(verdict):
    throttle, now = answered(250)
    assert throttle.is_open(MODEL, now)
    throttle.begun("last", MODEL, 0, now)
    throttle.done("last", verdict, now)
    assert not throttle.is_open(MODEL, now)


def test_a_declared_limit_closes_what_was_open():
    throttle, now = answered(250)
    throttle.declare("run", [RateLimit(model="sim/*", max_concurrency=1)], now)
    assert not throttle.is_open(MODEL, now)
    throttle.withdraw("run", now)
    assert throttle.is_open(MODEL, now)


def test_what_is_new_is_not_open():
    throttle, now = answered(10)
    assert not throttle.is_open(MODEL, now)
    assert not throttle.is_open("another", now)


def answered(calls: int) -> tuple[Throttle, float]:
    """A throttle of which so many calls were answered, and the time it is."""
    throttle, now = Throttle(), 1_000.0
    for number in range(calls):
        now += 0.01
        (answer,) = throttle.ask(number, MODEL, 0, now)
        assert answer.granted
        throttle.done(number, Verdict.OK, now + 0.005)
    return throttle, now + 0.01


def test_a_number_of_places_is_found():
    run = Run(calls=4_000, wanted=WANTED)
    World(Provider(most=40), jitter_s=JITTER_S).play(run)
    assert run.calls / 40 * (0.3 + JITTER_S) / max(run.ended) >= 0.85
    assert run.refused <= 0.08


@pytest.mark.parametrize("declared", [True, False])
def test_clients_share_a_limit_evenly(declared):
    world = World(Provider(rate=50.0))
    if declared:
        world.throttle.declare("run", [RateLimit(model=MODEL, requests_per_minute=3_000)], world.clock.now)
    runs = [Run(calls=4_000, wanted=WANTED, client=name) for name in ("a", "b")]
    world.play(*runs, until_s=30.0)
    half = sum(len(run.ended) for run in runs) / 2
    assert all(abs(len(run.ended) - half) <= 0.1 * half for run in runs)


def test_clients_share_a_limit_by_their_weights():
    throttle = Throttle()
    throttle.declare("run", [RateLimit(model=MODEL, max_concurrency=1)], 0.0)
    answers = [
        answer
        for client, weight in (("a", 3), ("b", 1))
        for number in range(12)
        for answer in throttle.ask((client, number), MODEL, 0, 0.0, client=client, weight=weight)
    ]
    for answer in answers:
        answers += throttle.done(answer.call_id, Verdict.OK, 1.0)
    granted = [answer.call_id[0] for answer in answers]
    assert granted[:13] == ["a", *(["a", "a", "a", "b"] * 3)]


@pytest.mark.parametrize("rate", [50.0, math.inf])
@pytest.mark.parametrize("seed", range(3))
def test_an_outage_costs_few_tries(rate, seed):
    run = Run(calls=2_000 if rate < math.inf else 8_000, wanted=WANTED)
    World(Provider(rate=rate, down=(5.0, 35.0)), seed=seed).play(run)
    assert len(run.ended) == run.calls
    assert max(run.tries.values()) <= 6
    assert run.verdicts[Verdict.FAILED] <= (WANTED if rate == math.inf else 20) + 20


@pytest.mark.parametrize("whole", [True, False])
def test_a_raised_limit_is_found(whole):
    run = Run(calls=20_000, wanted=WANTED)
    World(Provider(rate=lambda now: 50.0 if now < 30 else 200.0, whole_seconds=whole)).play(run, until_s=100.0)
    assert sum(90.0 <= at < 100.0 for at in run.ended) >= 0.85 * 2_000


@pytest.mark.parametrize("whole", [True, False])
def test_a_lowered_limit_is_kept(whole):
    run = Run(calls=8_000, wanted=WANTED)
    World(Provider(rate=lambda now: 200.0 if now < 20 else 50.0, whole_seconds=whole)).play(run)
    assert len(run.ended) == run.calls
    assert run.refused <= 0.08


def granted(answers):
    return [answer.call_id for answer in answers if answer.granted]


def test_no_more_calls_are_in_flight_than_declared_and_lanes_take_turns():
    throttle = Throttle(rng=random.Random(0))
    throttle.declare("run", [RateLimit(model="openai/*", max_concurrency=2)], 0.0)
    first = [*throttle.ask(1, "openai/a", 0, 0.0), *throttle.ask(2, "openai/a", 0, 0.0), *throttle.tick(1.0)]
    assert granted(first) == [1, 2]
    for number in (3, 4, 5):
        throttle.ask(number, "openai/a", 0, 1.0)
    throttle.ask(6, "openai/b@http://localhost:8000/v1", 0, 1.0)
    assert granted(throttle.tick(1.5)) == []
    throttle.done(1, Verdict.OK, 2.0)
    throttle.done(2, Verdict.OK, 2.0)
    assert throttle.next_due() == 2.0
    assert sorted(granted(throttle.tick(2.0))) == [3, 6]


def test_the_strictest_owner_holds_while_it_is_there():
    throttle = Throttle()
    throttle.declare("a", [RateLimit(model="m", max_concurrency=3)], 0.0)
    throttle.declare("b", [RateLimit(model="m", max_concurrency=1)], 0.0)
    for number in range(5):
        throttle.ask(number, "m", 0, float(number))
    assert throttle.stats()["m"].in_flight == 1
    throttle.withdraw("b", 10.0)
    throttle.tick(11.0)
    throttle.tick(12.0)
    assert throttle.stats()["m"].in_flight == 3


def test_tokens_are_paced_and_settled():
    throttle = Throttle()
    throttle.declare("run", [RateLimit(model="m", tokens_per_minute=60_000)], 0.0)
    now, used = 0.0, 0
    answers = [answer for number in range(500) for answer in throttle.ask(number, "m", 0, now)]
    while now < 60.0:
        later = []
        for call_id in granted(answers):
            used += 500
            later += throttle.done(call_id, Verdict.OK, now, tokens=500)
        due = throttle.next_due()
        assert due is not None
        now = max(due, now + 0.001)
        answers = [*later, *throttle.tick(now)]
    assert 0.9 * 60_000 <= used <= 1.05 * 60_000 + 1_000


def test_a_provider_that_stays_down_is_given_up_and_probed():
    throttle = Throttle(rng=random.Random(0))
    now, told = 0.0, []
    answers = [answer for number in range(20) for answer in throttle.ask(number, "openai/x", 0, now)]
    while len(told) < 20:
        for answer in answers:
            if answer.granted:
                throttle.done(answer.call_id, Verdict.FAILED, now, detail="502 Bad Gateway")
                throttle.ask(answer.call_id, "openai/x", 0, now, again=True)
            else:
                told.append(answer.reason)
        due = throttle.next_due()
        assert due is not None
        now = max(due, now)
        answers = throttle.tick(now)
        told += [answer.reason for answer in answers if not answer.granted]
        answers = [answer for answer in answers if answer.granted]
    assert told[0] == "openai/x has failed for 300 s: 502 Bad Gateway"
    assert [answer.granted for answer in throttle.ask(98, "openai/x", 0, now)] == [False]
    assert granted(throttle.ask(99, "openai/x", 0, now + 16.0)) == [99]
    throttle.done(99, Verdict.OK, now + 17.0)
    assert throttle.stats()["openai/x"].state != "given up"


def test_a_call_that_nobody_waits_for_any_more_is_no_probe():
    throttle = Throttle(rng=random.Random(0))
    now = 0.0
    for number in range(5):
        throttle.ask(number, "m", 0, now)
        throttle.done(number, Verdict.FAILED, now)
    assert throttle.ask("cancelled", "m", 0, now) == []
    assert throttle.done("cancelled", Verdict.NEUTRAL, now) == []
    assert throttle.ask("probe", "m", 0, now) == []
    now = throttle.next_due()
    assert granted(throttle.tick(now)) == ["probe"]
    throttle.done("probe", Verdict.OK, now)
    assert throttle.stats()["m"].state != "down"


@pytest.mark.parametrize("wait_s", [3_600.0, math.inf, math.nan])
def test_a_wait_that_is_too_long_is_told(wait_s):
    throttle = Throttle()
    throttle.ask(1, "m", 0, 0.0)
    throttle.ask(2, "m", 0, 0.0)
    answers = throttle.done(1, Verdict.REFUSED, 0.001, retry_after_s=wait_s)
    assert [(answer.call_id, answer.granted) for answer in answers if not answer.granted] == [(2, False)]
    assert "asks to wait" in throttle.ask(3, "m", 0, 1.0)[0].reason
    assert granted(throttle.ask(3, "m", 0, 601.0)) == [3]


def test_a_lane_that_is_not_used_is_forgotten():
    throttle = Throttle(tuning=Tuning(most_lanes=2))
    for name in ("a", "b", "c"):
        throttle.ask(name, name, 0, 0.0)
        throttle.forget([name], 1.0)
    assert set(throttle.stats()) == {"b", "c"}
    throttle.tick(700.0)
    assert throttle.stats() == {}
    assert throttle.next_due() is None


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"model": ""}, "limits.model"),
        ({"model": "m"}, "limits"),
        ({"model": "m", "requests_per_minute": math.nan}, "limits.requests_per_minute"),
        ({"model": "m", "max_concurrency": 1.5}, "limits.max_concurrency"),
    ],
)
def test_a_limit_that_says_nothing_is_refused(given, field):
    with pytest.raises(InvalidValue) as error:
        RateLimit(**given)
    assert error.value.field == field
