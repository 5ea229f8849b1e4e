"""Clients that speak the protocol and mean no good: each can only harm itself; and any frames of anybody."""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dspex.v1 import execution_pb2, pool_pb2, types_pb2, worker_pb2
from dspex_pipelines.bridge import services
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.hub import Hub
from dspex_pipelines.bridge.links import WorkerLink
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.bridge.sessions import SessionStore
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from dspex_pipelines.wire.codec import outcome_from_wire
from tests.bridge.fakes import RawClient, channel, raw_client, ready, wire_trial
from tests.bridge.victims import check, crew, timers_work, victims

MIB = 1 << 20
NAN, INF = math.nan, math.inf
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


async def outcome_of(raw: RawClient, trial: types_pb2.Trial) -> types_pb2.Outcome:
    await raw.send(trials=[trial])
    (outcome,) = await raw.outcomes(1)
    return outcome


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        pytest.param({"timeout_s": NAN}, ErrorType.INVALID_CONFIGURATION, id="nan-seconds"),
        pytest.param({"timeout_s": -1.0}, ErrorType.INVALID_CONFIGURATION, id="negative-seconds"),
        pytest.param({"timeout_s": -INF}, ErrorType.INVALID_CONFIGURATION, id="minus-infinite-seconds"),
        pytest.param({"timeout_s": INF}, None, id="infinite-seconds"),
        pytest.param({"timeout_s": 1e308}, None, id="very-many-seconds"),
        pytest.param({"timeout_s": 5e-324}, ErrorType.TIMEOUT_RUN, id="hardly-a-second"),
        pytest.param({"max_attempts": MOST_32}, None, id="very-many-attempts"),
        pytest.param({"seed": MOST_64, "repeat": MOST_32}, None, id="large-numbers"),
        pytest.param({"id": MOST_64}, None, id="large-id"),
        pytest.param({"id": 0}, None, id="no-id"),
        pytest.param({"session_id": 1}, ErrorType.STALE_STATE, id="no-such-session"),
        pytest.param({"session_id": MOST_64}, ErrorType.STALE_STATE, id="large-session"),
        pytest.param({"version": 0}, ErrorType.STALE_STATE, id="no-version"),
        pytest.param({"version": MOST_64}, ErrorType.STALE_STATE, id="large-version"),
    ],
)
async def test_a_trial_of_any_numbers_has_its_outcome(
    bridge: Bridge, client: PoolClient, fields: dict[str, Any], kind: ErrorType | None
) -> None:
    session = await ready(client)
    async with crew(bridge.address), raw_client(bridge.address) as raw:
        running = victims(client)
        trial = wire_trial(5, session)
        for name, value in fields.items():
            setattr(trial, name, value)
        outcome = outcome_from_wire(await outcome_of(raw, trial), b"")
        if kind is None:
            assert isinstance(outcome, TrialResult), outcome
        else:
            assert isinstance(outcome, TrialError) or kind is ErrorType.TIMEOUT_RUN
            assert isinstance(outcome, TrialResult) or outcome.type is kind
        assert check(await asyncio.gather(*running)) == []
    await timers_work(client, bridge.address)


async def test_one_id_is_one_trial_at_a_time(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with raw_client(bridge.address) as raw:
        await raw.send(trials=[wire_trial(5, session) for _ in range(10)])
        refused = await raw.outcomes(9)
        assert {outcome.failure.type for outcome in refused} == {types_pb2.ERROR_TYPE_CANCELLED}
        assert {"in flight already" in outcome.failure.message for outcome in refused} == {True}
        async with crew(bridge.address):
            (outcome,) = await raw.outcomes(1)
            assert not outcome.HasField("failure")
            assert (await outcome_of(raw, wire_trial(5, session))).id == 5
    assert bridge.hub.sessions.session(session).pins == {}


async def test_what_was_never_answered_cannot_be_committed(bridge: Bridge, client: PoolClient) -> None:
    """Else the credit would bound nothing."""
    session = await ready(client)
    async with raw_client(bridge.address) as raw:
        for turn in range(5):
            trials = [wire_trial(100 * turn + x, session) for x in range(100)]
            await raw.send(trials=trials, committed=MOST_32)
        with pytest.raises(grpc.aio.AioRpcError, match="400 trials") as refusal:
            await raw.outcomes(1)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with crew(bridge.address):
        assert check(await asyncio.gather(*victims(client))) == []


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([{}] * 2_000, id="nothing-at-all"),
        pytest.param([{"cancel_ids": [0, 1, MOST_64] * 1_000}] * 20, id="cancels-of-nothing"),
        pytest.param([{"committed": MOST_32}] * 100, id="commits-of-nothing"),
        pytest.param([{"protocol_version": 99}] * 3, id="another-version-later"),
        pytest.param([{"trials": [types_pb2.Trial()] * 400, "committed": 400}] * 3, id="empty-trials"),
        pytest.param([{"trials": [types_pb2.Trial(id=x, trial_id=bytes(MIB)) for x in range(9)]}], id="large-ids"),
    ],
)
async def test_frames_of_any_content_harm_only_their_client(
    bridge: Bridge, client: PoolClient, frames: list[dict[str, Any]]
) -> None:
    async with crew(bridge.address):
        running = victims(client)
        async with raw_client(bridge.address) as raw:
            with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                for frame in frames:
                    await raw.send(**frame)
            assert check(await asyncio.gather(*running)) == []
    while (await client.status()).clients > 1:
        await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/dspex.v1.WorkerService/Attach", "/dspex.v1.ExecutionService/ExecutePrograms"])
async def test_who_says_nothing_is_hung_up_on(
    bridge: Bridge, client: PoolClient, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "HELLO_S", 0.1)
    async with channel(bridge.address, MIB) as dialled:
        silent = [dialled.stream_stream(path)() for _ in range(20)]
        for call in silent:
            with pytest.raises(grpc.aio.AioRpcError, match="no first frame") as refusal:
                await call.read()
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        closing = dialled.stream_stream(path)()
        await closing.done_writing()
        with pytest.raises(grpc.aio.AioRpcError, match="no first frame"):
            await closing.read()
    assert (await client.status()).clients == 1


@pytest.mark.parametrize("interval_s", [NAN, INF, -INF, -1.0, 1e308, 5e-324])
async def test_any_interval_is_one_to_watch_at(bridge: Bridge, client: PoolClient, interval_s: float) -> None:
    async with channel(bridge.address, MIB) as dialled:
        request = pool_pb2.WatchPoolRequest(interval_s=interval_s)
        watch = dialled.unary_stream("/dspex.v1.PoolService/WatchPool")(request.SerializeToString())
        assert pool_pb2.WatchPoolResponse.FromString(await watch.read()).status.clients == 1
        if not interval_s > 1:
            await watch.read()
        assert (await client.status()).clients == 1


# ---------------------------------------------------------------------- any sequence of frames

IDS = st.integers(0, 30) | st.just(MOST_64)
SECONDS = st.floats() | st.sampled_from([NAN, INF, -INF, -1.0, 0.0, 1e308])
FAILURES = st.builds(
    types_pb2.Failure,
    type=st.integers(0, 17),
    retryable=st.booleans(),
    retry_after_s=SECONDS,
    fingerprint=st.sampled_from(["", "f"]),
    message=st.sampled_from(["", "m"]),
)
OUTCOMES = st.builds(
    types_pb2.Outcome, id=IDS, failure=st.none() | FAILURES, run_s=SECONDS, attempts=IDS.map(lambda x: x & 7)
)
FROM_WORKER = st.builds(
    worker_pb2.AttachRequest,
    outcomes=st.lists(OUTCOMES, max_size=4),
    released_ids=st.lists(IDS, max_size=4),
    returned_ids=st.lists(IDS, max_size=4),
    draining=st.booleans(),
    held_by=st.just(0) | IDS,
)
TRIALS = st.builds(
    types_pb2.Trial,
    id=IDS,
    session_id=st.sampled_from([0, 1]),
    version=st.sampled_from([0, 1, 2]),
    timeout_s=SECONDS,
    max_attempts=st.integers(0, 3),
    trial_id=st.sampled_from([b"", bytes(100_000)]),
)
FROM_CLIENT = st.builds(
    execution_pb2.ExecuteProgramsRequest,
    trials=st.lists(TRIALS, max_size=6),
    cancel_ids=st.lists(IDS, max_size=4),
    committed=st.sampled_from([0, 1, MOST_32]),
)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(frames=st.lists(FROM_WORKER | FROM_CLIENT, max_size=25), later=st.booleans())
def test_whatever_is_sent_the_others_trials_are_settled_once(frames: list[Any], later: bool) -> None:
    asyncio.run(_settled_once(frames, later=later))


async def _settled_once(frames: list[Any], *, later: bool) -> None:
    hub = Hub(dispatcher=Dispatcher(), sessions=SessionStore())
    session = hub.sessions.open(b"", None).session_id
    hub.sessions.set_variables(session, {"k": 1})
    execution = services.ExecutionService(hub, credit_limit=50)
    hostile_worker = hub.attach(worker_pb2.WorkerHello(worker_id="hostile", slots=3, pid=7))
    hostile_client, client = hub.connect(), hub.connect()
    hub.submit(client, [types_pb2.Trial(id=x, session_id=session, version=1) for x in range(9)], 0)
    for frame in frames:
        data = frame.SerializeToString()
        if isinstance(frame, worker_pb2.AttachRequest):
            hub.heard(hostile_worker, frame, len(data))
        elif not hostile_client.gone:
            for trial in frame.trials:
                trial.session_id = session if trial.session_id else 5
            try:
                execution._take(hostile_client, frame.SerializeToString())
            except services._Broken:
                hub.disconnect(hostile_client)
            assert hostile_client.uncommitted >= len(hostile_client.live)
    hub.lose(hostile_worker, "gone")
    hub.disconnect(hostile_client)
    workers = [
        hub.attach(worker_pb2.WorkerHello(worker_id=name, slots=4, quarantine=name == "q")) for name in ("good", "q")
    ]
    now = time.monotonic() + (1e6 if later else 0.0)
    for _ in range(100):
        for worker in workers:
            _answer_all(hub, worker)
        if len(client.outcomes) >= 9:
            break
        now += 1_000.0
        hub._perform(hub.dispatcher.tick(now))
    assert sorted(outcome.id for outcome in client.outcomes) == list(range(9))
    assert hub.dispatcher.stats().in_flight == 0
    assert hub.sessions.session(session).pins == {}
    hub.close()


def _answer_all(hub: Hub, worker: WorkerLink) -> None:
    while (frame := worker.next_frame()) is not None:
        outcomes = [types_pb2.Outcome(id=trial.id) for trial in frame.trials]
        hub.heard(worker, worker_pb2.AttachRequest(outcomes=outcomes, released_ids=frame.cancel_ids), 0)
