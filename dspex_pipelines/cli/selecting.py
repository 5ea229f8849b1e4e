"""Which trials `dspex trials` lists, and in which order."""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from dspex_pipelines.analysis.leaderboard import configurations, label, varying_names
from dspex_pipelines.cli.completing import OUTCOMES
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.outcome import ErrorType

MOST_LISTED = 20
"""Configurations that an error lists."""
SCORE = "score"
"""Sorts by the first metric."""
_OPERATORS: dict[str, Callable[[Any, float], Any]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_CONDITION = re.compile(r"\s*(.+?)\s*(<=|>=|==|!=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is asked of a trial to be listed; everything that is given has to hold."""

    failed: bool = False
    """Whether it was run and failed."""
    outcomes: Sequence[str] = ()
    """``ok`` or types of error, any of them."""
    configuration: str = ""
    """The first characters of its digest, or values such as ``words=2 ellipsis=False``."""
    example: str = ""
    partition: str = ""
    scores: Sequence[str] = ()
    """Conditions such as ``exact<0.5``. A trial without that score meets none."""

    def of(self, trials: pd.DataFrame) -> pd.DataFrame:
        """Return the trials that meet it; raises `InvalidValue` for a name that there is not."""
        configured = _configured(trials, self.configuration) if self.configuration else ()
        if self.partition:
            _check_name("partition", self.partition, sorted(set(trials["partition"])))
            trials = trials[trials["partition"] == self.partition]
        if self.failed:
            trials = trials[(trials["status"] != "ok") & (trials["error_type"] != ErrorType.BUDGET_EXHAUSTED.value)]
        if self.outcomes:
            trials = trials[_outcome(trials).isin(_known_outcomes(self.outcomes))]
        for condition in self.scores:
            trials = trials[_meets(trials, condition)]
        if self.configuration:
            trials = trials[trials["configuration"].isin(configured)]
        if self.example:
            trials = trials[trials["example_id"].astype(str) == self.example]
        return trials

    def __str__(self) -> str:
        """Return it in the words of the command line."""
        told = [f"--outcome {one}" for one in self.outcomes] + [f"--score '{one}'" for one in self.scores]
        names = ("configuration", "example", "partition")
        told += [f"--{name} {shlex.quote(getattr(self, name))}" for name in names if getattr(self, name)]
        return " ".join([*(["--failed"] if self.failed else []), *told])


def worst_first(trials: pd.DataFrame, by: str) -> pd.DataFrame:
    """Return the trials in the order of what is worse: low scores, long times, much used; those without come last."""
    numbers = [str(name) for name in trials.columns if pd.api.types.is_numeric_dtype(trials[name])]
    scores = metrics(trials)
    known = [SCORE, *scores, *(name for name in numbers if not name.startswith(("score.", "var.")))]
    _check_name("sort", by, known)
    is_score = by == SCORE or by in scores
    column = f"score.{scores[0] if by == SCORE else by}" if is_score else by
    return trials.sort_values(column, ascending=is_score, kind="stable", na_position="last")


def metrics(trials: pd.DataFrame) -> list[str]:
    """Return the names of the scores, the first one first."""
    return [str(name).removeprefix("score.") for name in trials.columns if str(name).startswith("score.")]


def labels(trials: pd.DataFrame) -> Mapping[str, str]:
    """Return each configuration by its digest as the leaderboard shows it."""
    found = configurations(trials)
    names = varying_names(list(found.values()))
    return {digest: label(variables, names) or digest for digest, variables in found.items()}


def _configured(trials: pd.DataFrame, wanted: str) -> Sequence[str]:
    """Return the digests of the configurations that begin so, or have all of these values."""
    values = set(wanted.split())
    told = configurations(trials)
    found = [
        digest
        for digest, variables in told.items()
        if digest.startswith(wanted) or values <= set(label(variables, variables).split())
    ]
    if not found:
        lines = [f"  {digest}  {name}" for digest, name in labels(trials).items()]
        more = [f"  and {len(lines) - MOST_LISTED:,} more"] if len(lines) > MOST_LISTED else []
        fix = "\n".join(
            ["give the values, or the first characters of the digest, of one of", *lines[:MOST_LISTED], *more]
        )
        raise InvalidValue(field="configuration", value=wanted, fix=fix)
    return found


def _outcome(trials: pd.DataFrame) -> pd.Series[Any]:
    return trials["error_type"].where(trials["status"] != "ok", "ok")


def _known_outcomes(outcomes: Sequence[str]) -> Sequence[str]:
    for one in outcomes:
        _check_name("outcome", one, OUTCOMES)
    return outcomes


def _meets(trials: pd.DataFrame, condition: str) -> pd.Series[bool]:
    found = _CONDITION.fullmatch(condition)
    if found is None:
        raise InvalidValue(field="score", value=condition, fix=f"give METRIC, one of {' '.join(_OPERATORS)}, a number")
    metric, sign, text = found.groups()
    _check_name("score", metric, metrics(trials))
    try:
        value = float(text)
    except ValueError as error:
        raise InvalidValue(field="score", value=condition, fix=f"{text!r} is no number") from error
    scores = trials[f"score.{metric}"]
    return scores.notna() & _OPERATORS[sign](scores, value)


def _check_name(field: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InvalidValue(field=field, value=value, fix=f"give one of {', '.join(known)}")
