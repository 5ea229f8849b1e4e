"""A bridge here, workers in processes of their own, and providers in theirs: trials that call them, many at a time."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec

ROOT = Path(__file__).parents[2]
PROGRAMS = "tests.providers.programs"
PATIENCE_S = 60


@dataclass(frozen=True, kw_only=True)
class Field:
    """Where trials run."""

    bridge: Bridge
    workers: list[Process]

    async def run(
        self,
        program: str,
        inputs: Iterable[dict[str, object]],
        *,
        at_once: int,
        policy: CallPolicy | None = None,
        values: Sequence[dict[str, object]] = ({},),
        timeout_s: float = 60.0,
        metric: str = "",
        seed: int = 0,
    ) -> list[TrialOutcome]:
        """Return an outcome for each of *inputs* under each of *values*, from a client of their own."""
        of = ProgramSpec(entry_point=f"{PROGRAMS}:{program}", version=program_version(f"{PROGRAMS}:{program}", {}))
        entry = f"{PROGRAMS}:{metric}"
        judges = [MetricSpec(entry_point=entry, version=metric_version(entry))] if metric else []
        async with PoolClient(self.bridge.address) as client:
            session = await client.open_session(of, judges, ConfigurationSpace().to_json(), policy)
            versions = [(await client.set_variables(session, one)).version for one in values]
            room = asyncio.Semaphore(at_once)

            async def one(number: int, given: dict[str, object], which: int) -> TrialOutcome:
                async with room:
                    outcome = await client.execute(
                        TrialSpec(
                            program=of,
                            example=Example(example_id=str(number), inputs=given),
                            configuration=Configuration(values[which]),
                            seed=seed,
                        ),
                        session_id=session,
                        version=versions[which],
                        timeout_s=timeout_s,
                    )
                    client.commit(1)
                    return outcome

            given = [(number, one, which) for number, one in enumerate(inputs) for which in range(len(versions))]
            return list(await asyncio.gather(*(one(*each) for each in given)))


@asynccontextmanager
async def field(*, workers: int = 2, slots: int = 256) -> AsyncIterator[Field]:
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as folder:
        async with Bridge(f"unix:{folder}/bridge.sock") as bridge:
            started: list[Process] = []
            try:
                for number in range(workers):
                    command = [sys.executable, "-m", "dspex_pipelines.worker", "--address", bridge.address]
                    options = ["--worker-id", f"w-{number}", "--slots", str(slots)]
                    environment = {**os.environ, "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
                    started.append(await asyncio.create_subprocess_exec(*command, *options, cwd=ROOT, env=environment))
                async with asyncio.timeout(PATIENCE_S):
                    while len(bridge.hub.workers) < workers:
                        await asyncio.sleep(0.05)
                yield Field(bridge=bridge, workers=started)
            finally:
                for worker in started:
                    if worker.returncode is None:
                        worker.kill()
                    await worker.wait()
