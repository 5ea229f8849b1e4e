"""`dspex trials`, `replay` and `trace`: one trial and another, as they went."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from dspex_pipelines.cli.completing import Target, complete_outcome, complete_partition
from dspex_pipelines.cli.output import AsJson, console, shortened
from dspex_pipelines.cli.survived import survived
from dspex_pipelines.errors import InvalidValue

if TYPE_CHECKING:
    import pandas as pd

    from dspex_pipelines.cli.selecting import Selection


def trials(
    target: Target = "",
    *,
    failed: Annotated[bool, typer.Option("--failed", help="Only those that ran and failed.")] = False,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OUTCOME",
            help="Only with this outcome: ok, or a type of error such as timeout_run; may be repeated.",
            autocompletion=complete_outcome,
        ),
    ] = None,
    score: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION", help="Only with such a score: 'METRIC<0.5', or <= > >= == !=; may be repeated."
        ),
    ] = None,
    configuration: Annotated[
        str,
        typer.Option(
            metavar="CONFIGURATION",
            help="Only this configuration: its values, as 'words=2 ellipsis=False', or its digest.",
        ),
    ] = "",
    example: Annotated[str, typer.Option(metavar="EXAMPLE", help="Only this example, by its id.")] = "",
    partition: Annotated[
        str, typer.Option(metavar="PARTITION", help="Only this partition.", autocompletion=complete_partition)
    ] = "",
    sort: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="Worst first, by score (the first metric), a metric, run_s, queue_s, attempts, usage.…",
        ),
    ] = "",
    limit: Annotated[int, typer.Option(metavar="N", help="Print at most so many; 0: all.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List trials of the newest results, with their outcomes."""
    from dspex_pipelines.cli.results import newest_results
    from dspex_pipelines.cli.selecting import TEXTS, Selection, labels, worst_first
    from dspex_pipelines.cli.targets import find_evaluation

    check_limit(limit)
    selection = Selection(
        failed=failed,
        outcomes=tuple(outcome or ()),
        scores=tuple(score or ()),
        configuration=configuration,
        example=example,
        partition=partition,
    )
    newest = newest_results(find_evaluation(target))
    names = newest.columns()
    frame = newest.load([name for name in names if name not in TEXTS])
    named = labels(frame)
    frame = selection.of(frame)
    if sort:
        frame = worst_first(frame, sort)
    shown = frame.head(limit) if limit else frame
    if as_json:
        whole = shown.join(newest.rows(shown.index, TEXTS)) if len(shown) else shown
        print(whole.reindex(columns=names).to_json(orient="records", indent=2))
        return
    if frame.empty:
        console.print(_nothing(selection), soft_wrap=True)
        return
    shown = shown.join(newest.rows(shown.index, ["trial_id", "error_message"]))
    beside = sort if sort in frame.columns else ""
    table = Table()
    for name in ("trial", "configuration", "example", "outcome", *filter(None, [beside]), _last_column(shown)):
        table.add_column(name, no_wrap=name == "trial", overflow="fold")
    for row in shown.to_dict("records"):
        table.add_row(*_cells(row, beside, named))
    console.print(table)
    rest = "; all: --limit 0" if len(shown) < len(frame) else ""
    console.print(f"{len(shown):,} of {len(frame):,} trials shown{rest}")
    if failed:
        closer = f"Look closer: dspex replay {shown['trial_id'].iloc[0][:12]} {target}".rstrip()
        console.print(closer, soft_wrap=True)


def replay(
    trial: Annotated[str, typer.Argument(help="The trial's id, or its first characters.")],
    target: Target = "",
    *,
    debug: Annotated[
        bool, typer.Option("--debug", help="Stop in the debugger where it raises, and at its own breakpoints.")
    ] = False,
) -> None:
    """Run one trial again, alone, with its traceback.

    It runs in the foreground. Exits 1 when it fails or takes too long.

    Its calls to models are made again, and cost what they cost. Past the evaluation's timeout_s it tells where it is,
    and goes on to its end or Ctrl-C; an evaluation would have ended it there.
    """
    with survived():
        from dspex_pipelines.cli.replaying import replay_trial
        from dspex_pipelines.cli.targets import find_evaluation

        code = replay_trial(find_evaluation(target), trial, console, debug=debug)
    sys.exit(code)


def trace(
    trial: Annotated[str, typer.Argument(help="The trial's id, or its first characters.")],
    target: Target = "",
    *,
    as_json: AsJson = False,
) -> None:
    """Show what a trial asked its models, and their answers.

    And what its program made of those.
    """
    from dspex_pipelines.cli.finding import find_trial
    from dspex_pipelines.cli.targets import find_evaluation
    from dspex_pipelines.cli.tracing import print_trace, trace_document

    document = trace_document(find_trial(find_evaluation(target), trial))
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        print_trace(document, console)


def check_limit(limit: int) -> None:
    """Raise `InvalidValue` for a number of lines that cannot be."""
    if limit < 0:
        raise InvalidValue(field="limit", value=limit, fix="give how many to print, 0 for all")


def _last_column(trials: pd.DataFrame) -> str:
    succeeded = trials["status"] == "ok"
    if succeeded.all():
        return "scores"
    return "scores or error" if succeeded.any() else "error"


def _cells(row: Mapping[Any, Any], beside: str, named: Mapping[str, str]) -> list[str]:
    scores = " ".join(
        f"{name.removeprefix('score.')}={value:.3g}"
        for name, value in ((str(key), one) for key, one in row.items())
        if name.startswith("score.") and row["status"] == "ok"
    )
    return [
        row["trial_id"][:12],
        named[row["configuration"]],
        str(row["example_id"]),
        _text(row["error_type"]) or "ok",
        *([_number(row[beside], beside)] if beside else []),
        shortened(_text(row["error_message"]) or scores),
    ]


def _number(value: float, column: str) -> str:
    return f"{value:,.3f}" if column.endswith("_s") else f"{value:,.6g}"


def _nothing(selection: Selection) -> str:
    asked = str(selection)
    if asked in ("", "--failed"):
        return "No trial failed."
    return f"No trial meets {asked}."


def _text(value: object) -> str:
    """Return a cell's text; pandas makes a missing one NaN, which is true."""
    return value if isinstance(value, str) else ""
