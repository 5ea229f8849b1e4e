"""A trial in a process of its own, which can be killed and whose death is only its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, cast

from google.protobuf.message import DecodeError

from dspex.v1 import types_pb2
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.wire.codec import MESSAGE_LIMIT, failure_to_wire, metric_to_wire, program_to_wire
from dspex_pipelines.worker.alone import start_alone
from dspex_pipelines.worker.forks import Fork, Forks
from dspex_pipelines.worker.instances import LoadedProgram, VouchedLoader
from dspex_pipelines.worker.threads import CannotStart


class IsolatedTrial:
    """Runs *trial* in a fresh process. `stop` may be called from any thread, at any time."""

    def __init__(
        self, forks: Forks, program: LoadedProgram, configuration: Configuration, trial: types_pb2.Trial
    ) -> None:
        self._forks = forks
        self._program = program
        self._configuration = configuration
        self._trial = trial
        self._lock = threading.Lock()
        self._fork: Fork | None = None
        self._stopped = False

    def run(self) -> types_pb2.Outcome | None:
        """Return its outcome; None when it was stopped first.

        Raises `CannotStart` when there is no process for it, and `ForksLost`.
        """
        try:
            return self._run()
        except OSError as error:
            raise CannotStart(f"no process could be started: {error}") from error

    def _run(self) -> types_pb2.Outcome | None:
        with self._lock:
            if self._stopped:
                return None
            fork = self._fork = self._forks.fork()
        try:
            with contextlib.suppress(OSError):
                # Should it have ended already, that is told below.
                fork.connection.send_bytes(self._request())
            outcome = self._received(fork.connection) if fork.connection in wait([fork.connection, fork.life]) else None
            if outcome is not None:
                fork.kill()
            code = fork.wait()
        finally:
            fork.close()
        if self._stopped or outcome is not None:
            return outcome
        how = f"killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
        return types_pb2.Outcome(
            id=self._trial.id,
            configuration_digest=self._configuration.digest,
            session_version=self._trial.version,
            failure=failure_to_wire(ErrorType.WORKER_LOST, f"the trial's process was lost: {how}", retryable=True),
        )

    def stop(self) -> None:
        """Kill its process."""
        with self._lock:
            self._stopped = True
            if self._fork is not None:
                self._fork.kill()

    def _request(self) -> bytes:
        program, session_id = self._program, self._trial.session_id
        session = types_pb2.Session(
            session_id=session_id,
            program=program_to_wire(program.spec),
            metrics=[metric_to_wire(metric) for metric, _ in program.metrics],
        )
        parts = [session.SerializeToString(), self._configuration.values, self._trial.SerializeToString()]
        return encode([*parts, program.sources])

    def _received(self, connection: Connection) -> types_pb2.Outcome | None:
        """Return the answer; None for a process that gave none, or no proper one."""
        with contextlib.suppress(EOFError, OSError, DecodeError):
            outcome = types_pb2.Outcome.FromString(connection.recv_bytes(MESSAGE_LIMIT))
            return outcome if outcome.id == self._trial.id else None
        return None


def serve_one(connection: Connection) -> NoReturn:
    """Answer the request that waits on *connection*, and end this process."""
    session_bytes, values, trial_bytes, sources = cast("list[Any]", decode(connection.recv_bytes()))
    session = types_pb2.Session.FromString(session_bytes)
    trial = types_pb2.Trial.FromString(trial_bytes)

    def deliver(outcome: types_pb2.Outcome) -> None:
        """Answer from the program's own thread: it may have closed what would wake the loop."""
        code = 1
        try:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            connection.send_bytes(outcome.SerializeToString())
            code = 0
        finally:
            os._exit(code)

    async def run() -> None:
        start_alone(session, Configuration(values), trial, deliver=deliver, loader=VouchedLoader(sources))
        await asyncio.Event().wait()

    asyncio.run(run())
    os._exit(1)
