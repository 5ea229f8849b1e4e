"""A worker: its wire on one side, the programs on the other, from the first frame to the last."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import sys
import threading
import traceback
from typing import NoReturn

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines import telemetry
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.errors import DspexError, ProtocolMismatch
from dspex_pipelines.model.tracing import SpanSink
from dspex_pipelines.wire.loop import run_process
from dspex_pipelines.wire.marks import Marks
from dspex_pipelines.wire.scribe import Scribe
from dspex_pipelines.worker.forked import end_forks_with_this_process
from dspex_pipelines.worker.forks import Forks
from dspex_pipelines.worker.hops import ProgramLoop
from dspex_pipelines.worker.isolated import IsolatedTrial
from dspex_pipelines.worker.permits import PermitsOfBridge
from dspex_pipelines.worker.program_executor import ProgramExecutor
from dspex_pipelines.worker.surroundings import Surroundings
from dspex_pipelines.worker.wire import WorkerWire

PROTOCOL_EXIT = 3
BROKEN_EXIT = 70
DRAIN_S = 30.0
"""How long a worker that is told to end lets its trials run."""
LEAVE_S = 5.0
FLUSH_S = 2.0
"""How long it waits for its spans to be sent, where there are any; within what the supervisor waits for it."""
_LOOK_S = 0.05
_HANDLERS_S = 1.0


class Worker:
    """Runs trials until the bridge goes away, or this worker is to leave and has finished what it was sent."""

    def __init__(
        self,
        *,
        address: str,
        worker_id: str,
        slots: int,
        quarantine: bool,
        recycling: Recycling,
        forks: Forks,
        spans: SpanSink | None = None,
    ) -> None:
        self._name = worker_id
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[Exception | None] = self._loop.create_future()
        self._leaving = asyncio.Event()
        self._end_by = float("inf")
        self._sent_all = False
        """Whether the bridge has said that no more trials come."""
        self._thread = threading.get_ident()
        self._poking = False
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._told_to_end)
        self._surroundings = Surroundings()
        marks = Marks()
        self._wire = WorkerWire(
            address=address,
            worker_id=worker_id,
            slots=slots,
            marks=marks,
            programs=self._loop,
            quarantine=quarantine,
            recycling=recycling,
            on_frame=lambda frame: self._loop.call_soon_threadsafe(self._take, frame) and None,
            on_permits=self._take_permits,
            on_worn=lambda reason: self._loop.call_soon_threadsafe(self._leave, reason) and None,
            on_end=lambda error: self._loop.call_soon_threadsafe(self._end, error) and None,
        )
        self._permits = PermitsOfBridge(ask=self._wire.ask, end=self._wire.end)
        self._executor = ProgramExecutor(
            slots=slots,
            permits=self._permits,
            spans=spans,
            deliver=self._deliver,
            release=self._wire.release,
            give_back=self._give_back,
            marks=marks,
            isolate=functools.partial(IsolatedTrial, forks),
            restore=self._surroundings.restore,
            broken=_give_up,
        )

    async def run(self) -> int:
        """Serve; return the exit code."""
        self._wire.start()
        keeping = asyncio.create_task(self._keep_handlers())
        leaving = asyncio.create_task(self._leaving.wait())
        await asyncio.wait({self._ended, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not self._ended.done():
            await self._finish()
        keeping.cancel()
        error = self._ended.result() if self._ended.done() else None
        if isinstance(error, ProtocolMismatch):
            _say(str(error))
            return PROTOCOL_EXIT
        if error is not None:
            _say(f"{type(error).__name__}: {error}")
            return 1
        return 0

    async def _finish(self) -> None:
        """Take no more trials, finish those that anybody still wants, and say goodbye."""
        self._wire.drain()
        while not self._ended.done() and self._loop.time() < self._end_by:
            if self._sent_all and not self._executor.wanted:
                break
            await asyncio.sleep(_LOOK_S)
        self._wire.leave()
        await asyncio.wait({self._ended}, timeout=LEAVE_S)

    async def _keep_handlers(self) -> None:
        while True:
            await asyncio.sleep(_HANDLERS_S)
            self._surroundings.restore_handlers()

    def _take(self, frame: worker_pb2.AttachResponse) -> None:
        if self._poking:
            # The wire may have been quicker: these trials may be here because of an outcome that has just gone.
            self._surroundings.restore()
        try:
            for session in frame.sessions:
                self._executor.context.open(session)
            for snapshot in frame.snapshots:
                self._executor.context.add(snapshot)
            for trial in frame.trials:
                self._executor.submit(trial)
            for attempt_id in frame.cancel_ids:
                self._executor.cancel(attempt_id)
            for one in frame.forgotten:
                self._executor.context.forget(one.session_id, one.version)
            for session_id in frame.closed_session_ids:
                self._executor.context.close(session_id)
        except BaseException as error:  # noqa: BLE001 - told
            _give_up(error)
        if frame.drain:
            self._sent_all = True
            self._leaving.set()

    def _take_permits(self, frame: worker_pb2.AttachResponse) -> None:
        self._permits.take(frame.permits)
        self._permits.take_leaves(frame.leaves)

    def _deliver(self, outcome: types_pb2.Outcome) -> None:
        self._wire.put(outcome)
        if threading.get_ident() != self._thread:
            self._wire.poke()
        elif not self._poking:
            # Once, after every program that is ready has had its turn. Should one of them block, the next
            # heartbeat takes along what is there.
            self._poking = True
            self._loop.call_soon(self._poke)

    def _poke(self) -> None:
        self._poking = False
        self._surroundings.restore()
        if self._surroundings.restore_children():
            self._leave("a program has changed what is done when a process ends (SIGCHLD)")
            # Before the outcomes: for each the bridge would send another trial.
            self._wire.drain()
        self._wire.poke()

    def _give_back(self, attempt_id: int, reason: str) -> None:
        self._wire.give_back(attempt_id)
        self._loop.call_soon_threadsafe(self._leave, reason)

    def _leave(self, reason: str) -> None:
        if not self._leaving.is_set():
            _say(f"worker {self._name} takes no more trials: {reason}")
        self._leaving.set()

    def _told_to_end(self) -> None:
        self._end_by = min(self._end_by, self._loop.time() + DRAIN_S)
        self._leaving.set()

    def _end(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(error)


def run(
    *, address: str, worker_id: str, slots: int, quarantine: bool, recycling: Recycling, forks: Forks, scribe: Scribe
) -> NoReturn:
    """Run a worker as this process, to its end."""
    try:
        spans = telemetry.span_sink(instance=worker_id)
    except DspexError as error:
        _say(f"error: {error}")
        forks.end()
        os._exit(1)

    async def serve() -> None:
        # Its own forks, fork parent and scribe, are there by now.
        end_forks_with_this_process()
        worker = Worker(
            address=address,
            worker_id=worker_id,
            slots=slots,
            quarantine=quarantine,
            recycling=recycling,
            forks=forks,
            spans=spans,
        )
        code = await worker.run()
        forks.end()
        with contextlib.suppress(Exception):
            # A program may have set OpenTelemetry's variables to nonsense.
            telemetry.flush(FLUSH_S)
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        scribe.end()
        # Not through asyncio.run's end, which waits for threads: a hung program would keep the process.
        os._exit(code)

    run_process(serve(), loop=functools.partial(ProgramLoop, slots))
    os._exit(1)


def _give_up(error: BaseException) -> NoReturn:
    """End this process: an outcome would be missing for ever, and of a lost worker the bridge runs everything again."""
    with contextlib.suppress(BaseException):
        traceback.print_exception(error)
        sys.stderr.flush()
    os._exit(BROKEN_EXIT)


def _say(text: str) -> None:
    with contextlib.suppress(Exception):
        print(text, file=sys.stderr, flush=True)
