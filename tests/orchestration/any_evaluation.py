"""Evaluations of every kind, for properties."""

from __future__ import annotations

import dataclasses
import datetime as dt
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from dspex_pipelines.model import (
    automation,
    budget,
    calls,
    checks,
    hedging,
    limits,
    partitions,
    search,
    space,
    variables,
)
from dspex_pipelines.model.evaluation import Dataset, Evaluation, Upstream

FOLDER = Path(tempfile.gettempdir()).resolve() / "declared"
"""Where their files would lie."""

names = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
columns = st.lists(names, max_size=3, unique=True).map(tuple)
words = st.text(st.characters(codec="utf-8", exclude_categories=("C",), exclude_characters="{}%#"), max_size=20)
paths = names.map(lambda name: FOLDER / f"{name}.csv")
entry_points = st.builds("{}.{}:{}".format, names, names, names)
numbers = st.integers(0, 100) | st.floats(0, 100)
rates = st.integers(0, 100) | st.floats(0.001, 100)
described: dict[str, Any] = {"description": words}


def floats(name: str) -> st.SearchStrategy[variables.Float]:
    return st.builds(
        lambda low, more, default, **rest: variables.Float(
            name=name, low=low, high=low + more, default=low if default else None, points=(low,), **rest
        ),
        numbers, numbers, st.booleans(), **described,
    )  # fmt: skip


def integers(name: str) -> st.SearchStrategy[variables.Integer]:
    return st.builds(
        lambda low, more, points, **rest: variables.Integer(
            name=name, low=low, high=low + more, default=low, points=(low,) * points, **rest
        ),
        st.integers(-9, 9), st.integers(0, 9), st.integers(0, 1), **described,
    )  # fmt: skip


def choices(name: str) -> st.SearchStrategy[variables.Choice]:
    options = st.lists(st.integers(-5, 5) | words | st.booleans(), min_size=1, max_size=4, unique_by=repr)
    return options.map(lambda some: variables.Choice(name=name, options=tuple(some), default=some[0]))


def texts(name: str) -> st.SearchStrategy[variables.Text]:
    some = st.lists(words, max_size=3).map(tuple)
    return st.builds(variables.Text, name=st.just(name), candidates=some, default=words, max_length=st.integers(20, 99))


def any_variable(name: str) -> st.SearchStrategy[Any]:
    modules = st.lists(entry_points, min_size=1, max_size=3, unique=True)
    return st.one_of(
        floats(name),
        integers(name),
        st.builds(variables.Boolean, name=st.just(name), default=st.none() | st.booleans(), **described),
        choices(name),
        texts(name),
        modules.map(lambda some: variables.Module(name=name, allowed=tuple(some), default=some[0])),
    )


constraints = st.lists(
    st.one_of(
        st.builds(space.Ordered, lower=st.just("number"), upper=st.just("retrieve.k"), strict=st.booleans()),
        st.just(space.Implies(when={"number": (1, 2.5)}, then={"retrieve.k": (3,)})),
        st.builds(space.AtMost, weights=st.just({"number": 1, "retrieve.k": 0.5}), bound=numbers),
    ),
    max_size=3,
).map(tuple)
spaces = st.builds(
    lambda number, integer, others, kept: space.ConfigurationSpace(
        variables=(number, integer, *others), constraints=kept
    ),
    floats("number"),
    integers("retrieve.k"),
    st.tuples(any_variable("one"), any_variable("two")),
    constraints,
)
divisions = st.one_of(
    st.lists(names, min_size=1, max_size=3, unique=True).map(tuple),
    st.just(partitions.Dynamic()),
    st.builds(
        partitions.Dates,
        start=st.dates(min_value=dt.date(1970, 1, 1)).map(str),
        every=st.sampled_from(partitions.PERIODS),
    ),
)
datasets = st.builds(
    Dataset,
    source=paths | st.builds("{}/{}".format, names, names).map(Upstream),
    inputs=columns.filter(bool),
    labels=columns,
    example_id=names,
    group=names,
    partition_by=names,
    partitions=divisions,
    max_bad_rows=numbers,
    description=words,
)
unchecked = st.builds(
    Evaluation,
    name=names,
    dataset=datasets,
    program=entry_points,
    metrics=st.lists(entry_points, min_size=1, max_size=3, unique_by=lambda one: one.partition(":")[2]).map(tuple),
    space=spaces,
    search=st.builds(search.Search, samples=st.integers(1, 99), seed=st.integers(0, 99)) | st.just(search.Search()),
    init=st.dictionaries(names, st.recursive(st.none() | st.booleans() | numbers | words, st.lists, max_leaves=4)),
    isolation=st.sampled_from(["shared", "process"]),
    version=words,
    files=st.lists(paths, max_size=2).map(tuple),
    environment=st.just(("HOME_OF_MODEL",)),
    score_range=numbers.map(lambda worst: (worst, worst + 1)),
    timeout_s=numbers.filter(bool),
    max_concurrency=st.integers(1, 99),
    budget=st.builds(
        budget.Budget,
        max_errors=st.integers(0, 99) | st.floats(0, 1, exclude_max=True),
        min_trials=st.integers(1, 99),
        max_time_s=numbers,
        max_tokens=st.integers(0, 99),
        max_cost_usd=numbers,
    ),
    limits=st.lists(
        st.builds(
            limits.RateLimit,
            model=names,
            requests_per_minute=rates,
            tokens_per_minute=rates,
            max_concurrency=st.integers(1, 9),
        ),
        max_size=2,
    ).map(tuple),
    prices=st.lists(
        st.builds(
            calls.Price, model=names, input_usd=numbers, output_usd=numbers, cached_input_usd=st.none() | numbers
        ),
        max_size=2,
    ).map(tuple),
    weight=st.integers(1, 1_000),
    hedging=st.none()
    | st.builds(
        hedging.Hedging,
        quantile=st.floats(0.01, 0.99),
        fraction=st.floats(0.01, 1),
        after=st.integers(1, 99),
    ),
    trace_bytes=st.integers(0, 1 << 20),
    partitions_per_run=st.integers(0, 9),
    automation=st.builds(
        automation.Automation,
        schedule=st.sampled_from(["", "0 3 * * *"]),
        timezone=st.just("Europe/Berlin"),
        latest=st.integers(0, 9),
        look_every_s=st.integers(1, 9),
        stale_after_h=numbers,
        triggers=st.none() | paths,
    ),
    description=words,
    owners=st.just(("team:search", "ada@example.org")),
    tags=st.dictionaries(names, words, max_size=2),
)


def checked(declared: Evaluation) -> st.SearchStrategy[Evaluation]:
    """The evaluation with any of the checks that its metrics and its range of scores allow."""
    metric = declared.metrics[0].partition(":")[2]
    common: dict[str, Any] = {"severity": st.sampled_from(checks.SEVERITIES)}
    kinds = (
        st.builds(checks.ScoreFloor, metric=st.just(metric), at_least=st.just(declared.score_range[1]), **common),
        st.builds(checks.FailureRate, at_most=st.floats(0, 0.99), name=st.just("few"), **common),
        st.builds(checks.Coverage, at_least=st.floats(0.01, 1), blocking=st.booleans()),
        st.builds(checks.NoRegression, metric=st.just(metric), margin=st.floats(0, 0.5), **common),
    )
    some = st.tuples(*(st.none() | kind for kind in kinds)).map(lambda all_: tuple(one for one in all_ if one))
    return some.map(lambda chosen: dataclasses.replace(declared, checks=chosen))


evaluations = unchecked.flatmap(checked)
