"""The worker's stream to the bridge, on a thread and loop of its own.

No program, async ones included, can stop heartbeats, cancels or its neighbours' outcomes by blocking.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import uvloop

import dspex_pipelines
from dspex.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from dspex_pipelines.engine.recycling import Recycling
from dspex_pipelines.errors import PoolUnreachable, ProtocolMismatch
from dspex_pipelines.wire.channels import connected
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
FRAME_ASKS = 1_024
LOOK_S = 0.05
"""At most so often a worker looks at its own memory. Busy, it does so with the frames: a leak can fill a machine
between two heartbeats."""


class WorkerWire:
    """Holds the `Attach` stream. Made on the thread of the loop *programs*, which it watches by *marks*.

    *on_frame*, *on_permits*, *on_worn* (with the reason, once *recycling* has one to replace this worker) and *on_end*
    are called on the wire's thread.

    All methods may be called from any thread; what waits when the writer is free goes in one frame.
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
        recycling: Recycling,
        on_frame: Callable[[worker_pb2.AttachResponse], None],
        on_permits: Callable[[worker_pb2.AttachResponse], None],
        on_worn: Callable[[str], None],
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
        self._recycling = recycling
        self._on_frame = on_frame
        self._on_permits = on_permits
        self._on_worn = on_worn
        self._on_end = on_end
        self._outcomes: deque[types_pb2.Outcome] = deque()
        self._released: deque[int] = deque()
        self._returned: deque[int] = deque()
        self._asks: deque[worker_pb2.CallAsk] = deque()
        self._ends: deque[worker_pb2.CallEnd] = deque()
        self._taken = 0
        self._first_rss_mb = 0.0
        """What it held at its first outcome; 0 before."""
        self._look_at = 0.0
        self._draining = False
        self._leaving = False
        self._woken = False
        self._loop = uvloop.new_event_loop()
        self._wake = asyncio.Event()

    def start(self) -> None:
        """Dial the bridge from a thread of its own."""
        threading.Thread(target=self._main, name="wire", daemon=True).start()

    def put(self, outcome: types_pb2.Outcome) -> None:
        """Hand over an outcome; it goes with the next `poke`, or the next heartbeat."""
        if not self._first_rss_mb:
            with contextlib.suppress(OSError):
                self._first_rss_mb = resident_mb()
        self._outcomes.append(outcome)

    def poke(self) -> None:
        """Write what waits."""
        if not self._woken:
            # One wake-up for however many outcomes come before the writer looks.
            self._woken = True
            self._loop.call_soon_threadsafe(self._wake.set)

    def release(self, attempt_id: int) -> None:
        """Say that the slot of a trial settled earlier is free."""
        self._released.append(attempt_id)
        self.poke()

    def ask(self, call: worker_pb2.CallAsk) -> None:
        """Ask for leave to call a model, or tell with the next frame of a call that has gone without."""
        self._asks.append(call)
        if not call.begun:
            self.poke()

    def end(self, call: worker_pb2.CallEnd, at_once: bool) -> None:  # noqa: FBT001 - a callback
        """Say how a call to a model went: at once, unless it went well and nobody waits for its place."""
        self._ends.append(call)
        if at_once:
            self.poke()

    def give_back(self, attempt_id: int) -> None:
        """Say that a trial has not begun and cannot begin here, and ask for no more."""
        # First: a worker that stays would be sent the trial again.
        self._draining = True
        self._returned.append(attempt_id)
        self.poke()

    def drain(self) -> None:
        """Ask the bridge for no more trials."""
        self._draining = True
        self.poke()

    def leave(self) -> None:
        """Write what waits, and end the stream; *on_end* is called once the bridge has read everything."""
        self._leaving = True
        self.poke()

    def _main(self) -> None:
        asyncio.set_event_loop(self._loop)
        error: Exception | None = None
        try:
            self._loop.run_until_complete(self._attach())
        except Exception as caught:  # noqa: BLE001 - told to the main thread
            error = caught
        except asyncio.CancelledError:
            # gRPC's way to say that no frame could be made.
            error = RuntimeError("the stream to the bridge broke off on this side")
        self._on_end(error)

    async def _attach(self) -> None:
        async with grpc.aio.insecure_channel(self._address, options=CHANNEL_OPTIONS) as channel:
            try:
                await connected(channel, within_s=CONNECT_S)
            except TimeoutError as error:
                fix = "give the address of a pool that runs"
                raise PoolUnreachable(address=self._address, waited_s=CONNECT_S, fix=fix) from error
            stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
            watching = asyncio.create_task(self._watch_programs())
            try:
                async for frame in stub.Attach(self._frames()):
                    self._taken += len(frame.trials)
                    if frame.permits or frame.leaves:
                        # Here, whatever programs do with their loop.
                        self._on_permits(frame)
                    self._on_frame(frame)
                    self._look_at_itself()
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
            self._look_at_itself()
            await asyncio.sleep(HEARTBEAT_S)

    def _look_at_itself(self) -> None:
        """Take no more trials once there is a reason to be replaced."""
        now = self._loop.time()
        most = self._recycling.max_trials
        if self._draining or (now < self._look_at and not 0 < most <= self._taken):
            return
        self._look_at = now + LOOK_S
        try:
            reason = self._recycling.reason(
                rss_mb=resident_mb(), first_rss_mb=self._first_rss_mb or float("inf"), trials=self._taken
            )
        except OSError as error:
            # Programs have left none over, and their neighbours need some.
            reason = f"it has no file descriptors: {error}"
        if reason:
            self.drain()
            self._on_worn(reason)

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
            if not (self._woken or self._outcomes or self._released or self._returned):
                if self._leaving:
                    return
                # When nothing happens, a frame is a heartbeat.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._wake.wait(), HEARTBEAT_S)
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
        returned = [self._returned.popleft() for _ in range(len(self._returned))]
        # Ends first: what calls are these that have ended is then among what was asked, here or before.
        ends = [self._ends.popleft() for _ in range(len(self._ends))]
        asks = [self._asks.popleft() for _ in range(min(FRAME_ASKS, len(self._asks)))]
        if self._asks:
            self._ends.extendleft(reversed(ends))
            ends = []
            self._woken = True
        return worker_pb2.AttachRequest(
            outcomes=outcomes,
            released_ids=released,
            returned_ids=returned,
            asks=asks,
            ends=ends,
            draining=self._draining,
            held_by=self._held_by,
        )


def resident_mb() -> float:
    """Return the resident memory of this process in MiB; 0 where the system does not tell. Raises `OSError`."""
    try:
        with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 - many times a second
            return int(file.read().split()[1]) * resource.getpagesize() / (1 << 20)
    except FileNotFoundError:
        return 0.0
