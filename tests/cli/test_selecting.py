"""Which trials `dspex trials` lists, in which order, and what it says of a name that there is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial

import pytest

from dspex_pipelines.errors import InvalidValue
from tests.cli.conftest import Run, row

Give = Callable[..., None]
LATE = ("timeout_run", "it ran for 10 s")
RAISED = ("program_exception", "IndexError: 3")
ROWS = (
    row("a", run_s=3.0, **{"score.same": 0.25, "score.other": 1.0}),
    row("b", run_s=1.0, **{"score.same": 0.75, "score.other": 0.0}),
    row("c", run_s=9.0, error=LATE, **{"score.other": float("nan")}),
    row("d", run_s=2.0, error=RAISED, partition="test", **{"score.other": float("nan")}),
    row("e", run_s=0.0, error=("budget_exhausted", "not run"), **{"score.other": float("nan")}),
    row("a", configuration="beef", run_s=4.0, **{"score.same": 0.5, "score.other": 0.0}),
)


@pytest.fixture
def listed(run: Run, results: Give) -> Callable[..., str]:
    results(*ROWS)
    return partial(examples_of, run)


def examples_of(run: Run, *options: str) -> str:
    """The examples that are listed, in their order."""
    done = run("trials", "--json", *options)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return "".join(one["example_id"] for one in json.loads(done.output))


@pytest.mark.parametrize(
    ("options", "examples"),
    [
        ("", "abcdea"),
        ("--outcome ok", "aba"),
        ("--outcome timeout_run --outcome program_exception", "cd"),
        ("--outcome ok --outcome budget_exhausted", "abea"),
        ("--failed", "cd"),
        ("--failed --outcome timeout_run", "c"),
        ("--failed --outcome ok", ""),
        ("--score same<0.5", "a"),
        ("--score same<=0.5", "aa"),
        ("--score same>0.5", "b"),
        ("--score same>=.5", "ba"),
        ("--score same==0.5", "a"),
        ("--score same!=0.5", "ab"),
        ("--score same<1 --score other<1", "ba"),
        ("--example a", "aa"),
        ("--example a --configuration beef", "a"),
        ("--configuration be", "a"),
        ("--configuration flag=False", "a"),
        ("--configuration flag=True --failed", "cd"),
        ("--partition test", "d"),
        ("--partition all --failed", "c"),
        ("--partition test --outcome ok", ""),
        ("--sort score", "aabcde"),
        ("--sort other", "baacde"),
        ("--sort run_s", "caadbe"),
        ("--sort run_s --limit 2", "ca"),
    ],
)
def test_what_is_asked_is_what_is_listed(listed: Callable[..., str], options: str, examples: str) -> None:
    assert listed(*options.split()) == examples


def test_spaces_around_a_condition_do_not_matter(listed: Callable[..., str]) -> None:
    assert listed("--score", " same < 0.5 ") == "a"


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ("--outcome timeout", "outcome", "ok, program_exception, metric_exception"),
        ("--score wrong<1", "score", "give one of same, other"),
        ("--score same", "score", "give METRIC, one of <= >="),
        ("--score same<much", "score", "'much' is no number"),
        ("--partition dev", "partition", "give one of all, test"),
        ("--sort nothing", "sort", "give one of score, same, other"),
        ("--sort example_id", "sort", "run_s"),
    ],
)
def test_a_name_that_there_is_not_is_told_with_those_that_there_are(
    listed: Callable[..., str], options: str, field: str, says: str
) -> None:
    with pytest.raises(InvalidValue) as caught:
        listed(*options.split())
    assert caught.value.field == field
    assert says in caught.value.fix


def test_what_it_is_sorted_by_is_a_column(run: Run, results: Give) -> None:
    results(*ROWS)
    told = run("trials", "--sort", "run_s", "--limit", 1).output
    assert "│ run_s │" in told.replace("┃", "│")
    assert "│ 9.000 │" in told


def test_nothing_found_says_what_was_asked(run: Run, results: Give) -> None:
    results(*ROWS)
    told = run("trials", "--outcome", "ok", "--score", "same>1", "--example", "a").output
    assert told == "No trial meets --outcome ok --score 'same>1' --example a.\n"


@pytest.fixture
def varied(run: Run, results: Give) -> Callable[[str], str]:
    """The examples of what a configuration chooses; each has its own."""
    of = {
        "a": {"var.temperature": 0.0, "var.factor": 2, "var.style": "be brief now", "var.on": True},
        "b": {"var.temperature": 0.25, "var.factor": 20, "var.style": "now be brief", "var.on": False},
        "c": {"var.temperature": 1 / 3, "var.factor": 3, "var.style": "x=2 y", "var.on": False},
    }
    results(*(row(name, configuration=f"{name}000", **values) for name, values in of.items()))
    return partial(examples_of, run, "--configuration")


@pytest.mark.parametrize(
    ("wanted", "examples"),
    [
        ("temperature=0", "a"),
        ("temperature=0.0", "a"),
        ("temperature=.250", "b"),
        ("temperature=0.3333", "c"),
        ("temperature=0.3333333333333333", "c"),
        ("factor=2", "a"),
        ("factor=2.0", "a"),
        ("factor=2e1 temperature=0.25", "b"),
        ("style=be brief now", "a"),
        ("style=now be brief", "b"),
        ("on=False style=now be brief factor=20", "b"),
        ("style=x=2 y", "c"),
        ("on=False", "bc"),
        ("on=False factor=3", "c"),
        ("a0", "a"),
    ],
)
def test_numbers_are_compared_as_numbers_and_texts_as_they_are(
    varied: Callable[[str], str], wanted: str, examples: str
) -> None:
    assert varied(wanted) == examples


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("temprature=0", "there is no variable 'temprature'; did you mean temperature? the variables are factor, "),
        ("nothing=0", "there is no variable 'nothing'; the variables are factor, flag, on, style, temperature"),
        ("factor=2 stile=x", "there is no variable 'stile'; did you mean style? "),
        ("style=be now brief", "give the values, or the first characters of the digest, of one of"),
        ("on=0", "give the values, or"),
        ("factor=two", "give the values, or"),
        ("nothing", "give the values, or"),
    ],
)
def test_a_configuration_that_there_is_not_is_refused(varied: Callable[[str], str], wanted: str, says: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        varied(wanted)
    assert caught.value.fix.startswith(says), caught.value.fix
