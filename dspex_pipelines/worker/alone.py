"""One trial in this process, without a bridge: what isolated children and replays run."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from typing import Any

from dspex.v1 import types_pb2
from dspex_pipelines.engine.calls.trial_calls import Caller
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.tracing import SpanSink
from dspex_pipelines.model.trial import MetricSpec, TrialSpec
from dspex_pipelines.wire.codec import (
    metric_to_wire,
    outcome_from_wire,
    policy_to_wire,
    program_to_wire,
    trial_to_wire,
)
from dspex_pipelines.worker.forked import end_forks_with_this_process, end_if_forked
from dspex_pipelines.worker.instances import Instances, Loader, ProgramLoader
from dspex_pipelines.worker.permits import PermitsHere
from dspex_pipelines.worker.plain import plain
from dspex_pipelines.worker.program_executor import ProgramExecutor, TrialPermits
from dspex_pipelines.worker.running import Ready, outputs_and_scores


def start_alone(
    session: types_pb2.Session,
    configuration: Configuration,
    trial: types_pb2.Trial,
    *,
    deliver: Callable[[types_pb2.Outcome], None],
    loader: Loader | None = None,
    permits: TrialPermits | None = None,
    spans: SpanSink | None = None,
) -> None:
    """Run *trial* under *configuration* on the running loop; its outcome goes to *deliver*, in any thread.

    It is isolated from everything but this process.
    """
    executor = ProgramExecutor(
        slots=1, deliver=deliver, release=lambda _: None, loader=loader, permits=permits, spans=spans
    )
    executor.context.open(session)
    executor.context.put(session.session_id, trial.version, configuration)
    executor.submit(trial)


async def run_alone(spec: TrialSpec, metrics: Sequence[MetricSpec], *, calls: CallPolicy | None = None) -> TrialOutcome:
    """Return the outcome of *spec*, run here and now with the program as it is on disk."""
    end_forks_with_this_process()
    session = types_pb2.Session(
        session_id=1,
        program=program_to_wire(spec.program),
        metrics=[metric_to_wire(metric) for metric in metrics],
        calls=policy_to_wire(calls or CallPolicy()),
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


def run_here(
    spec: TrialSpec, metrics: Sequence[MetricSpec], *, calls: CallPolicy | None = None
) -> tuple[Any, dict[str, Any]]:
    """Return outputs and scores of *spec*, run in this very thread; raises what its program or a metric raises."""
    variables = tuple(spec.configuration.values)
    end_forks_with_this_process()
    process = os.getpid()
    try:
        program = ProgramLoader().load(spec.program, tuple(metrics), tuple(spec.example.inputs), variables)
        instance = Instances().get(program, spec.configuration)
    finally:
        end_if_forked(process)
    ready = Ready(
        program=program,
        configuration=spec.configuration,
        instance=instance,
        call_variables={} if program.shape.configured else spec.configuration.values,
        caller=Caller(PermitsHere(), calls or CallPolicy()),
    )
    trial = trial_to_wire(spec, id=1, session_id=1, version=1, timeout_s=0)
    outputs, scores = asyncio.run(outputs_and_scores(trial, ready, spec.example))
    return plain(outputs), scores
