"""Which trials `dspex trials` lists, and in which order."""

from __future__ import annotations

import operator
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pandas as pd

from dspex_pipelines.analysis.leaderboard import configurations, label, labels_of
from dspex_pipelines.cli.completing import OUTCOMES
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.outcome import ErrorType

MOST_LISTED = 20
"""Configurations that an error lists."""
TEXTS = ("trial_id", "evaluation", "group", "worker", "error_message", "error_traceback", "outputs")
"""Columns that no trial is selected or sorted by; they may be large."""
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
_NAME = re.compile(r"(?<=\s)([A-Za-z_]\w*)=")


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
    return labels_of(configurations(trials))


def _configured(trials: pd.DataFrame, wanted: str) -> Sequence[str]:
    """Return the digests of the configurations that begin so, or have all of these values."""
    told = configurations(trials)
    found = [digest for digest in told if digest.startswith(wanted)]
    if not found and "=" in wanted:
        known = next(iter(told.values()), {})
        values = _values(wanted, known)
        found = [
            digest
            for digest, variables in told.items()
            if all(_has(variables, name, text) for name, text in values.items())
        ]
        # What no variable is called begins no value, and so is in the one before.
        unknown = (name for text in values.values() for name in _NAME.findall(text))
        if not found and (name := next(unknown, "")):
            raise _no_variable(name, known, wanted)
    if not found:
        lines = [f"  {digest}  {name}" for digest, name in labels(trials).items()]
        more = [f"  and {len(lines) - MOST_LISTED:,} more"] if len(lines) > MOST_LISTED else []
        fix = "\n".join(
            ["give the values, or the first characters of the digest, of one of", *lines[:MOST_LISTED], *more]
        )
        raise InvalidValue(field="configuration", value=wanted, fix=fix)
    return found


def _values(wanted: str, known: Iterable[str]) -> Mapping[str, str]:
    """Return the text of each value by its variable, up to the next ``name=``; raises `InvalidValue` for others."""
    names = sorted(known, key=len, reverse=True)
    # A value may have spaces and signs in it, and only a known name begins another.
    begins = re.compile(rf"(?:^|(?<=\s))({'|'.join(map(re.escape, names)) or '(?!)'})=")
    starts = list(begins.finditer(wanted))
    if unknown := wanted[: starts[0].start() if starts else None].strip():
        raise _no_variable(unknown.partition("=")[0].strip(), names, wanted)
    ends = [*(one.start() for one in starts[1:]), len(wanted)]
    return {one[1]: wanted[one.end() : end].strip() for one, end in zip(starts, ends, strict=True)}


def _no_variable(name: str, names: Iterable[str], wanted: str) -> InvalidValue:
    close = get_close_matches(name, list(names), n=1)
    meant = f"did you mean {close[0]}? " if close else ""
    fix = f"there is no variable {name!r}; {meant}the variables are {', '.join(sorted(names)) or 'none'}"
    return InvalidValue(field="configuration", value=wanted, fix=fix)


def _has(variables: Mapping[str, Any], name: str, text: str) -> bool:
    """Return whether the variable has the value that *text* says: as a number, or exactly as it is or is shown."""
    value = variables[name]
    if text == str(value) or f"{name}={text}" == label(variables, [name]):
        return True
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and float(text) == value
    except ValueError:
        return False


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
