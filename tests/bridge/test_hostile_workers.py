"""Workers that speak the protocol and mean no good: each can only harm what it was given."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dspex.v1 import execution_pb2, types_pb2, worker_pb2
from dspex_pipelines.bridge import inspection
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.model.payload import encode
from dspex_pipelines.wire.codec import PROTOCOL_VERSION
from dspex_pipelines.wire.marks import Marks, MarksOfAnother
from tests.bridge.fakes import FakeWorker, channel, ready, wire_trial
from tests.bridge.victims import check, crew, timers_work, victims

MIB = 1 << 20
NAN, INF = math.nan, math.inf
EVERYBODYS = range(400)
"""The ids of all attempts that there will be."""
MOST_32, MOST_64 = 2**32 - 1, 2**64 - 1


@pytest.fixture
def address() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield f"unix:{folder}/s"
    shutil.rmtree(folder)


@pytest.fixture
async def bridge(address: str) -> AsyncIterator[Bridge]:
    async with Bridge(address, credit_limit=400) as opened:
        yield opened


@pytest.fixture
async def client(bridge: Bridge) -> AsyncIterator[PoolClient]:
    async with PoolClient(bridge.address) as opened:
        yield opened


async def send(worker: FakeWorker, **fields: Any) -> None:
    await worker.call.write(worker_pb2.AttachRequest(**fields))


def answers(worker: FakeWorker, **fields: Any) -> list[types_pb2.Outcome]:
    """What it says of the trials that it has been sent."""
    return [types_pb2.Outcome(id=number, **fields) for number in worker.seen.trials]


def failed(worker: FakeWorker, kind: int = types_pb2.ERROR_TYPE_PROGRAM_EXCEPTION, **fields: Any) -> list[Any]:
    return answers(worker, failure=types_pb2.Failure(type=kind, retryable=True, **fields))  # type: ignore[arg-type]


async def strangers_outcomes(worker: FakeWorker) -> None:
    await send(worker, outcomes=[types_pb2.Outcome(id=number) for number in (0, 10**9, MOST_64)])


async def everybodys_outcomes(worker: FakeWorker) -> None:
    await send(worker, outcomes=[types_pb2.Outcome(id=number) for number in EVERYBODYS])


async def outcomes_again_and_again(worker: FakeWorker) -> None:
    for _ in range(3):
        await send(worker, outcomes=answers(worker) * 3)


async def strangers_slots(worker: FakeWorker) -> None:
    await send(worker, released_ids=[0, 1, 10**9, MOST_64, *worker.seen.trials] * 50)


async def trials_handed_back_for_ever(worker: FakeWorker) -> None:
    for _ in range(20):
        await send(worker, returned_ids=[*EVERYBODYS, MOST_64])


async def a_made_up_past(worker: FakeWorker) -> None:
    past = [types_pb2.Attempt(number=x, message="-" * 1_000) for x in range(1_000)]
    await send(worker, outcomes=answers(worker, history=past, attempts=MOST_32))


async def numbers_that_are_none(worker: FakeWorker) -> None:
    kinds = [{"run_s": NAN}, {"run_s": -INF}, {"run_s": -1}, {"queue_s": NAN}, {"session_version": MOST_64}]
    for number, fields in zip(worker.seen.trials, [*kinds, *kinds], strict=False):
        await send(worker, outcomes=[types_pb2.Outcome(id=number, **fields)])


async def waits_that_are_none(worker: FakeWorker) -> None:
    waits = [NAN, -1.0, -INF, INF, 1e308, -0.0, NAN, NAN]
    for outcome, wait in zip(failed(worker), waits, strict=True):
        outcome.failure.retry_after_s = wait
        await send(worker, outcomes=[outcome])


async def failures_of_no_kind(worker: FakeWorker) -> None:
    for kind in (0, 99, -1):
        failure = types_pb2.Failure(type=kind, retryable=True)  # type: ignore[arg-type]
        await send(worker, outcomes=[types_pb2.Outcome(id=number, failure=failure) for number in EVERYBODYS])


async def long_stories(worker: FakeWorker) -> None:
    for outcome in failed(worker, message="-" * MIB, fingerprint="-" * MIB, traceback="-" * MIB):
        await send(worker, outcomes=[outcome])


async def another_configuration(worker: FakeWorker) -> None:
    await send(worker, outcomes=answers(worker, configuration_digest=b"another" * 100_000))


async def payloads_that_are_none(worker: FakeWorker) -> None:
    (trial, *_) = worker.seen.trials.values()
    digest = worker.seen.snapshots[trial.session_id, trial.version].digest
    await send(
        worker, outcomes=answers(worker, configuration_digest=digest, outputs=b"\xc1", scores=b"\xc1", trace=b"\xc1")
    )


async def held_by_strangers(worker: FakeWorker) -> None:
    for number in (1, MOST_64, 10**9):
        await send(worker, held_by=number)


async def leaving_and_staying(worker: FakeWorker) -> None:
    for draining in (True, False) * 20:
        await send(worker, draining=draining)


async def who_it_is_again(worker: FakeWorker) -> None:
    hello = worker_pb2.WorkerHello(protocol_version=PROTOCOL_VERSION, worker_id="good", slots=MOST_32)
    await send(worker, hello=hello)


async def nothing_at_all(worker: FakeWorker) -> None:
    for _ in range(2_000):
        await send(worker)


async def calls_that_failed_for_ever(worker: FakeWorker) -> None:
    for number, run_s in zip(worker.seen.trials, (NAN, INF, -INF, -1.0, 1e308), strict=False):
        past = [types_pb2.Attempt(run_s=run_s, queue_s=run_s, call="a/b", usage=b"\xc1", type=99)]  # type: ignore[arg-type]
        failure = types_pb2.Failure(type=types_pb2.ERROR_TYPE_PROGRAM_EXCEPTION, retryable=True)
        await send(worker, outcomes=[types_pb2.Outcome(id=number, failure=failure, history=past)])
        await send(worker, outcomes=[types_pb2.Outcome(id=number + 1, history=past, throttled_s=run_s)])


async def much_used(worker: FakeWorker) -> None:
    seen: set[int] = set()
    for _ in range(8):
        new = [number for number in worker.seen.trials if number not in seen][:1]
        seen.update(new)
        failure = types_pb2.Failure(type=types_pb2.ERROR_TYPE_PROGRAM_EXCEPTION, retryable=True)
        outcomes = [types_pb2.Outcome(id=number, failure=failure, usage=b"-" * (12 * MIB)) for number in new]
        await send(worker, outcomes=outcomes)


async def long_stories_of_calls(worker: FakeWorker) -> None:
    past = [types_pb2.Attempt(call="a/b", message="\N{COLLISION SYMBOL}" * 4_000) for _ in range(500)]
    failure = types_pb2.Failure(type=types_pb2.ERROR_TYPE_PROGRAM_EXCEPTION, retryable=True)
    first = next(iter(worker.seen.trials))
    await send(worker, outcomes=[types_pb2.Outcome(id=first, failure=failure, history=past)])
    newest = max(worker.seen.trials)
    while worker.seen.trials[newest].attempt == 1:
        # Its slot is for another one, until the turn of the first has come again.
        await worker.until(lambda seen, newest=newest: max(seen.trials) > newest)
        newest = max(worker.seen.trials)
        if worker.seen.trials[newest].attempt == 1:
            await send(worker, outcomes=[types_pb2.Outcome(id=newest, failure=failure, history=past)])
    await send(worker, outcomes=[types_pb2.Outcome(id=newest, history=past, outputs=b"-" * (7 * MIB))])


async def more_used_than_can_be_counted(worker: FakeWorker) -> None:
    failure = types_pb2.Failure(type=types_pb2.ERROR_TYPE_PROGRAM_EXCEPTION, retryable=True)
    for usage in ({"tokens": MOST_64}, {"tokens": -(2**63)}, {"cost_usd": 1.7e308}, {"cost_usd": NAN}, {"tokens": "a"}):
        await send(worker, outcomes=answers(worker, failure=failure, usage=encode(usage)))


async def calls_without_end(worker: FakeWorker) -> None:
    for begun in (False, True):
        asks = [
            worker_pb2.CallAsk(id=x + 10_000 * begun, trial_id=x % 9, model=f"a/{x}", begun=begun) for x in range(3_000)
        ]
        await send(worker, asks=asks)


async def the_same_call_again_and_again(worker: FakeWorker) -> None:
    ask = worker_pb2.CallAsk(id=1, trial_id=next(iter(worker.seen.trials)), model="a/b")
    end = worker_pb2.CallEnd(id=1, verdict=worker_pb2.CALL_VERDICT_OK)
    for _ in range(5):
        await send(worker, asks=[ask] * 3, ends=[end] * 3)
        await send(worker, ends=[end] * 3)
        await send(worker, asks=[ask, worker_pb2.CallAsk(id=1, model="a/c", begun=True)])


async def ends_of_nothing(worker: FakeWorker) -> None:
    for verdict in (*worker_pb2.CallVerdict.values(), 99, -1):
        await send(worker, ends=[worker_pb2.CallEnd(id=x, verdict=verdict) for x in (0, 1, MOST_64)])  # type: ignore[arg-type]


async def calls_of_strangers(worker: FakeWorker) -> None:
    asks = [worker_pb2.CallAsk(id=x, trial_id=x, model="a/b", tokens=MOST_64) for x in (*EVERYBODYS, MOST_64)]
    await send(worker, asks=asks)
    await send(worker, ends=[worker_pb2.CallEnd(id=x, tokens=MOST_64) for x in EVERYBODYS])


async def models_that_are_none(worker: FakeWorker) -> None:
    for number, model in enumerate(("", "m" * MIB, "\n\x1b[31m\0", "[*]?", "@", "\N{RIGHT-TO-LEFT OVERRIDE}a/b")):
        for begun in (False, True):
            ask = worker_pb2.CallAsk(id=2 * number + begun, trial_id=1, model=model, begun=begun)
            await send(worker, asks=[ask])


async def ends_that_are_none(worker: FakeWorker) -> None:
    ids = itertools.count(1)
    for verdict in (*worker_pb2.CallVerdict.values(), 99, -1):
        for wait in (NAN, -1.0, -INF, INF, 1e308, -0.0):
            number = next(ids)
            end = worker_pb2.CallEnd(id=number, verdict=verdict, retry_after_s=wait, tokens=MOST_64)  # type: ignore[arg-type]
            ask = worker_pb2.CallAsk(id=number, trial_id=1, model=f"a/{number}", tokens=MOST_64)
            await send(worker, asks=[ask])
            await send(worker, ends=[end])


@pytest.mark.parametrize(
    "does",
    [
        pytest.param(does, id=does.__name__)
        for does in (
            strangers_outcomes,
            everybodys_outcomes,
            outcomes_again_and_again,
            strangers_slots,
            trials_handed_back_for_ever,
            a_made_up_past,
            numbers_that_are_none,
            waits_that_are_none,
            failures_of_no_kind,
            long_stories,
            another_configuration,
            payloads_that_are_none,
            held_by_strangers,
            leaving_and_staying,
            who_it_is_again,
            nothing_at_all,
            calls_that_failed_for_ever,
            much_used,
            long_stories_of_calls,
            more_used_than_can_be_counted,
            calls_without_end,
            the_same_call_again_and_again,
            ends_of_nothing,
            calls_of_strangers,
            models_that_are_none,
            ends_that_are_none,
        )
    ],
)
async def test_a_hostile_worker_harms_only_what_it_was_given(
    bridge: Bridge, client: PoolClient, does: Callable[[FakeWorker], Any]
) -> None:
    async with FakeWorker(bridge.address, "hostile", 8) as hostile:
        running = victims(client)
        await hostile.until(lambda seen: len(seen.trials) == 8)
        await does(hostile)
        # It has been heard when it is answered: a heartbeat later, it is still there, or gone with a reason.
        async with crew(bridge.address):
            done = asyncio.gather(*running[8:])
            await asyncio.wait([*running[8:]], return_when=asyncio.FIRST_COMPLETED)
            await hostile.__aexit__()
            async with asyncio.timeout(60):
                await done
                theirs = check(await asyncio.gather(*running))
            client.commit(len(running))
            assert len(theirs) <= 32
    await timers_work(client, bridge.address)
    assert bridge.hub.dispatcher.stats().in_flight == 0
    models = (await client.status()).models
    assert not any(model.waiting or model.in_flight for model in models)
    assert all(model.model.isprintable() for model in models)


@pytest.mark.parametrize(
    ("hello", "why"),
    [
        pytest.param({"slots": MOST_32}, "at most", id="all-slots"),
        pytest.param({"slots": 0}, "at least 1", id="no-slots"),
        pytest.param({"worker_id": ""}, "name", id="no-name"),
        pytest.param({"worker_id": "w" * 201}, "name", id="long-name"),
        pytest.param({"worker_id": "w\0"}, "name", id="unprintable-name"),
        pytest.param({"worker_id": "good"}, "attached already", id="another's-name"),
        pytest.param({"protocol_version": 0}, "protocol", id="no-version"),
    ],
)
async def test_a_hello_that_cannot_be_is_refused(
    bridge: Bridge, client: PoolClient, hello: dict[str, Any], why: str
) -> None:
    async with crew(bridge.address):
        worker = FakeWorker(bridge.address, "hostile", 4)
        for name, value in hello.items():
            setattr(worker.hello, name, value)
        with pytest.raises(grpc.aio.AioRpcError, match=why) as refusal:
            await worker.__aenter__()
        assert refusal.value.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
        await worker.__aexit__()
        assert {one.worker_id for one in (await client.status()).workers} == {"good", "patient"}
        assert check(await asyncio.gather(*victims(client))) == []


async def test_a_frame_that_is_none_ends_the_stream_that_sent_it_alone(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    hello = worker_pb2.WorkerHello(protocol_version=PROTOCOL_VERSION, worker_id="hostile", slots=1)
    first = execution_pb2.ExecuteProgramsRequest(protocol_version=PROTOCOL_VERSION, trials=[wire_trial(1, session)])
    async with crew(bridge.address), channel(bridge.address, MIB) as dialled:
        running = victims(client)
        for path, opening in (
            ("/dspex.v1.WorkerService/Attach", worker_pb2.AttachRequest(hello=hello)),
            ("/dspex.v1.ExecutionService/ExecutePrograms", first),
        ):
            call = dialled.stream_stream(path)()
            await call.write(opening.SerializeToString())
            await call.write(b"\xff\xff")
            with pytest.raises(grpc.aio.AioRpcError, match="not a frame") as refusal:
                while await call.read() is not grpc.aio.EOF:
                    pass
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        check(await asyncio.gather(*running))


async def test_a_past_stays_short_however_often_its_workers_are_lost(
    bridge: Bridge, client: PoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspex_pipelines.bridge.outcomes.MOST_ATTEMPTS", 3)
    (running,) = victims(client, 1)
    for turn in range(5):
        async with FakeWorker(bridge.address, f"w{turn}", 1) as worker:
            await worker.until(lambda seen: len(seen.trials) == 1)
            await send(worker, draining=True, returned_ids=[*worker.seen.trials])
            await worker.call.done_writing()
            with contextlib.suppress(EOFError):
                while True:
                    await worker.next()
    async with crew(bridge.address):
        outcome = await running
    assert (outcome.attempts, [past.worker for past in outcome.history]) == (6, ["w2", "w3", "w4"])


# ---------------------------------------------------------------------- what a worker says of its process


def pipe_without_writer(folder: Path) -> int:
    reader, writer = os.pipe()
    os.close(writer)
    return reader


def other_file(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY)


def short_table(folder: Path) -> int:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 8)
    return fd


def named_pipe(folder: Path) -> int:
    os.mkfifo(folder / "pipe")
    return os.open(folder / "pipe", os.O_RDWR)


@pytest.mark.parametrize("make", [pipe_without_writer, other_file, short_table, named_pipe])
def test_what_is_no_table_is_not_read(make: Callable[[Path], int], tmp_path: Path) -> None:
    fd = make(tmp_path)
    assert MarksOfAnother.open(os.getpid(), fd) is None
    os.close(fd)
    for pid, number in ((MOST_64, 3), (0, 3), (1, 10**9), (os.getpid(), -1), (os.getpid(), 0)):
        assert MarksOfAnother.open(pid, number) is None


def test_a_table_that_is_cut_off_is_empty() -> None:
    """Were it mapped, reading it would be the end of the process that reads."""
    marks = Marks()
    marks.mark(7)
    table = MarksOfAnother.open(os.getpid(), marks.fd)
    assert table is not None
    assert list(table.running().values()) == [7]
    os.ftruncate(marks.fd, 13)
    assert table.running() == {}
    os.ftruncate(marks.fd, 0)
    assert table.running() == {}


def test_a_name_kills_no_process_but_the_worker_of_that_name() -> None:
    waits = "import time; time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", waits, "--address", "a", "--worker-id", "w-1"]) as other:
        while b"--worker-id" not in Path(f"/proc/{other.pid}/cmdline").read_bytes():
            time.sleep(0.01)
        for name in ("-c", sys.executable, "--worker-id", "w-", "w", "a", ""):
            assert not inspection.kill(other.pid, name), name
        assert other.poll() is None
        assert inspection.kill(other.pid, "w-1")
        other.wait()
