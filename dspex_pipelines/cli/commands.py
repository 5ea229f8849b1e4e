"""The commands of `dspex`: what each takes and prints; the work is done below."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from dspex_pipelines.cli.journal import journal_app
from dspex_pipelines.errors import DspexError, Interrupted

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
# Without a terminal there is nobody to fold lines for.
console = Console(width=None if sys.stdout.isatty() else 150)
errors = Console(stderr=True)
INTERRUPTED_EXIT = 130

Target = Annotated[
    str,
    typer.Argument(help="A shipped evaluation (stdlib_search), or module:attribute; default: ./evaluation.py."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Where to write; it is made if it is not there.")] = Path(),
) -> None:
    """Write a ten-line program, a CSV and a declaration to start from."""
    from dspex_pipelines.cli.starter import write_starter

    for path in write_starter(folder):
        console.print(f"wrote {path}", highlight=False)
    console.print("Next: dspex evaluate", highlight=False)


@app.command()
def evaluate(
    target: Target = "",
    *,
    partition: Annotated[list[str] | None, typer.Option(help="Only this partition; may be repeated.")] = None,
    limit: Annotated[int, typer.Option(help="Only the first so many examples of each partition.")] = 0,
    samples: Annotated[int, typer.Option(help="So many random configurations instead of the grid.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the draw and of the trials.")] = 0,
    repeats: Annotated[int, typer.Option(help="How often each configuration meets each example.")] = 1,
    max_concurrency: Annotated[int, typer.Option(help="Most trials in flight; 0: as declared.")] = 0,
    timeout_s: Annotated[float, typer.Option(help="Seconds a trial may run; 0: as declared.")] = 0.0,
    trials_per_op: Annotated[int, typer.Option(help="Trials in one Dagster step; 0: chosen.")] = 0,
    reuse: Annotated[str, typer.Option(help="Outcomes of earlier runs to keep: all, successes or none.")] = "all",
    max_attempts: Annotated[int, typer.Option(help="Attempts of a trial; 0: by the type of its error.")] = 0,
    max_errors: Annotated[float, typer.Option(help="Stop after so many failed trials, or a fraction below 1.")] = 0.0,
    max_time_s: Annotated[float, typer.Option(help="Stop after so many seconds of a partition's trials.")] = 0.0,
    max_tokens: Annotated[int, typer.Option(help="Stop after so many tokens, as programs report them.")] = 0,
    max_cost_usd: Annotated[float, typer.Option(help="Stop after so many dollars, as programs report them.")] = 0.0,
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
    console.print(_leaderboard_table(results.board, None))
    _say_partial(results.partial)
    if results.left_out:
        names = ", ".join(results.left_out)
        console.print(f"Left out, because they were last evaluated by another plan: {names}")
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
    from dspex_pipelines.cli.results import newest_results
    from dspex_pipelines.cli.targets import find_evaluation

    evaluation = find_evaluation(target)
    trials, newest = newest_results(evaluation)
    board = rank(trials, metric=metric or None, score_range=evaluation.score_range)
    if as_json:
        print(json.dumps(board.rows(limit or None), indent=2))
    else:
        console.print(_leaderboard_table(board, limit or None))
        _say_partial(newest.partial)


@app.command()
def trials(
    target: Target = "",
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only trials that have no result.")] = False,
    configuration: Annotated[str, typer.Option(help="Only this configuration (its short digest).")] = "",
    limit: Annotated[int, typer.Option(help="Print at most so many; 0: all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List trials of the newest results: outcome, scores, and how to look closer."""
    from dspex_pipelines.cli.results import newest_results
    from dspex_pipelines.cli.targets import find_evaluation

    evaluation = find_evaluation(target)
    frame, _ = newest_results(evaluation)
    if failed:
        frame = frame[frame["status"] != "ok"]
    if configuration:
        frame = frame[frame["configuration"].str.startswith(configuration)]
    shown = frame.head(limit) if limit else frame
    if as_json:
        print(shown.to_json(orient="records", indent=2))
        return
    if frame.empty:
        console.print("No trial failed." if failed else "No trial is of that configuration.")
        return
    table = Table("trial", "configuration", "example", "outcome", "message")
    for row in shown.to_dict("records"):
        scores = " ".join(
            f"{name.removeprefix('score.')}={value:.3g}"
            for name, value in ((str(key), one) for key, one in row.items())
            if name.startswith("score.") and row["status"] == "ok"
        )
        message = str(row["error_message"] or scores).splitlines()[0:1]
        table.add_row(
            row["trial_id"][:12],
            row["configuration"],
            str(row["example_id"]),
            row["error_type"] or "ok",
            (message or [""])[0][:120],
        )
    console.print(table)
    console.print(f"{len(shown):,} of {len(frame):,} trials shown", highlight=False)
    if failed:
        console.print(f"Look closer: dspex replay {shown['trial_id'].iloc[0][:12]} {target}".rstrip(), highlight=False)


@app.command()
def replay(
    trial: Annotated[str, typer.Argument(help="The trial's id, or its first characters.")],
    target: Target = "",
) -> None:
    """Run one trial again, alone and in the foreground, with its traceback. Exits 1 when it fails."""
    from dspex_pipelines.cli.replaying import replay_trial
    from dspex_pipelines.cli.targets import find_evaluation

    sys.exit(replay_trial(find_evaluation(target), trial, console))


@pool_app.command("status")
def pool_status() -> None:
    """List the local pools that run."""
    from dspex_pipelines.bridge import local_pool

    pools = local_pool.status()
    for pool in pools:
        console.print(f"pid {pool.pid}  {pool.address}", highlight=False)
    if not pools:
        console.print("No local pool runs; the next evaluation starts one.")


@pool_app.command("stop")
def pool_stop() -> None:
    """End the local pools, and their workers with them."""
    from dspex_pipelines.bridge import local_pool

    console.print(f"{local_pool.stop()} ended", highlight=False)


def _say_partial(partial: Mapping[str, str]) -> None:
    for name, what in partial.items():
        console.print(
            f"Partial: {name}: {what}. Evaluate it again to go on.", style="yellow", highlight=False, soft_wrap=True
        )


def _leaderboard_table(board: object, limit: int | None) -> Table:
    from dspex_pipelines.analysis.leaderboard import Leaderboard

    assert isinstance(board, Leaderboard)
    rows = board.rows(limit)
    table = Table(title=f"By {board.metric}: mean and 95% interval clustered by group", title_justify="left")
    for name in rows[0]:
        numeric = name in {"#", "n", "failures", "not run"}
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "configuration")
    for row in rows:
        table.add_row(*row.values())
    return table


def main() -> None:
    """Run the command line; an error of ours is one line that says what to do, and exit code 2 (130 after a signal)."""
    try:
        app()
    except DspexError as error:
        errors.print(f"error: {error}", style="red", soft_wrap=True, highlight=False)
        sys.exit(INTERRUPTED_EXIT if isinstance(error, Interrupted) else 2)
