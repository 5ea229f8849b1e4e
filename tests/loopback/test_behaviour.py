"""Which request meets which fault, and which behaviour is none."""

from __future__ import annotations

from collections import Counter

import pytest

from dspex_pipelines.loopback.behaviour import Behaviour

CONTENTS = [index.to_bytes(16) for index in range(2_000)]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"error_rate": 1.5}, id="rate-above-one"),
        pytest.param({"error_rate": 0.6, "drop_rate": 0.6}, id="rates-add-up"),
        pytest.param({"latency_s": -1}, id="negative"),
        pytest.param({"latency_s": float("nan")}, id="nan"),
        pytest.param({"jitter": 2}, id="jitter-above-one"),
        pytest.param({"burst": 0}, id="no-burst"),
        pytest.param({"burst": 1.5}, id="half-a-request"),
        pytest.param({"down": 1}, id="integer-is-no-boolean"),
        pytest.param({"requests_per_s": True}, id="boolean-is-no-number"),
        pytest.param({"filter": None}, id="no-word"),
        pytest.param({"models": ["gpt"]}, id="models-as-a-list"),
        pytest.param({"latency": 1}, id="unknown"),
    ],
)
def test_what_cannot_be_is_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Behaviour().changed(values)


def test_faults_come_at_their_rates_and_another_seed_moves_them():
    behaviour = Behaviour(error_rate=0.1, overload_rate=0.2, hang_rate=0.1, malformed_rate=0.1, drop_rate=0.1)
    drawn = [behaviour.fault(content, 0) for content in CONTENTS]
    shares = {fault: count / len(drawn) for fault, count in Counter(drawn).items()}
    assert shares == pytest.approx(
        {
            "server_error": 0.1,
            "overloaded": 0.1,
            "overloaded_529": 0.1,
            "hung": 0.1,
            "malformed": 0.1,
            "dropped": 0.1,
            None: 0.4,
        },
        abs=0.03,
    )
    assert drawn == [behaviour.fault(content, 0) for content in CONTENTS]
    assert drawn != [behaviour.changed({"seed": 1}).fault(content, 0) for content in CONTENTS]


def test_the_same_content_draws_anew_each_time():
    behaviour = Behaviour(error_rate=0.5)
    times = [behaviour.fault(CONTENTS[0], admitted) for admitted in range(20)]
    assert set(times) == {None, "server_error"}


def test_latencies_lie_around_their_mean():
    behaviour = Behaviour(latency_s=2.0, jitter=0.5)
    latencies = [behaviour.latency_of(content) for content in CONTENTS]
    assert 1.0 <= min(latencies) < 1.05
    assert 2.95 < max(latencies) <= 3.0
    assert sum(latencies) / len(latencies) == pytest.approx(2.0, abs=0.05)
    assert Behaviour(latency_s=2.0).latency_of(CONTENTS[0]) == 2.0
