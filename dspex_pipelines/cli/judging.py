"""Whether results are good enough for whoever asked: what makes `dspex evaluate` fail in CI."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dspex_pipelines.analysis.leaderboard import SLACK, Leaderboard
from dspex_pipelines.errors import InvalidValue


@dataclass(frozen=True, slots=True, kw_only=True)
class Demands:
    """What the results have to be. Raises `InvalidValue` for what cannot be asked."""

    least: Mapping[str, float]
    """Metric to the least mean of the best configuration, where a trial without that score counts as the worst."""
    most_failed: float | None
    """The largest share of the trials that were run that may have failed; None for any."""

    def __post_init__(self) -> None:
        if self.most_failed is not None and not 0 <= self.most_failed <= 1:
            raise InvalidValue(field="fail_on_errors", value=self.most_failed, fix="give a share from 0 to 1")

    @classmethod
    def parse(cls, least: Sequence[str], most_failed: float | None) -> Demands:
        """Return what is asked by ``METRIC=VALUE`` and a share."""
        return cls(least=dict(_bound(one) for one in least), most_failed=most_failed)

    def check_metrics(self, declared: Sequence[str]) -> None:
        """Raise `InvalidValue` for a metric that no evaluation with these *declared* ones can have scores of."""
        for metric in self.least:
            if metric.partition(".")[0] not in declared:
                fix = f"give one of {', '.join(declared)}; what a metric returns in a dict is metric.key"
                raise InvalidValue(field="fail_under", value=metric, fix=fix)

    def missed(self, board: Leaderboard, partial: Mapping[str, str]) -> Iterator[str]:
        """Yield a line for each demand that the results do not meet; raises `InvalidValue` for an unknown metric."""
        for metric, least in self.least.items():
            if metric not in board.metrics:
                fix = f"the metrics are {', '.join(board.metrics)}"
                raise InvalidValue(field="fail_under", value=metric, fix=fix)
            best = board.standings[0]
            mean, scored = best.worst_mean(metric, board.worst), best.scores[metric].n
            if not scored or mean < least - SLACK * max(1.0, abs(least)):
                told = f"{mean:.4g}" if scored else "no"
                if 0 < scored < best.n:
                    told += f" ({best.n - scored:,} of its {best.n:,} trials have none, and count as {board.worst:g})"
                yield f"{metric} of the best configuration ({board.labels(1)[0]}) is {told}, under {least:g}"
        if self.least and partial:
            yield f"results are partial, so nothing is said of the whole: {', '.join(partial)}"
        if self.most_failed is not None and (share := _failed(board)) > self.most_failed:
            yield f"{share:.1%} of the trials failed, more than {self.most_failed:.1%}"


def _bound(text: str) -> tuple[str, float]:
    metric, equals, value = text.partition("=")
    try:
        least = float(value)
    except ValueError:
        least = math.nan
    if not metric.strip() or not equals or not math.isfinite(least):
        raise InvalidValue(field="fail_under", value=text, fix="give METRIC=VALUE, such as exact=0.8")
    return metric.strip(), least


def _failed(board: Leaderboard) -> float:
    run = sum(standing.n - standing.not_run for standing in board.standings)
    return sum(standing.failures for standing in board.standings) / run if run else 0.0
