"""What the results of a partition say to the checks that are declared on them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import pandas as pd

from dspex_pipelines.analysis.leaderboard import Estimate, leaderboard, outside_range, paired_difference, slack
from dspex_pipelines.model.checks import Check, Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.outcome import ErrorType

Fact = float | int | str
_OUTCOME = ("status", "error_type")
_TRIAL = ("partition", "group", "example_id", "repeat", "configuration")
_METRIC_CHANGED = "; the metric's source has changed too, so it may be that"
_NOT_RUN = ErrorType.BUDGET_EXHAUSTED.value
_SMALLER = "have the metric return smaller numbers"
_DECLARE = (
    "declare a `score_range` that every score lies in, and run the check again: *Execute* on its page, or evaluate"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Whether a check holds, and what that is told by."""

    passed: bool
    said: str
    """The value and the bound in one line, or why there is no value."""
    bound: str
    value: float = math.nan
    """What the bound is about; NaN where there is nothing that it could be."""
    facts: dict[str, Fact] = field(default_factory=dict[str, Fact])
    """What else helps to judge it, by name."""
    fix: str = ""
    """What to do, where it is not what one does about any check of the kind that fails."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Earlier results that new ones are held against."""

    trials: pd.DataFrame
    run_id: str
    unchanged: AbstractSet[str] | None = None
    """Ids of the examples whose content is what it was; None: all that are in both."""
    metric_changed: bool = False
    """Whether the source that the metric's version is a digest of has changed since."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLookedAt:
    """Earlier results that there may be, beyond those that have been looked at."""

    why: str
    fix: str


def columns_of(checks: Sequence[Check], names: Sequence[str]) -> list[str]:
    """Return those of a table's columns *names* that these checks are told by."""
    wanted = {*_OUTCOME}
    for check in checks:
        if isinstance(check, ScoreFloor | NoRegression):
            wanted |= {*_TRIAL, f"score.{check.metric}"}
    return [name for name in names if name in wanted]


def judge(
    check: Check,
    trials: pd.DataFrame,
    *,
    score_range: tuple[float, float],
    baseline: Baseline | NotLookedAt | str = "there are no earlier results",
) -> Finding:
    """Return what *trials*, the results of one partition (one row for each planned trial), say to *check*.

    They have the columns of `columns_of`. *baseline* is what `NoRegression` holds them against, or why nothing can be.
    """
    match check:
        case ScoreFloor():
            return _untold(check, trials, score_range) or _score_floor(check, trials, score_range)
        case FailureRate():
            return _failure_rate(check, trials)
        case Coverage():
            return _coverage(check, trials)
        case NoRegression():
            return _untold(check, trials, score_range) or _no_regression(check, trials, score_range, baseline)


def lacks_scores(trials: pd.DataFrame, metric: str) -> bool:
    """Return whether *trials* have no such score though some succeeded."""
    return f"score.{metric}" not in trials and bool((trials["status"] == "ok").any())


def _untold(check: ScoreFloor | NoRegression, trials: pd.DataFrame, score_range: tuple[float, float]) -> Finding | None:
    """Return what keeps *trials* from telling anything of the check's metric; None for nothing.

    Outside the range a failed trial is not the worst: results could pass for failing more.
    """
    if lacks_scores(trials, check.metric):
        said = f"no trial has a score called {check.metric}; a dict's scores are called metric.key"
        return Finding(passed=False, bound=_bound(check), said=said)
    if f"score.{check.metric}" in trials and (
        outside := outside_range(trials[f"score.{check.metric}"], check.metric, score_range)
    ):
        return _cannot_tell(check, outside, _DECLARE)
    return None


def _cannot_tell(check: ScoreFloor | NoRegression, why: str, fix: str, **facts: Fact) -> Finding:
    return Finding(passed=False, bound=_bound(check), said=f"cannot tell: {why}", fix=fix, facts=facts)


def _bound(check: ScoreFloor | NoRegression) -> str:
    if isinstance(check, ScoreFloor):
        return f"at least {check.at_least:g}"
    return f"not shown to be below {-check.margin or 0.0:g}"


def _score_floor(check: ScoreFloor, trials: pd.DataFrame, score_range: tuple[float, float]) -> Finding:
    column = f"score.{check.metric}"
    if column not in trials:
        trials = trials.assign(**{column: math.nan})
    best = leaderboard(trials, metric=check.metric, score_range=score_range).standings[0]
    # The mean that the leaderboard ranks by.
    value = best.bounds[0]
    if not math.isfinite(value):
        return _cannot_tell(check, f"the mean {check.metric} is more than a float holds", _SMALLER)
    facts: dict[str, Fact] = {
        "trials of the best configuration": best.n,
        "failures of the best configuration": best.failures,
        "trials of the best configuration that were not run": best.not_run,
    }
    if best.scores[check.metric].n:
        successes = str(best.scores[check.metric])
        facts |= {"best configuration": best.configuration, "mean of the best configuration's successes": successes}
    bound = _bound(check)
    return Finding(
        passed=value >= check.at_least - slack(score_range),
        value=value,
        bound=bound,
        said=f"the best configuration's mean {check.metric} is {value:.4g}, {bound} is asked for",
        facts=facts,
    )


def _failure_rate(check: FailureRate, trials: pd.DataFrame) -> Finding:
    bound = f"at most {_share(check.at_most)}"
    run, failed = len(trials) - _not_run(trials), _failures(trials)
    facts: dict[str, Fact] = {"failed": failed, "trials run": run}
    if not run:
        return Finding(passed=True, bound=bound, said="no trial was run, so none failed", facts=facts)
    return Finding(
        passed=failed / run <= check.at_most,
        value=failed / run,
        bound=bound,
        said=f"{failed:,} of {run:,} trials failed: {_share(failed / run)}, {bound} is asked for",
        facts=facts,
    )


def _coverage(check: Coverage, trials: pd.DataFrame) -> Finding:
    bound = f"at least {_share(check.at_least)}"
    run = len(trials) - _not_run(trials)
    value = run / len(trials)
    return Finding(
        passed=value >= check.at_least,
        value=value,
        bound=bound,
        said=f"{run:,} of {len(trials):,} planned trials were run: {_share(value)}, {bound} is asked for",
        facts={"trials run": run, "planned": len(trials)},
    )


def _no_regression(
    check: NoRegression,
    trials: pd.DataFrame,
    score_range: tuple[float, float],
    baseline: Baseline | NotLookedAt | str,
) -> Finding:
    bound = _bound(check)
    facts: dict[str, Fact] = {"margin": check.margin}
    if isinstance(baseline, NotLookedAt):
        return _cannot_tell(check, baseline.why, baseline.fix, **facts)
    if isinstance(baseline, str):
        return Finding(passed=True, bound=bound, said=f"nothing to compare with: {baseline}", facts=facts)
    facts["previous run"] = baseline.run_id
    column = f"score.{check.metric}"
    before = _scored(baseline.trials, column, score_range[0])
    if outside := outside_range(before[column], check.metric, score_range):
        return _cannot_tell(check, f"in the previous run: {outside}", _DECLARE, **facts)
    now = _scored(trials, column, score_range[0])
    if baseline.unchanged is not None:
        before = before[before["example_id"].isin(baseline.unchanged)]
    pairs = now.merge(before[["example_id"]].drop_duplicates(), on="example_id")["example_id"].nunique()
    difference = paired_difference(now, before, column, within=("configuration",))
    facts |= {
        "pairs": difference.n,
        "groups": difference.clusters,
        "examples without a pair": trials["example_id"].nunique() - pairs,
        "failures": _failures(trials),
        "failures in the previous run": _failures(baseline.trials),
    }
    if not difference.n:
        return Finding(passed=True, bound=bound, said="nothing to compare with: no trial has a pair", facts=facts)
    # Without an interval, of one group, the mean itself has to do.
    certain = difference.clusters > 1
    if not math.isfinite(difference.high if certain else difference.mean):
        return _cannot_tell(check, f"differences of {check.metric} are more than a float holds", _SMALLER, **facts)
    facts["mean difference"] = difference.mean
    if certain:
        facts |= {"95% interval, low": difference.low, "95% interval, high": difference.high}
    worse = (difference.high if certain else difference.mean) < -check.margin - slack(score_range)
    return Finding(
        passed=not worse,
        value=difference.mean,
        bound=bound,
        said=f"{check.metric} by {_interval(difference)} in {difference.n:,} pairs: "
        f"{_verdict(difference, check, worse=worse)}{_METRIC_CHANGED if baseline.metric_changed else ''}",
        facts=facts,
    )


def _verdict(difference: Estimate, check: NoRegression, *, worse: bool) -> str:
    more = f" by more than {check.margin:g}" if check.margin else ""
    if worse:
        return f"worse{more}"
    if math.isnan(difference.low) or difference.low >= -check.margin:
        return f"not worse{more}"
    return f"not shown to be worse{more}, though it may be, by up to {-difference.low:.4g}"


def _interval(difference: Estimate) -> str:
    if math.isnan(difference.low):
        return f"{difference.mean:+.4g} (no interval: all examples are of one group)"
    return f"{difference.mean:+.4g} (95%: {difference.low:+.4g} … {difference.high:+.4g})"


def _scored(trials: pd.DataFrame, column: str, worst: float) -> pd.DataFrame:
    """Return the trials that were run; what has no such score counts as *worst*."""
    run = trials[trials["error_type"] != _NOT_RUN]
    scores = run[column].astype(float) if column in run else pd.Series(math.nan, index=run.index)
    return run.assign(**{column: scores.fillna(worst)})


def _share(value: float) -> str:
    return f"{100 * value:.6g}%"


def _failures(trials: pd.DataFrame) -> int:
    return int((trials["status"] != "ok").sum()) - _not_run(trials)


def _not_run(trials: pd.DataFrame) -> int:
    return int((trials["error_type"] == _NOT_RUN).sum())
