"""More trials hang the first time than a pool has slots: second copies answer, and the slots of the first come free."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.batch import planned_outcomes, run_batch
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.pages import Pages
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.outcome import ErrorType, TrialResult
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec
from dspex_pipelines.model.usage import Usage

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.bridge.hedging_programs:hangs_once"
JUDGE = "tests.bridge.hedging_programs:judged"
COUNT = 300
SLOTS = 4
FRACTION = 0.3
STRAGGLERS = (160, 180, 190, 210, 230, 250)
"""By their turns; some come after each of them."""


@pytest.fixture
def address(runtime_root: Path) -> Iterator[str]:
    with local_pool.lease(workers=1, slots=SLOTS, cwd=ROOT, runtime_root=runtime_root) as lease:
        yield lease.address


async def test_a_run_does_not_wait_for_those_that_hang(address: str, tmp_path: Path) -> None:
    folder = tmp_path / "asked"
    folder.mkdir()
    examples = [Example(example_id=str(x), inputs={"x": x, "folder": str(folder)}) for x in range(COUNT)]
    plan = Plan(
        evaluation="hedged",
        partition="all",
        dataset_digest="",
        rows=COUNT,
        program=ProgramSpec(entry_point=PROGRAM, version=program_version(PROGRAM, {})),
        metrics=(MetricSpec(entry_point=JUDGE, version=metric_version(JUDGE)),),
        space_json=ConfigurationSpace().to_json(),
        configurations=(Configuration({}),),
    )
    whole = Batch(start=0, stop=COUNT)
    turns = [spec for page in Pages(plan.trials(whole, examples)) for spec in page]
    hang = {turns[turn].trial_id for turn in STRAGGLERS}
    for turn in STRAGGLERS:
        (folder / turns[turn].example.example_id).touch()
    usage = Usage()
    with Journal(str(tmp_path / "journal.sqlite")) as journal:
        async with PoolClient(address) as client:
            summary = await run_batch(
                plan=plan,
                batch=whole,
                examples=examples,
                pool=client,
                journal=journal,
                max_concurrency=2 * SLOTS,
                timeout_s=0,
                usage=usage,
                hedging=Hedging(fraction=FRACTION, after=100),
            )
        outcomes = [outcome for _, outcome in planned_outcomes(plan, examples, journal)]
    assert summary.ran == len(outcomes) == COUNT
    assert all(isinstance(outcome, TrialResult) and outcome.scores == {"judged": True} for outcome in outcomes)
    assert len(hang) <= summary.hedges_won <= summary.hedged <= FRACTION * COUNT
    for outcome in outcomes:
        if outcome.trial_id in hang:
            (first,) = outcome.history
            assert (first.type, outcome.attempts) == (ErrorType.CANCELLED, 2)
            assert first.message == "first copy of a hedged trial: cancelled while it ran"
            assert first.worker
            assert outcome.usage == {"tokens": 1, "untold_copies": 1}
    assert usage.amounts["tokens"] >= COUNT
    assert len(list(folder.glob("*.cancelled"))) == len(STRAGGLERS) > SLOTS
