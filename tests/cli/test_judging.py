"""What makes `dspex evaluate` exit with 3, and what it refuses before anything is run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from dspex_pipelines.analysis.leaderboard import leaderboard
from dspex_pipelines.cli import commands, evaluating, exits
from dspex_pipelines.cli.evaluating import EvaluatedPartitionsSummary
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.usage import Usage
from tests.cli.conftest import Run, row

RAISED = ("program_exception", "no")
NOT_RUN = ("budget_exhausted", "not run")
GOOD = [row("a", **{"score.same": 0.5}), row("b", **{"score.same": 1.0})]
BAD = [row("a", configuration="bad", error=RAISED), row("b", configuration="bad", **{"score.same": 0.0})]


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch, results: Callable[..., None]) -> Callable[..., None]:
    """Let the evaluation be over, with these rows."""
    results(row("a"))

    def give(*rows: dict[str, object], partial: dict[str, str] | None = None) -> None:
        summary = EvaluatedPartitionsSummary(
            board=leaderboard(pd.DataFrame(list(rows))),
            left_out=(),
            partial=partial or {},
            folder=Path("results"),
            usage=Usage(),
            failures=(),
            not_counted=(),
        )
        monkeypatch.setattr(evaluating, "evaluate_partitions", lambda *_, **__: summary)

    return give


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("", 0),
        ("--fail-under same=0.75", 0),
        ("--fail-under same=0.76", exits.MISSED),
        ("--fail-under same=-1 --fail-under same=0.9", exits.MISSED),
        ("--fail-on-errors 0.25", 0),
        ("--fail-on-errors 0.2", exits.MISSED),
        ("--fail-under same=0.7 --fail-on-errors 0", exits.MISSED),
    ],
)
def test_the_exit_code_is_the_verdict(run: Run, evaluated: Callable[..., None], options: str, code: int) -> None:
    evaluated(*GOOD, *BAD)
    done = run("evaluate", *options.split())
    assert done.exit_code == code
    assert "Results: results" in done.output


def test_what_sums_of_floats_are_off_by_misses_nothing(run: Run, evaluated: Callable[..., None]) -> None:
    evaluated(row("a", **{"score.same": 0.1}), row("b", **{"score.same": 0.7}))
    assert (0.1 + 0.7) / 2 < 0.4
    assert run("evaluate", "--fail-under", "same=0.4").exit_code == 0
    assert run("evaluate", "--fail-under", "same=0.400001").exit_code == exits.MISSED


def test_the_verdict_is_one_line_that_names_numbers(
    evaluated: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(*GOOD, *BAD)
    options = ["--fail-under", "same=0.9", "--fail-on-errors", "0.1"]
    monkeypatch.setattr("sys.argv", ["dspex", "evaluate", *options])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == exits.MISSED
    assert capsys.readouterr().err == (
        "error: same of the best configuration (flag=True) is 0.75, under 0.9; 25.0% of the trials failed, more than "
        "10.0%\n"
    )


def test_failing_on_hard_examples_gains_nothing(
    evaluated: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluated(row("a", **{"score.same": 1.0}), row("b", error=RAISED))
    monkeypatch.setattr("sys.argv", ["dspex", "evaluate", "--fail-under", "same=0.6"])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == exits.MISSED
    told = "is 0.5 (1 of its 2 trials have none, and count as 0), under 0.6"
    assert told in capsys.readouterr().err


def test_where_every_trial_failed_no_mean_is_good_enough(run: Run, evaluated: Callable[..., None]) -> None:
    evaluated(row("a", error=RAISED))
    assert run("evaluate", "--fail-under", "same=-100").exit_code == exits.MISSED


def test_partial_results_prove_nothing(run: Run, evaluated: Callable[..., None]) -> None:
    evaluated(*GOOD, partial={"all": "2 of 4 trials were not run"})
    assert run("evaluate", "--fail-under", "same=0").exit_code == exits.MISSED
    assert run("evaluate", "--fail-on-errors", "0").exit_code == 0


def test_trials_that_were_not_run_have_not_failed(run: Run, evaluated: Callable[..., None]) -> None:
    evaluated(*GOOD, row("c", error=NOT_RUN))
    assert run("evaluate", "--fail-on-errors", "0").exit_code == 0


@pytest.mark.parametrize(
    ("options", "field", "says"),
    [
        ("--fail-under same", "fail_under", "give METRIC=VALUE"),
        ("--fail-under =1", "fail_under", "give METRIC=VALUE"),
        ("--fail-under same=nan", "fail_under", "give METRIC=VALUE"),
        ("--fail-under same.part=1", "fail_under", "the metrics are same"),
        ("--fail-on-errors 1.5", "fail_on_errors", "a share from 0 to 1"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    run: Run, evaluated: Callable[..., None], options: str, field: str, says: str
) -> None:
    evaluated(*GOOD)
    done = run("evaluate", *options.split())
    assert isinstance(done.exception, InvalidValue)
    assert done.exception.field == field
    assert says in done.exception.fix


def test_a_metric_that_cannot_be_is_refused_before_anything_runs(
    run: Run, results: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    results(row("a"))
    monkeypatch.setattr(evaluating, "evaluate_partitions", lambda *_, **__: pytest.fail("it has run"))
    for metric in ("other", "other.same"):
        done = run("evaluate", "--fail-under", f"{metric}=1")
        assert isinstance(done.exception, InvalidValue)
        assert (done.exception.field, done.exception.value) == ("fail_under", metric)
        assert "give one of same; " in done.exception.fix


def test_the_help_says_what_the_exit_codes_mean(run: Run) -> None:
    told = " ".join(run("evaluate", "--help").output.split()).partition("Exit codes:")[2].partition("Options")[0]
    for code in (0, exits.REFUSED, exits.MISSED, exits.INTERRUPTED):
        assert f" {code} " in told
