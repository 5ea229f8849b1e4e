"""A trial in a process of its own, which can be killed and whose death is only its own."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import threading
from multiprocessing.connection import Connection, wait
from typing import Any

from dspex.v1 import types_pb2
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import MetricSpec, ProgramSpec
from dspex_pipelines.wire.codec import failure_to_wire
from dspex_pipelines.worker.instances import LoadedProgram

_LOOK_S = 0.05


def run_isolated(
    program: LoadedProgram,
    configuration: Configuration,
    trial: types_pb2.Trial,
    stop: threading.Event,
) -> types_pb2.Outcome | None:
    """Return the outcome of *trial*, run in a fresh process; None when *stop* was set first."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    metrics = tuple(spec for spec, _ in program.metrics)
    process = context.Process(
        target=_child,
        args=(there, os.getcwd(), program.spec, metrics, dict(configuration.values), trial.SerializeToString()),  # noqa: PTH109
        daemon=True,
    )
    process.start()
    there.close()
    try:
        while not stop.is_set():
            if wait([here, process.sentinel], timeout=_LOOK_S):
                return _received(here, process, configuration, trial)
        return None
    finally:
        process.kill()
        process.join()
        here.close()


def _received(
    here: Connection, process: Any, configuration: Configuration, trial: types_pb2.Trial
) -> types_pb2.Outcome:
    with contextlib.suppress(EOFError, OSError):
        if here.poll():
            return types_pb2.Outcome.FromString(here.recv_bytes())
    process.join()
    code = process.exitcode
    how = f"killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
    return types_pb2.Outcome(
        id=trial.id,
        configuration_digest=configuration.digest,
        session_version=trial.version,
        failure=failure_to_wire(ErrorType.WORKER_LOST, f"the trial's process was lost: {how}", retryable=True),
    )


def _child(
    there: Connection,
    folder: str,
    program: ProgramSpec,
    metrics: tuple[MetricSpec, ...],
    values: dict[str, Any],
    trial_bytes: bytes,
) -> None:
    from dspex_pipelines.worker.__main__ import make_importable
    from dspex_pipelines.worker.alone import answer_alone

    threading.Thread(target=_end_with_parent, daemon=True).start()
    make_importable(folder)
    shared = ProgramSpec(entry_point=program.entry_point, init=program.init, version=program.version)
    trial = types_pb2.Trial.FromString(trial_bytes)
    outcome = asyncio.run(answer_alone(shared, metrics, Configuration(values), trial))
    there.send_bytes(outcome.SerializeToString())
    there.close()


def _end_with_parent() -> None:
    """A worker that is killed cannot end what it has started."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
