"""The commands of `dspex`: what each takes and prints; the work is done below."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from dspex_pipelines.cli.journal import journal_app
from dspex_pipelines.cli.output import console, errors, shortened, write_anything
from dspex_pipelines.errors import DspexError, Interrupted, InvalidValue

if TYPE_CHECKING:
    from dspex_pipelines.analysis.failures import FailureKind
    from dspex_pipelines.analysis.leaderboard import Leaderboard

app = typer.Typer(
    name="dspex",
    help="Evaluate programs with variables: how good is each configuration, which is best, what failed.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
pool_app = typer.Typer(help="The local worker pool, which starts and ends by itself.", no_args_is_help=True)
app.add_typer(pool_app, name="pool")
app.add_typer(journal_app, name="journal")
INTERRUPTED_EXIT = 130

Target = Annotated[
    str,
    typer.Argument(
        help="A shipped evaluation (stdlib_search, qa_rag), module:attribute, or the folder of a defs.yaml; "
        "default: ./evaluation.py."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


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
    """Write a ten-line program, a CSV and a declaration to start from."""
    from dspex_pipelines.cli.starter import write_starter

    for path in write_starter(folder):
        console.print(f"wrote {path}", highlight=False, soft_wrap=True)
    console.print("Next: dspex evaluate", highlight=False)


@app.command()
def evaluate(
    target: Target = "",
    *,
    partition: Annotated[list[str] | None, typer.Option(help="Only this partition; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="Only the first so many examples of each partition.")] = 0,
    samples: Annotated[
        int | None, typer.Option(help="So many random configurations; 0: the grid. Default: as declared.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the draw and of the trials. Default: as declared.")] = None,
    repeats: Annotated[int, typer.Option(help="How often each configuration meets each example.")] = 1,
    max_concurrency: Annotated[int, typer.Option(help="Most trials in flight; 0: as declared.")] = 0,
    timeout_s: Annotated[float, typer.Option(help="Seconds a trial may run; 0: as declared.")] = 0.0,
    trials_per_op: Annotated[int, typer.Option(help="Trials in one Dagster step; 0: chosen.")] = 0,
    reuse: Annotated[str, typer.Option(help="Outcomes of earlier runs to keep: all, successes or none.")] = "all",
    max_attempts: Annotated[int, typer.Option(help="Attempts of a trial; 0: by the type of its error.")] = 0,
    max_errors: Annotated[
        float, typer.Option(help="Stop after so many failed trials, or a fraction of 100 and more.")
    ] = 0.0,
    max_time_s: Annotated[float, typer.Option(help="Stop after so many seconds of a partition's trials.")] = 0.0,
    max_tokens: Annotated[
        int, typer.Option(help="Stop after so many tokens, of calls to models and as programs report them.")
    ] = 0,
    max_cost_usd: Annotated[
        float, typer.Option(help="Stop after so many dollars, of calls to models and as programs report them.")
    ] = 0.0,
    workers: Annotated[int, typer.Option(help="Workers of the local pool; 0: one for each core.")] = 0,
    pool_address: Annotated[str, typer.Option(help="A bridge to use instead of a local pool.")] = "",
) -> None:
    """Evaluate every partition, then print the leaderboard. Failed trials do not fail the command."""
    from dspex_pipelines.cli.evaluating import evaluate_partitions
    from dspex_pipelines.cli.targets import find_evaluation
    from dspex_pipelines.orchestration.config import EvaluationConfig

    evaluation = find_evaluation(target)
    config = EvaluationConfig(
        limit=limit,
        samples=samples,
        seed=seed,
        repeats=repeats,
        max_concurrency=max_concurrency,
        timeout_s=timeout_s,
        trials_per_op=trials_per_op,
        reuse=reuse,
        max_attempts=max_attempts,
        max_errors=max_errors,
        max_time_s=max_time_s,
        max_tokens=max_tokens,
        max_cost_usd=max_cost_usd,
    )
    results = evaluate_partitions(
        evaluation,
        config,
        partitions=tuple(partition or ()),
        workers=workers,
        address=pool_address,
        console=console,
    )
    _print_leaderboard(results.board, None)
    for line in results.usage.lines():
        _say(line)
    for what in results.not_counted:
        _say(f"Not counted: {what}", "yellow")
    _say_partial(results.partial)
    _say_left_out(results.left_out)
    _say_failures(results.failures, target)
    console.print(f"Results: {results.folder}", soft_wrap=True, highlight=False)


@app.command()
def leaderboard(
    target: Target = "",
    *,
    metric: Annotated[str, typer.Option(help="Rank by this metric; default: the first.")] = "",
    limit: Annotated[int, typer.Option(help="Print only the best so many; 0: all.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Print the configurations of the newest results, best first."""
    from dspex_pipelines.analysis.leaderboard import leaderboard as rank
    from dspex_pipelines.cli.board import leaderboard_documents
    from dspex_pipelines.cli.results import newest_results
    from dspex_pipelines.cli.targets import find_evaluation

    _check_limit(limit)
    evaluation = find_evaluation(target)
    trials, newest = newest_results(evaluation)
    board = rank(trials, metric=metric or None, score_range=evaluation.score_range)
    if as_json:
        print(json.dumps(leaderboard_documents(board, limit or None), indent=2))
        if board.outside:
            errors.print(board.outside, style="yellow")
        return
    _print_leaderboard(board, limit or None)
    shown = len(board.standings[: limit or None])
    if shown < len(board.standings):
        _say(f"{shown:,} of {len(board.standings):,} configurations shown")
    examples = len(trials[["partition", "example_id"]].drop_duplicates())
    _say(f"Of {examples:,} examples in {', '.join(newest.paths)}")
    _say_partial(newest.partial)
    _say_left_out(newest.left_out)
    if newest.missing:
        _say(f"Left out, because they have not been evaluated yet: {', '.join(newest.missing)}")


@app.command()
def trials(
    target: Target = "",
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that ran and failed.")] = False,
    configuration: Annotated[str, typer.Option(help="Only this configuration (its short digest).")] = "",
    limit: Annotated[int, typer.Option(help="Print at most so many; 0: all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List trials of the newest results: outcome, scores, and how to look closer."""
    from dspex_pipelines.cli.results import newest_results
    from dspex_pipelines.cli.targets import find_evaluation
    from dspex_pipelines.model.outcome import ErrorType

    _check_limit(limit)
    evaluation = find_evaluation(target)
    frame, _ = newest_results(evaluation)
    if failed:
        frame = frame[(frame["status"] != "ok") & (frame["error_type"] != ErrorType.BUDGET_EXHAUSTED.value)]
    if configuration:
        frame = frame[frame["configuration"].str.startswith(configuration)]
    shown = frame.head(limit) if limit else frame
    if as_json:
        print(shown.to_json(orient="records", indent=2))
        return
    if frame.empty:
        if configuration:
            _say(f"No {'failed ' if failed else ''}trial is of that configuration.")
        else:
            _say("No trial failed.")
        return
    table = Table("trial", "configuration", "example", "outcome", "message")
    for row in shown.to_dict("records"):
        scores = " ".join(
            f"{name.removeprefix('score.')}={value:.3g}"
            for name, value in ((str(key), one) for key, one in row.items())
            if name.startswith("score.") and row["status"] == "ok"
        )
        table.add_row(
            row["trial_id"][:12],
            row["configuration"],
            str(row["example_id"]),
            _text(row["error_type"]) or "ok",
            shortened(_text(row["error_message"]) or scores),
        )
    console.print(table)
    console.print(f"{len(shown):,} of {len(frame):,} trials shown", highlight=False)
    if failed:
        _say(f"Look closer: dspex replay {shown['trial_id'].iloc[0][:12]} {target}".rstrip())


@app.command()
def replay(
    trial: Annotated[str, typer.Argument(help="The trial's id, or its first characters.")],
    target: Target = "",
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Stop in the debugger where it raises, and at its own breakpoints.")
    ] = False,
) -> None:
    """Run one trial again, alone and in the foreground, with its traceback. Exits 1 when it fails.

    Its calls to models are made again, and cost what they cost. Past the evaluation's timeout_s it tells where it is,
    and goes on until Ctrl-C.
    """
    from dspex_pipelines.cli.replaying import replay_trial
    from dspex_pipelines.cli.targets import find_evaluation

    sys.exit(replay_trial(find_evaluation(target), trial, console, debug=debug))


@app.command()
def trace(
    trial: Annotated[str, typer.Argument(help="The trial's id, or its first characters.")],
    target: Target = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show what a trial asked its models, what they answered, and what its program made of that."""
    from dspex_pipelines.cli.finding import find_trial
    from dspex_pipelines.cli.targets import find_evaluation
    from dspex_pipelines.cli.tracing import print_trace, trace_document

    document = trace_document(find_trial(find_evaluation(target), trial))
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print_trace(document, console)


@pool_app.command("status")
def pool_status(*, as_json: AsJson = False) -> None:
    """List the local pools that run: who works in them, how much there is to do, and how calls to models go."""
    from dspex_pipelines.cli.pools import ask_pools, pool_document, print_pool

    pools = ask_pools()
    if as_json:
        print(json.dumps([pool_document(pool) for pool in pools], indent=2))
        return
    for pool in pools:
        print_pool(pool, console)
    if not pools:
        console.print("No local pool runs; the next evaluation starts one.")


@pool_app.command("stop")
def pool_stop() -> None:
    """End the local pools, and their workers with them."""
    from dspex_pipelines.bridge import local_pool

    console.print(f"{local_pool.stop()} ended", highlight=False)


def _say(text: str, style: str = "") -> None:
    console.print(text, style=style, highlight=False, soft_wrap=True)


def _say_partial(partial: Mapping[str, str]) -> None:
    for name, what in partial.items():
        _say(f"Partial: {name}: {what}. Evaluate it again to go on.", "yellow")


def _say_failures(failures: Sequence[FailureKind], target: str) -> None:
    if failures:
        count = sum(kind.count for kind in failures)
        command = " ".join(filter(None, ("dspex trials", target, "--failed")))
        _say(f"{count:,} trials failed: {command}")
    for kind in failures:
        _say(f"  {kind.count:,} × {kind.type}: {shortened(kind.message)}")


def _say_left_out(names: Sequence[str]) -> None:
    if names:
        _say(f"Left out, because they were last evaluated by another plan: {', '.join(names)}")


def _print_leaderboard(board: Leaderboard, limit: int | None) -> None:
    from dspex_pipelines.cli.board import leaderboard_table

    table, dropped = leaderboard_table(board, limit, width=console.width)
    console.print(table, crop=False)
    if dropped:
        _say(f"No room for {', '.join(dropped)}; dspex leaderboard --json has all")
    if board.outside:
        _say(board.outside, "yellow")


def _text(value: object) -> str:
    """Return a cell's text; pandas makes a missing one NaN, which is true."""
    return value if isinstance(value, str) else ""


def _check_limit(limit: int) -> None:
    if limit < 0:
        raise InvalidValue(field="limit", value=limit, fix="give how many to print, 0 for all")


def main() -> None:
    """Run the command line; an error of ours is one line that says what to do, and exit code 2 (130 after a signal)."""
    write_anything()
    try:
        app()
    except DspexError as error:
        _fail(str(error), INTERRUPTED_EXIT if isinstance(error, Interrupted) else 2)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}", 2)


def _fail(text: str, code: int) -> None:
    errors.print(f"error: {text}", style="red", soft_wrap=True, highlight=False)
    sys.exit(code)
