"""A worker that leaves: what is on its way to it is answered first. The bridge is the test's own."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc.aio

from dspex.v1 import types_pb2, worker_pb2, worker_pb2_grpc
from dspex_pipelines.model.payload import encode
from dspex_pipelines.wire.codec import PROTOCOL_VERSION, program_to_wire, trial_to_wire
from tests.worker.conftest import program, spec

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20


class SlowToHear(worker_pb2_grpc.WorkerServiceServicer):
    """Sends one more trial after it was asked for no more, and says so only when that is answered."""

    def __init__(self) -> None:
        self.answered: list[int] = []
        self.heard = 0
        self.ended = asyncio.Event()
        self.wake = asyncio.Event()

    async def Attach(  # noqa: N802
        self, request_iterator: AsyncIterator[worker_pb2.AttachRequest], context: object
    ) -> AsyncIterator[worker_pb2.AttachResponse]:
        draining = asyncio.Event()

        async def read() -> None:
            async for request in request_iterator:
                self.heard += 1
                self.answered += [outcome.id for outcome in request.outcomes if not outcome.HasField("failure")]
                if request.draining:
                    draining.set()
                self.wake.set()
            self.ended.set()
            self.wake.set()

        reading = asyncio.create_task(read())
        of = program("seeded")
        welcome = worker_pb2.WorkerWelcome(protocol_version=PROTOCOL_VERSION, heartbeat_s=0.5)
        yield worker_pb2.AttachResponse(
            welcome=welcome,
            sessions=[types_pb2.Session(session_id=1, program=program_to_wire(of))],
            snapshots=[types_pb2.Snapshot(session_id=1, version=1, values=encode({}))],
            trials=[trial_to_wire(spec(of, {"x": 1}, {}), id=1, session_id=1, version=1, timeout_s=0)],
        )
        await draining.wait()
        await self.until(lambda: self.answered == [1])
        heard = self.heard
        # Signs of life: it waits, and a trial may be on its way for so long.
        await self.until(lambda: self.heard > heard + 1)
        yield worker_pb2.AttachResponse(
            trials=[trial_to_wire(spec(of, {"x": 2}, {}), id=2, session_id=1, version=1, timeout_s=0)]
        )
        await self.until(lambda: len(self.answered) == 2)
        yield worker_pb2.AttachResponse(drain=True)
        await reading

    async def until(self, true: Callable[[], bool]) -> None:
        while not true() and not self.ended.is_set():
            self.wake.clear()
            await self.wake.wait()


async def test_a_worker_that_leaves_answers_what_is_on_its_way_to_it() -> None:
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as folder:
        address = f"unix:{folder}/bridge.sock"
        server = grpc.aio.server()
        bridge = SlowToHear()
        worker_pb2_grpc.add_WorkerServiceServicer_to_server(bridge, server)
        server.add_insecure_port(address)
        await server.start()
        command = [sys.executable, "-m", "dspex_pipelines.worker", "--address", address, "--worker-id", "w"]
        worker = await asyncio.create_subprocess_exec(*command, "--max-trials", "1", cwd=ROOT)
        try:
            assert await asyncio.wait_for(worker.wait(), PATIENCE_S) == 0
        finally:
            if worker.returncode is None:
                worker.kill()
            await server.stop(None)
    assert bridge.answered == [1, 2]
    assert bridge.ended.is_set(), "it said goodbye"
