"""How long sessions and their versions live, and how many and how large they may be."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dspex.v1 import session_pb2, session_pb2_grpc
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.bridge.sessions import SessionLimits, SessionStore
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable, QuotaExceeded, UnknownSession
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import ProgramSpec
from dspex_pipelines.model.variables import Integer
from dspex_pipelines.wire.codec import MESSAGE_LIMIT
from tests.bridge.fakes import PROGRAM, TRIAL, FakeWorker, doing, ready, run_trial

TTL_S = 60.0


@pytest.fixture
def address() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="dspex-t-"))
    yield f"unix:{folder}/s"
    shutil.rmtree(folder)


@pytest.fixture
async def bridge(address: str) -> AsyncIterator[Bridge]:
    async with Bridge(address, allow=("somewhere.*",)) as opened:
        yield opened


@pytest.fixture
async def client(bridge: Bridge) -> AsyncIterator[PoolClient]:
    async with PoolClient(bridge.address) as opened:
        yield opened


async def sessions(client: PoolClient, count: int) -> None:
    """Return once the bridge holds so many."""
    while (await client.status()).sessions != count:
        await asyncio.sleep(0.02)


# ---------------------------------------------------------------------- time to live and quota


def opened(**limits: Any) -> tuple[SessionStore, int]:
    store = SessionStore(SessionLimits(**limits))
    return store, store.open(b"", None).session_id


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda store, session: store.set_variables(session, {"k": 2}), id="set"),
        pytest.param(lambda store, session: store.set_variables(session, {"k": 1}), id="set-what-is-set"),
        pytest.param(lambda store, session: store.snapshot(session), id="get"),
        pytest.param(lambda store, session: store.watching(session).__enter__().closed, id="watch"),
        pytest.param(lambda store, session: (store.pin(session, 1), store.unpin(session, 1)), id="trial"),
    ],
)
def test_a_use_keeps_a_session_for_its_time(use: Callable[[SessionStore, int], object]) -> None:
    store, session = opened(ttl_s=TTL_S)
    store.set_variables(session, {"k": 1})
    assert store.expire(0) == []
    use(store, session)
    assert store.expire(50) == []
    assert store.expire(50 + TTL_S - 1) == []
    assert store.expire(50 + TTL_S) == [session]
    assert len(store) == 0
    with pytest.raises(UnknownSession):
        store.snapshot(session)


def test_what_is_watched_or_referred_to_does_not_grow_old() -> None:
    store, session = opened(ttl_s=TTL_S)
    store.set_variables(session, {"k": 1})
    store.pin(session, 1)
    assert [store.expire(now) for now in (0, 100, 200)] == [[]] * 3
    store.unpin(session, 1)
    with store.watching(session):
        assert [store.expire(now) for now in (300, 400, 500)] == [[]] * 3
    assert store.expire(600) == []
    assert store.expire(600 + TTL_S) == [session]


def test_there_are_so_many_sessions_and_no_more() -> None:
    store, first = opened(sessions=2, ttl_s=TTL_S)
    store.open(b"", None)
    with pytest.raises(QuotaExceeded) as refusal:
        store.open(b"", None)
    assert (refusal.value.field, refusal.value.limit) == ("sessions", 2)
    assert f"{TTL_S:g} s" in refusal.value.fix
    # A closed one counts for as long as a trial refers to it.
    store.set_variables(first, {"k": 1})
    store.pin(first, 1)
    store.close(first)
    with pytest.raises(QuotaExceeded):
        store.open(b"", None)
    assert store.unpin(first, 1)
    store.open(b"", None)


def test_a_space_and_a_configuration_have_so_many_variables_and_no_more() -> None:
    store, session = opened(variables=2)
    store.set_variables(session, {"a": 1, "b": 1})
    with pytest.raises(QuotaExceeded, match="values: the limit of 2"):
        store.set_variables(session, {"c": 1}, replace=False)
    variables = tuple(Integer(name=name, low=0, high=1) for name in "abc")
    with pytest.raises(QuotaExceeded, match="space.variables: the limit of 2"):
        store.open(b"", ConfigurationSpace(variables=variables))


SIZE = 10_000
ROOM = 3 * (SIZE + 1_000)


@pytest.mark.parametrize("name", ["session_bytes", "total_bytes", "snapshots"])
def test_old_versions_make_room_and_those_in_use_do_not(name: str) -> None:
    store, session = opened(**{name: 3 if name == "snapshots" else ROOM + 1_000})
    text = {number: {"text": str(number) * SIZE} for number in range(10)}
    for number in range(4):
        store.set_variables(session, text[number])
    with pytest.raises(UnknownSession):
        store.pin(session, 1)
    for version in (2, 3, 4):
        store.pin(session, version)
    with pytest.raises(QuotaExceeded) as refusal:
        store.set_variables(session, text[4])
    assert refusal.value.field == name
    # Refused is refused: nothing is gone, and nothing has been made.
    assert [store.snapshot(session, version).version for version in (2, 3, 4)] == [2, 3, 4]
    assert store.snapshot(session).version == 4
    assert store.set_variables(session, text[3]).version == 4
    store.unpin(session, 3)
    assert store.set_variables(session, text[5]).version == 5
    with pytest.raises(UnknownSession):
        store.snapshot(session, 3)


def test_all_sessions_together_have_so_many_bytes() -> None:
    store, session = opened(total_bytes=ROOM)
    other = store.open(b"", None).session_id
    store.set_variables(session, {"text": "1" * SIZE})
    store.pin(session, 1)
    store.set_variables(session, {"text": "2" * SIZE})
    store.pin(session, 2)
    with pytest.raises(QuotaExceeded) as refusal:
        store.set_variables(other, {"text": "x" * SIZE * 2})
    assert (refusal.value.field, refusal.value.limit) == ("total_bytes", ROOM)
    with pytest.raises(QuotaExceeded, match="total_bytes"):
        store.open(b"-" * SIZE * 2, None)
    store.close(session)
    store.unpin(session, 1)
    store.unpin(session, 2)
    store.set_variables(other, {"text": "x" * SIZE * 2})
    store.close(other)
    assert store._size == 0


def test_one_configuration_has_so_many_bytes() -> None:
    store, session = opened(values_bytes=100)
    first = store.set_variables(session, {"text": "x" * 80})
    with pytest.raises(QuotaExceeded, match="values_bytes: the limit of 100"):
        store.set_variables(session, {"text": "x" * 100})
    assert store.snapshot(session) is first


# ---------------------------------------------------------------------- over the wire


async def test_a_session_that_nobody_uses_is_closed_and_one_in_use_is_not(address: str) -> None:
    limits = SessionLimits(ttl_s=0.3)
    async with Bridge(address, session_limits=limits) as bridge, PoolClient(address) as client:
        watched, referred_to, idle = [await ready(client) for _ in range(3)]
        async with grpc.aio.insecure_channel(address) as channel, FakeWorker(address, "w", 1) as worker:
            stub: Any = session_pb2_grpc.SessionServiceStub(channel)
            watch = stub.WatchSession(session_pb2.WatchSessionRequest(session_id=watched))
            await watch.read()
            running = asyncio.create_task(client.execute(TRIAL, session_id=referred_to, version=1, timeout_s=0))
            await worker.until(lambda seen: len(seen.trials) == 1)
            await sessions(client, 2)
            with pytest.raises(UnknownSession):
                await client.get_session(idle)
            # It lives as long as several others after it, each of which has nobody.
            for count in (3, 2, 3, 2):
                if count == 3:
                    await ready(client)
                await sessions(client, count)
            watch.cancel()
            await worker.answer(worker.seen.trials.values())
            assert isinstance(await running, TrialResult)
            await sessions(client, 0)
            # The worker forgets it too.
            await worker.until(lambda seen: seen.closed == [referred_to])
        assert len(bridge.hub.sessions._sessions) == 0


async def test_a_version_lives_while_a_trial_refers_to_it(address: str) -> None:
    limits = SessionLimits(unreferenced=1)
    async with Bridge(address, session_limits=limits), PoolClient(address) as client:
        session = await ready(client)
        async with FakeWorker(address, "w", 1) as worker:
            running = [asyncio.create_task(run_trial(client, session)) for _ in range(2)]
            await worker.until(lambda seen: len(seen.trials) == 1)
            for k in range(2, 6):
                await client.set_variables(session, {"k": k})
            assert (await client.get_session(session, 1))[1] == {"k": 1}
            with pytest.raises(UnknownSession):
                await client.get_session(session, 2)
            # One of the two is with the worker and the other waits: both run under what they name.
            await worker.work(until=lambda seen: len(seen.trials) == 2)
            for outcome in await asyncio.gather(*running):
                assert isinstance(outcome, TrialResult)
                assert outcome.outputs == [{"k": 1}, "1"]
            with pytest.raises(UnknownSession):
                await client.get_session(session, 1)
            late = await run_trial(client, session)
            assert isinstance(late, TrialError)
            assert (late.type, late.retryable) == (ErrorType.STALE_STATE, True)
            # The worker is told with the next thing that it is told.
            assert worker.seen.forgotten == []
            running = [client.execute(TRIAL, session_id=session, version=5, timeout_s=0)]
            async with doing(worker.work()):
                assert isinstance(await running[0], TrialResult)
            assert worker.seen.forgotten == [(session, 1)]


async def test_a_client_takes_its_own_sessions_along(bridge: Bridge, client: PoolClient) -> None:
    kept = await client.open_session(PROGRAM, [], "")
    async with PoolClient(bridge.address) as other:
        mine = [await other.open_session(PROGRAM, [], "") for _ in range(3)]
        await other.close_session(mine[0])
        assert (await client.status()).sessions == 3
    assert (await client.status()).sessions == 1
    await client.set_variables(kept, {"k": 1})


async def test_a_runner_whose_session_expires_opens_another_and_goes_on(bridge: Bridge, client: PoolClient) -> None:
    runner = TrialRunner(client, metrics=[], space_json="", timeout_s=0)

    async def run(count: int) -> list[TrialOutcome]:
        outcomes = await asyncio.gather(*(runner.run(TRIAL) for _ in range(count)))
        client.commit(count)
        return list(outcomes)

    async with FakeWorker(bridge.address, "w", 50) as worker, doing(worker.work()):
        assert {type(outcome) for outcome in await run(100)} == {TrialResult}
        for hour in (1, 2, 3):
            bridge.hub.expire_sessions(time.monotonic() + hour * 3_600)
        assert (await client.status()).sessions == 0
        assert {type(outcome) for outcome in await run(100)} == {TrialResult}
        assert (await client.status()).sessions == 1
        assert len(worker.seen.sessions) == 2


async def test_a_runner_without_room_for_a_session_says_so(address: str) -> None:
    async with Bridge(address, session_limits=SessionLimits(sessions=0)), PoolClient(address) as client:
        outcome = await TrialRunner(client, metrics=[], space_json="", timeout_s=0).run(TRIAL)
        assert isinstance(outcome, TrialError)
        assert (outcome.type, outcome.retryable, outcome.type.is_final) == (ErrorType.STALE_STATE, True, False)
        assert "the limit of 0" in outcome.message


async def test_over_its_quota_a_client_is_told_which_and_what_helps(address: str) -> None:
    limits = SessionLimits(sessions=1, about_bytes=2_000, values_bytes=1_000)
    async with Bridge(address, session_limits=limits), PoolClient(address) as client:
        session = await ready(client)
        large = ProgramSpec(entry_point="somewhere.else:program", init={"x": "-" * 3_000}, version="1" * 32)
        for field, limit, call in (
            ("sessions", 1, client.open_session(PROGRAM, [], "")),
            ("about_bytes", 2_000, client.open_session(large, [], "")),
            ("values_bytes", 1_000, client.set_variables(session, {"k": "-" * 1_000})),
            ("message_bytes", MESSAGE_LIMIT, client.set_variables(session, {"k": "-" * MESSAGE_LIMIT})),
        ):
            with pytest.raises(QuotaExceeded) as refusal:
                await call
            assert (refusal.value.field, refusal.value.limit) == (field, limit)
            assert refusal.value.fix
        assert (await client.get_session(session))[1] == {"k": 1}


async def test_what_is_said_of_a_refused_value_fits_a_status(client: PoolClient) -> None:
    space = ConfigurationSpace(variables=(Integer(name="low", low=0, high=1),))
    session = await client.open_session(PROGRAM, [], space.to_json())
    for value in ("x" * 500_000, "\N{GRINNING FACE}" * 100_000, "%" * 100_000):
        with pytest.raises(InvalidValue) as refusal:
            await client.set_variables(session, {"low": value})
        assert refusal.value.field == "low"
        assert refusal.value.value[:20] == value[:20]
    names = "n" * 400_000
    with pytest.raises(ProgramUnavailable, match="start it with another --allow"):
        await client.open_session(ProgramSpec(entry_point=f"os:{names}", version="1"), [], "")
