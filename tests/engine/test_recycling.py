"""When a worker is replaced, and when what it holds is its own."""

from __future__ import annotations

import pytest

from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.errors import InvalidValue

INF = float("inf")


@pytest.mark.parametrize(
    ("limits", "rss_mb", "first_rss_mb", "trials", "says"),
    [
        pytest.param({}, 100, 80, 10**9, "", id="no-limit-of-trials-by-default"),
        pytest.param({}, 2_049, 80, 0, "2,049 MiB, the limit is 2,048", id="leaked"),
        pytest.param({}, 2_048, 80, 0, "", id="at-the-limit"),
        pytest.param({}, 3_000, 1_600, 0, "", id="large-from-the-start"),
        pytest.param({}, 3_300, 1_600, 0, "3,300 MiB", id="large-from-the-start-and-doubled"),
        pytest.param({}, 9_000, INF, 0, "", id="nothing-answered-yet"),
        pytest.param({"max_rss_mb": 0}, 10**6, 80, 0, "", id="no-limit"),
        pytest.param({"max_trials": 5}, 100, 80, 4, "", id="fewer-trials"),
        pytest.param({"max_trials": 5}, 100, INF, 5, "sent 5 trials", id="so-many-trials"),
    ],
)
def test_a_worker_is_replaced_for_a_reason(
    limits: dict[str, int], rss_mb: float, first_rss_mb: float, trials: int, says: str
) -> None:
    reason = Recycling(**limits).reason(rss_mb=rss_mb, first_rss_mb=first_rss_mb, trials=trials)
    assert says in reason
    assert bool(says) == bool(reason)


@pytest.mark.parametrize("name", ["max_rss_mb", "max_trials"])
def test_a_limit_below_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="0 for no limit"):
        Recycling(**{name: -1})
