"""`python -m dspex_pipelines.worker`: attach to a bridge and run programs until it goes away."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines.errors import ProtocolMismatch
from dspex_pipelines.wire.loop import run_process
from dspex_pipelines.wire.marks import Marks
from dspex_pipelines.worker.program_executor import ProgramExecutor
from dspex_pipelines.worker.wire import WorkerWire

PROTOCOL_EXIT = 3
DRAIN_S = 30.0


def make_importable(folder: str) -> None:
    """Let programs in *folder* be imported by name."""
    if folder not in sys.path:
        sys.path.insert(0, folder)


async def serve(*, address: str, worker_id: str, slots: int, quarantine: bool = False) -> int:
    """Run trials until the bridge goes away or drains this worker; return the exit code."""
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Exception | None] = loop.create_future()
    draining = asyncio.Event()

    def on_end(error: Exception | None) -> None:
        loop.call_soon_threadsafe(lambda: ended.done() or ended.set_result(error))

    program_thread = threading.get_ident()
    marks = Marks()
    wire = WorkerWire(
        address=address,
        worker_id=worker_id,
        slots=slots,
        marks=marks,
        programs=loop,
        quarantine=quarantine,
        on_frame=lambda frame: loop.call_soon_threadsafe(take, frame) and None,
        on_end=on_end,
    )
    poking = False

    def poke() -> None:
        nonlocal poking
        poking = False
        wire.poke()

    def deliver(outcome: types_pb2.Outcome) -> None:
        nonlocal poking
        wire.put(outcome)
        if threading.get_ident() != program_thread:
            wire.poke()
        elif not poking:
            # Once, after every program that is ready has had its turn. Should one of them block, the next
            # heartbeat takes along what is there.
            poking = True
            loop.call_soon(poke)

    executor = ProgramExecutor(slots=slots, deliver=deliver, release=wire.release, marks=marks)

    def take(frame: worker_pb2.AttachResponse) -> None:
        for session in frame.sessions:
            executor.context.open(session)
        for snapshot in frame.snapshots:
            executor.context.add(snapshot)
        for trial in frame.trials:
            submit(trial)
        for attempt_id in frame.cancel_ids:
            executor.cancel(attempt_id)
        for session_id in frame.closed_session_ids:
            executor.context.close(session_id)
        if frame.drain:
            draining.set()

    def submit(trial: types_pb2.Trial) -> None:
        executor.submit(trial)

    loop.add_signal_handler(signal.SIGTERM, draining.set)
    loop.add_signal_handler(signal.SIGINT, draining.set)
    wire.start()
    drained = asyncio.create_task(draining.wait())
    await asyncio.wait({ended, drained}, return_when=asyncio.FIRST_COMPLETED)
    if drained.done() and not ended.done():
        wire.drain()
        deadline = loop.time() + DRAIN_S
        while executor.running and loop.time() < deadline and not ended.done():
            await asyncio.sleep(0.05)
        await asyncio.to_thread(wire.flushed, 1.0)
        return 0
    error = ended.result()
    if isinstance(error, ProtocolMismatch):
        print(error, file=sys.stderr, flush=True)
        return PROTOCOL_EXIT
    if error is not None:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dspex_pipelines.worker", description=__doc__)
    parser.add_argument("--address", required=True, help="the bridge: unix:/path or host:port")
    parser.add_argument("--worker-id", required=True, help="a name that no other worker has")
    parser.add_argument("--slots", type=int, default=256, help="trials to run at once")
    parser.add_argument("--quarantine", action="store_true", help="run only trials suspected of killing a worker")
    arguments = parser.parse_args()
    make_importable(str(Path.cwd()))
    # What programs print goes where the worker's log goes.
    os.dup2(2, 1)
    code = run_process(
        _until_end(
            serve(
                address=arguments.address,
                worker_id=arguments.worker_id,
                slots=arguments.slots,
                quarantine=arguments.quarantine,
            )
        )
    )
    os._exit(code)


async def _until_end(serving: Coroutine[Any, Any, int]) -> int:
    code = await serving
    sys.stdout.flush()
    sys.stderr.flush()
    # Not through asyncio.run's end, which waits for threads: a hung program would keep the process.
    os._exit(code)


if __name__ == "__main__":
    main()
