"""Runs the trials of a batch that the journal lacks, and makes every outcome durable on the way."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from operator import attrgetter
from typing import TypeAlias

from dspex_pipelines.engine.executor import Outcome, ParallelExecutor, Progress, Sender
from dspex_pipelines.engine.hedging import HedgedPool
from dspex_pipelines.engine.journal.journal import Entry, Found, Journal
from dspex_pipelines.engine.journal.ledger import Ledger
from dspex_pipelines.engine.journal.recorder import Recorder
from dspex_pipelines.engine.journal.reservation import Reservation
from dspex_pipelines.engine.journal.rows import entry_of
from dspex_pipelines.engine.pages import PAGE, Pages
from dspex_pipelines.engine.runner import DurablePool, TrialRunner
from dspex_pipelines.engine.running_scores import RunningScores
from dspex_pipelines.engine.spans import RunSpans
from dspex_pipelines.errors import EvaluationIncomplete, ProviderRefused
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult, continued
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.trial import Example, TrialSpec
from dspex_pipelines.model.usage import Usage

_RESCORED = attrgetter("rescored")
AT_ONCE = 32
"""Trials that are planned in one turn of the loop while there is no room for them: 0.2 to 0.5 ms, unless examples have
to be read."""
STOP_S = 10.0
"""Once a bound of the budget is reached, what is in flight has so long to end before it is cancelled."""


Missing: TypeAlias = tuple[TrialSpec, bytes, TrialOutcome | None, bytes]
"""A trial to be run, or only to be scored: the digest of labels and metrics, what is known of it already, and what its
program returned before when only the scores are missing; else empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """What running a batch came to."""

    planned: int
    reused: int
    rescored: int
    """Trials of which only the scores were new."""
    ran: int
    failed: int
    elapsed_s: float
    stopped: str = ""
    """Which bound of the run's budget left the rest of the batch undone; empty when there is no rest."""
    hedged: int = 0
    """Trials that took long and were sent a second time."""
    hedges_won: int = 0
    """Those of them that the second copy answered first."""


async def run_batch(
    *,
    plan: Plan,
    batch: Batch,
    examples: Sequence[Example],
    pool: DurablePool,
    journal: Journal,
    max_concurrency: int,
    timeout_s: float,
    most_attempts: int = 0,
    calls: CallPolicy | None = None,
    ledger: Ledger | None = None,
    spans: RunSpans | None = None,
    usage: Usage | None = None,
    scores: RunningScores | None = None,
    hedging: Hedging | None = None,
    check: Callable[[], None] = lambda: None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> BatchSummary:
    """Run what is missing of *batch*; each outcome is in the journal before it counts as done.

    At most *max_concurrency* trials run or wait to be recorded: so many run twice when this process is killed. *calls*
    is what holds for calls to models; what its trials use is added to *usage*, what they score to *scores*. *hedging*
    says which of them get a second copy, beyond *max_concurrency*. *spans* tells of every trial that is run.
    *check* is called before outcomes are kept, and what it raises ends the batch without those.
    *on_progress* is called after every group, when both are up to date. Once the *ledger* says that the run has
    stopped, nothing more is started; what is in flight has `STOP_S` to end. Raises `PoolUnreachable` when the bridge
    goes away, and `ProviderRefused` when a model's provider refuses the key. Whatever ends it, a cancellation included,
    keeps what is done by then.
    """
    reservation = Reservation(ledger) if ledger is not None and ledger.counts_usage else None
    hedged: HedgedPool | None = None
    if hedging is not None:
        hedged = HedgedPool(pool, hedging, may=lambda trial_id: _has_room(ledger, reservation, trial_id))
    runner = TrialRunner(
        pool if hedged is None else hedged,
        metrics=plan.metrics,
        space_json=plan.space_json,
        timeout_s=timeout_s,
        most_attempts=most_attempts,
        calls=calls,
    )
    running = _Running(runner, spans)
    executor = ParallelExecutor[Missing, TrialOutcome](
        max_concurrency=max_concurrency,
        is_failure=lambda outcome: isinstance(outcome, TrialError),
        # An outcome that is not durable is in flight too: its trial runs again if this process is killed.
        hold_outcomes=True,
    )
    missing = _LookedUp(plan, plan.trials(batch, examples), journal)
    items = missing if reservation is None else reservation.over(missing)
    rescored = 0
    refused = ""

    def record(entries: list[Entry]) -> None:
        check()
        journal.record(plan.generation, entries, failures_since=plan.failures_since)
        if ledger is not None:
            ledger.spend(entry.outcome for entry in entries)

    def record_now(entries: list[Entry]) -> bool:
        # What is spent is booked by another transaction, which may have to wait.
        if ledger is not None and ledger.is_bounded:
            return False
        check()
        return journal.record_now(plan.generation, entries, failures_since=plan.failures_since)

    def durable(entries: list[Entry]) -> None:
        nonlocal rescored
        pool.commit(len(entries))
        executor.let_go(len(entries))
        rescored += sum(map(_RESCORED, entries))
        if usage is not None:
            usage.add_outcomes(entry.outcome for entry in entries)
        if scores is not None:
            scores.add_outcomes(entry.outcome for entry in entries)
        if reservation is not None:
            reservation.settle(entry.outcome for entry in entries)
        stopping.look()
        on_progress(executor.get_progress())

    with (
        _Stopping(executor, ledger) as stopping,
        Recorder(
            record,
            record_now=record_now,
            durable=durable,
            failed=executor.cancel,
            group=max(1, max_concurrency // 2),
        ) as recorder,
    ):
        if not stopping.stopped:
            async with aclosing(
                executor.run_batches(items, running, total=batch.stop - batch.start, prepare=missing.prepare)
            ) as batches:
                async for finished in batches:
                    if runner.pool_lost is not None:
                        await recorder.add(_entry(done) for done in finished if isinstance(done.result, TrialResult))
                        break
                    entries = [_entry(done) for done in finished]
                    await recorder.add(entries)
                    if refused := _refusal(entries):
                        break
                    if stopping.is_near(entries):
                        await recorder.flush()
    progress = executor.get_progress()
    on_progress(progress)
    if runner.pool_lost is not None:
        raise runner.pool_lost
    if refused:
        raise ProviderRefused(refused)
    undone = batch.stop - batch.start - missing.reused - progress.done
    return BatchSummary(
        planned=batch.stop - batch.start,
        reused=missing.reused,
        rescored=rescored,
        ran=progress.done - rescored,
        failed=progress.failed,
        elapsed_s=progress.elapsed_s,
        stopped=stopping.stopped if undone else "",
        hedged=0 if hedged is None else hedged.hedged,
        hedges_won=0 if hedged is None else hedged.won,
    )


def _has_room(ledger: Ledger | None, reservation: Reservation | None, trial_id: bytes) -> bool:
    """Whether a trial in flight may have a second copy, which is reserved for if so."""
    if reservation is not None:
        return reservation.take_second(trial_id)
    return ledger is None or not ledger.stopped


class _Running(Sender[Missing, TrialOutcome]):
    """A batch's trials by a runner; each in a coroutine where spans are to tell of it."""

    def __init__(self, runner: TrialRunner, spans: RunSpans | None) -> None:
        self._runner = runner
        self._spans = spans

    def begin(
        self, item: Missing, ended: Callable[[Missing, TrialOutcome], None], again: Callable[[Missing], None]
    ) -> bool:
        spec, _, _, outputs = item
        return self._spans is None and self._runner.begin(spec, outputs, item, ended, again)

    def drop(self) -> None:
        self._runner.drop()

    async def __call__(self, item: Missing) -> TrialOutcome:
        spec, _, _, outputs = item
        running = self._runner.run(spec, outputs)
        if self._spans is None:
            return await running
        return await self._spans.trial(spec, running, rescored=bool(outputs))


class _Stopping:
    """Ends an executor's run once a ledger says so, or once the time is over."""

    def __init__(self, executor: ParallelExecutor[Missing, TrialOutcome], ledger: Ledger | None) -> None:
        self._executor = executor
        self._ledger = ledger
        self._timers: list[asyncio.TimerHandle] = []
        self._ending = False
        self._failed = 0
        """Failures that the ledger may not know of yet."""

    @property
    def stopped(self) -> str:
        """Why the run has stopped; empty while it goes on."""
        return "" if self._ledger is None else self._ledger.stopped

    def __enter__(self) -> _Stopping:
        if self._ledger is not None:
            self._ledger.open()
            left_s = self._ledger.left_s
            if left_s is not None:
                self._when(left_s, self._time_is_over)
        return self

    def __exit__(self, *_: object) -> None:
        for timer in self._timers:
            timer.cancel()

    def is_near(self, entries: Sequence[Entry]) -> bool:
        """Whether so many trials have failed, these *entries* included, that the ledger should be told at once."""
        left = None if self._ledger is None else self._ledger.errors_left
        if left is None:
            return False
        self._failed += sum(isinstance(entry.outcome, TrialError) for entry in entries)
        return self._failed >= left

    def look(self) -> None:
        """Stop when the ledger, which has just been told of what was recorded, says so."""
        self._failed = 0
        if self.stopped and not self._ending:
            self._ending = True
            self._executor.stop()
            self._when(STOP_S, self._executor.cancel)

    def _time_is_over(self) -> None:
        assert self._ledger is not None
        self._ledger.spend(())
        self.look()
        if not self._ending:
            # The loop's clock and the account's are not the same.
            self._when(0.05, self._time_is_over)

    def _when(self, after_s: float, act: Callable[[], None]) -> None:
        self._timers.append(asyncio.get_running_loop().call_later(after_s, act))


def planned_outcomes(
    plan: Plan, examples: Sequence[Example], journal: Journal, *, stopped: str = ""
) -> Iterator[tuple[TrialSpec, TrialOutcome]]:
    """Yield every planned trial with its outcome, but for its trace, in plan order, a page of keys at a time.

    Raises `EvaluationIncomplete` at the end when the journal lacks any; nothing may be made of the rest. Of a run that
    has *stopped*, those that it did not get to are `BUDGET_EXHAUSTED` for that reason.
    """
    trials = plan.trials(Batch(start=0, stop=plan.total), examples)
    found = 0
    lacking: list[str] = []
    while page := list(islice(trials, PAGE)):
        known = journal.find(
            plan.generation, {spec.trial_id: plan.scoring_of(spec.example) for spec in page}, traces=False
        )
        for spec in page:
            execution = known.get(spec.trial_id)
            if execution is not None and execution.scored:
                found += 1
                yield spec, execution.outcome
            elif stopped:
                found += 1
                why = f"not run: {stopped}"
                yield spec, TrialError.unanswered(spec.trial_id, ErrorType.BUDGET_EXHAUSTED, why, retryable=True)
            else:
                lacking.append(spec.trial_id.hex())
    if found != plan.total:
        raise EvaluationIncomplete(planned=plan.total, found=found, examples=tuple(lacking[:3]))


class _LookedUp(Iterable[Missing]):
    """The trials without a reusable outcome, looked up a page at a time as they are pulled."""

    def __init__(self, plan: Plan, trials: Iterator[TrialSpec], journal: Journal) -> None:
        self._plan = plan
        self._pages = Pages(trials)
        self._journal = journal
        self.reused = 0

    def prepare(self) -> bool:
        """Do some of what the next trials need; return whether there is more of that."""
        return self._pages.prepare(AT_ONCE)

    def __iter__(self) -> Iterator[Missing]:
        plan, pages = self._plan, self._pages
        for page in pages:
            wanted = {spec.trial_id: plan.scoring_of(spec.example) for spec in page}
            settled, known = self._journal.look_up(plan.generation, wanted, failures_since=plan.failures_since)
            self.reused += len(settled)
            if len(settled) == len(page):
                continue
            for spec, (trial_id, scored_by) in zip(page, wanted.items(), strict=True):
                # At most twice as long, the next page is there when this one is run.
                pages.prepare(2)
                if trial_id in settled:
                    continue
                found = known.get(trial_id)
                if found is None:
                    yield spec, scored_by, None, b""
                elif _reusable(found, plan.failures_since):
                    self.reused += 1
                else:
                    outputs = found.outcome.outputs_payload if found.rescorable else b""
                    yield spec, scored_by, found.outcome, outputs


def _reusable(found: Found, failures_since: float) -> bool:
    if not found.scored:
        return False
    outcome = found.outcome
    return isinstance(outcome, TrialResult) or (outcome.type.is_final and found.recorded_at >= failures_since)


def _entry(done: Outcome[Missing, TrialOutcome]) -> Entry:
    missing, outcome, error = done
    if outcome is None:
        assert error is not None
        raise error  # a runner lets nothing escape, so this is a bug in it
    _, scoring, known, outputs = missing
    if outputs:
        return Entry(scoring, outcome, rescored=True)
    if known is not None:
        outcome = continued(known, outcome)
    return entry_of(scoring, outcome)


def _refusal(entries: Iterable[Entry]) -> str:
    """Return what a provider said that has refused whoever calls it; empty where none has."""
    for entry in entries:
        outcome = entry.outcome
        if isinstance(outcome, TrialError) and outcome.ends_run:
            return outcome.message
    return ""
