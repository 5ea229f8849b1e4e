"""The raw ceiling: the pool's own frames over two bare gRPC hops, with no sessions, dispatcher or journal.

A client awaits every trial by itself with a window of them in flight; a relay process gives each an id of its
own, as whoever stands between many clients and many workers must, and hands it to the next worker process, which
answers at once with a ready-made outcome. `per_trial=False` leaves even that out and only moves whole frames.
Given a *payload*, each trial takes so many bytes along and its outcome brings as many back.

Where it *calls*, the worker also calls a program that does nothing, in a task of its own, and its metric, and what is
answered is packed and unpacked: a bare pool, which does for a trial what none can leave out.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import subprocess
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio

from benchmarks._programs import asynchronous, same
from dspex.v1 import execution_pb2, execution_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.wire.codec import CHANNEL_OPTIONS, FRAME_BYTES, FRAME_TRIALS, SERVER_OPTIONS
from dspex_pipelines.wire.frames import grown
from dspex_pipelines.wire.loop import run_process

ROOT = Path(__file__).resolve().parent.parent


class _Box:
    """What waits for a writer."""

    def __init__(self, payload: int = 0) -> None:
        self.most = max(1, min(FRAME_TRIALS, FRAME_BYTES // max(1, payload)))
        self.waiting: deque[Any] = deque()
        self.wake = asyncio.Event()

    def put(self, messages: Any) -> None:
        self.waiting.extend(messages)
        self.wake.set()

    async def frame(self) -> list[Any]:
        while not self.waiting:
            self.wake.clear()
            await self.wake.wait()
        await grown(self.waiting)
        return [self.waiting.popleft() for _ in range(min(self.most, len(self.waiting)))]


class _Relay(execution_pb2_grpc.ExecutionServiceServicer, worker_pb2_grpc.WorkerServiceServicer):
    def __init__(self, payload: int) -> None:
        self.payload = payload
        self.workers: list[_Box] = []
        self.client = _Box(payload)
        self.turn = 0
        self.ids: dict[int, int] = {}

    async def ExecutePrograms(self, requests: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        del context
        reader = asyncio.create_task(self._deal(requests))
        try:
            while True:
                yield execution_pb2.ExecuteProgramsResponse(outcomes=await self.client.frame())
        finally:
            reader.cancel()

    async def _deal(self, requests: Any) -> None:
        async for request in requests:
            self.turn += 1
            trials = request.trials
            if not request.committed:  # stands for: give each trial an id of the relay's own
                for number, trial in enumerate(trials, start=(self.turn << 8) + 1):
                    self.ids[number] = trial.id
                    trial.id = number
            self.workers[self.turn % len(self.workers)].put(trials)

    async def Attach(self, requests: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        del context
        box = _Box(self.payload)
        self.workers.append(box)
        reader = asyncio.create_task(self._collect(requests))
        try:
            while True:
                yield worker_pb2.AttachResponse(trials=await box.frame())
        finally:
            reader.cancel()

    async def _collect(self, requests: Any) -> None:
        ids = self.ids
        async for request in requests:
            if ids:
                for outcome in request.outcomes:
                    outcome.id = ids.pop(outcome.id)
            self.client.put(request.outcomes)


async def _relay(address: str, workers: int, payload: int) -> None:
    server = grpc.aio.server(options=SERVER_OPTIONS)
    relay = _Relay(payload)
    execution_pb2_grpc.add_ExecutionServiceServicer_to_server(relay, server)
    worker_pb2_grpc.add_WorkerServiceServicer_to_server(relay, server)
    server.add_insecure_port(address)
    await server.start()
    while len(relay.workers) < workers:
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(0)


async def _worker(address: str, payload: int, *, calls: bool) -> None:
    box = _Box(payload)
    outputs, scores = encode(bytes(payload) if payload else 1), encode({"same": True})
    running: set[asyncio.Task[None]] = set()

    def outcome(trial: types_pb2.Trial, outputs: bytes, scores: bytes) -> types_pb2.Outcome:
        return types_pb2.Outcome(
            id=trial.id,
            configuration_digest=trial.trial_id,
            session_version=trial.version,
            outputs=outputs,
            scores=scores,
            run_s=0.001,
        )

    async def called(trial: types_pb2.Trial) -> None:
        example: Any = decode(trial.example)
        answer = await asynchronous(**example[1], k=trial.version)
        box.put((outcome(trial, encode(answer), encode({"same": same(example, answer)})),))

    async def frames() -> AsyncIterator[worker_pb2.AttachRequest]:
        yield worker_pb2.AttachRequest()
        while True:
            yield worker_pb2.AttachRequest(outcomes=await box.frame())

    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
        with contextlib.suppress(grpc.aio.AioRpcError):
            async for frame in stub.Attach(frames()):
                if not calls:
                    box.put(outcome(trial, outputs, scores) for trial in frame.trials)
                    continue
                for trial in frame.trials:
                    task = asyncio.create_task(called(trial))
                    running.add(task)
                    task.add_done_callback(running.discard)


@contextlib.contextmanager
def ceiling_pool(folder: Path, *, workers: int, payload: int = 0, calls: bool = False) -> Iterator[str]:
    """Start relay and workers in processes of their own; yield the relay's address."""
    address = f"unix:{folder}/{'calls' if calls else 'ceiling'}.sock"

    def start(role: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "benchmarks._ceiling", role, "--address", address, "--workers", str(workers)]
        command += ["--payload", str(payload), *["--calls"] * calls]
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    relay = start("relay")
    answering = [start("worker") for _ in range(workers)]
    try:
        assert relay.stdout is not None
        if relay.stdout.readline().strip() != "ready":
            sys.exit("the relay of the raw ceiling did not start")
        yield address
    finally:
        for process in (relay, *answering):
            process.terminate()
            process.communicate()


async def trials_per_s(
    address: str, *, count: int, window: int, per_trial: bool = True, payload: int = 0, calls: bool = False
) -> float:
    """Send *count* trials with at most *window* in flight; return the rate."""
    async with grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        await channel.channel_ready()
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
        started = time.perf_counter()
        if per_trial:
            await _each_awaited(stub, count, window, payload, calls=calls)
        else:
            await _whole_frames(stub, count, window)
        return count / (time.perf_counter() - started)


def _trial(number: int, payload: bytes = b"") -> types_pb2.Trial:
    example = encode([str(number), {"x": payload or number}, {}, "", {}])
    return types_pb2.Trial(
        id=number, trial_id=b"0123456789abcdef", session_id=1, version=1, example=example, timeout_s=60
    )


async def _each_awaited(stub: Any, count: int, window: int, payload: int, *, calls: bool) -> None:
    outbox = _Box(payload)
    carried = bytes(payload)
    pending: dict[int, asyncio.Future[types_pb2.Outcome]] = {}
    loop = asyncio.get_running_loop()
    numbers = iter(range(count))

    async def frames() -> AsyncIterator[execution_pb2.ExecuteProgramsRequest]:
        while True:
            yield execution_pb2.ExecuteProgramsRequest(trials=await outbox.frame())

    async def lane() -> None:
        for number in numbers:
            answer = pending[number] = loop.create_future()
            outbox.put((_trial(number, carried),))
            outcome = await answer
            if calls:
                decode(outcome.outputs)
                decode(outcome.scores)

    stream = stub.ExecutePrograms(frames())

    async def read() -> None:
        async for frame in stream:
            for outcome in frame.outcomes:
                pending.pop(outcome.id).set_result(outcome)

    reader = asyncio.create_task(read())
    await asyncio.gather(*(lane() for _ in range(window)))
    reader.cancel()
    stream.cancel()


async def _whole_frames(stub: Any, count: int, window: int) -> None:
    received = sent = 0
    room = asyncio.Event()

    async def frames() -> AsyncIterator[execution_pb2.ExecuteProgramsRequest]:
        nonlocal sent
        while True:
            number = min(FRAME_TRIALS, window - (sent - received), count - sent)
            if not number:
                room.clear()
                await room.wait()
                continue
            sent += number
            yield execution_pb2.ExecuteProgramsRequest(
                trials=[_trial(number) for number in range(sent - number, sent)], committed=1
            )

    stream = stub.ExecutePrograms(frames())
    async for frame in stream:
        received += len(frame.outcomes)
        room.set()
        if received == count:
            break
    stream.cancel()


def main() -> None:
    """Be the relay or a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["relay", "worker"])
    parser.add_argument("--address", required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--payload", type=int, default=0)
    parser.add_argument("--calls", action="store_true")
    arguments = parser.parse_args()
    if arguments.role == "relay":
        run_process(_relay(arguments.address, arguments.workers, arguments.payload))
    else:
        run_process(_worker(arguments.address, arguments.payload, calls=arguments.calls))


if __name__ == "__main__":
    main()
