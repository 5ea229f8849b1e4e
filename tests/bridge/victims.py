"""Those who mean well, beside those who do not: their trials, their workers, and what must come of them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, TrialSpec
from tests.bridge.fakes import PROGRAM, TRIAL, FakeWorker, doing, ready
from tests.wire.fuzz_decoders import storable

VICTIMS = 40


@contextlib.asynccontextmanager
async def crew(address: str) -> AsyncIterator[None]:
    """Workers that do what they should."""
    async with (
        FakeWorker(address, "good", 64) as one,
        FakeWorker(address, "patient", 64, quarantine=True) as other,
        doing(one.work()),
        doing(other.work()),
    ):
        yield


def victims(client: PoolClient, count: int = VICTIMS) -> list[asyncio.Task[TrialOutcome]]:
    """Somebody's trials, under way."""
    runner = TrialRunner(client, metrics=[], space_json="", timeout_s=0)
    specs = [
        TrialSpec(program=PROGRAM, example=Example(example_id=str(x), inputs={}), configuration=Configuration({"k": 1}))
        for x in range(count)
    ]
    return [asyncio.create_task(runner.run(spec)) for spec in specs]


def check(outcomes: Iterable[TrialOutcome], hostile: str = "hostile") -> list[TrialOutcome]:
    """Fail unless each is right; return those that the hostile worker has answered, which any journal takes."""
    theirs: list[TrialOutcome] = []
    for number, outcome in enumerate(outcomes):
        if outcome.worker == hostile:
            storable(outcome)
            assert not isinstance(outcome, TrialError) or outcome.type is not ErrorType.POISON, "nobody has died of it"
            theirs.append(outcome)
        else:
            assert isinstance(outcome, TrialResult), outcome
            assert outcome.outputs == [{"k": 1}, str(number)]
            # A failure that was made up, the loss of who made it up, and perhaps its last trials handed back.
            assert outcome.attempts <= 4
    return theirs


async def timers_work(client: PoolClient, address: str) -> None:
    """Fail unless a deadline is kept, by a pool without workers: with a number that is none among them, none is."""
    session = await ready(client)
    while (await client.status()).workers:
        await asyncio.sleep(0)
    async with FakeWorker(address, "idle", 1):
        running = asyncio.create_task(client.execute(TRIAL, session_id=session, version=1, timeout_s=0.1))
        async with asyncio.timeout(30):
            outcome = await running
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.TIMEOUT_RUN
