"""Runs the trials of a batch that the journal lacks, and makes every outcome durable on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Protocol, TypeAlias

from dspex_pipelines.engine.executor import Outcome, ParallelExecutor, Progress
from dspex_pipelines.engine.journal import Journal, execution_key
from dspex_pipelines.engine.runner import TrialPool, TrialRunner
from dspex_pipelines.errors import EvaluationIncomplete
from dspex_pipelines.model.outcome import TrialError, TrialOutcome
from dspex_pipelines.model.payload import digest, digest_of
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.trial import Example, TrialSpec

GROUP = 1_000
"""Outcomes in a journal transaction."""
GROUP_S = 0.25
"""Longest time that a finished outcome waits for its transaction."""
Keyed: TypeAlias = tuple[bytes, TrialSpec]
"""A trial with its key in the journal."""


class DurablePool(TrialPool, Protocol):
    """A pool that bounds what is sent and not yet made durable."""

    def commit(self, count: int) -> None:
        """*count* outcomes are durable: so much credit comes back."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSummary:
    """What running a batch came to."""

    planned: int
    reused: int
    ran: int
    failed: int
    elapsed_s: float


class Scoring:
    """The journal's keys of a plan's trials: execution, labels and metric versions."""

    def __init__(self, plan: Plan) -> None:
        self._generation = plan.generation
        self._metrics = plan.metrics_digest
        self._labels: dict[str, bytes] = {}

    def key(self, spec: TrialSpec) -> bytes:
        """Return the 16-byte key under which the trial's outcome is kept."""
        example = spec.example
        scoring = self._labels.get(example.example_id)
        if scoring is None:
            scoring = digest(self._metrics, digest_of([example.labels, example.metadata]))
            self._labels[example.example_id] = scoring
        return execution_key(spec.trial_id, self._generation, scoring)


async def run_batch(
    *,
    plan: Plan,
    batch: Batch,
    examples: Sequence[Example],
    pool: DurablePool,
    journal: Journal,
    max_concurrency: int,
    timeout_s: float,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> BatchSummary:
    """Run what is missing of *batch*; each outcome is in the journal before it counts as done.

    *on_progress* is called after every group. Raises `PoolUnreachable` when the bridge goes away; what was
    done by then is kept.
    """
    scoring = Scoring(plan)
    runner = TrialRunner(pool, metrics=plan.metrics, space_json=plan.space_json, timeout_s=timeout_s)
    executor = ParallelExecutor[Keyed, TrialOutcome](
        max_concurrency=max_concurrency, is_failure=lambda outcome: isinstance(outcome, TrialError)
    )

    async def run(keyed: Keyed) -> TrialOutcome:
        return await runner.run(keyed[1])

    missing = _Missing(plan.trials(batch, examples), scoring, journal)
    group: list[tuple[bytes, TrialOutcome]] = []
    flushed = time.monotonic()

    def flush() -> None:
        nonlocal flushed
        if group:
            journal.record(group)
            pool.commit(len(group))
            group.clear()
        flushed = time.monotonic()
        on_progress(executor.get_progress())

    async with aclosing(executor.run_batches(missing, run, total=batch.stop - batch.start)) as batches:
        async for finished in batches:
            if runner.pool_lost is not None:
                break
            group.extend((done.item[0], _outcome(done)) for done in finished)
            if len(group) >= GROUP or time.monotonic() - flushed >= GROUP_S:
                flush()
    flush()
    if runner.pool_lost is not None:
        raise runner.pool_lost
    progress = executor.get_progress()
    return BatchSummary(
        planned=batch.stop - batch.start,
        reused=missing.reused,
        ran=progress.done,
        failed=progress.failed,
        elapsed_s=progress.elapsed_s,
    )


def planned_outcomes(
    plan: Plan, examples: Sequence[Example], journal: Journal
) -> Iterator[tuple[TrialSpec, TrialOutcome]]:
    """Yield every planned trial with its outcome, in plan order, a page of keys at a time.

    Raises `EvaluationIncomplete` at the end when the journal lacks any; nothing may be made of the rest.
    """
    scoring = Scoring(plan)
    trials = plan.trials(Batch(start=0, stop=plan.total), examples)
    found = 0
    lacking: list[str] = []
    while page := list(islice(trials, GROUP)):
        keys = [scoring.key(spec) for spec in page]
        outcomes = journal.find(keys)
        for key, spec in zip(keys, page, strict=True):
            outcome = outcomes.get(key)
            if outcome is None:
                lacking.append(spec.trial_id.hex())
            else:
                found += 1
                yield spec, outcome
    if found != plan.total:
        raise EvaluationIncomplete(planned=plan.total, found=found, examples=tuple(lacking[:3]))


class _Missing(Iterable[Keyed]):
    """The trials without a reusable outcome, looked up a page at a time as they are pulled."""

    def __init__(self, trials: Iterator[TrialSpec], scoring: Scoring, journal: Journal) -> None:
        self._trials = trials
        self._scoring = scoring
        self._journal = journal
        self.reused = 0

    def __iter__(self) -> Iterator[Keyed]:
        while page := list(islice(self._trials, GROUP)):
            keys = [self._scoring.key(spec) for spec in page]
            known = self._journal.reusable(keys)
            self.reused += len(known)
            for key, spec in zip(keys, page, strict=True):
                if key not in known:
                    yield key, spec


def _outcome(done: Outcome[Keyed, TrialOutcome]) -> TrialOutcome:
    if done.result is None:
        assert done.error is not None
        raise done.error  # a runner lets nothing escape, so this is a bug in it
    return done.result
