"""`dspex evaluate`: every partition in this process, with a progress bar, then the leaderboard."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
from dagster_shared.error import SerializableErrorInfo
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from dspex_pipelines.analysis.failures import FailureKind, failure_kinds
from dspex_pipelines.analysis.leaderboard import Leaderboard, leaderboard
from dspex_pipelines.bridge.addresses import check_dialled
from dspex_pipelines.bridge.local_pool import check_workers
from dspex_pipelines.cli.output import Bars
from dspex_pipelines.cli.results import instance
from dspex_pipelines.cli.verdicts import Verdict, verdicts_of
from dspex_pipelines.engine import executor
from dspex_pipelines.errors import DspexError, Interrupted, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration.abandoned import end_abandoned_runs, process_tags
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.config import EvaluationConfig, budget_of
from dspex_pipelines.orchestration.data.partitions import known_partitions, present_partitions
from dspex_pipelines.orchestration.data.sources import files_left_out
from dspex_pipelines.orchestration.io_managers import NewestResults
from dspex_pipelines.orchestration.naming import keys, run_config
from dspex_pipelines.orchestration.resources import (
    ProgressReporter,
    ProgressResource,
    ResultStore,
    WorkerPoolResource,
)
from dspex_pipelines.orchestration.step_pools import claim_in_turn
from dspex_pipelines.orchestration.tags import evaluation_tags, pool_tag, run_tags


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatedPartitionsSummary:
    """What the command prints."""

    board: Leaderboard
    left_out: tuple[str, ...]
    partial: dict[str, str]
    folder: Path
    usage: Usage
    """What the trials that were run have used."""
    failures: tuple[FailureKind, ...]
    not_counted: tuple[str, ...]
    """What that leaves out, each with what to do about it."""
    failed: int = 0
    """Trials that were run and failed; `failures` has those of earlier runs too."""
    hedged: tuple[int, int] | None = None
    """Trials that had a second copy, and those of them that it answered first; None where trials have none."""
    verdicts: tuple[Verdict, ...] = ()
    errors: tuple[str, ...] = ()
    """What is wrong with partitions that could not be evaluated, each after the names of those it is true of."""


class _OwnError(DspexError):
    """A partition cannot be evaluated for what lies in its own data; the others can."""


LINE_S = 30.0
# The run's log is in the instance; here the progress bar speaks.
_QUIET: dict[str, object] = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class BarReporter(ProgressReporter):
    """A bar for each partition; what has to be said beside it is a line above.

    Without a terminal bars are seen once they are over, so how far they are is a line of its own every `LINE_S`.
    """

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._line_at = bars.get_time() + LINE_S
        self._tasks: dict[str, TaskID] = {}
        self._done: dict[str, int] = {}
        self._reused: dict[str, int] = {}
        self._rescored: dict[str, int] = {}
        self._partition = ""
        self._rate = ""
        """Of the last batch that ran any."""
        self._batch = 0
        self._total = 0
        """Trials of the partition."""
        self._failed: dict[str, int] = {}
        self._failed_now = 0
        """Of the batch; what failed in those that are over is in `_failed`."""
        self._usage = Usage()
        self._before = Usage()
        """What the batches that are over have used."""
        self._said: set[tuple[str, str]] = set()
        self.hedges: tuple[int, int] | None = None
        """As in the summary, so far."""

    @property
    def usage(self) -> Usage:
        """What has been used so far, over all batches and partitions."""
        usage = Usage()
        usage.merge(self._before)
        usage.merge(self._usage)
        return usage

    @property
    def failures(self) -> int:
        """How many trials have failed so far, over all batches and partitions; none that was reused."""
        return sum(self._failed.values()) + self._failed_now

    def expect(self, partition: str) -> None:
        """A partition is about to be evaluated."""
        self._partition, self._rate = partition, ""
        self._tasks[partition] = self._bars.add_task(partition, total=None, note="planning")
        self._done[partition] = self._reused[partition] = self._rescored[partition] = 0
        self._failed[partition] = self._failed_now = 0

    def started(self, partition: str, planned: int, total: int) -> None:
        """One more batch of the partition begins."""
        self._batch, self._total = planned, total
        self._before, self._usage = self.usage, Usage()
        self._bars.update(self._tasks[partition], total=total, note="")

    def moved(self, progress: executor.Progress) -> None:
        """Outcomes have come in."""
        self._failed_now = progress.failed
        if progress.done:
            self._rate = f"{progress.rate_per_s:,.0f} trials/s"
        done = self._done[self._partition] + progress.done
        note = self._note()
        self._bars.update(self._tasks[self._partition], completed=done, note=note)
        if not self._bars.console.is_terminal and self._bars.get_time() >= self._line_at:
            self._line_at = self._bars.get_time() + LINE_S
            line = f"{self._partition}: {done:,} of {self._total:,} trials, {note}"
            self._bars.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def _note(self) -> str:
        counts = {
            "failed": self._failed[self._partition] + self._failed_now,
            "scored again": self._rescored[self._partition],
            "reused": self._reused[self._partition],
        }
        facts = [f"{count:,} {what}" for what, count in counts.items() if count]
        return ", ".join(filter(None, [self._rate, *facts, self.usage.spent()]))

    def used(self, usage: Usage) -> None:
        """What the batch has used so far: its bar says what that costs."""
        self._usage = usage

    def waits(self, why: str, for_s: float) -> None:
        """Nothing moves: the bar says since when, a line above it why, and again only when that changes."""
        self._bars.update(self._tasks[self._partition], note=f"waiting for {for_s:.0f} s")
        self._say(f"{self._partition}: waiting: {why} (for {for_s:.0f} s)", why)

    def warns(self, what: str, about: str) -> None:
        """Say it in a line above the bars, but not for each batch again."""
        self._say(f"warning: {what}", about)

    def _say(self, line: str, once: str) -> None:
        if (self._partition, once) not in self._said:
            self._said.add((self._partition, once))
            self._bars.console.print(line, style="yellow", highlight=False, soft_wrap=True, markup=False)

    def hedged(self, trials: int, won: int) -> None:
        """The batch had so many second copies."""
        before = self.hedges or (0, 0)
        self.hedges = (before[0] + trials, before[1] + won)

    def ended(self, *, complete: bool, reused: int, rescored: int) -> None:
        """The batch is over; what was reused counts as done too, and the bar says how much that is."""
        self._failed[self._partition] += self._failed_now
        self._failed_now = 0
        if not complete:
            self._bars.update(self._tasks[self._partition], note="stopped")
            return
        self._done[self._partition] += self._batch
        self._reused[self._partition] += reused
        self._rescored[self._partition] += rescored
        done, task = self._done[self._partition], self._tasks[self._partition]
        self._bars.update(task, completed=done, note=self._note())

    def broke_off(self, how: str) -> None:
        """The partition's run has failed or was interrupted: its bar says so, and one that never had a length goes."""
        task = self._tasks[self._partition]
        # Where there are no colours, a bar without a length looks full.
        known = self._bars.tasks[self._bars.task_ids.index(task)].total is not None
        self._bars.update(task, note=how, visible=known)


def columns() -> tuple[ProgressColumn, ...]:
    """Return what a bar shows: how far it is, the time that is left or, once it is full, was taken, and its note."""
    return (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        TextColumn("{task.fields[note]}", markup=False),
    )


def evaluate_partitions(
    evaluation: Evaluation,
    config: EvaluationConfig,
    *,
    partitions: tuple[str, ...],
    workers: int,
    address: str,
    console: Console,
) -> EvaluatedPartitionsSummary:
    """Materialise data set and evaluation of the partitions, then the leaderboard.

    A partition whose own data cannot be evaluated is left out, and its error is in the result. Raises `DspexError` with
    the first failed step's own message when a run fails for what fails every partition, or when all are left out. Where
    a blocking check fails, the leaderboard asset stays as it was.
    """
    check_workers(workers)
    if address:
        check_dialled(address, field="pool_address")
    with instance() as opened, Bars(*columns(), console=console) as bars:
        end_abandoned_runs(opened)
        known = present_partitions(evaluation, opened)
        wanted = partitions or known
        for what in files_left_out(evaluation.dataset).values():
            bars.console.print(
                f"warning: left out: {what}", style="yellow", highlight=False, soft_wrap=True, markup=False
            )
        for name in partitions:
            if name not in known:
                raise InvalidValue(field="partition", value=name, fix=f"give one of {', '.join(known)}")
        reporter = BarReporter(bars)
        claim_in_turn(opened, reporter.waits)
        definitions = build_evaluation(
            evaluation,
            resources={
                "worker_pool": WorkerPoolResource(workers=workers, address=address),
                "progress": ProgressResource.to(reporter),
            },
        )
        dataset, results, board_key = keys(evaluation)
        job = definitions.resolve_implicit_global_asset_job_def()
        verdicts: list[Verdict] = []
        wrong: dict[str, list[str]] = {}
        for partition in wanted:
            reporter.expect(partition)
            try:
                result = _execute(
                    job,
                    opened,
                    [dataset, results],
                    partition=partition,
                    config=run_config(evaluation, config),
                    tags=run_tags([{**pool_tag(address), **evaluation_tags(evaluation)}], partition),
                )
            except _OwnError as error:
                reporter.broke_off("failed")
                wrong.setdefault(str(error), []).append(partition)
                continue
            except Interrupted:
                reporter.broke_off("interrupted")
                raise
            except DspexError as error:
                reporter.broke_off("failed")
                raise DspexError("\n".join([*_told(wrong), str(error)])) from error
            verdicts += verdicts_of(result)
        errors = _told(wrong)
        if sum(map(len, wrong.values())) == len(wanted):
            raise DspexError("\n".join(errors))
        if not any(verdict.blocking and not verdict.passed for verdict in verdicts):
            _execute(job, opened, [board_key], partition=None, config={}, tags={})
        newest = NewestResults.find(opened, evaluation.name, known_partitions(evaluation, opened))
        folder = ResultStore().folder(opened) / "results" / evaluation.name
    failed = newest.load(["error_type", "error_message"], where=[("status", "!=", "ok")])
    return EvaluatedPartitionsSummary(
        board=leaderboard(newest.ranked(), score_range=evaluation.score_range),
        left_out=newest.left_out,
        partial=newest.partial,
        folder=folder,
        usage=reporter.usage,
        failures=failure_kinds(failed),
        failed=reporter.failures,
        hedged=reporter.hedges,
        not_counted=tuple(reporter.usage.warnings(budget_of(config, evaluation)).values()),
        verdicts=tuple(verdicts),
        errors=errors,
    )


def _told(wrong: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    return tuple(f"{', '.join(partitions)}: {what}" for what, partitions in wrong.items())


def _execute(
    job: dg.JobDefinition,
    opened: dg.DagsterInstance,
    selection: list[dg.AssetKey],
    *,
    partition: str | None,
    config: dict[str, object],
    tags: dict[str, str],
) -> dg.ExecuteInProcessResult:
    result = job.execute_in_process(
        instance=opened,
        asset_selection=selection,
        partition_key=partition,
        run_config={**config, **_QUIET},
        tags={**tags, **process_tags()},
        raise_on_error=False,
    )
    if not (result.success or _is_held_back(result)):
        raise _reason(result)
    return result


def _is_held_back(result: dg.ExecuteInProcessResult) -> bool:
    """Return whether nothing but a blocking check has failed: the results are there, and so is its verdict."""
    failures = [event.step_failure_data.error for event in result.all_events if event.is_step_failure]
    return bool(failures) and all(error is not None and error.cls_name == _BLOCKED for error in failures)


def _reason(result: dg.ExecuteInProcessResult) -> DspexError:
    """Return what the first failed step said, or the resource that could not start, as an error of ours."""
    for event in result.all_events:
        if event.is_step_failure:
            data = event.step_failure_data
            kind = DspexError if _OF_ALL.search(event.step_key or "") else _OwnError
            if data.user_failure_data and data.user_failure_data.description:
                return kind(str(data.user_failure_data.description))
            if data.error and _is_interruption(data.error):
                return Interrupted()
            if data.error:
                return kind(_said(data.error, event.step_key or "step"))
    # A resource starts before any step; what it raised is in the event of the engine or of the run.
    for event in result.all_events:
        said = getattr(event.event_specific_data, "error", None)
        if isinstance(said, SerializableErrorInfo):
            return Interrupted() if _is_interruption(said) else DspexError(_said(said, "the run failed"))
    return DspexError("the run failed; see its log with `dagster dev`")


def _is_interruption(error: SerializableErrorInfo | None) -> bool:
    while error is not None:
        if error.cls_name == dg.DagsterExecutionInterruptedError.__name__:
            return True
        error = error.cause
    return False


def _said(error: SerializableErrorInfo, where: str) -> str:
    """Return the words alone of an error of ours; those of any other with the place that it comes from."""
    cause: SerializableErrorInfo | None = error
    while cause is not None:
        if cause.cls_name in _OURS:
            return cause.message.strip().partition(": ")[2]
        cause = cause.cause
    cause = error.cause or error
    return f"{where}: {cause.message.strip()}\n{''.join(cause.stack[-2:])}".rstrip()


def _names(kind: type[DspexError]) -> frozenset[str]:
    return frozenset({kind.__name__}).union(*(_names(one) for one in kind.__subclasses__()))


_OURS = _names(DspexError)
_OF_ALL = re.compile(r"\.(plan_trials|run_trials)\b")
"""Steps that fail alike in every partition: for what is declared or asked, the pool, or a provider."""
_BLOCKED = "DagsterAssetCheckFailedError"
