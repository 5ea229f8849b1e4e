"""`python -m chaos.stranger FOLDER vanishes|cancels`: another client of the same pool, of no good manners."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from chaos.run_process import pool_root
from chaos.scenario import Scenario
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import PoolUnreachable
from dspex_pipelines.model.trial import Example, TrialSpec

TRIALS = 60
APART = 1_000_000
"""Its trials are none of the campaign's."""
WITHIN_S = 30.0


async def submit(address: str, *, vanish: bool) -> None:
    """Submit healthy trials of its own, then vanish, or cancel them and whatever numbers others may have."""
    (planned,) = Scenario(seed=0, trials=1, acts=0, parts=("awaited",)).planned()
    specs = [
        TrialSpec(
            program=planned.plan.program,
            example=Example(example_id=f"s{x}", inputs={"x": x, "act": "", "at": 0}, labels={"y": x}),
            configuration=planned.plan.configurations[0],
        )
        for x in range(APART, APART + TRIALS)
    ]
    async with PoolClient(address, reconnect_s=1.0) as client:
        runner = TrialRunner(client, metrics=planned.plan.metrics, space_json=planned.plan.space_json, timeout_s=0)
        trials = [asyncio.create_task(runner.run(spec)) for spec in specs]
        await asyncio.wait(trials, return_when=asyncio.FIRST_COMPLETED)
        if vanish:
            os.kill(os.getpid(), signal.SIGKILL)
        client._window._cancels.extend(range(1, 50_000))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - another's
        for trial in trials:
            trial.cancel()
        await asyncio.gather(*trials, return_exceptions=True)


def main() -> int:
    """Run the command line. A pool that is away at the moment is no failure of this one."""
    folder, what = Path(sys.argv[1]), sys.argv[2]
    for pool in local_pool.status(runtime_root=pool_root(folder)):
        try:
            asyncio.run(asyncio.wait_for(submit(pool.address, vanish=what == "vanishes"), WITHIN_S))
        except (PoolUnreachable, TimeoutError) as error:
            print(f"stranger: {error}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
