"""What goes over the streams of workers and clients, in which order, and what becomes of those who break off."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sized
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dspex.v1 import execution_pb2, execution_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from dspex_pipelines.bridge import services
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.hub import Hub
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.bridge.sessions import SessionStore
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.errors import PoolInterrupted, PoolUnreachable
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, TrialSpec
from dspex_pipelines.wire.codec import MESSAGE_LIMIT, PROTOCOL_VERSION, failure_to_wire
from tests.bridge.conftest import ROOT
from tests.bridge.fakes import PROGRAM, TRIAL, FakeWorker, Seen, doing, raw_client, ready, run_trial, wire_trial


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


# ---------------------------------------------------------------------- order


async def test_a_snapshot_arrives_before_the_first_trial_that_names_it(bridge: Bridge, client: PoolClient) -> None:
    sessions = [await client.open_session(PROGRAM, [], "") for _ in range(3)]

    async def trial(x: int) -> tuple[Configuration, TrialOutcome]:
        session, values = sessions[x % 3], {"k": x % 50}
        snapshot = await client.set_variables(session, values)
        example = Example(example_id=str(x), inputs={"x": "-" * (x % 7) * 10_000})
        spec = TrialSpec(program=PROGRAM, example=example, configuration=Configuration(values))
        outcome = await client.execute(spec, session_id=session, version=snapshot.version, timeout_s=30)
        client.commit(1)
        assert isinstance(outcome, TrialResult), outcome
        assert outcome.outputs == [values, str(x)]
        return spec.configuration, outcome

    async with FakeWorker(bridge.address, "a", 90) as a, FakeWorker(bridge.address, "b", 90) as b:
        async with doing(a.work()), doing(b.work()):
            answers = await asyncio.gather(*map(trial, range(1_000)))
        assert all(outcome.configuration_digest == configuration.digest for configuration, outcome in answers)
        assert len(a.seen.trials) + len(b.seen.trials) == 1_000
        assert min(len(a.seen.trials), len(b.seen.trials)) > 0
        assert len({*a.seen.snapshots, *b.seen.snapshots}) == 150


async def test_many_large_snapshots_stay_under_the_message_limit(bridge: Bridge, client: PoolClient) -> None:
    session = await client.open_session(PROGRAM, [], "")
    count, size = 40, 1 << 19
    assert count * size > MESSAGE_LIMIT
    configurations = [Configuration({"text": f"{number:0{size}}"}) for number in range(count)]
    versions = [(await client.set_variables(session, one.values)).version for one in configurations]
    specs = [TrialSpec(program=PROGRAM, example=TRIAL.example, configuration=one) for one in configurations]
    running = asyncio.gather(
        *(
            client.execute(spec, session_id=session, version=version, timeout_s=0)
            for spec, version in zip(specs, versions, strict=True)
        )
    )
    while (await client.status()).queue_depth < count:
        pass
    # All of them are dispatched at once, to a worker that knows none.
    async with FakeWorker(bridge.address, "w", count) as worker, doing(worker.work()):
        outcomes = await running
    assert [outcome.configuration_digest for outcome in outcomes] == [one.digest for one in configurations]


@pytest.mark.parametrize(("slots", "sent"), [(200, 200), (90, 90)])
async def test_a_cancel_never_overtakes_its_trial(bridge: Bridge, client: PoolClient, slots: int, sent: int) -> None:
    session = await ready(client)
    async with FakeWorker(bridge.address, "w", slots) as worker, raw_client(bridge.address) as raw:
        await raw.send(trials=[wire_trial(x, session, size=20_000) for x in range(200)], cancel_ids=range(200))
        outcomes = await raw.outcomes(200)
        assert {outcome.failure.type for outcome in outcomes} == {types_pb2.ERROR_TYPE_CANCELLED}
        await worker.until(lambda seen: len(seen.cancelled) == sent)
        assert sorted(worker.seen.cancelled) == sorted(worker.seen.trials)
        # Their slots are taken until the worker says otherwise.
        await raw.send(trials=[wire_trial(500, session)], committed=200)
        await worker.call.write(worker_pb2.AttachRequest(released_ids=worker.seen.cancelled))
        await worker.until(lambda seen: len(seen.trials) == sent + 1)
        (last,) = [trial for trial in worker.seen.trials.values() if decode(trial.example)[0] == "500"]
        await worker.answer([last])
        (outcome,) = await raw.outcomes(1)
        assert outcome.id == 500


async def test_trials_in_flight_outlive_their_session(client: PoolClient, bridge: Bridge) -> None:
    session = await ready(client)
    running = asyncio.gather(*(run_trial(client, session) for _ in range(5)))
    async with FakeWorker(bridge.address, "w", 2) as worker:
        await worker.until(lambda seen: len(seen.trials) == 2)
        await client.close_session(session)
        await worker.work(until=lambda seen: seen.closed == [session])
        assert [type(outcome) for outcome in await running] == [TrialResult] * 5


async def test_a_session_is_closed_on_the_worker_after_its_last_trial() -> None:
    """The trial that is dispatched before the worker has heard of the close needs the session as much as others."""
    hub = Hub(dispatcher=Dispatcher(), sessions=SessionStore())
    session = hub.sessions.open(b"", None).session_id
    hub.sessions.set_variables(session, {"k": 1})
    worker, caller, seen = hub.attach(worker_pb2.WorkerHello(worker_id="w", slots=1)), hub.connect(), Seen()
    hub.submit(caller, [wire_trial(x, session) for x in range(3)], 0)
    (trial,) = seen.take(worker.next_frame())
    hub.close_session(session)
    for _ in range(2):
        hub.heard(worker, worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=trial.id)]), 0)
        (trial,) = seen.take(worker.next_frame())
    hub.heard(worker, worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=trial.id)]), 0)
    assert seen.take(worker.next_frame()) == []
    assert seen.closed == [session]
    assert [outcome.id for outcome in caller.outcomes] == [0, 1, 2]
    hub.close()


# ---------------------------------------------------------------------- credit


async def test_credit_comes_back_with_what_is_committed(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with (
        FakeWorker(bridge.address, "w", 400) as worker,
        raw_client(bridge.address) as raw,
        doing(worker.work()),
    ):
        await raw.send(trials=[wire_trial(x, session) for x in range(400)])
        await raw.outcomes(400)
        # Read, but not committed: only what is committed makes room.
        await raw.send(trials=[wire_trial(x, session) for x in range(50)], committed=50)
        await raw.outcomes(50)
        await raw.send(trials=[wire_trial(900, session)])
        with pytest.raises(grpc.aio.AioRpcError, match="400 trials") as refusal:
            await raw.outcomes(1)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert len(worker.seen.trials) == 450


async def test_a_client_without_credit_is_in_nobodys_way(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with FakeWorker(bridge.address, "w", 8) as worker, raw_client(bridge.address) as raw, doing(worker.work()):
        # It uses up its credit, reads nothing and commits nothing.
        await raw.send(trials=[wire_trial(x, session) for x in range(400)])

        async def one() -> TrialOutcome:
            outcome = await run_trial(client, session)
            client.commit(1)
            return outcome

        outcomes = await asyncio.gather(*(one() for _ in range(1_200)))
        assert {type(outcome) for outcome in outcomes} == {TrialResult}
        await raw.send(trials=[wire_trial(900, session)])
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await raw.outcomes(401)
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert isinstance(await one(), TrialResult)


async def test_our_client_waits_for_credit(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with FakeWorker(bridge.address, "w", 1_000) as worker, doing(worker.work()):
        running = [asyncio.create_task(run_trial(client, session)) for _ in range(500)]
        await asyncio.gather(*running[:400])
        assert [task.done() for task in running[400:]] == [False] * 100
        client.commit(100)
        await asyncio.gather(*running)
        assert len(worker.seen.trials) == 500


async def test_what_took_no_credit_gives_none_back(bridge: Bridge, client: PoolClient) -> None:
    """Outcomes that never were at the bridge are made durable and committed too."""
    session = await ready(client)
    client.commit(1_000)
    running = [asyncio.create_task(run_trial(client, session)) for _ in range(450)]
    while (await client.status()).queue_depth < 400:
        pass
    async with FakeWorker(bridge.address, "w", 1_000) as worker, doing(worker.work()):
        await asyncio.gather(*running[:400])
        client.commit(1_000)
        assert {type(outcome) for outcome in await asyncio.gather(*running)} == {TrialResult}


async def test_one_that_is_cancelled_in_the_moment_of_its_answer_gives_its_credit_back(
    bridge: Bridge, client: PoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await ready(client)
    settle = client._settle
    running: list[asyncio.Task[TrialOutcome]] = []

    def settle_and_cancel(future: asyncio.Future[TrialOutcome], outcome: TrialOutcome | Exception) -> None:
        settle(future, outcome)
        running[0].cancel()

    monkeypatch.setattr(client, "_settle", settle_and_cancel)
    async with FakeWorker(bridge.address, "w", 8) as worker, doing(worker.work()):
        running.append(asyncio.create_task(run_trial(client, session)))
        with pytest.raises(asyncio.CancelledError):
            await running[0]
    assert client._window.credit == client._window.limit


async def test_whose_turn_it_was_when_it_was_cancelled_lets_the_next_one_in(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)

    async with FakeWorker(bridge.address, "w", 1_000) as worker, doing(worker.work()):
        await asyncio.gather(*(run_trial(client, session) for _ in range(400)))
        first, second = (asyncio.create_task(run_trial(client, session)) for _ in range(2))
        while len(client._window._waiters) < 2:
            await asyncio.sleep(0)
        client.commit(1)
        first.cancel()
        assert isinstance(await second, TrialResult)
        assert first.cancelled()


async def test_what_is_committed_while_the_bridge_is_away_gives_its_credit_back(
    bridge: Bridge, client: PoolClient
) -> None:
    session = await ready(client)
    async with FakeWorker(bridge.address, "w", 8) as worker, doing(worker.work()):
        await asyncio.gather(*(run_trial(client, session) for _ in range(3)))
    assert bridge._server is not None
    channel = client._channel
    await bridge._server.stop(None)
    while client._channel is channel:
        await asyncio.sleep(0)  # until it dials
    client.commit(3)
    async with Bridge(bridge.address, credit_limit=400):
        await client._up.wait()
        assert client._window.credit == client._window.limit == 400


async def test_who_waits_for_credit_when_the_bridge_goes_is_told(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)

    async with FakeWorker(bridge.address, "w", 1_000) as worker, doing(worker.work()):
        await asyncio.gather(*(run_trial(client, session) for _ in range(400)))
        waiting = asyncio.create_task(run_trial(client, session))
        while not client._window._waiters:
            await asyncio.sleep(0)
    assert bridge._server is not None
    await bridge._server.stop(None)
    async with Bridge(bridge.address, credit_limit=400):
        with pytest.raises(PoolInterrupted):
            await asyncio.wait_for(waiting, 20)


# ---------------------------------------------------------------------- those who break off

VANISHING = """
import sys, threading
import grpc
from dspex.v1 import execution_pb2 as pb, execution_pb2_grpc, types_pb2
address, session, example = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3])
def frames():
    trials = [types_pb2.Trial(id=x, session_id=session, version=1, example=example) for x in range(20)]
    yield pb.ExecuteProgramsRequest(protocol_version=int(sys.argv[4]), trials=trials)
    threading.Event().wait()
with grpc.insecure_channel(address) as channel:
    for _ in execution_pb2_grpc.ExecutionServiceStub(channel).ExecutePrograms(frames()):
        pass
"""


async def test_a_killed_clients_trials_are_cancelled_on_the_worker(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    arguments = [bridge.address, str(session), TRIAL.example.payload.hex(), str(PROTOCOL_VERSION)]
    async with FakeWorker(bridge.address, "w", 12) as worker:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", VANISHING, *arguments, cwd=ROOT)
        await worker.until(lambda seen: len(seen.trials) == 12)
        process.kill()
        await process.wait()
        await worker.until(lambda seen: len(seen.cancelled) == 12)
        assert sorted(worker.seen.cancelled) == sorted(worker.seen.trials)
        status = await client.status()
        assert (status.clients, status.queue_depth, status.in_flight) == (1, 0, 0)
        # The eight that waited are gone too: the slots go to whoever comes next.
        await worker.call.write(worker_pb2.AttachRequest(released_ids=worker.seen.cancelled))
        async with doing(worker.work()):
            outcome = await run_trial(client, session)
        assert isinstance(outcome, TrialResult)
        assert len(worker.seen.trials) == 13
        # Nothing keeps their version alive any more.
        assert bridge.hub.sessions.session(session).pins == {}


async def test_the_unary_call_goes_through_the_same_dispatcher(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with (
        grpc.aio.insecure_channel(bridge.address) as channel,
        FakeWorker(bridge.address, "w", 1) as worker,
    ):
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(channel)
        request = execution_pb2.ExecuteProgramRequest(trial=wire_trial(5, session))
        abandoned = stub.ExecuteProgram(request)
        await worker.until(lambda seen: len(seen.trials) == 1)
        abandoned.cancel()
        await worker.until(lambda seen: len(seen.cancelled) == 1)
        await worker.call.write(worker_pb2.AttachRequest(released_ids=worker.seen.cancelled))
        async with doing(worker.work()):
            outcome = (await stub.ExecuteProgram(request)).outcome
        assert (outcome.id, outcome.worker_id, decode(outcome.outputs)) == (5, "w", [{"k": 1}, "5"])


async def test_a_silent_worker_is_lost_and_its_trial_runs_on_another(address: str) -> None:
    async with Bridge(address, heartbeat_timeout_s=1.0) as bridge, PoolClient(address) as client:
        session = await ready(client)
        async with FakeWorker(address, "silent", 1) as silent:
            running = asyncio.create_task(run_trial(client, session))
            await silent.until(lambda seen: len(seen.trials) == 1)
            async with FakeWorker(address, "alive", 1, quarantine=True) as alive, doing(alive.beat()):
                await alive.until(lambda seen: len(seen.trials) == 1)
                with pytest.raises(EOFError):
                    await silent.read()
                await alive.answer(alive.seen.trials.values())
                outcome = await running
                assert isinstance(outcome, TrialResult)
                assert (outcome.worker, outcome.attempts) == ("alive", 2)
                status = await client.status()
                assert ([worker.worker_id for worker in status.workers], status.workers_lost) == (["alive"], 1)
        assert bridge.hub.dispatcher.stats().in_flight == 0


async def test_a_worker_that_leaves_while_frames_are_filled_is_missed_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = asyncio.Event()

    async def grown(waiting: Sized) -> None:
        await gate.wait()

    async with (
        Bridge(address, heartbeat_timeout_s=1_000) as bridge,
        PoolClient(address) as client,
        FakeWorker(bridge.address, "w", 1) as worker,
    ):
        monkeypatch.setattr(services, "grown", grown)
        # It is in there once a heartbeat has woken it up, whatever it was at before.
        (link,) = bridge.hub.workers.values()
        link.wake.set()
        await worker.call.done_writing()
        for _ in range(50):
            assert len((await client.status()).workers) == 1
        gate.set()
        async with asyncio.timeout(30):
            with pytest.raises(EOFError):
                await worker.read()
            while (await client.status()).workers:
                pass


async def test_a_trial_that_breaks_two_workers_alone_is_poison(address: str) -> None:
    told: list[Mapping[str, object]] = []
    async with Bridge(address, tell=told.append) as bridge, PoolClient(address) as client:
        session = await ready(client)
        running = asyncio.create_task(run_trial(client, session))
        for name in ("w", "q1", "q2"):
            async with FakeWorker(bridge.address, name, 1, quarantine=name != "w") as worker:
                await worker.until(lambda seen: len(seen.trials) == 1)
        outcome = await running
        assert isinstance(outcome, TrialError)
        assert (outcome.type, outcome.attempts, outcome.worker) == (ErrorType.POISON, 3, "q2")
        assert [(past.worker, past.type) for past in outcome.history] == [
            ("w", ErrorType.WORKER_LOST),
            ("q1", ErrorType.WORKER_LOST),
        ]
        # A verdict is an answer: a pool does not give up over trials that each kill their workers.
        of_workers = [one for one in told if "clients" not in one]
        assert of_workers == [{"quarantine": 1}, {"answered": 1}]


async def test_a_failure_that_may_pass_is_tried_again_and_told(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with FakeWorker(bridge.address, "w", 1) as worker:
        running = asyncio.create_task(run_trial(client, session))
        await worker.until(lambda seen: len(seen.trials) == 1)
        (first,) = worker.seen.trials
        failure = failure_to_wire(ErrorType.PROGRAM_EXCEPTION, "gone away", retryable=True, fingerprint="f")
        await worker.call.write(worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=first, failure=failure)]))
        await worker.until(lambda seen: len(seen.trials) == 2)
        await worker.answer([trial for number, trial in worker.seen.trials.items() if number != first])
        outcome = await running
    assert isinstance(outcome, TrialResult)
    assert outcome.attempts == 2
    (past,) = outcome.history
    assert (past.number, past.worker, past.type) == (1, "w", ErrorType.PROGRAM_EXCEPTION)
    assert (past.message, past.fingerprint) == ("gone away", "f")


# ---------------------------------------------------------------------- who is let in


async def test_a_worker_needs_a_name_of_its_own_and_a_slot(bridge: Bridge, client: PoolClient) -> None:
    session = await ready(client)
    async with FakeWorker(bridge.address, "w", 1) as first:
        for name, slots, why in (("w", 1, "attached already"), ("x", 0, "at least 1")):
            second = FakeWorker(bridge.address, name, slots)
            with pytest.raises(grpc.aio.AioRpcError, match=why) as refusal:
                await second.__aenter__()
            assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            await second.__aexit__()
        running = asyncio.create_task(run_trial(client, session))
        await first.work(until=lambda seen: len(seen.trials) == 1)
        assert isinstance(await running, TrialResult)
        status = await client.status()
        assert [(worker.worker_id, worker.slots, worker.pid) for worker in status.workers] == [("w", 1, 7)]
        assert status.workers_lost == 0
    while (await client.status()).workers:
        pass
    async with FakeWorker(bridge.address, "w", 1):
        assert len((await client.status()).workers) == 1


@pytest.mark.parametrize("theirs", [0, PROTOCOL_VERSION + 1])
@pytest.mark.parametrize("stream", ["worker", "client"])
async def test_another_protocol_version_is_refused(
    bridge: Bridge, client: PoolClient, stream: str, theirs: int
) -> None:
    async with grpc.aio.insecure_channel(bridge.address) as channel:
        if stream == "worker":
            stub: Any = worker_pb2_grpc.WorkerServiceStub(channel)
            call = stub.Attach()
            hello = worker_pb2.WorkerHello(protocol_version=theirs, worker_id="w", slots=1)
            await call.write(worker_pb2.AttachRequest(hello=hello))
        else:
            stub = execution_pb2_grpc.ExecutionServiceStub(channel)
            call = stub.ExecutePrograms()
            await call.write(execution_pb2.ExecuteProgramsRequest(protocol_version=theirs))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await call.read()
        assert refusal.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert json.loads(refusal.value.details() or "") == {"protocol_version": PROTOCOL_VERSION}
    status = await client.status()
    assert (status.workers, status.clients, status.workers_lost) == ((), 1, 0)


async def test_a_run_ends_over_a_call_that_its_bridge_breaks_over(
    bridge: Bridge, client: PoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would break over the next one too: sending it again and again is a hang."""

    def broken(*_: object, **__: object) -> None:
        raise TypeError("not like this")

    monkeypatch.setattr(SessionStore, "open", broken)
    runner = TrialRunner(client, metrics=[], space_json="", timeout_s=1)
    await asyncio.wait_for(runner.run(TRIAL), 20)
    assert isinstance(runner.pool_lost, PoolUnreachable)
    assert "not like this" in str(runner.pool_lost)


async def test_what_was_sent_is_dropped_and_its_credit_comes_back(address: str) -> None:
    async with Bridge(address, credit_limit=4) as bridge, PoolClient(address) as client:
        session = await ready(client)
        told: list[tuple[int, object]] = []

        def answered(about: int, outcome: object) -> None:
            told.append((about, outcome))

        def other(about: int, outcome: object) -> None:
            told.append((-about, outcome))

        def send(number: int, to: Callable[[int, object], None]) -> int:
            return client.send(TRIAL, session, 1, 0.0, b"", 0, to, number)

        async with FakeWorker(bridge.address, "w", 4) as worker:
            assert all([send(1, answered), send(2, answered), send(3, other)])
            await worker.until(lambda seen: len(seen.trials) == 3)
            client.drop(answered)
            await worker.until(lambda seen: len(seen.cancelled) == 2)
            await worker.call.write(worker_pb2.AttachRequest(released_ids=worker.seen.cancelled))
            async with doing(worker.work()), asyncio.timeout(30):
                while not told:
                    await asyncio.sleep(0)
                client.commit(1)
                # Of four, all come back: those that were dropped without anybody's doing.
                while not all(send(number, other) for number in (4, 5, 6, 7)):
                    await client.status()
                while len(told) < 5:
                    await asyncio.sleep(0)
        assert {about for about, _ in told} <= {-3, -4, -5, -6, -7}
        assert all(isinstance(outcome, TrialResult) for _, outcome in told)


async def test_what_waits_for_credit_can_be_withdrawn(address: str) -> None:
    async with Bridge(address, credit_limit=1) as bridge, PoolClient(address) as client:
        session = await ready(client)
        async with FakeWorker(bridge.address, "w", 4) as worker:
            first = asyncio.create_task(run_trial(client, session))
            await worker.until(lambda seen: len(seen.trials) == 1)
            withdrawn = asyncio.get_running_loop().create_future()
            waiting = asyncio.create_task(
                client.execute(TRIAL, session_id=session, version=1, timeout_s=0, withdrawn=withdrawn)
            )
            last = asyncio.create_task(run_trial(client, session))
            await asyncio.sleep(0)
            withdrawn.set_result(None)
            outcome = await asyncio.wait_for(waiting, 30)
            assert isinstance(outcome, TrialError)
            assert (outcome.type, outcome.attempts) == (ErrorType.CANCELLED, 0)
            async with doing(worker.work()):
                assert isinstance(await first, TrialResult)
                client.commit(1)
                # The credit is not lost on the one that is gone.
                assert isinstance(await asyncio.wait_for(last, 30), TrialResult)
