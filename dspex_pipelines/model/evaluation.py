"""The declared thing: data set + program + space + metrics, and how to search."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.automation import Automation
from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.calls import TRACE_BYTES, CallPolicy, Price
from dspex_pipelines.model.checks import Check, checked_checks
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.limits import MOST_WEIGHT, RateLimit
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.model.search import Search
from dspex_pipelines.model.secrecy import check_no_secret
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import ISOLATIONS, Isolation, check_entry_point
from dspex_pipelines.redaction import is_secret_variable, learn_environment

Row = Mapping[str, Any]
NAME_CHARACTERS = 100
"""Of names that become folders."""
_FOLDER_BYTES = 255
_OWNER = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,7}|team:\S.*")
"""What Dagster takes for an owner."""
_AT_MOST = f"give at most {NAME_CHARACTERS} characters"


@dataclass(frozen=True, slots=True)
class Upstream:
    """An asset of the Dagster project whose value has the rows: a data frame, a table, maps, or the path of a file."""

    asset: str
    """Its key, with slashes between its parts."""

    def __post_init__(self) -> None:
        if not isinstance(self.asset, str) or not all(self.asset.split("/")):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidValue(
                field="dataset.source", value=self.asset, fix="give an asset's key, with slashes between its parts"
            )

    @property
    def path(self) -> tuple[str, ...]:
        """The parts of the key."""
        return tuple(self.asset.split("/"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Where examples come from, and what their columns mean.

    `source` is a CSV, JSONL or Parquet file, a folder of them or a pattern (``data/*.csv``), all relative to the
    working directory; a callable that yields rows; or an `Upstream` asset.
    Every row has the `inputs` columns; `labels` are what metrics compare with; `group` is the cluster
    column for error bars; `partition_by` splits the rows into `partitions` by that column's value.
    """

    source: Path | Callable[[], Iterable[Row]] | Upstream
    inputs: tuple[str, ...]
    labels: tuple[str, ...] = ()
    example_id: str = ""
    """Column of unique ids; empty: the row number, of a folder's files with the file's name before it."""
    group: str = ""
    partition_by: str = ""
    partitions: tuple[str, ...] | Dynamic | Dates = ("all",)
    """Names; or `Dynamic`, for those that the data has; or `Dates`."""
    max_bad_rows: float = 0.2
    """Most rows of a partition that may be bad: a fraction below 1, or a number from 1 on. They are left out, counted,
    and kept in a table of their own; where there are more, the partition is refused."""
    description: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.source, str):
            object.__setattr__(self, "source", Path(self.source))
        if not isinstance(self.source, Path | Upstream) and not callable(self.source):
            fix = "give a path, a function that yields rows, or Upstream(asset)"
            raise InvalidValue(field="dataset.source", value=self.source, fix=fix)
        for name in ("inputs", "labels", "partitions"):
            given = getattr(self, name)
            if isinstance(given, str):
                raise InvalidValue(field=f"dataset.{name}", value=given, fix="give a tuple of names, not one string")
            if not isinstance(given, Dynamic | Dates):
                object.__setattr__(self, name, tuple(given))
        if not self.inputs:
            raise InvalidValue(field="dataset.inputs", value=(), fix="name at least one input column")
        _check_partitions(self)
        if not _is_number(self.max_bad_rows) or not 0 <= self.max_bad_rows < math.inf:
            fix = "give a fraction below 1, or a number of rows from 1 on; 0: none"
            raise InvalidValue(field="dataset.max_bad_rows", value=self.max_bad_rows, fix=fix)

    @property
    def a_partition_is_a_file(self) -> bool:
        """Whether each file of a folder is a partition, named by the file."""
        return isinstance(self.partitions, Dynamic) and not self.partition_by


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A program, the variables it has, the data it is judged on and the metrics that judge it.

    `program` and `metrics` are entry points, ``module:attribute``, because the workers import them by name.
    The first metric is the one that ranks. Every metric's scores are better when higher.
    """

    name: str
    dataset: Dataset
    program: str
    metrics: tuple[str, ...]
    space: ConfigurationSpace = field(default_factory=ConfigurationSpace)
    search: Search = field(default_factory=Search)
    """Which configurations of the space a run tries, where its config does not say."""
    init: Mapping[str, Any] = field(default_factory=dict[str, Any])
    isolation: Isolation = "shared"
    version: str = ""
    """Declared version of the program; empty: a digest of its source."""
    files: tuple[Path, ...] = ()
    """Files the program reads; they join its version."""
    environment: tuple[str, ...] = ()
    """Environment variables that decide what the program answers, such as the address of its model; a digest of what
    they say joins its version. Not those that hold keys."""
    score_range: tuple[float, float] = (0.0, 1.0)
    """Worst and best score a trial can have, for the bounds of a mean with failures in it."""
    timeout_s: float = 60.0
    max_concurrency: int = 64
    weight: int = 1
    """Its share of a pool that others want at the same time: how many turns it has for each one of an evaluation of
    weight 1."""
    hedging: Hedging | None = None
    """When a trial that takes long is run a second time beside, the first answer of both counting; None for never."""
    budget: Budget = field(default_factory=Budget)
    """What a run may spend before it stops, keeps what it has, and says why."""
    limits: tuple[RateLimit, ...] = ()
    """How often the models that the program calls may be called, by everybody in the pool together; what is not
    declared is found out."""
    prices: tuple[Price, ...] = ()
    """What their tokens cost; for others, what the client library knows, if anything."""
    trace_bytes: int = TRACE_BYTES
    """Most bytes, compressed, that are kept of a trial's calls to models; 0: nothing is."""
    partitions_per_run: int = 1
    """How many partitions one run of a backfill takes; 0: all of them."""
    checks: tuple[Check, ...] = ()
    """What the results of each partition have to keep; looked at after each run, and shown in the UI."""
    automation: Automation = field(default_factory=Automation)
    """What starts it besides a click; all of it is off until it is turned on."""
    description: str = ""
    owners: tuple[str, ...] = ()
    """Who answers for it: email addresses, or teams as ``team:search``; shown at its assets."""
    tags: Mapping[str, str] = field(default_factory=dict[str, str])

    def __post_init__(self) -> None:
        _check_name(self.name)
        for part, kind in (("dataset", Dataset), ("space", ConfigurationSpace)):
            if not isinstance(getattr(self, part), kind):
                raise InvalidValue(field=part, value=getattr(self, part), fix=f"give {kind.__name__}(…)")
        check_entry_point("program", self.program)
        if isinstance(self.metrics, str):
            raise InvalidValue(field="metrics", value=self.metrics, fix="give a tuple of entry points")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        if not self.metrics:
            raise InvalidValue(field="metrics", value=(), fix="name at least one metric")
        _check_metrics(self.metrics)
        object.__setattr__(self, "files", _paths(self.files))
        object.__setattr__(self, "environment", _variables(self.environment))
        if self.isolation not in ISOLATIONS:
            raise InvalidValue(field="isolation", value=self.isolation, fix=f"give one of {', '.join(ISOLATIONS)}")
        object.__setattr__(self, "score_range", _range(self.score_range))
        object.__setattr__(self, "owners", _owners(self.owners))
        if not _is_number(self.timeout_s) or not self.timeout_s > 0:
            raise InvalidValue(field="timeout_s", value=self.timeout_s, fix="give seconds above 0")
        if type(self.max_concurrency) is not int or self.max_concurrency < 1:
            raise InvalidValue(field="max_concurrency", value=self.max_concurrency, fix="give an integer of 1 or more")
        if type(self.weight) is not int or not 1 <= self.weight <= MOST_WEIGHT:
            raise InvalidValue(field="weight", value=self.weight, fix=f"give an integer in [1, {MOST_WEIGHT:,}]")
        if not isinstance(self.hedging, Hedging | None):  # pyright: ignore[reportUnnecessaryIsInstance]
            fix = "give Hedging(quantile=…, fraction=…, after=…), or None for no second copies"
            raise InvalidValue(field="hedging", value=self.hedging, fix=fix)
        if type(self.partitions_per_run) is not int or self.partitions_per_run < 0:
            fix = "give an integer of 1 or more, or 0 for all of them in one run"
            raise InvalidValue(field="partitions_per_run", value=self.partitions_per_run, fix=fix)
        checks = checked_checks(self.checks, metrics=self.metric_names, score_range=self.score_range)
        object.__setattr__(self, "checks", checks)
        _check_secrets(self)
        policy = self.calls
        object.__setattr__(self, "limits", policy.limits)
        object.__setattr__(self, "prices", policy.prices)

    @property
    def metric_names(self) -> tuple[str, ...]:
        """Return the names that scores are listed by; where a metric returns a dict, their beginnings before a dot."""
        return tuple(_metric_name(metric) for metric in self.metrics)

    @property
    def calls(self) -> CallPolicy:
        """What holds for the calls to models of its trials; raises `InvalidValue` for what cannot be."""
        return CallPolicy(limits=self.limits, prices=self.prices, trace_bytes=self.trace_bytes)


def _check_secrets(evaluation: Evaluation) -> None:
    """Raise for a secret in whatever is kept or shown of an evaluation."""
    learn_environment()
    for name in ("init", "version", "description", "tags"):
        check_no_secret(name, getattr(evaluation, name))
    if isinstance(evaluation.dataset.source, Path):
        check_no_secret("dataset.source", str(evaluation.dataset.source))
    check_no_secret("files", [str(path) for path in evaluation.files])
    for variable in evaluation.space.variables:
        values = [getattr(variable, part, None) for part in ("default", "options", "allowed")]
        check_no_secret(f"space.{variable.name}", values)


def _check_partitions(dataset: Dataset) -> None:
    field, given = "dataset.partition_by", dataset.partitions
    if isinstance(given, Dates) and not dataset.partition_by:
        raise InvalidValue(field=field, value="", fix="name the column of dates")
    if isinstance(given, Dynamic) and not dataset.partition_by and not isinstance(dataset.source, Path):
        fix = "name the column whose values are the partitions; only a folder's files are partitions by themselves"
        raise InvalidValue(field=field, value="", fix=fix)
    if isinstance(given, Dates | Dynamic):
        return
    for partition in given:
        check_partition(partition)
    if not given or len(set(given)) != len(given):
        raise InvalidValue(field="dataset.partitions", value=given, fix="name each partition once")
    if len(given) > 1 and not dataset.partition_by:
        raise InvalidValue(field=field, value="", fix="name the column whose values are the partitions")


def check_partition(name: object) -> None:
    """Raise `InvalidValue` for what cannot name a partition, and so a folder."""
    field = "dataset.partitions"
    if not isinstance(name, str) or name in ("", ".", ".."):
        raise InvalidValue(field=field, value=name, fix="give a string that can name a folder")
    # Dagster refuses the three dots, and what cannot be seen in its pages.
    if "/" in name or "..." in name or any(letter < " " or "\ud800" <= letter <= "\udfff" for letter in name):
        raise InvalidValue(field=field, value=name, fix="a partition names a folder: leave out /, ... and controls")
    if len(name) > NAME_CHARACTERS or len(name.encode()) > _FOLDER_BYTES:
        raise InvalidValue(field=field, value=name, fix=f"a partition names a folder: {_AT_MOST}")


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise InvalidValue(field="evaluation.name", value=name, fix="give letters, digits and underscores")
    if len(name) > NAME_CHARACTERS:
        raise InvalidValue(field="evaluation.name", value=name, fix=f"it names a folder: {_AT_MOST}")


def _check_metrics(metrics: tuple[str, ...]) -> None:
    named: dict[str, str] = {}
    for metric in metrics:
        check_entry_point("metrics", metric)
        name = _metric_name(metric)
        if name in named:
            raise InvalidValue(
                field="metrics", value=metric, fix=f"its scores would be named {name}, as those of {named[name]} are"
            )
        named[name] = metric


def _metric_name(metric: str) -> str:
    return metric.partition(":")[2].rpartition(".")[2]


def _paths(given: object) -> tuple[Path, ...]:
    if not isinstance(given, tuple | list):
        raise InvalidValue(field="files", value=given, fix="give a tuple of paths; one alone needs a comma")
    paths: list[Path] = []
    for path in cast("tuple[object, ...]", given):
        if not isinstance(path, str | Path) or not str(path) or "\0" in str(path):
            raise InvalidValue(field="files", value=path, fix="give paths of files")
        paths.append(Path(path))
    return tuple(paths)


def _variables(given: object) -> tuple[str, ...]:
    field = "environment"
    if not isinstance(given, tuple | list):
        raise InvalidValue(field=field, value=given, fix="give a tuple of names; one alone needs a comma")
    names: list[str] = []
    for name in cast("tuple[object, ...]", given):
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise InvalidValue(field=field, value=name, fix="give names of environment variables")
        if is_secret_variable(name):
            fix = "leave it out: a secret decides on no answer, and nothing of it is to be kept, not even a digest"
            raise InvalidValue(field=field, value=name, fix=fix)
        names.append(name)
    return tuple(names)


def _owners(given: object) -> tuple[str, ...]:
    if not isinstance(given, tuple | list):
        raise InvalidValue(field="owners", value=given, fix="give a tuple of owners; one alone needs a comma")
    owners = cast("tuple[object, ...]", tuple(given))
    for owner in owners:
        if not isinstance(owner, str) or not _OWNER.fullmatch(owner):
            fix = "give an email address, such as ada@example.org, or a team, such as team:search"
            raise InvalidValue(field="owners", value=owner, fix=fix)
    return cast("tuple[str, ...]", owners)


def _range(given: object) -> tuple[float, float]:
    fix = "give (worst, best), two finite numbers, worst first"
    ends = cast("tuple[object, ...]", tuple(given)) if isinstance(given, tuple | list) else ()
    if len(ends) != 2 or not all(_is_number(end) and math.isfinite(cast("float", end)) for end in ends):  # noqa: PLR2004
        raise InvalidValue(field="score_range", value=given, fix=fix)
    worst, best = cast("tuple[float, float]", ends)
    if worst >= best:
        raise InvalidValue(field="score_range", value=given, fix=fix)
    return worst, best


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
