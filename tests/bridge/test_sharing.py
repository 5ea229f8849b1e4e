"""Two clients want more than a pool has: it is theirs in the proportion of their weights."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.outcome import TrialResult
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec

ROOT = Path(__file__).parents[2]
PROGRAM = "tests.bridge.sharing_programs:noted"
JUDGE = "tests.bridge.sharing_programs:judged"


@pytest.fixture
def address(runtime_root: Path) -> Iterator[str]:
    """A pool in which one trial runs at a time."""
    with local_pool.lease(workers=1, slots=1, cwd=ROOT, runtime_root=runtime_root) as lease:
        yield lease.address


@pytest.mark.parametrize("weight", [0, -1, 1_001])
def test_a_weight_that_is_none_is_refused(weight: int) -> None:
    with pytest.raises(InvalidValue, match=f"weight: {weight} is not accepted"):
        PoolClient("unix:/nowhere", weight=weight)


async def test_a_client_gets_as_much_as_its_weight(address: str, tmp_path: Path) -> None:
    gate, book = tmp_path / "gate", tmp_path / "book"

    def trials(name: str) -> list[TrialSpec]:
        return [
            TrialSpec(
                program=ProgramSpec(entry_point=PROGRAM, version=program_version(PROGRAM, {})),
                example=Example(example_id=str(number), inputs={"name": name, "gate": str(gate), "book": str(book)}),
                configuration=Configuration({}),
            )
            for number in range(12)
        ]

    async with PoolClient(address, weight=3) as heavy, PoolClient(address) as light:
        running = []
        for client, name in ((heavy, "h"), (light, "l")):
            runner = TrialRunner(
                client,
                metrics=[MetricSpec(entry_point=JUDGE, version=metric_version(JUDGE))],
                space_json=ConfigurationSpace().to_json(),
                timeout_s=60,
            )
            running += [asyncio.create_task(runner.run(one)) for one in trials(name)]
        while (await light.status()).queue_depth < 23:
            await asyncio.sleep(0.01)
        gate.touch()
        outcomes = await asyncio.gather(*running)
    assert all(isinstance(outcome, TrialResult) for outcome in outcomes), outcomes
    order = book.read_text()
    # Whose turn it was when the other came is another matter.
    assert order[4:12].count("h") == 6, order
    assert (order.count("h"), order.count("l")) == (12, 12)
