"""The commands of `dspex`: what each takes and prints; the work is done below."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dspex_pipelines.cli import exits
from dspex_pipelines.cli.completing import Target, complete_partition
from dspex_pipelines.cli.doctor.command import doctor
from dspex_pipelines.cli.journal import journal_app
from dspex_pipelines.cli.output import AsJson, console, errors, shortened, write_anything
from dspex_pipelines.cli.pool_commands import pool_app, worker
from dspex_pipelines.cli.trial_commands import check_limit, replay, trace, trials
from dspex_pipelines.errors import DspexError, Interrupted

if TYPE_CHECKING:
    from dspex_pipelines.analysis.failures import FailureKind
    from dspex_pipelines.analysis.leaderboard import Leaderboard

ORDER = ("init", "doctor", "evaluate", "leaderboard", "trials", "replay", "trace", "pool", "worker", "journal")
"""In which the help lists the commands: that of their use."""


class _InOrder(TyperGroup):
    # Typer has those that have commands of their own after all others.
    def list_commands(self, ctx: Any) -> list[str]:
        return list(dict.fromkeys((*ORDER, *super().list_commands(ctx))))


app = typer.Typer(
    name="dspex",
    cls=_InOrder,
    help="Evaluate programs with variables: how good is each configuration, which is best, what failed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(pool_app, name="pool")
app.add_typer(journal_app, name="journal")
for command in (worker, doctor, trials, replay, trace):
    app.command()(command)

MOST_PRINTED = 50
"""Configurations of the table that `dspex evaluate` prints."""


def _say_version(asked: bool) -> None:  # noqa: FBT001 - the shape of an option's callback
    if asked:
        from importlib.metadata import version

        print(f"dspex-pipelines {version('dspex-pipelines')}")
        raise typer.Exit


@app.callback()
def options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Evaluate programs with variables: how good is each configuration, which is best, what failed."""
    del version


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; it is made if it is not there.")] = Path(),
) -> None:
    """Write a program, a CSV and a declaration to start from."""
    from dspex_pipelines.cli.starter import write_starter

    for path in write_starter(folder):
        console.print(f"wrote {path}", soft_wrap=True)
    console.print("Next: dspex evaluate")


@app.command()
def evaluate(
    target: Target = "",
    *,
    partition: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PARTITION", help="Only this partition; may be repeated.", autocompletion=complete_partition
        ),
    ] = None,
    limit: Annotated[
        int,
        typer.Option(
            metavar="N", show_default=False, help="Only the first so many examples of each partition; 0: all."
        ),
    ] = 0,
    samples: Annotated[
        int | None, typer.Option(metavar="N", help="So many random configurations; 0: the grid. Default: as declared.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Seed of the draw and of the trials. Default: as declared.")
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", help="How often each configuration meets each example.")] = 1,
    max_concurrency: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Most trials in flight; 0: as declared.")
    ] = 0,
    weight: Annotated[
        int,
        typer.Option(
            metavar="N", show_default=False, help="Turns for each one of another run in the pool; 0: as declared."
        ),
    ] = 0,
    hedge_fraction: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Most trials that may be run a second time when they take long; 0: none. Default: as declared.",
        ),
    ] = None,
    timeout_s: Annotated[
        float, typer.Option(metavar="SECONDS", show_default=False, help="Seconds a trial may run; 0: as declared.")
    ] = 0.0,
    trials_per_op: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Trials in one Dagster step; 0: chosen.")
    ] = 0,
    reuse: Annotated[str, typer.Option(metavar="all|successes|none", help="Outcomes of earlier runs to keep.")] = "all",
    max_attempts: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Attempts of a trial; 0: by the type of its error.")
    ] = 0,
    max_errors: Annotated[
        float,
        typer.Option(
            metavar="N|SHARE",
            show_default=False,
            help="Stop after so many failed trials, or a fraction of 100 and more; 0: as declared.",
        ),
    ] = 0.0,
    max_time_s: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            show_default=False,
            help="Stop after so many seconds of a partition's trials; 0: as declared.",
        ),
    ] = 0.0,
    max_tokens: Annotated[
        int,
        typer.Option(
            metavar="N",
            show_default=False,
            help="Stop after so many tokens, of calls to models and as programs report them; 0: as declared.",
        ),
    ] = 0,
    max_cost_usd: Annotated[
        float,
        typer.Option(
            metavar="USD",
            show_default=False,
            help="Stop after so many dollars, of calls to models and as programs report them; 0: as declared.",
        ),
    ] = 0.0,
    workers: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Workers of the local pool; 0: one for each core.")
    ] = 0,
    pool_address: Annotated[
        str, typer.Option(metavar="ADDRESS", help="A pool to use instead of a local one: `dspex pool start`.")
    ] = "",
    fail_under: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=VALUE",
            help="Exit with 3 when the best configuration's mean, failures counted as worst, is lower, or results are "
            "partial; may be repeated.",
        ),
    ] = None,
    fail_on_errors: Annotated[
        float | None, typer.Option(metavar="SHARE", help="Exit with 3 when a larger share of the trials failed.")
    ] = None,
) -> None:
    """Evaluate every partition, then print the leaderboard.

    What the declared checks say is printed too. Failed trials do not fail the command.

    Exit codes: 0 done; 2 something was refused, or the run of a partition failed; 3 done, but a check of
    severity error failed, or it is not what --fail-under or --fail-on-errors asks for; 130 interrupted, and what was
    done is kept.
    """
    from dspex_pipelines.cli.evaluating import evaluate_partitions
    from dspex_pipelines.cli.judging import Demands
    from dspex_pipelines.cli.targets import find_evaluation
    from dspex_pipelines.cli.verdicts import told
    from dspex_pipelines.model.hedging import hedged_in_words
    from dspex_pipelines.orchestration.config import config_of

    demands = Demands.parse(fail_under or (), fail_on_errors)
    evaluation = find_evaluation(target, check=True)
    demands.check_metrics(evaluation.metric_names)
    config = config_of(
        {
            "limit": limit,
            "samples": samples,
            "seed": seed,
            "repeats": repeats,
            "max_concurrency": max_concurrency,
            "weight": weight,
            "hedge_fraction": hedge_fraction,
            "timeout_s": timeout_s,
            "trials_per_op": trials_per_op,
            "reuse": reuse,
            "max_attempts": max_attempts,
            "max_errors": max_errors,
            "max_time_s": max_time_s,
            "max_tokens": max_tokens,
            "max_cost_usd": max_cost_usd,
        }
    )
    try:
        results = evaluate_partitions(
            evaluation,
            config,
            partitions=tuple(partition or ()),
            workers=workers,
            address=pool_address,
            console=console,
        )
    except (Interrupted, KeyboardInterrupt):
        # The latter between the steps, where Dagster does not make an error of it.
        raise Interrupted(resumes=reuse != "none") from None
    _print_leaderboard(results.board, MOST_PRINTED)
    _say_shown(results.board, MOST_PRINTED, rest=f"; all: {_command('dspex leaderboard', target)}")
    if results.hedged is not None:
        _say(f"Hedged: {hedged_in_words(*results.hedged)}")
    for line in results.usage.lines():
        _say(line)
    for what in results.not_counted:
        _say(f"Not counted: {what}", "yellow")
    _say_partial(results.partial)
    _say_left_out(results.left_out)
    _say_failures(results.failures, target, ran=results.failed)
    console.print(f"Results: {results.folder}", soft_wrap=True)
    for line, verdict in told(results.verdicts):
        _say(line, "" if verdict.passed else "red" if verdict.is_error else "yellow")
    if results.errors:
        _fail("\nerror: ".join(results.errors), exits.REFUSED)
    if missed := list(demands.missed(results.board, results.partial)):
        _fail("; ".join(missed), exits.MISSED)
    if any(verdict.is_error and not verdict.passed for verdict in results.verdicts):
        sys.exit(exits.MISSED)


@app.command()
def leaderboard(
    target: Target = "",
    *,
    metric: Annotated[str, typer.Option(metavar="METRIC", help="Rank by this metric; default: the first.")] = "",
    limit: Annotated[
        int, typer.Option(metavar="N", show_default=False, help="Print only the best so many; 0: all.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the configurations of the newest results, best first."""
    from dspex_pipelines.analysis.leaderboard import leaderboard as rank
    from dspex_pipelines.cli.board import leaderboard_documents
    from dspex_pipelines.cli.results import newest_results
    from dspex_pipelines.cli.targets import find_evaluation

    check_limit(limit)
    evaluation = find_evaluation(target)
    newest = newest_results(evaluation)
    board = rank(newest.ranked(), metric=metric or None, score_range=evaluation.score_range)
    if as_json:
        print(json.dumps(leaderboard_documents(board, limit or None), indent=2))
        if board.outside:
            errors.print(board.outside, style="yellow")
        return
    _print_leaderboard(board, limit or None)
    _say_shown(board, limit or None)
    examples = len(newest.load(["partition", "example_id"]).drop_duplicates())
    _say(f"Of {examples:,} examples in {', '.join(newest.paths)}")
    _say_partial(newest.partial)
    _say_left_out(newest.left_out)
    if newest.missing:
        _say(f"Left out, because they have not been evaluated yet: {', '.join(newest.missing)}")


def _say(text: str, style: str = "") -> None:
    console.print(text, style=style, soft_wrap=True)


def _say_shown(board: Leaderboard, limit: int | None, rest: str = "") -> None:
    shown = len(board.standings[:limit])
    if shown < len(board.standings):
        _say(f"{shown:,} of {len(board.standings):,} configurations shown{rest}")


def _say_partial(partial: Mapping[str, str]) -> None:
    for name, what in partial.items():
        _say(f"Partial: {name}: {what}", "yellow")


def _say_failures(failures: Sequence[FailureKind], target: str, *, ran: int) -> None:
    """Say how many trials failed and why, and how many of them this command has not even run (*ran* it has)."""
    count = sum(kind.count for kind in failures)
    if count:
        _say(f"{count:,} trials failed: {_command('dspex trials', target, '--failed')}")
    for kind in failures:
        _say(f"  {kind.count:,} × {kind.type}: {shortened(kind.said)}")
    if count > ran:
        again = _command("dspex evaluate", target, "--reuse successes")
        _say(f"{count - ran:,} of them failed in an earlier run; to run them again: {again}")


def _command(*parts: str) -> str:
    return " ".join(filter(None, parts))


def _say_left_out(names: Sequence[str]) -> None:
    if names:
        _say(f"Left out, because they were last evaluated by another plan: {', '.join(names)}")


def _print_leaderboard(board: Leaderboard, limit: int | None) -> None:
    from dspex_pipelines.cli.board import leaderboard_table

    table, dropped = leaderboard_table(board, limit, width=console.width)
    console.print(table, crop=False)
    if dropped:
        _say(f"No room for {', '.join(dropped)}; dspex leaderboard --json has all")
    if board.caveat:
        _say(board.caveat)
    if board.outside:
        _say(board.outside, "yellow")


def main() -> None:
    """Run the command line; an error of ours is one line that says what to do, and exit code 2 (130 after a signal)."""
    write_anything()
    try:
        app()
    except DspexError as error:
        _fail(str(error), exits.INTERRUPTED if isinstance(error, Interrupted) else exits.REFUSED)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", exits.REFUSED)


def _fail(text: str, code: int) -> None:
    errors.print(f"error: {text}", style="red", soft_wrap=True)
    sys.exit(code)
