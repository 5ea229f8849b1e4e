"""Bytes that nobody should send, at a real pool's socket: its processes go on, and so does who runs trials beside."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import shutil
import socket
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import psutil
import pytest
from google.protobuf.message import DecodeError

from dspex.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    pool_pb2,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
    worker_pb2,
)
from dspex_pipelines.bridge import local_pool
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.engine.program_versions import program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, ProgramSpec, TrialSpec
from dspex_pipelines.wire.codec import PROTOCOL_VERSION, program_to_wire
from tests.bridge.conftest import ROOT
from tests.bridge.fakes import RawClient, raw_client
from tests.wire.fuzz_decoders import SEEDS

MIB = 1 << 20
GROWTH_MIB = 64
SEED = 20_250_706
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
ENTRY_POINT = "tests.bridge.sized_programs:echo"
PROGRAM = ProgramSpec(entry_point=ENTRY_POINT, version=program_version(ENTRY_POINT, {}))


@pytest.fixture(scope="module")
def pool() -> Iterator[local_pool.LocalPoolLease]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    with local_pool.lease(workers=2, slots=32, idle_s=60, cwd=ROOT, runtime_root=folder) as lease:
        yield lease
    local_pool.stop(runtime_root=folder)
    shutil.rmtree(folder)


def processes(lease: local_pool.LocalPoolLease) -> dict[int, psutil.Process]:
    """The pool's bridge and workers by pid."""
    (status,) = local_pool.status(runtime_root=lease.runtime_dir.parent)
    return {child.pid: child for child in psutil.Process(status.pid).children() if child.is_running()}


def spec(text: str) -> TrialSpec:
    example = Example(example_id=text, inputs={"text": text})
    return TrialSpec(program=PROGRAM, example=example, configuration=Configuration({}))


class Neighbour:
    """Somebody who runs trials and gets what they come to, whatever else goes on."""

    def __init__(self, client: PoolClient) -> None:
        self._client = client
        self._runner = TrialRunner(client, metrics=[], space_json="", timeout_s=30)
        self._lengths = itertools.count(1)
        self.done = 0

    async def run(self) -> None:
        while True:
            lengths = [next(self._lengths) % 499 + 1 for _ in range(16)]
            outcomes = await asyncio.gather(*(self._runner.run(spec("x" * length)) for length in lengths))
            self._client.commit(len(outcomes))
            assert [self._said(outcome) for outcome in outcomes] == lengths
            self.done += len(outcomes)

    @staticmethod
    def _said(outcome: TrialOutcome) -> object:
        return outcome.outputs if isinstance(outcome, TrialResult) and outcome.attempts == 1 else outcome


@contextlib.asynccontextmanager
async def unimpressed(lease: local_pool.LocalPoolLease, *, opens_sessions: bool = False) -> AsyncIterator[Neighbour]:
    """What is done inside costs no process its life, no neighbour an outcome, and the pool no memory to speak of."""
    async with PoolClient(lease.address, connect_timeout_s=30) as client:
        neighbour = Neighbour(client)
        working = asyncio.create_task(neighbour.run())
        while neighbour.done < 64 and not working.done():
            await asyncio.sleep(0)
        before = processes(lease)
        sizes = {pid: process.memory_info().rss for pid, process in before.items()}
        sessions = (await client.status()).sessions
        done = neighbour.done
        yield neighbour
        while neighbour.done < done + 64 and not working.done():
            await asyncio.sleep(0)
        assert not working.done() or await working
        after = processes(lease)
        assert set(after) == set(before)
        assert {pid: (process.memory_info().rss - sizes[pid]) // MIB for pid, process in after.items()} == {
            pid: pytest.approx(0, abs=GROWTH_MIB) for pid in before
        }
        # Nothing was a surprise.
        assert "Traceback" not in (lease.runtime_dir / "pool.log").read_text(errors="replace")
        status = await client.status()
        assert (status.workers_lost, status.clients) == (0, 1)
        assert status.sessions == sessions or opens_sessions
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


# ---------------------------------------------------------------------- no HTTP/2, or hardly


def frame(kind: int, flags: int, stream: int, body: bytes, *, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return size.to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body


def openings(rng: random.Random) -> Iterator[bytes]:
    """What is said on a connection of its own."""
    yield b""
    yield PREFACE
    yield PREFACE[:9]
    yield b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
    yield b"\x16\x03\x01" + rng.randbytes(300)
    yield PREFACE + SETTINGS + frame(0, 0, 1, b"", length=(1 << 24) - 1) + rng.randbytes(100_000)
    yield PREFACE + SETTINGS + frame(1, 0, 1, rng.randbytes(50))
    yield PREFACE + SETTINGS + frame(1, 0x4, 1, rng.randbytes(5_000))
    yield PREFACE + SETTINGS + b"".join(frame(1, 0x4, 2 * x + 1, b"\x82\x86\x84\x41\x01x") for x in range(500))
    yield PREFACE + SETTINGS + b"".join(frame(3, 0, 2 * x + 1, bytes(4)) for x in range(500))
    yield PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 5_000
    yield PREFACE + SETTINGS * 5_000
    yield PREFACE + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 100
    for _ in range(60):
        yield rng.randbytes(rng.randrange(1, 4_000))
        yield PREFACE + rng.randbytes(rng.randrange(1, 4_000))
        yield PREFACE + SETTINGS + frame(rng.randrange(12), rng.randrange(256), rng.randrange(9), rng.randbytes(60))


async def say(path: str, opening: bytes) -> None:
    """Connect, say it, read what comes for as long as the other end keeps the connection or a moment, hang up."""
    reader, writer = await asyncio.open_unix_connection(path)
    with contextlib.suppress(OSError, TimeoutError):
        writer.write(opening)
        await writer.drain()
        async with asyncio.timeout(0.05):
            while await reader.read(65_536):
                pass
    writer.close()


async def test_bytes_on_the_socket(pool: local_pool.LocalPoolLease) -> None:
    path = pool.address.removeprefix("unix:")
    async with unimpressed(pool):
        together = asyncio.Semaphore(20)

        async def one(opening: bytes) -> None:
            async with together:
                await say(path, opening)

        await asyncio.gather(*map(one, openings(random.Random(SEED))))


async def test_connections_come_and_go_by_the_thousand(pool: local_pool.LocalPoolLease) -> None:
    path = pool.address.removeprefix("unix:")

    def storm() -> None:
        for x in range(3_000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as one:
                one.connect(path)
                if x % 2:
                    one.send(PREFACE + SETTINGS)

    async with unimpressed(pool):
        await asyncio.to_thread(storm)


# ---------------------------------------------------------------------- HTTP/2, and anything in it

MODULES = (session_pb2, execution_pb2, pool_pb2, worker_pb2)
METHODS = {
    f"/{service.full_name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
ENDS = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Clear ones: neither UNKNOWN nor INTERNAL, which are what an exception comes to."""
MALFORMED = (b"\xff", b"\x0a\xff\xff\xff\xff\x0f", b"\x0b", b"\x08" + b"\xff" * 11, b"\x80" * 200_000)


def requests(rng: random.Random) -> Iterator[bytes]:
    yield b""
    yield from MALFORMED
    for seed in SEEDS.values():
        yield seed
        for _ in range(8):
            mutant = bytearray(seed)
            for _ in range(rng.randrange(1, 5)):
                mutant[rng.randrange(len(mutant))] = rng.randrange(256)
            yield bytes(mutant[: rng.randrange(1, len(mutant) + 1)])
    for _ in range(60):
        yield rng.randbytes(rng.randrange(1, 200))


def asked_of(path: str) -> Iterator[bytes]:
    """What to call a method with: no request that drains the pool, and no hello of a worker, which gets trials."""
    for request in requests(random.Random(SEED)):
        if path.endswith("/Drain") and request not in MALFORMED:
            continue
        if path.endswith("/Attach") and says_hello(request):
            continue
        yield request


def says_hello(request: bytes) -> bool:
    with contextlib.suppress(DecodeError):
        return worker_pb2.AttachRequest.FromString(request).hello.protocol_version == PROTOCOL_VERSION
    return False


async def ended(channel: grpc.aio.Channel, path: str, request: bytes) -> grpc.StatusCode:
    """Call a method with bytes; return how it ends, OK for a stream that goes on."""
    method: Any = METHODS[path]
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(path)(*(() if method.client_streaming else (request,)), timeout=20)
    try:
        if method.client_streaming:
            await call.write(request)
            await call.done_writing()
        if method.server_streaming:
            await call.read()
            return grpc.StatusCode.OK
        await call
    except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
        pass
    finally:
        if method.server_streaming:
            call.cancel()
    return await call.code()


@pytest.mark.parametrize("path", sorted(METHODS))
async def test_anything_as_a_request(pool: local_pool.LocalPoolLease, path: str) -> None:
    opens = path.endswith("/OpenSession")
    async with unimpressed(pool, opens_sessions=opens), grpc.aio.insecure_channel(pool.address) as channel:
        together = asyncio.Semaphore(16)

        async def one(request: bytes) -> grpc.StatusCode:
            async with together:
                return await ended(channel, path, request)

        ends = Counter(await asyncio.gather(*map(one, asked_of(path))))
        assert set(ends) <= ENDS, ends
        for request in MALFORMED:
            assert await ended(channel, path, request) is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_method_that_does_not_exist(pool: local_pool.LocalPoolLease) -> None:
    async with unimpressed(pool), grpc.aio.insecure_channel(pool.address) as channel:
        for path in ("/dspex.v1.PoolService/Destroy", "/dspex.v1.Nothing/GetPool", "/", "/x" * 2_000):
            call = channel.unary_unary(path)(b"")
            assert await call.code() is grpc.StatusCode.UNIMPLEMENTED, path


# ---------------------------------------------------------------------- through the bridge, to the workers

SERIALIZATION = types_pb2.ERROR_TYPE_SERIALIZATION
UNAVAILABLE = types_pb2.ERROR_TYPE_PROGRAM_UNAVAILABLE
INVALID = types_pb2.ERROR_TYPE_INVALID_CONFIGURATION


async def opened(channel: grpc.aio.Channel, program: types_pb2.Program) -> int:
    stub: Any = session_pb2_grpc.SessionServiceStub(channel)
    session = (await stub.OpenSession(session_pb2.OpenSessionRequest(program=program))).session_id
    await stub.SetVariables(session_pb2.SetVariablesRequest(session_id=session))
    return session


async def closed(channel: grpc.aio.Channel, session: int) -> None:
    stub: Any = session_pb2_grpc.SessionServiceStub(channel)
    await stub.CloseSession(session_pb2.CloseSessionRequest(session_id=session))


async def judged(raw: RawClient, *trials: types_pb2.Trial) -> list[int]:
    """Return the types of the trials' failures, in their order; 0 for a success."""
    await raw.send(trials=trials, committed=0)
    outcomes = {outcome.id: outcome for outcome in await raw.outcomes(len(trials))}
    await raw.send(committed=len(trials))
    return [outcomes[trial.id].failure.type for trial in trials]


async def test_anything_as_an_example_or_as_outputs(pool: local_pool.LocalPoolLease) -> None:
    rng = random.Random(SEED)
    good = spec("abc").example.payload
    fields = ["1", {"text": "abc"}, {}, "", {}]
    examples = [
        b"",
        b"\xc1",
        b"\x91" * 5_000,
        b"\xdd\xff\xff\xff\xff" * 500,
        encode(None),
        encode([]),
        encode([*fields, 1]),
        *(encode([*fields[:at], wrong, *fields[at + 1 :]]) for at in range(5) for wrong in (None, 1, b"x", [1])),
        encode(["1", {1: "abc"}, {}, "", {}]),
        encode(["", {"text": "abc"}, {}, "", {}]),
        *(rng.randbytes(rng.randrange(1, 60)) for _ in range(60)),
    ]
    async with (
        unimpressed(pool),
        grpc.aio.insecure_channel(pool.address) as channel,
        raw_client(pool.address) as raw,
    ):
        session = await opened(channel, program_to_wire(PROGRAM))

        def trial(number: int, example: bytes, **more: Any) -> types_pb2.Trial:
            return types_pb2.Trial(id=number, session_id=session, version=1, example=example, **more)

        found = await judged(raw, *(trial(number, example) for number, example in enumerate(examples)))
        assert set(found) <= {SERIALIZATION, types_pb2.ERROR_TYPE_PROGRAM_EXCEPTION, INVALID}
        assert set(found[:20]) == {SERIALIZATION}
        outputs = [b"\xc1", b"\x91" * 5_000, b"\xdd\xff\xff\xff\xff" * 500, rng.randbytes(90) + b"\xc1"]
        found = await judged(raw, *(trial(number, good, outputs=one) for number, one in enumerate(outputs)))
        assert found == [SERIALIZATION] * len(outputs)
        extremes = {"seed": 2**64 - 1, "repeat": 2**32 - 1, "timeout_s": 1e308, "max_attempts": 2**32 - 1}
        assert (
            await judged(raw, *(trial(x, good, **{name: extremes[name]}) for x, name in enumerate(extremes))) == [0] * 4
        )
        await closed(channel, session)


async def test_anything_as_a_program(pool: local_pool.LocalPoolLease) -> None:
    """What only the worker can find out fails at the trial, and nothing else does."""
    good = program_to_wire(PROGRAM)

    def program(**changes: Any) -> types_pb2.Program:
        changed = types_pb2.Program()
        changed.CopyFrom(good)
        for name, value in changes.items():
            setattr(changed, name, value)
        return changed

    async with (
        unimpressed(pool),
        grpc.aio.insecure_channel(pool.address) as channel,
        raw_client(pool.address) as raw,
    ):
        for wrong, kind in (
            (program(init=b"\xc1"), SERIALIZATION),
            (program(init=b"\x91" * 900 + b"\x80"), SERIALIZATION),
            (program(init=encode([1])), SERIALIZATION),
            (program(init=encode({1: 2})), SERIALIZATION),
            (program(version="0" * 32), UNAVAILABLE),
            (program(version="\N{GRINNING FACE}" * 10_000), UNAVAILABLE),
            (program(entry_point="no.such.module:thing"), UNAVAILABLE),
            (program(entry_point="os:no_such_thing"), UNAVAILABLE),
        ):
            session = await opened(channel, wrong)
            trial = types_pb2.Trial(id=1, session_id=session, version=1, example=spec("abc").example.payload)
            assert await judged(raw, trial) == [kind], wrong
            await closed(channel, session)


async def test_calls_that_nobody_reads(pool: local_pool.LocalPoolLease) -> None:
    """Streams that are opened and left alone cost little, and end with their client."""
    async with unimpressed(pool):
        async with grpc.aio.insecure_channel(pool.address) as channel:
            watches = [
                channel.unary_stream("/dspex.v1.PoolService/WatchPool")(
                    pool_pb2.WatchPoolRequest(interval_s=interval_s).SerializeToString()
                )
                for interval_s in (0.0, -1.0, float("nan"), float("inf"), 1e-300, 1e300)
                for _ in range(30)
            ]
            stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
            streams = [stub.ExecutePrograms() for _ in range(200)]
            for watch in watches:
                assert await watch.read()
            del streams
        async with PoolClient(pool.address) as client:
            while (await client.status()).clients > 2:
                await asyncio.sleep(0.02)
