"""Runs every trial of a plan through a pool, journal on, and says how long that took."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.batch import BatchSummary, run_batch
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.model.variables import Integer

METRIC = "benchmarks._programs:same"
CONFIGURATIONS = 20


def plan_of(
    entry_point: str,
    count: int,
    generation: str,
    *,
    evaluation: str,
    partition: str = "all",
    configurations: int = CONFIGURATIONS,
) -> Plan:
    """Return a plan of *count* trials of a program, in so many configurations."""
    points = tuple(range(1, configurations + 1))
    space = ConfigurationSpace(variables=(Integer(name="k", low=1, high=configurations, points=points),))
    return Plan(
        evaluation=evaluation,
        partition=partition,
        dataset_digest="none",
        rows=count // configurations,
        program=ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {})),
        metrics=(MetricSpec(entry_point=METRIC, version=metric_version(METRIC)),),
        space_json=space.to_json(),
        configurations=tuple(space.grid()),
        generation=generation,
    )


async def summary_of(
    plan: Plan,
    examples: Sequence[Example],
    *,
    address: str,
    journal: Path,
    max_concurrency: int,
    timeout_s: float,
    calls: CallPolicy | None = None,
    weight: int = 1,
) -> BatchSummary:
    """Run what *journal* lacks of the plan."""
    async with PoolClient(address, weight=weight) as pool:
        with Journal(str(journal)) as opened:
            return await run_batch(
                plan=plan,
                batch=Batch(start=0, stop=plan.total),
                examples=examples,
                pool=pool,
                journal=opened,
                max_concurrency=max_concurrency,
                timeout_s=timeout_s,
                calls=calls,
            )


async def seconds_of(plan: Plan, examples: Sequence[Example], **options: Any) -> float:
    """Return how long it took, into a fresh journal; raises RuntimeError unless all trials ran and succeeded."""
    done = await summary_of(plan, examples, **options)
    if done.ran != plan.total or done.failed:
        msg = f"{done.ran} of {plan.total} trials ran, {done.failed} failed"
        raise RuntimeError(msg)
    return done.elapsed_s
