"""Configurations ranked: means with honest intervals, and what failures could change."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtrit

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.outcome import ErrorType

CONFIDENCE = 0.95
SHOWN_LENGTH = 40
"""Characters of a variable's value in a label."""
DIGEST_SHOWN = 12
"""Characters of a digest behind a label that another one is like."""
RANKED_BY = "ranked by"
"""The column with the mean by which configurations are ranked, where that is none of their successes alone."""
_PAIR = ["partition", "example_id", "repeat"]

SLACK = 1e-9
"""Of a range: what sums of floats are off by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over successes, with its interval; `low` and `high` are NaN for fewer than two clusters."""

    mean: float
    low: float
    high: float
    n: int
    clusters: int

    def __str__(self) -> str:
        if math.isnan(self.mean):
            return "–"
        if math.isnan(self.low):
            return f"{self.mean:.3f} (one cluster)"
        return f"{self.mean:.3f} ± {self.high - self.mean:.3f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One configuration on the leaderboard."""

    rank: int
    configuration: str
    variables: dict[str, Any]
    n: int
    """All planned trials, failed ones included."""
    failures: int
    not_run: int
    """Trials that a stopped run did not get to; they are no failures, and like them no scores."""
    scores: dict[str, Estimate]
    """By metric, over the successes."""
    bounds: tuple[float, float]
    """The ranking metric's mean if every trial without that score had scored worst, and best."""
    difference: Estimate
    """Paired difference to the best configuration, over the examples where both succeeded."""

    def worst_mean(self, metric: str, worst: float) -> float:
        """Return the mean of *metric* if every trial without that score had scored *worst*."""
        score = self.scores[metric]
        if score.n == self.n:
            return score.mean
        return ((score.n and score.mean * score.n) + (self.n - score.n) * worst) / self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaderboard:
    """All configurations, best first, by `metric`."""

    metric: str
    metrics: tuple[str, ...]
    standings: tuple[Standing, ...]
    outside: str = ""
    """Which scores lie outside the range that failures are ranked and bounded by; empty where none does."""
    worst: float = 0.0
    """What a failure scores for the rank: the lower end of the range of scores."""
    grouped: bool = False
    """Whether examples are in groups; where they are not, each is a cluster of its own."""

    @property
    def best(self) -> Standing | None:
        """The first one, unless nothing has succeeded."""
        first = self.standings[0]
        return first if first.scores[self.metric].n else None

    @property
    def has_gaps(self) -> bool:
        """Whether a trial has no score, so that the rank is not by the mean of those that have one."""
        return any(standing.scores[self.metric].n < standing.n for standing in self.standings)

    @property
    def caveat(self) -> str:
        """What the rank goes by where that is not the mean that is shown; empty where it is."""
        if not self.has_gaps:
            return ""
        return (
            f"Ranked by the mean in which a trial without {self.metric} scores {self.worst:g}; means, intervals and "
            "differences are of the trials that have it"
        )

    @property
    def interval(self) -> str:
        """What the intervals are, in words."""
        return f"{CONFIDENCE:.0%} interval{' clustered by group' if self.grouped else ''}"

    def rows(self, limit: int | None = None) -> list[dict[str, str]]:
        """Return one row of readable text per configuration; variables that never differ are left out."""
        partial = any(standing.not_run for standing in self.standings)
        has_gaps = self.has_gaps
        return [
            {
                "#": str(standing.rank),
                "configuration": label,
                "n": f"{standing.n:,}",
                **({RANKED_BY: f"{standing.bounds[0]:.3f}"} if has_gaps else {}),
                **{name: str(standing.scores[name]) for name in self.metrics},
                "failures": f"{standing.failures:,}",
                **({"not run": f"{standing.not_run:,}"} if partial else {}),
                "bounds": f"{standing.bounds[0]:.3f}…{standing.bounds[1]:.3f}",
                "vs best": "best" if standing is self.best else _signed(standing.difference),
            }
            for standing, label in zip(self.standings, self.labels(limit), strict=False)
        ]

    def labels(self, limit: int | None = None) -> list[str]:
        """Return each configuration in one line, as `labels_of` does."""
        told = labels_of({standing.configuration: standing.variables for standing in self.standings})
        return list(told.values())[:limit]

    def to_markdown(self, limit: int | None = None) -> str:
        """Return the rows as a Markdown table."""
        rows = self.rows(limit)
        names = list(rows[0]) if rows else []
        lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        lines += [f"| {' | '.join(row[name].replace('|', '/') for name in names)} |" for row in rows]
        if limit is not None and len(self.standings) > limit:
            lines.append(f"\n… and {len(self.standings) - limit:,} more")
        return "\n".join(lines)


class Trials(Protocol):
    """Results, one row per trial with the `ranking_columns`, of which a few configurations are looked at at a time."""

    def __len__(self) -> int: ...

    @property
    def columns(self) -> Sequence[str]:
        """The names of the columns."""
        ...

    def scored(self) -> list[str]:
        """Return the columns of scores that any trial has."""
        ...

    def configurations(self) -> dict[str, dict[str, Any]]:
        """Return the variables of each configuration, by its digest."""
        ...

    def frames(self) -> Iterable[pd.DataFrame]:
        """Return all trials in pieces, each with all those of some configurations."""
        ...

    def frame(self, configuration: str) -> pd.DataFrame:
        """Return the trials of one."""
        ...


class TrialsTable:
    """`Trials` that are in memory."""

    def __init__(self, trials: pd.DataFrame) -> None:
        self._trials = trials
        self.columns: Sequence[str] = list(trials.columns)

    def __len__(self) -> int:
        return len(self._trials)

    def scored(self) -> list[str]:
        """Return the columns of scores that any trial has."""
        return [name for name in self.columns if name.startswith("score.") and self._trials[name].notna().any()]

    def configurations(self) -> dict[str, dict[str, Any]]:
        """Return the variables of each configuration, by its digest."""
        return configurations(self._trials)

    def frames(self) -> Iterable[pd.DataFrame]:
        """Return all trials in one piece."""
        return [self._trials]

    def frame(self, configuration: str) -> pd.DataFrame:
        """Return the trials of one."""
        return self._trials[self._trials["configuration"] == configuration]


def leaderboard(
    trials: pd.DataFrame | Trials, *, metric: str | None = None, score_range: tuple[float, float] = (0.0, 1.0)
) -> Leaderboard:
    """Rank the configurations of *trials* (one row per trial, as `collect_trials` writes them).

    The rank is by the mean with failures (and trials that were not run) scored worst, then by the mean of the
    successes, then by name, so that failing on hard examples gains nothing. *metric* is the first score column when
    not given.
    """
    trials = TrialsTable(trials) if isinstance(trials, pd.DataFrame) else trials
    # A partition where every trial failed has columns by the metrics' names, whatever their scores are called.
    columns = trials.scored() or [name for name in trials.columns if name.startswith("score.")]
    columns = [name.removeprefix("score.") for name in columns]
    if not columns or not len(trials):
        raise InvalidValue(field="trials", value=list(trials.columns), fix="give trials with score columns")
    metric = metric or columns[0]
    if metric not in columns:
        raise InvalidValue(field="metric", value=metric, fix=f"give one of {', '.join(columns)}")
    column = f"score.{metric}"
    metrics = (metric, *(name for name in columns if name != metric))
    variables_of = trials.configurations()
    found: list[tuple[Any, ...]] = []
    extremes: list[float] = []
    grouped = False
    for frame in trials.frames():
        clusters = _codes(frame)
        ok = _succeeded(frame)
        stopped = (frame["error_type"] == ErrorType.BUDGET_EXHAUSTED.value).to_numpy()
        scored = {name: _numbers(frame, f"score.{name}", where=ok) for name in metrics}
        extremes += [frame[column].min(), frame[column].max()]
        grouped = grouped or bool((frame["group"] != frame["example_id"]).any())
        for configuration, rows in _rows(frame):
            n, not_run = len(rows), int(stopped[rows].sum())
            scores = {name: _clustered(values[rows], clusters[rows]) for name, values in scored.items()}
            values = scored[metric][rows]
            # Without the failures, whose places would decide how it is rounded.
            total = float(values[~np.isnan(values)].sum())
            unknown = n - scores[metric].n
            bounds = tuple((total + unknown * score) / n for score in score_range)
            failures = n - not_run - int(ok[rows].sum())
            found.append((configuration, variables_of[configuration], n, failures, not_run, scores, bounds))
    found.sort(key=lambda one: (-one[6][0], -_or(one[5][metric].mean, -math.inf), one[0]))
    best = trials.frame(found[0][0])
    differences = _differences(trials, best[_succeeded(best)], column)
    return Leaderboard(
        outside=outside_range(pd.Series(extremes, dtype=float), metric, score_range),
        worst=score_range[0],
        grouped=grouped,
        metric=metric,
        metrics=metrics,
        standings=tuple(
            Standing(
                rank=rank,
                configuration=configuration,
                variables=variables,
                n=n,
                failures=failures,
                not_run=not_run,
                scores=scores,
                bounds=bounds,
                difference=differences[configuration],
            )
            for rank, (configuration, variables, n, failures, not_run, scores, bounds) in enumerate(found, start=1)
        ),
    )


def _succeeded(trials: pd.DataFrame) -> NDArray[np.bool_]:
    return (trials["status"] == "ok").to_numpy(dtype=bool)


def _differences(trials: Trials, best: pd.DataFrame, column: str) -> dict[str, Estimate]:
    """Return each configuration's paired difference to the trials of the best one."""
    found: dict[str, Estimate] = {}
    for frame in trials.frames():
        differences = np.where(_succeeded(frame), _beside(frame, best, column, _PAIR), math.nan)
        clusters = _codes(frame)
        found |= {name: _clustered(differences[rows], clusters[rows]) for name, rows in _rows(frame)}
    return found


def _rows(trials: pd.DataFrame) -> Iterable[tuple[str, NDArray[np.intp]]]:
    """Return the positions of the rows of each configuration."""
    return ((str(name), np.asarray(rows)) for name, rows in trials.groupby("configuration").indices.items())


def configurations(trials: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Return the variables of each configuration of *trials*, by its digest."""
    columns = [name for name in trials.columns if name.startswith("var.")]
    first = trials.drop_duplicates("configuration").sort_values("configuration")
    return {
        str(row["configuration"]): {name.removeprefix("var."): _plain(row[name]) for name in columns}
        for row in first[["configuration", *columns]].to_dict("records")
    }


def ranking_columns(names: Iterable[str]) -> list[str]:
    """Return those of a table's columns that `leaderboard` looks at."""
    looked_at = {"configuration", "status", "error_type", "group", *_PAIR}
    return [name for name in names if name in looked_at or name.startswith(("var.", "score."))]


def slack(score_range: tuple[float, float]) -> float:
    """Return what sums of scores may be off by."""
    worst, best = score_range
    return SLACK * best - SLACK * worst  # the range itself may be more than a float holds


def outside_range(scores: pd.Series[float], metric: str, score_range: tuple[float, float]) -> str:
    """Return which *scores* of *metric* lie outside *score_range*, and what to do; empty where none does."""
    worst, best = score_range
    low, high = float(scores.min()), float(scores.max())
    below = low < worst - slack(score_range)
    if not (below or high > best + slack(score_range)):
        return ""
    wrong = [*(["failures do not rank as the worst"] if below else []), "bounds are too narrow"]
    return (
        f"Scores of {metric} go from {low:g} to {high:g}, and score_range is ({worst:g}, {best:g}): "
        f"{' and '.join(wrong)}. Declare it: Evaluation(..., score_range=(worst, best))"
    )


def estimate(trials: pd.DataFrame, column: str) -> Estimate:
    """Return the mean of *column* with a 95% interval clustered by group, over all partitions.

    Cluster-robust variance of a mean with the small-sample factor (G/(G-1)) * ((N-1)/(N-1)), and Student's t
    with G-1 degrees of freedom: Cameron & Miller, A Practitioner's Guide to Cluster-Robust Inference (2015),
    for a regression on a constant.
    """
    return _clustered(_numbers(trials, column), _codes(trials))


def paired_difference(trials: pd.DataFrame, best: pd.DataFrame, column: str, *, within: Sequence[str] = ()) -> Estimate:
    """Return the mean of this minus best over the examples where both have the score, clustered likewise.

    Both are of one configuration each; for several, *within* names the column that a pair has in common besides.
    """
    return _clustered(_beside(trials, best, column, [*_PAIR, *within]), _codes(trials))


def _beside(trials: pd.DataFrame, best: pd.DataFrame, column: str, pair: list[str]) -> NDArray[np.float64]:
    """Return by how much *column* is more in each of *trials* than in its pair, NaN where either is missing."""
    beside = trials[pair].merge(best[[*pair, column]], on=pair, how="left", validate="many_to_one")
    return _numbers(trials, column) - _numbers(beside, column)


def _numbers(trials: pd.DataFrame, column: str, *, where: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
    """Return a column's values, NaN for none and for rows that are not *where*."""
    values = trials[column].to_numpy(dtype=float, na_value=math.nan)
    return values if where is None else np.where(where, values, math.nan)


def _codes(trials: pd.DataFrame) -> NDArray[np.intp]:
    """Return the number of the cluster that each row is in: its group, in whatever partitions that is.

    An example without a group is called like one; it is a cluster of its own, and another partition may have the
    same id.
    """
    named = trials["group"] != trials["example_id"]
    if not named.any():
        return _numbered(trials[["partition", "group"]])
    in_group = named.groupby(trials["group"]).transform("any")
    return _numbered(trials[["group"]].assign(partition=trials["partition"].where(~in_group, "")))


def _numbered(keys: pd.DataFrame) -> NDArray[np.intp]:
    return np.asarray(keys.groupby(list(keys.columns), sort=False).ngroup(), dtype=np.intp)


def _clustered(values: NDArray[np.float64], codes: NDArray[np.intp]) -> Estimate:
    """Return the mean of those *values* that are numbers, by the clusters that they are in."""
    there = ~np.isnan(values)
    values, codes = values[there], pd.factorize(codes[there])[0]
    n = len(values)
    clusters = int(codes.max()) + 1 if n else 0
    if n == 0:
        return Estimate(mean=math.nan, low=math.nan, high=math.nan, n=0, clusters=0)
    mean = float(values.mean())
    if clusters <= 1:
        return Estimate(mean=mean, low=math.nan, high=math.nan, n=n, clusters=clusters)
    sums = np.bincount(codes, weights=values - mean, minlength=clusters)
    variance = clusters / (clusters - 1) * float((sums**2).sum()) / n**2
    half = float(stdtrit(clusters - 1, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Estimate(mean=mean, low=mean - half, high=mean + half, n=n, clusters=clusters)


def _signed(difference: Estimate) -> str:
    if math.isnan(difference.mean):
        return "–"
    if math.isnan(difference.low):
        return f"{difference.mean:+.3f}"
    return f"{difference.mean:+.3f} ± {difference.high - difference.mean:.3f}"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _or(value: float, other: float) -> float:
    return other if math.isnan(value) else value


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = " ".join(str(value).split())  # a prompt may have lines, a cell has not
    return text if len(text) <= SHOWN_LENGTH else f"{text[: SHOWN_LENGTH - 1]}…"


def label(variables: Mapping[str, Any], names: Iterable[str]) -> str:
    """Return the values of these *names* in one line."""
    return " ".join(f"{name}={_shown(variables[name])}" for name in names)


def labels_of(configurations: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return of each configuration, by its digest, the values of those variables that differ, of a single one all.

    Long values are cut; where that makes two of them alike, their digests tell them apart.
    """
    every = list(configurations.values())
    names = varying_names(every) or list(next(iter(every), ()))
    values = {digest: label(variables, names) for digest, variables in configurations.items()}
    alike = Counter(values.values())
    return {
        digest: (text if alike[text] == 1 else f"{text} {digest[:DIGEST_SHOWN]}") or "no variables"
        for digest, text in values.items()
    }


def varying_names(variables: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names whose values are not the same in all of *variables*."""
    names = list(variables[0]) if variables else []
    return [name for name in names if len({repr(one[name]) for one in variables}) > 1]
