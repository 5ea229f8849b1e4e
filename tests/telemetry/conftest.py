"""A collector, and runs over a real pool as a Dagster step makes them."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.batch import BatchSummary, planned_outcomes, run_batch
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.engine.program_versions import program_version
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.space import Configuration, ConfigurationSpace
from dspex_pipelines.model.trial import Example, Isolation, ProgramSpec
from dspex_pipelines.telemetry import run_spans

if TYPE_CHECKING:
    from tests.telemetry.collector import Collector

ROOT = Path(__file__).parents[2]
SWITCHES = ("DSPEX_OTEL", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_BSP_SCHEDULE_DELAY", "OTEL_EXPORTER_OTLP_TIMEOUT")


class Site:
    """Where runs are made: a pool that is told of the switches that are set when it starts."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address

    async def run(
        self, name: str, *, trials: int = 3, isolation: Isolation = "shared", most_attempts: int = 1
    ) -> tuple[BatchSummary, list[TrialOutcome], str]:
        entry_point = f"tests.telemetry.programs:{name}"
        plan = Plan(
            evaluation=name,
            partition="p",
            dataset_digest="d",
            rows=trials,
            program=ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {}), isolation=isolation),
            metrics=(),
            space_json=ConfigurationSpace().to_json(),
            configurations=(Configuration({}),),
        )
        examples = [Example(example_id=str(number), inputs={"x": number}) for number in range(trials)]
        run_id = uuid.uuid4().hex
        with Journal(str(self.folder / f"{run_id}.sqlite")) as journal:
            with run_spans(name, run_id=run_id, attributes={"dspex.partition": "p"}) as spans:
                async with PoolClient(self.address, connect_timeout_s=30) as pool:
                    pool.traceparent = "" if spans is None else spans.root.traceparent
                    summary = await run_batch(
                        plan=plan,
                        batch=Batch(start=0, stop=trials),
                        examples=examples,
                        pool=pool,
                        journal=journal,
                        max_concurrency=8,
                        timeout_s=30,
                        most_attempts=most_attempts,
                        spans=spans,
                    )
            return summary, [outcome for _, outcome in planned_outcomes(plan, examples, journal)], run_id


@contextmanager
def site(**switches: str) -> Iterator[Site]:
    """Switches as said, here and in the workers."""
    from dspex_pipelines.telemetry import exporting

    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    with pytest.MonkeyPatch.context() as patch:
        for name in SWITCHES:
            patch.delenv(name, raising=False)
        for name, value in switches.items():
            patch.setenv(name, value)
        patch.setattr(exporting, "_exporter", None)
        try:
            with local_pool.lease(workers=1, slots=32, idle_s=0.1, cwd=ROOT, runtime_root=folder) as lease:
                yield Site(folder, lease.address)
        finally:
            local_pool.stop(runtime_root=folder)
            shutil.rmtree(folder)


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    from tests.telemetry.collector import collector

    with collector() as one:
        yield one


@pytest.fixture(scope="module")
def traced(collected: Collector) -> Iterator[Site]:
    with site(DSPEX_OTEL="1", OTEL_EXPORTER_OTLP_ENDPOINT=collected.endpoint, OTEL_BSP_SCHEDULE_DELAY="100") as one:
        yield one
