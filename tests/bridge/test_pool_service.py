"""The pool as a whole: who works in it, its health, and how it is drained."""

from __future__ import annotations

import asyncio
import gc
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dspex.v1 import execution_pb2, execution_pb2_grpc, pool_pb2, pool_pb2_grpc
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.errors import PoolFailed, PoolInterrupted
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from tests.bridge.fakes import FakeWorker, ready, run_trial, wire_trial

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
            running = asyncio.gather(*(run_trial(client, session) for _ in range(5)))
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
        running = asyncio.gather(*(run_trial(client, session) for _ in range(5)))
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
        late = await run_trial(client, session)
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
            refused = await run_trial(other, session)
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


async def test_a_pool_that_gives_up_leaves_no_error_that_nobody_takes(address: str) -> None:
    """Python says so on standard error when it collects the task, at whatever moment that is."""
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: told.append(what))
    async with Bridge(address) as bridge, PoolClient(bridge.address) as client:
        session = await ready(client)
        bridge.fail("no worker starts")
        # A write of the client's that meets the end is told as gRPC's own failure, after which it dials again.
        with pytest.raises((PoolFailed, PoolInterrupted)):
            await run_trial(client, session)
    gc.collect()
    assert not told


async def _status_of(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value.code(), refusal.value.details() or ""
