"""`dspex journal`: how large the journal is, and what of it may go."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from dspex_pipelines.cli.output import AsJson, Bars, console
from dspex_pipelines.errors import DspexError

if TYPE_CHECKING:
    import dagster as dg

    from dspex_pipelines.engine.journal.journal import Journal
    from dspex_pipelines.orchestration.resources import ResultStore
    from dspex_pipelines.orchestration.retention import Survey

journal_app = typer.Typer(
    help="The record of every trial's outcome.\n\nHow large it is, and deleting what nothing refers to.",
    no_args_is_help=True,
)

Store = Annotated[str, typer.Option(help="Folder of the store, where it is not the instance's own.")]
JournalUrl = Annotated[str, typer.Option(help="URL of the journal, where it is not DSPEX_JOURNAL_URL or in the store.")]
Keep = Annotated[int, typer.Option(help="Newest results of each partition that count.")]
SHOWN = 20
"""Generations in the table; the newest are shown."""


@journal_app.command("size")
def size(
    *,
    keep: Keep = 1,
    store: Store = "",
    journal_url: JournalUrl = "",
    as_json: AsJson = False,
) -> None:
    """Say how many executions there are, what they take on disk, and how many of them nothing refers to."""
    from dspex_pipelines.engine.journal.retention import groups
    from dspex_pipelines.engine.journal.retention import size as size_of
    from dspex_pipelines.orchestration.retention import Pruning

    with _opened(store, journal_url) as (instance, stored, journal):
        found, taken = groups(journal), size_of(journal)
        executions = sum(group.executions for group in found)
        try:
            with (
                _Bar(quiet=as_json) as bar,
                Pruning(
                    instance,
                    stored,
                    journal,
                    keep=keep,
                    with_results=True,
                    despite_runs=True,
                    on_progress=bar.moved,
                ) as pruning,
            ):
                survey, unknown = pruning.survey(), ""
        except DspexError as error:
            survey, unknown = None, str(error)
        stale = survey.stale.executions if survey else 0
        document: dict[str, Any] = {
            "journal": journal.database.shown,
            "bytes": {"data": taken.data, "log": taken.log, "total": taken.total},
            "executions": executions,
            "groups": [asdict(group) for group in found],
            "live_results": survey.live if survey else None,
            "prunable": {
                "executions": stale,
                "scores": survey.stale.scores,
                "bytes": taken.data * stale // max(1, executions),
                "results": len(survey.paths),
                "result_bytes": survey.path_bytes,
            }
            if survey
            else None,
            "not_known": unknown,
        }
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        _print_size(document)


@journal_app.command("prune")
def prune(
    *,
    keep: Keep = 1,
    older_than: Annotated[float, typer.Option(help="Keep what was recorded in the last so many days.")] = 0.0,
    results: Annotated[
        bool, typer.Option("--results", help="Delete result folders and data set files too that are not the newest.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even while runs are in progress; what was recorded since they began stays.")
    ] = False,
    store: Store = "",
    journal_url: JournalUrl = "",
) -> None:
    """Delete the executions and scores that no evaluation's newest results refer to, and give their room back."""
    from dspex_pipelines.engine.journal.retention import size as size_of
    from dspex_pipelines.orchestration.retention import DAY_S, Pruning

    with (
        _opened(store, journal_url) as (instance, stored, journal),
        _Bar() as bar,
        Pruning(
            instance,
            stored,
            journal,
            keep=keep,
            older_than_s=older_than * DAY_S,
            with_results=results,
            despite_runs=force,
            on_progress=bar.moved,
        ) as pruning,
    ):
        survey, before = pruning.survey(), size_of(journal).total
        bar.clear()
        _print_survey(survey, journal)
        if survey.is_empty or dry_run:
            return
        if not yes and not typer.confirm("Delete them?"):
            console.print("Nothing was deleted.")
            return
        pruned = pruning.prune()
        bar.clear()
        freed = max(0, before - size_of(journal).total) + (survey.path_bytes if pruned.paths else 0)
        what = f"{pruned.deleted.executions:,} executions and {pruned.deleted.scores:,} scores"
        also = f", {pruned.paths:,} results and data sets" if pruned.paths else ""
        console.print(f"Deleted {what}{also}; {decimal(freed)} freed.")
        if pruned.not_reclaimed:
            said = f"The file keeps its size, and new outcomes fill it first: {pruned.not_reclaimed}"
            console.print(said, style="yellow", soft_wrap=True)


@contextmanager
def _opened(store: str, journal_url: str) -> Generator[tuple[dg.DagsterInstance, ResultStore, Journal]]:
    """Open instance and journal; raises `DspexError` where there is none yet, and makes none."""
    from dspex_pipelines.cli.results import home_folder, instance, is_used
    from dspex_pipelines.orchestration.resources import ResultStore

    if not is_used(home_folder()):
        raise DspexError(
            f"nothing has been evaluated in {home_folder()} yet; run `dspex evaluate` first, or set DAGSTER_HOME to "
            "where it was"
        )
    with instance() as opened:
        stored = ResultStore(root=store, journal_url=journal_url)
        journal = stored.journal(opened)
        file = journal.database.file
        if file is not None and not file.exists():
            raise DspexError(
                f"there is no journal at {file}; `dspex evaluate` starts one, --store says where another is"
            )
        with journal:
            yield opened, stored, journal


class _Bar:
    """A bar for whatever is being done; none where nobody looks."""

    def __init__(self, *, quiet: bool = False) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn())
        self._progress = None if quiet else Bars(*columns, console=console, transient=True)
        self._task: TaskID | None = None
        self._what = ""

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()

    def moved(self, what: str, done: int, total: int) -> None:
        """Say how much of *what* is done; a *total* of 0 is not known."""
        if self._progress is None:
            return
        if what != self._what:
            self.clear()
            self._what = what
            self._progress.start()
            self._task = self._progress.add_task(what, total=total or None)
        assert self._task is not None
        self._progress.update(self._task, completed=done, total=total or None)

    def clear(self) -> None:
        """Take the bar away, so that other things can be printed."""
        if self._progress is not None and self._task is not None:
            self._progress.remove_task(self._task)
            self._progress.stop()
        self._task, self._what = None, ""


def _print_size(document: dict[str, Any]) -> None:
    taken = document["bytes"]
    console.print(f"Journal   {document['journal']}", soft_wrap=True)
    log = f" ({decimal(taken['log'])} of it write-ahead log)" if taken["log"] else ""
    console.print(f"On disk   {decimal(taken['total'])}{log}")
    groups = document["groups"]
    newest = list(dict.fromkeys(group["generation"] for group in reversed(groups)))[:SHOWN]
    table = Table(
        "generation", "outcome", "executions", title=f"{document['executions']:,} executions", title_justify="left"
    )
    table.columns[2].justify = "right"
    for group in groups:
        if group["generation"] in newest:
            table.add_row(group["generation"] or "reused", group["status"], f"{group['executions']:,}")
    console.print(table)
    left_out = len({group["generation"] for group in groups}) - len(newest)
    if left_out > 0:
        console.print(f"{left_out:,} older generations are not shown; --json has all")
    prunable = document["prunable"]
    if prunable is None:
        console.print(f"Prunable  not known: {document['not_known']}", style="yellow", soft_wrap=True)
        return
    what = (
        f"{prunable['executions']:,} executions (about {decimal(prunable['bytes'])}) and {prunable['scores']:,} scores"
    )
    console.print(f"Live      {_results(document['live_results'])}")
    there = prunable["executions"] or prunable["scores"]
    console.print(f"Prunable  {what}{': dspex journal prune' if there else ''}")
    if prunable["results"]:
        what = f"{prunable['results']:,} results and data sets ({decimal(prunable['result_bytes'])})"
        console.print(f"          {what}: dspex journal prune --results")


def _results(count: int) -> str:
    return f"{count:,} result{'' if count == 1 else 's'}"


def _print_survey(survey: Survey, journal: Journal) -> None:
    def say(text: str, **more: Any) -> None:
        console.print(text, soft_wrap=True, **more)

    if survey.is_empty:
        say(f"Nothing to delete: all there is belongs to the {_results(survey.live)} of this instance, or is too new.")
        return
    say(
        f"{survey.stale.executions:,} executions and {survey.stale.scores:,} scores in {journal.database.shown} "
        f"belong to none of the {_results(survey.live)} that this instance keeps."
    )
    for path in survey.paths[:SHOWN]:
        say(f"  {path}")
    if survey.paths:
        say(f"{len(survey.paths):,} results and data sets take {decimal(survey.path_bytes)}.")
    if survey.recent:
        say(
            f"{survey.recent:,} of the executions are of the last 24 hours: those of interrupted runs are among them "
            "and would be run again. --older-than 1 keeps them.",
            style="yellow",
        )
    if journal.database.file is None:
        say("What other Dagster instances have recorded in this database goes too.", style="yellow")
