"""The mean so far, and how sure it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dspex_pipelines.engine.running_scores import RunningScores
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from dspex_pipelines.model.payload import encode


def scored(**scores: float) -> TrialResult:
    return TrialResult(trial_id=b"", configuration_digest=b"", scores_payload=encode(scores))


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30))
def test_it_is_the_mean_and_the_usual_interval(values: list[float]) -> None:
    running = RunningScores()
    running.add_outcomes(scored(good=value, other=1.0) for value in values)
    assert (running.metric, running.n) == ("good", len(values))
    assert running.mean == pytest.approx(np.mean(values), abs=1e-6)
    width = 1.959964 * np.std(values, ddof=1) / math.sqrt(len(values))
    assert running.half_width == pytest.approx(width, rel=1e-6, abs=1e-4)


def test_what_has_no_score_does_not_count() -> None:
    running = RunningScores()
    running.add_outcomes([TrialError(trial_id=b"", configuration_digest=b"", type=ErrorType.POISON, message="")])
    assert (str(running), running.n) == ("", 0)
    running.add_outcomes([scored(), scored(good=0.5), scored(other=1), scored(good=math.nan)])
    assert str(running) == "good 0.500"
    running.add_outcomes([TrialResult(trial_id=b"", configuration_digest=b"", scores_payload=b"\xc1"), scored(good=1)])
    assert (running.n, running.mean) == (2, 0.75)
