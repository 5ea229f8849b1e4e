"""The mean score so far, while trials still run."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.outcome import TrialOutcome, TrialResult

_Z = 1.959964
"""Quantile of the normal distribution for a two-sided interval of 95%."""


@dataclass(slots=True)
class RunningScores:
    """Mean of the metric that ranks over all configurations, of the trials that have succeeded so far."""

    metric: str = ""
    """Empty: the first score of the first trial that has any."""
    n: int = 0
    mean: float = math.nan
    _squares: float = field(default=0.0, repr=False)
    """Sum of squared deviations from the mean."""

    def add_outcomes(self, outcomes: Iterable[TrialOutcome]) -> None:
        """Count the scores of *outcomes* (Welford's method); what has none of the metric does not count."""
        for outcome in outcomes:
            if isinstance(outcome, TrialResult):
                self._add(outcome)

    def _add(self, outcome: TrialResult) -> None:
        try:
            scores = outcome.scores
        except SerializationError:
            return
        self.metric = self.metric or next(iter(scores), "")
        score = float(scores.get(self.metric, math.nan))
        if math.isnan(score):
            return
        self.n += 1
        before = 0.0 if self.n == 1 else self.mean
        self.mean = before + (score - before) / self.n
        self._squares += (score - before) * (score - self.mean)

    @property
    def half_width(self) -> float:
        """Half of a 95% interval for independent trials; NaN below two of them.

        Trials of one example are not independent, so the final interval, which is clustered, is wider.
        """
        if self.n < 2:  # noqa: PLR2004 - a variance takes two
            return math.nan
        return _Z * math.sqrt(self._squares / (self.n - 1) / self.n)

    def __str__(self) -> str:
        if not self.n:
            return ""
        half = "" if math.isnan(self.half_width) else f" ± {self.half_width:.3f}"
        return f"{self.metric} {self.mean:.3f}{half}"
