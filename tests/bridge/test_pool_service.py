"""The pool as a whole: who works in it, its health, and how it is drained."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dspex.v1 import (
    execution_pb2,
    execution_pb2_grpc,
    pool_pb2,
    pool_pb2_grpc,
    session_pb2,
    session_pb2_grpc,
    types_pb2,
    worker_pb2,
)
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.pool_status import ask_status
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.errors import PoolUnreachable
from dspex_pipelines.model.calls import CallPolicy
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from tests.bridge.fakes import PROGRAM, TRIAL, FakeWorker, ready, wire_trial

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("", *(f"dspex.v1.{name}Service" for name in ("Session", "Execution", "Worker", "Pool")))


@pytest.fixture
def address() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield f"unix:{folder}/s"
    shutil.rmtree(folder)


@pytest.fixture
async def bridge(address: str) -> AsyncIterator[Bridge]:
    async with Bridge(address) as opened:
        yield opened


@pytest.fixture
async def client(bridge: Bridge) -> AsyncIterator[PoolClient]:
    async with PoolClient(bridge.address) as opened:
        yield opened


@pytest.fixture
async def channel(bridge: Bridge) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(bridge.address) as opened:
        yield opened


async def health(channel: grpc.aio.Channel) -> set[int]:
    """What the bridge says of its services, all of them."""
    stub: Any = health_pb2_grpc.HealthStub(channel)
    checks = [stub.Check(health_pb2.HealthCheckRequest(service=service)) for service in SERVICES]
    return {answer.status for answer in await asyncio.gather(*checks)}


async def test_a_watcher_of_the_pool_sees_who_works_and_the_end(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with grpc.aio.insecure_channel(bridge.address) as channel:
        stub: Any = pool_pb2_grpc.PoolServiceStub(channel)
        watch = aiter(stub.WatchPool(pool_pb2.WatchPoolRequest(interval_s=0.01)))

        async def until(true: Callable[[pool_pb2.PoolStatus], bool]) -> pool_pb2.PoolStatus:
            while not true(status := (await anext(watch)).status):
                pass
            return status

        await until(lambda status: not status.workers and status.clients == 1 and status.sessions == 1)
        async with FakeWorker(bridge.address, "w", 2) as worker:
            running = asyncio.gather(
                *(client.execute(TRIAL, session_id=session, version=1, timeout_s=0) for _ in range(5))
            )
            busy = await until(lambda status: status.in_flight == 2)
            assert (busy.queue_depth, busy.settled, busy.workers[0].in_flight) == (3, 0, 2)
            await worker.work(until=lambda seen: len(seen.trials) == 5)
            await running
            done = await until(lambda status: status.settled == 5)
            assert (done.workers[0].worker_id, done.workers[0].done, done.in_flight, done.queue_depth) == ("w", 5, 0, 0)
        await until(lambda status: status.workers_lost == 1 and not status.workers)
        await bridge.close()
        assert all([not answer.status.workers async for answer in watch])


async def test_a_draining_pool_finishes_what_it_has_and_takes_no_more(
    bridge: Bridge, client: PoolClient, channel: grpc.aio.Channel
) -> None:
    session = await ready(client)
    stub: Any = health_pb2_grpc.HealthStub(channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    async with FakeWorker(bridge.address, "w", 2) as worker:
        running = asyncio.gather(*(client.execute(TRIAL, session_id=session, version=1, timeout_s=0) for _ in range(5)))
        await worker.until(lambda seen: len(seen.trials) == 2)
        while (await client.status()).queue_depth < 3:
            pass
        assert not (await client.status()).draining
        assert (await watch.read()).status == SERVING
        assert await health(channel) == {SERVING}
        drained = await client.drain()
        assert (drained.draining, drained.queue_depth, drained.in_flight) == (True, 3, 2)
        assert (await watch.read()).status == NOT_SERVING
        assert await health(channel) == {NOT_SERVING}
        late = await client.execute(TRIAL, session_id=session, version=1, timeout_s=0)
        assert isinstance(late, TrialError)
        assert (late.type, late.retryable) == (ErrorType.CANCELLED, True)
        assert "draining" in late.message
        await worker.work(until=lambda seen: len(seen.trials) == 5)
        assert [type(outcome) for outcome in await running] == [TrialResult] * 5
        done = await client.drain()
        assert (done.draining, done.queue_depth, done.in_flight, done.settled) == (True, 0, 0, 5)
        # Another client is told the same.
        async with PoolClient(bridge.address) as other:
            assert (await other.status()).draining
            refused = await other.execute(TRIAL, session_id=session, version=1, timeout_s=0)
            assert isinstance(refused, TrialError)
            assert "draining" in refused.message


@pytest.mark.parametrize("call", ["before", "after"])
async def test_a_unary_call_hears_that_the_pool_gives_up(
    bridge: Bridge, client: PoolClient, channel: grpc.aio.Channel, call: str
) -> None:
    session = await ready(client)
    stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
    request = execution_pb2.ExecuteProgramRequest(trial=wire_trial(1, session))
    reason = "no worker starts \N{GRINNING FACE}" * 1_000
    if call == "after":
        bridge.fail(reason)
    running = asyncio.create_task(_status_of(stub.ExecuteProgram(request)))
    if call == "before":
        while (await client.status()).queue_depth < 1:
            pass
        bridge.fail(reason)
    code, details = await running
    assert code is grpc.StatusCode.ABORTED
    assert details.startswith("no worker starts")


async def _status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value.code(), refusal.value.details() or ""


async def test_whoever_asks_for_the_status_is_no_client_and_sees_the_models(bridge: Bridge, client: PoolClient) -> None:
    limit = RateLimit(model="openai/*", max_concurrency=1)
    session = await client.open_session(PROGRAM, [], "", CallPolicy(limits=(limit,)))
    await client.set_variables(session, {"k": 1})
    assert (await ask_status(bridge.address, within_s=10)).models == ()
    async with FakeWorker(bridge.address, "w", 2) as worker:
        running = asyncio.gather(*(client.execute(TRIAL, session_id=session, version=1, timeout_s=0) for _ in range(2)))
        await worker.until(lambda seen: len(seen.trials) == 2)
        asks = [
            worker_pb2.CallAsk(id=number, trial_id=trial_id, model="openai/m")
            for number, trial_id in enumerate(worker.seen.trials, start=1)
        ]
        await worker.call.write(worker_pb2.AttachRequest(asks=asks))
        while not (models := (await ask_status(bridge.address, within_s=10)).models) or not models[0].in_flight:
            pass
        (model,) = models
        assert (model.model, model.in_flight, model.window, model.waiting) == ("openai/m", 1, 1.0, 1)
        status = await client.status()
        assert status.models[0].model == "openai/m"
        assert (status.clients, status.in_flight) == (1, 2)
        await worker.work(until=lambda seen: len(seen.trials) == 2)
        await running


@pytest.mark.parametrize("address", ["unix:/nowhere/at/all", "127.0.0.1:1"])
async def test_a_status_that_nobody_gives_is_told_as_such(address: str) -> None:
    with pytest.raises(PoolUnreachable):
        await ask_status(address, within_s=0.5)


@pytest.mark.parametrize("traceparent", ["", "00-nothing-01", "00-" + "0" * 32 + "-" + "1" * 16 + "-01"])
async def test_a_session_of_a_trace_that_cannot_be_is_refused(
    bridge: Bridge, channel: grpc.aio.Channel, traceparent: str
) -> None:
    stub: Any = session_pb2_grpc.SessionServiceStub(channel)
    program = types_pb2.Program(entry_point="m:p", version="1")
    trace = types_pb2.TraceContext(traceparent=traceparent, share=1.0)
    code, details = await _status_of(stub.OpenSession(session_pb2.OpenSessionRequest(program=program, trace=trace)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "trace" in details
