"""What results have to keep: declared beside the evaluation, looked at after each of its partitions."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

from dspex_pipelines.errors import InvalidValue

Severity = Literal["warn", "error"]
SEVERITIES: tuple[Severity, ...] = ("warn", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreFloor:
    """The best configuration's mean of `metric` is at least `at_least`.

    Best and mean are those that the leaderboard ranks by: a trial without that score, because it failed or was not run,
    counts as the worst of `score_range`, so that failing on hard examples gains nothing.
    """

    metric: str
    """Name of a declared metric, or ``metric.key`` where it returns a dict."""
    at_least: float
    severity: Severity = "error"
    blocking: bool = False
    """Whether a failure of severity error keeps what lies downstream from being materialised in the same run."""
    name: str = ""
    """Empty: ``score_floor_<metric>``."""

    def __post_init__(self) -> None:
        _check_common(self, default_name=f"score_floor_{_check_metric_name(self, self.metric)}")
        if not _is_finite(self.at_least):
            raise InvalidValue(field=f"{self.name}.at_least", value=self.at_least, fix="give a finite number")

    @property
    def statement(self) -> str:
        """What has to hold, in words."""
        return (
            f"The best configuration's mean {self.metric} is at least {self.at_least:g}. A trial that failed or was "
            "not run counts as the worst score, as on the leaderboard."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureRate:
    """Of the trials that were run, at most the fraction `at_most` failed, whatever the type of their error.

    Reused outcomes count as run. Trials that a stopped run did not get to are in neither number: see `Coverage`.
    """

    at_most: float
    severity: Severity = "error"
    blocking: bool = False
    """Whether a failure of severity error keeps what lies downstream from being materialised in the same run."""
    name: str = ""
    """Empty: ``failure_rate``."""

    def __post_init__(self) -> None:
        _check_common(self, default_name="failure_rate")
        if not (_is_finite(self.at_most) and 0 <= self.at_most < 1):
            fix = "give a fraction from 0 to below 1, such as 0.01"
            raise InvalidValue(field=f"{self.name}.at_most", value=self.at_most, fix=fix)

    @property
    def statement(self) -> str:
        """What has to hold, in words."""
        return f"At most {100 * self.at_most:.6g}% of the trials that were run failed."


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Of the planned trials, at least the fraction `at_least` has an outcome: a result or an error.

    Those that a budget stopped the run before have none.
    """

    at_least: float = 1.0
    severity: Severity = "error"
    blocking: bool = False
    """Whether a failure of severity error keeps what lies downstream from being materialised in the same run."""
    name: str = ""
    """Empty: ``coverage``."""

    def __post_init__(self) -> None:
        _check_common(self, default_name="coverage")
        if not (_is_finite(self.at_least) and 0 < self.at_least <= 1):
            fix = "give a fraction above 0, 1 at most: 1.0 is all of them"
            raise InvalidValue(field=f"{self.name}.at_least", value=self.at_least, fix=fix)

    @property
    def statement(self) -> str:
        """What has to hold, in words."""
        share = "All" if self.at_least == 1 else f"At least {100 * self.at_least:.6g}% of the"
        return f"{share} planned trials were run: a run that its budget stopped leaves the others out."


@dataclass(frozen=True, slots=True, kw_only=True)
class NoRegression:
    """The results do not show `metric` to be worse than it was by more than `margin`.

    It fails where the whole 95% interval of the mean paired difference, new minus old, is below ``-margin``: scenario
    H of Piaggio et al., *Reporting of Noninferiority and Equivalence Randomized Trials* (CONSORT, JAMA
    2012;308:2594), the only one in which "worse by more than the margin" is shown. Were the true difference just
    ``-margin``, one run in 40 would fail. An interval that merely reaches below ``-margin`` shows it neither way: that
    passes, and the result tells how much worse it may be. So a pass alone is no proof that nothing is worse; a small
    interval, of many examples in many groups, comes close.

    Pairs are trials of one example, configuration and repeat, over all configurations. An example whose content is not
    what it was has none, nor has a trial that was not run. A failed trial counts as the worst of `score_range`, on both
    sides: a program that fails more often is worse. The interval is the leaderboard's, clustered by group, so that an
    example's many configurations do not pass for as many observations. Where all examples are of one group there is
    none, and the mean difference itself is held against ``-margin``.

    What it is held against are the newest earlier results of the partition that asked the same (limit, configurations,
    repeats and seed, whatever the program) and that this check has not failed: evaluating a worse program twice does
    not make it the standard. Without such results it passes, and says so. A program and its metric often share a file,
    so a metric of another version is no obstacle; the result tells that it may be the metric that has changed.
    """

    metric: str
    """Name of a declared metric, or ``metric.key`` where it returns a dict."""
    margin: float = 0.0
    """How much worse is tolerated, in the metric's own units."""
    severity: Severity = "error"
    blocking: bool = False
    """Whether a failure of severity error keeps what lies downstream from being materialised in the same run."""
    name: str = ""
    """Empty: ``no_regression_<metric>``."""

    def __post_init__(self) -> None:
        _check_common(self, default_name=f"no_regression_{_check_metric_name(self, self.metric)}")
        if not (_is_finite(self.margin) and self.margin >= 0):
            fix = "give a finite number, 0 or more: how much worse is tolerated"
            raise InvalidValue(field=f"{self.name}.margin", value=self.margin, fix=fix)

    @property
    def statement(self) -> str:
        """What has to hold, in words."""
        by = f" by more than {self.margin:g}" if self.margin else ""
        return (
            f"Example by example, {self.metric} is not shown to be worse{by} than in the newest earlier results that "
            f"passed: the 95% interval of the mean difference is not all below {-self.margin or 0.0:g}. A failed trial "
            "counts as the worst score."
        )


Check: TypeAlias = ScoreFloor | FailureRate | Coverage | NoRegression
KINDS = (ScoreFloor, FailureRate, Coverage, NoRegression)


def checked_checks(given: object, *, metrics: Sequence[str], score_range: tuple[float, float]) -> tuple[Check, ...]:
    """Return the checks of an evaluation with these names of metrics; raises `InvalidValue` for what cannot be."""
    if not isinstance(given, tuple | list):
        raise InvalidValue(field="checks", value=given, fix="give a tuple of checks; one alone needs a comma")
    checks: list[Check] = []
    for check in cast("Sequence[object]", given):
        if not isinstance(check, KINDS):
            names = ", ".join(kind.__name__ for kind in KINDS)
            raise InvalidValue(field="checks", value=check, fix=f"give {names}")
        if any(check.name == other.name for other in checks):
            fix = "two checks have that name; give one of them another: name=..."
            raise InvalidValue(field="checks", value=check.name, fix=fix)
        if isinstance(check, ScoreFloor | NoRegression):
            _check_metric(check, metrics, score_range)
        checks.append(check)
    return tuple(checks)


def _check_metric(check: ScoreFloor | NoRegression, metrics: Sequence[str], score_range: tuple[float, float]) -> None:
    if check.metric.partition(".")[0] not in metrics:
        fix = f"give one of {', '.join(metrics)}; what a metric returns in a dict is metric.key"
        raise InvalidValue(field=f"{check.name}.metric", value=check.metric, fix=fix)
    if check.metric != metrics[0]:
        return
    # score_range is about the metric that ranks; of others nothing is known.
    worst, best = score_range
    if isinstance(check, ScoreFloor) and not worst < check.at_least <= best:
        fix = f"give a number above {worst:g}, {best:g} at most, or declare another score_range"
        raise InvalidValue(field=f"{check.name}.at_least", value=check.at_least, fix=fix)
    if isinstance(check, NoRegression) and not check.margin < best - worst:
        fix = f"give less than {best - worst:g}, which no score can be worse by, or declare another score_range"
        raise InvalidValue(field=f"{check.name}.margin", value=check.margin, fix=fix)


def _check_metric_name(check: ScoreFloor | NoRegression, metric: object) -> str:
    if not isinstance(metric, str) or not metric:
        field = f"{type(check).__name__}.metric"
        raise InvalidValue(field=field, value=metric, fix="give the name of a metric, without its module")
    return re.sub(r"\W", "_", metric, flags=re.ASCII)


def _check_common(check: Check, *, default_name: str) -> None:
    field = type(check).__name__
    if check.name == "":
        object.__setattr__(check, "name", default_name)
    if type(check.name) is not str or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", check.name):
        raise InvalidValue(field=f"{field}.name", value=check.name, fix="give letters, digits and underscores")
    if check.severity not in SEVERITIES:
        fix = f"give one of {', '.join(SEVERITIES)}"
        raise InvalidValue(field=f"{check.name}.severity", value=check.severity, fix=fix)
    if type(check.blocking) is not bool:
        raise InvalidValue(field=f"{check.name}.blocking", value=check.blocking, fix="give True or False")
    if check.blocking and check.severity != "error":
        fix = "a warning holds nothing back: give severity='error', or leave blocking out"
        raise InvalidValue(field=f"{check.name}.blocking", value=check.blocking, fix=fix)


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
