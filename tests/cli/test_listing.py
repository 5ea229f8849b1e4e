"""`dspex trials` and `dspex leaderboard`: what they print of whatever results there are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from dspex_pipelines.analysis.leaderboard import Estimate, Leaderboard, Standing
from dspex_pipelines.cli.board import leaderboard_table
from dspex_pipelines.errors import InvalidValue
from tests.cli.conftest import Run, row

Give = Callable[..., None]
RAISED = ("program_exception", "IndexError: [/b] at [bold]row[0]")


def test_trials_lists_successes_beside_failures(run: Run, results: Give) -> None:
    results(row("a"), row("b", error=RAISED))
    done = run("trials")
    assert done.exception is None
    assert "ok" in done.output
    assert "same=1" in done.output
    assert "2 of 2 trials shown\n" in done.output
    assert "1 of 2 trials shown; all: --limit 0" in run("trials", "--limit", "1").output


def test_brackets_in_a_message_are_printed_as_they_are(run: Run, results: Give) -> None:
    results(row("[/red]", error=RAISED))
    done = run("trials", "--failed")
    assert done.exception is None
    assert "[/b] at [bold]row[0]" in done.output
    assert "[/red]" in done.output


def test_what_a_stopped_run_did_not_get_to_has_not_failed(run: Run, results: Give) -> None:
    results(row("a", error=RAISED), row("b", error=("budget_exhausted", "not run: 1 s are over")))
    assert "1 of 1 trials shown" in run("trials", "--failed").output
    assert "budget_exhausted" in run("trials").output


def test_a_message_that_is_cut_ends_with_an_ellipsis(run: Run, results: Give) -> None:
    from dspex_pipelines.cli.output import shortened

    assert shortened("x" * 121) == "x" * 119 + "…"
    assert shortened("x" * 120 + "\nsecond") == "x" * 120
    results(row("a", error=("program_exception", "y" * 121)))
    assert "…" in run("trials").output


def test_no_failed_trial_of_a_configuration_is_said_as_such(run: Run, results: Give) -> None:
    results(row("a"), row("a", configuration="beef", error=RAISED))
    told = run("trials", "--failed", "--configuration", "flag=True").output
    assert told == "No trial meets --failed --configuration flag=True.\n"
    results(row("a"))
    assert "No trial failed." in run("trials", "--failed").output


def test_a_configuration_that_there_is_not_is_refused_with_those_that_there_are(run: Run, results: Give) -> None:
    results(row("a"), row("a", configuration="beef"))
    for asked in ("zzzz", "flag=Maybe"):
        done = run("trials", "--configuration", asked)
        assert isinstance(done.exception, InvalidValue)
        assert (done.exception.field, done.exception.value) == ("configuration", asked)
        assert done.exception.fix.splitlines()[1:] == ["  beef  flag=False", "  c0ffee  flag=True"]


def test_trials_tell_configurations_as_the_leaderboard_does(run: Run, results: Give) -> None:
    rows = [row("a", **{"var.words": 2}), row("a", configuration="beef", **{"var.words": 2})]
    results(*rows)
    for command in ("trials", "leaderboard"):
        told = run(command).output
        assert "│ flag=True " in told
        assert "words" not in told
        assert "c0ffee " not in told
    assert [one["configuration"] for one in json.loads(run("trials", "--json").output)] == ["c0ffee", "beef"]
    results(row("a"))
    for command in ("trials", "leaderboard"):
        assert "│ flag=True " in run(command).output, "the only one, in which nothing differs"


@pytest.mark.parametrize(
    ("rows", "named"),
    [
        ([row("a")], "scores"),
        ([row("a", error=RAISED)], "error"),
        ([row("a"), row("b", error=RAISED)], "scores or error"),
    ],
)
def test_the_last_column_is_named_for_what_it_holds(
    run: Run, results: Give, rows: list[dict[str, Any]], named: str
) -> None:
    results(*rows)
    heads = run("trials").output.splitlines()[1].split("┃")
    assert heads[-2].strip() == named


@pytest.mark.parametrize("command", ["trials", "leaderboard"])
def test_a_negative_limit_is_refused(run: Run, results: Give, command: str) -> None:
    results(row("a"), row("b"))
    done = run(command, "--limit", "-1")
    assert isinstance(done.exception, InvalidValue)
    assert done.exception.field == "limit"


def test_the_leaderboard_says_which_results_it_is_of(run: Run, results: Give) -> None:
    results(row("a"), row("b"), left_out=("test",))
    told = run("leaderboard").output
    assert "2 examples in all" in told
    assert "Left out, because they were last evaluated by another plan: test" in told


def test_the_leaderboard_as_json_has_numbers(run: Run, results: Give) -> None:
    results(row("a"), row("b"), row("a", configuration="beef", error=RAISED))
    first, second = json.loads(run("leaderboard", "--json").output)
    assert (first["#"], first["n"], first["failures"]) == (1, 2, 0)
    assert first["values"] == {"flag": True}
    assert first["same"] == "1.000 ± 0.000"
    assert first["numbers"]["scores"]["same"]["mean"] == 1.0
    assert second["numbers"]["scores"]["same"]["mean"] is None
    assert second["numbers"]["failures"] == 1


def board(metrics: tuple[str, ...]) -> Leaderboard:
    score = Estimate(mean=0.5, low=0.25, high=0.75, n=1_000, clusters=9)
    standings = tuple(
        Standing(
            rank=rank,
            configuration=f"c{rank}",
            variables={"strategy": f"thorough{rank}", "temperature": rank / 10, "[/b]words": rank},
            n=1_000,
            failures=3,
            not_run=0,
            scores=dict.fromkeys(metrics, score),
            bounds=(0.25, 0.75),
            difference=score,
        )
        for rank in (1, 2)
    )
    return Leaderboard(metric=metrics[0], metrics=metrics, standings=standings)


def rendered(shown: Leaderboard, width: int) -> tuple[list[str], tuple[str, ...]]:
    console = Console(width=width, markup=False, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    table, dropped = leaderboard_table(shown, None, width=width)
    console.print(table, crop=False)
    return console.export_text().splitlines(), dropped


def test_the_title_names_groups_only_where_there_are_some() -> None:
    shown = board(("exact",))
    assert rendered(shown, 100)[0][0].strip() == "By exact: mean and 95% interval"
    (title, *_), _ = rendered(replace(shown, grouped=True), 100)
    assert title.strip() == "By exact: mean and 95% interval clustered by group"


@pytest.mark.parametrize("width", [80, 100, 150])
@pytest.mark.parametrize("metrics", [("exact",), ("exact", "cost", "brevity")], ids=["one", "three"])
def test_the_configuration_can_be_read_at_every_width(width: int, metrics: tuple[str, ...]) -> None:
    lines, dropped = rendered(board(metrics), width)
    told: Any = "\n".join(lines)
    for value in ("strategy=thorough2", "temperature=0.2", "[/b]words=2", "0.500 ± 0.250", "best", "failures"):
        assert value in told, told
    assert max(map(len, lines)) <= width
    assert ("bounds" in dropped) == ("bounds" not in told)
    if width == 150:
        assert dropped == () if len(metrics) == 1 else "cost" in told


def test_what_does_not_fit_even_so_is_wider_than_the_terminal_and_not_cut() -> None:
    lines, dropped = rendered(board(("exact", "cost")), 40)
    assert dropped == ("bounds", "cost")
    assert "strategy=thorough1" in "\n".join(lines)
    assert "…" not in "".join(lines)


def test_the_commands_are_listed_in_the_order_of_use_each_in_a_whole_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERMINAL_WIDTH", "80")
    lines = run("--help").output.partition("Commands:\n")[2].strip().splitlines()
    names = [line.split()[0] for line in lines]
    assert " ".join(names) == "init doctor evaluate leaderboard trials replay trace pool worker journal"
    assert [line for line in lines if line.endswith("...")] == []
