"""The worker's stream to the bridge, on a thread and loop of its own.

No program, async ones included, can stop heartbeats, cancels or its neighbours' outcomes by blocking.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import uvloop

import dspex_pipelines
from dspex.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from dspex_pipelines.errors import PoolUnreachable, ProtocolMismatch
from dspex_pipelines.wire.codec import (
    CHANNEL_OPTIONS,
    FRAME_BYTES,
    FRAME_TRIALS,
    HEARTBEAT_S,
    PROTOCOL_VERSION,
)
from dspex_pipelines.wire.frames import grown
from dspex_pipelines.wire.marks import Marks

CONNECT_S = 20.0


class WorkerWire:
    """Holds the `Attach` stream. Made on the thread of the loop *programs*, which it watches by *marks*.

    *on_frame* and *on_end* are called on the wire's thread.

    `put`, `poke` and `release` may be called from any thread; what waits when the writer is free goes in one frame.
    """

    def __init__(
        self,
        *,
        address: str,
        worker_id: str,
        slots: int,
        marks: Marks,
        programs: asyncio.AbstractEventLoop,
        quarantine: bool,
        on_frame: Callable[[worker_pb2.AttachResponse], None],
        on_end: Callable[[Exception | None], None],
    ) -> None:
        self._address = address
        self._worker_id = worker_id
        self._slots = slots
        self._marks = marks
        self._programs = programs
        self._program_thread = threading.get_native_id()
        self._held_by = 0
        self._quarantine = quarantine
        self._on_frame = on_frame
        self._on_end = on_end
        self._outcomes: deque[types_pb2.Outcome] = deque()
        self._released: deque[int] = deque()
        self._draining = False
        self._woken = False
        self._loop = uvloop.new_event_loop()
        self._wake = asyncio.Event()
        self._idle = threading.Event()

    def start(self) -> None:
        """Dial the bridge from a thread of its own."""
        threading.Thread(target=self._main, name="wire", daemon=True).start()

    def put(self, outcome: types_pb2.Outcome) -> None:
        """Hand over an outcome; it goes with the next `poke`, or the next heartbeat."""
        self._outcomes.append(outcome)

    def poke(self) -> None:
        """Write what waits."""
        self._idle.clear()
        if not self._woken:
            # One wake-up for however many outcomes come before the writer looks.
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake.set)

    def release(self, attempt_id: int) -> None:
        """Say that the slot of a trial settled earlier is free."""
        self._released.append(attempt_id)
        self.poke()

    def drain(self) -> None:
        """Ask the bridge for no more trials."""
        self._draining = True
        self.poke()

    def flushed(self, timeout_s: float) -> bool:
        """Wait until everything handed over has been written; return whether it was."""
        return self._idle.wait(timeout_s)

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        error: Exception | None = None
        try:
            self._loop.run_until_complete(self._attach())
        except Exception as caught:  # noqa: BLE001 - told to the main thread
            error = caught
        self._on_end(error)

    async def _attach(self) -> None:
        async with grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
            try:
                await asyncio.wait_for(channel.channel_ready(), CONNECT_S)
            except TimeoutError as error:
                raise PoolUnreachable(address=self._address, waited_s=CONNECT_S) from error
            stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
            watching = asyncio.create_task(self._watch_programs())
            try:
                async for frame in stub.Attach(self._frames()):
                    self._on_frame(frame)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                    theirs = int(json.loads(error.details() or "{}").get("protocol_version", 0))
                    raise ProtocolMismatch(ours=PROTOCOL_VERSION, theirs=theirs) from error
                if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
                    raise
            finally:
                watching.cancel()

    async def _watch_programs(self) -> None:
        """Notice when a program keeps the program loop from turning."""
        turned = True

        def turn() -> None:
            nonlocal turned
            turned = True

        while True:
            self._held_by = 0 if turned else self._marks.of(self._program_thread)
            if turned:
                turned = False
                self._programs.call_soon_threadsafe(turn)
            await asyncio.sleep(HEARTBEAT_S)

    async def _frames(self) -> AsyncIterator[worker_pb2.AttachRequest]:
        yield worker_pb2.AttachRequest(
            hello=worker_pb2.WorkerHello(
                protocol_version=PROTOCOL_VERSION,
                worker_id=self._worker_id,
                slots=self._slots,
                pid=os.getpid(),
                package_version=dspex_pipelines.__version__,
                marks_fd=self._marks.fd,
                quarantine=self._quarantine,
            )
        )
        while True:
            if not self._outcomes and not self._released:
                self._idle.set()
                try:
                    await asyncio.wait_for(self._wake.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield worker_pb2.AttachRequest(draining=self._draining, held_by=self._held_by)
                    continue
            await grown(self._outcomes)
            self._wake.clear()
            self._woken = False
            yield self._next_frame()

    def _next_frame(self) -> worker_pb2.AttachRequest:
        outcomes: list[types_pb2.Outcome] = []
        size = 0
        while self._outcomes and len(outcomes) < FRAME_TRIALS:
            size += self._outcomes[0].ByteSize()
            if outcomes and size > FRAME_BYTES:
                break
            outcomes.append(self._outcomes.popleft())
        released = [self._released.popleft() for _ in range(len(self._released))]
        return worker_pb2.AttachRequest(
            outcomes=outcomes, released_ids=released, draining=self._draining, held_by=self._held_by
        )
