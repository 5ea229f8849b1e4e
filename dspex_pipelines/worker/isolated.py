"""A trial in a process of its own, which can be killed and whose death is only its own."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import sys
import threading
from concurrent.futures import Future
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn, cast

from google.protobuf.message import DecodeError

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines.engine.calls.trial_calls import Caller, Permit
from dspex_pipelines.engine.throttling.throttle import Verdict
from dspex_pipelines.errors import ProviderGivenUp, SerializationError
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.tracing import EndedSpan
from dspex_pipelines.wire.codec import (
    MESSAGE_LIMIT,
    failure_to_wire,
    metric_to_wire,
    policy_to_wire,
    program_to_wire,
    verdict_from_wire,
)
from dspex_pipelines.wire.processes import ending
from dspex_pipelines.worker.alone import start_alone
from dspex_pipelines.worker.forks import Fork, Forks
from dspex_pipelines.worker.instances import LoadedProgram, VouchedLoader
from dspex_pipelines.worker.permits import PermitsOfBridge
from dspex_pipelines.worker.threads import CannotStart

_OUTCOME, _ASK, _END, _SPAN = b"o", b"a", b"e", b"s"
"""What a message from a trial's process begins with."""


class IsolatedTrial:
    """Runs *trial* in a fresh process. `stop` may be called from any thread, at any time."""

    def __init__(
        self,
        forks: Forks,
        program: LoadedProgram,
        configuration: Configuration,
        trial: types_pb2.Trial,
        caller: Caller,
    ) -> None:
        self._forks = forks
        self._caller = caller
        self._calls: dict[int, Permit] = {}
        """The calls to models that it has asked for and that have not ended, by its own numbers."""
        self._sending = threading.Lock()
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
            outcome = self._received(fork)
            if outcome is not None:
                fork.kill()
            code = fork.wait()
        finally:
            for permit in self._calls.values():
                permit.end(Verdict.NEUTRAL)
            with self._sending:
                fork.close()
        if self._stopped or outcome is not None:
            return outcome
        return types_pb2.Outcome(
            id=self._trial.id,
            configuration_digest=self._configuration.digest,
            session_version=self._trial.version,
            failure=failure_to_wire(ErrorType.WORKER_LOST, f"the trial's process {ending(code)}", retryable=True),
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
            calls=policy_to_wire(self._caller.policy),
            traceparent=None if self._caller.spans is None else self._caller.spans.root.traceparent,
        )
        parts = [session.SerializeToString(), self._configuration.values, self._trial.SerializeToString()]
        return encode([*parts, program.sources, program.convention is not None])

    def _received(self, fork: Fork) -> types_pb2.Outcome | None:
        """Return the answer, relaying calls to models until it is there; None where there is none, or no proper one."""
        connection = fork.connection
        with contextlib.suppress(EOFError, OSError, DecodeError):
            while connection in wait([connection, fork.life]):
                message = connection.recv_bytes(MESSAGE_LIMIT)
                kind, body = message[:1], message[1:]
                if kind == _ASK:
                    self._ask(connection, worker_pb2.CallAsk.FromString(body))
                elif kind == _END:
                    self._end(worker_pb2.CallEnd.FromString(body))
                elif kind == _SPAN:
                    self._relay(body)
                else:
                    outcome = types_pb2.Outcome.FromString(body)
                    return outcome if kind == _OUTCOME and outcome.id == self._trial.id else None
        return None

    def _ask(self, connection: Connection, ask: worker_pb2.CallAsk) -> None:
        permit = self._caller.permits.ask(self._trial.id, ask.model, ask.tokens, again=ask.again)
        self._calls[ask.id] = permit

        def answer(granted: Future[None]) -> None:
            error = None if granted.cancelled() else granted.exception()
            reason = error.reason if isinstance(error, ProviderGivenUp) else str(error or "")
            said = worker_pb2.CallPermit(id=ask.id, granted=error is None, reason=reason)
            # It may have ended by now.
            with self._sending, contextlib.suppress(OSError):
                connection.send_bytes(said.SerializeToString())

        permit.granted.add_done_callback(answer)

    def _relay(self, payload: bytes) -> None:
        """Have its span sent from here: its process is too short-lived, and may be killed."""
        if self._caller.spans is not None:
            with contextlib.suppress(SerializationError):
                self._caller.spans.put(EndedSpan.from_payload(payload))

    def _end(self, end: worker_pb2.CallEnd) -> None:
        permit = self._calls.pop(end.id, None)
        if permit is not None:
            permit.end(verdict_from_wire(end.verdict), retry_after_s=end.retry_after_s, tokens=end.tokens)


def serve_one(connection: Connection) -> NoReturn:
    """Answer the request that waits on *connection*, and end this process."""
    session_bytes, values, trial_bytes, sources, has_convention = cast("list[Any]", decode(connection.recv_bytes()))
    session = types_pb2.Session.FromString(session_bytes)
    trial = types_pb2.Trial.FromString(trial_bytes)

    sending = threading.Lock()

    def say(kind: bytes, message: types_pb2.Outcome | worker_pb2.CallAsk | worker_pb2.CallEnd) -> None:
        with sending:
            connection.send_bytes(kind + message.SerializeToString())

    def tell(span: EndedSpan) -> None:
        with sending, contextlib.suppress(OSError):
            connection.send_bytes(_SPAN + span.payload)

    permits = PermitsOfBridge(ask=functools.partial(say, _ASK), end=lambda end, _: say(_END, end))

    def hear() -> None:
        with contextlib.suppress(EOFError, OSError):
            while True:
                permits.take([worker_pb2.CallPermit.FromString(connection.recv_bytes())])

    def deliver(outcome: types_pb2.Outcome) -> None:
        """Answer from the program's own thread: it may have closed what would wake the loop."""
        code = 1
        try:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            say(_OUTCOME, outcome)
            code = 0
        finally:
            os._exit(code)

    async def run() -> None:
        threading.Thread(target=hear, name="permits", daemon=True).start()
        loader = VouchedLoader(sources, has_convention=has_convention)
        start_alone(session, Configuration(values), trial, deliver=deliver, loader=loader, permits=permits, spans=tell)
        await asyncio.Event().wait()

    asyncio.run(run())
    os._exit(1)
