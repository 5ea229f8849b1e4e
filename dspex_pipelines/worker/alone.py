"""One trial in this process, without a bridge: what isolated children and replays run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from dspex.v1 import types_pb2
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import MetricSpec, TrialSpec
from dspex_pipelines.wire.codec import metric_to_wire, outcome_from_wire, program_to_wire, trial_to_wire
from dspex_pipelines.worker.instances import Loader
from dspex_pipelines.worker.program_executor import ProgramExecutor


def start_alone(
    session: types_pb2.Session,
    configuration: Configuration,
    trial: types_pb2.Trial,
    *,
    deliver: Callable[[types_pb2.Outcome], None],
    loader: Loader | None = None,
) -> None:
    """Run *trial* under *configuration* on the running loop; its outcome goes to *deliver*, in any thread.

    It is isolated from everything but this process.
    """
    executor = ProgramExecutor(slots=1, deliver=deliver, release=lambda _: None, loader=loader)
    executor.context.open(session)
    executor.context.put(session.session_id, trial.version, configuration)
    executor.submit(trial)


async def run_alone(spec: TrialSpec, metrics: Sequence[MetricSpec]) -> TrialOutcome:
    """Return the outcome of *spec*, run here and now with the program as it is on disk."""
    session = types_pb2.Session(
        session_id=1,
        program=program_to_wire(spec.program),
        metrics=[metric_to_wire(metric) for metric in metrics],
    )
    trial = trial_to_wire(spec, id=1, session_id=1, version=1, timeout_s=0)
    loop = asyncio.get_running_loop()
    done: asyncio.Future[types_pb2.Outcome] = loop.create_future()
    start_alone(
        session,
        spec.configuration,
        trial,
        deliver=lambda outcome: loop.call_soon_threadsafe(done.set_result, outcome) and None,
    )
    return outcome_from_wire(await done, spec.trial_id)
