"""What is too large for a frame fails alone, at the very byte; and many large things share the frames as they fit."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from dspex.v1 import execution_pb2, types_pb2, worker_pb2
from dspex_pipelines.bridge import links
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.bridge.server import Bridge
from dspex_pipelines.engine.program_versions import metric_version, program_version
from dspex_pipelines.engine.runner import TrialRunner
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, MetricSpec, ProgramSpec, TrialSpec
from dspex_pipelines.wire.codec import FRAME_TRIALS, MESSAGE_LIMIT, PAYLOAD_BYTES, failure_to_wire
from tests.bridge.fakes import FakeWorker, doing, raw_client, ready, run_trial, wire_trial

MIB = 1 << 20
HERE = "tests.bridge.sized_programs"


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
async def dialled(bridge: Bridge) -> AsyncIterator[PoolClient]:
    """A client of that bridge; `client` is one of the real pool."""
    async with PoolClient(bridge.address) as opened:
        yield opened


def spec(name: str, **inputs: Any) -> TrialSpec:
    entry_point = f"{HERE}:{name}"
    program = ProgramSpec(entry_point=entry_point, version=program_version(entry_point, {}))
    return TrialSpec(program=program, example=Example(example_id="1", inputs=inputs), configuration=Configuration({}))


async def run(client: PoolClient, *specs: TrialSpec, judge: str = "") -> list[TrialOutcome]:
    """Run trials all at once, beside a small one that must not notice."""
    entry_point = f"{HERE}:{judge}"
    metrics = [MetricSpec(entry_point=entry_point, version=metric_version(entry_point))] if judge else []
    runner = TrialRunner(client, metrics=metrics, space_json="", timeout_s=0)
    neighbour = TrialRunner(client, metrics=[], space_json="", timeout_s=0)
    lost = (await client.status()).workers_lost
    outcomes = await asyncio.gather(*map(runner.run, specs), neighbour.run(spec("echo", text="abc")))
    client.commit(len(outcomes))
    beside = outcomes.pop()
    assert isinstance(beside, TrialResult)
    assert (beside.outputs, (await client.status()).workers_lost) == (3, lost)
    return list(outcomes)


# ---------------------------------------------------------------------- through real workers


@pytest.mark.parametrize(
    ("size", "fits"), [(PAYLOAD_BYTES - 1, True), (PAYLOAD_BYTES, True), (PAYLOAD_BYTES + 1, False)]
)
async def test_outputs_fit_or_fail_alone(client: PoolClient, size: int, fits: bool) -> None:
    (outcome,) = await run(client, spec("outputs_of", outputs=size))
    if fits:
        assert isinstance(outcome, TrialResult), outcome
        assert len(outcome.outputs_payload) == size
    else:
        assert isinstance(outcome, TrialError)
        assert outcome.type is ErrorType.SERIALIZATION
        assert outcome.message == f"outputs: {size:,} bytes are more than the {PAYLOAD_BYTES:,} allowed"


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False)])
async def test_scores_fit_beside_the_outputs_or_fail_alone(client: PoolClient, over: int, fits: bool) -> None:
    size = 7 * MIB
    trial = spec("both_of", outputs=PAYLOAD_BYTES - size + over, scores=size)
    (outcome,) = await run(client, trial, judge="judge_of")
    assert len(outcome.outputs_payload) == PAYLOAD_BYTES - size + over, "kept either way"
    if fits:
        assert isinstance(outcome, TrialResult), outcome
        assert len(outcome.scores_payload) == size
    else:
        assert isinstance(outcome, TrialError)
        assert (outcome.type, outcome.message.startswith("scores: ")) == (ErrorType.SERIALIZATION, True)


@pytest.mark.parametrize(("over", "fits"), [(-1, True), (0, True), (1, False), (5 * MIB, False)])
async def test_an_example_fits_or_fails_alone_unsent(client: PoolClient, over: int, fits: bool) -> None:
    rest = len(spec("echo", text="-" * MIB).example.payload) - MIB
    length = PAYLOAD_BYTES - rest + over
    trial = spec("echo", text="-" * length)
    assert len(trial.example.payload) == PAYLOAD_BYTES + over
    (outcome,) = await run(client, trial)
    if fits:
        assert isinstance(outcome, TrialResult), outcome
        assert outcome.outputs == length
    else:
        assert isinstance(outcome, TrialError)
        assert (outcome.type, outcome.attempts) == (ErrorType.SERIALIZATION, 0)
        assert f"a trial at most {PAYLOAD_BYTES:,}" in outcome.message


async def test_many_large_payloads_go_through(client: PoolClient) -> None:
    outcomes = await run(
        client,
        *(spec("outputs_of", outputs=MIB + x) for x in range(40)),
        *(spec("echo", text="-" * (MIB + x)) for x in range(40)),
    )
    assert all(isinstance(outcome, TrialResult) for outcome in outcomes)
    assert [len(outcome.outputs_payload) for outcome in outcomes[:40]] == [MIB + x for x in range(40)]
    assert [outcome.outputs for outcome in outcomes[40:] if isinstance(outcome, TrialResult)] == [
        MIB + x for x in range(40)
    ]


async def test_many_long_messages_go_through(client: PoolClient) -> None:
    outcomes = await run(client, *(spec("raises", characters=2_000_000 + x) for x in range(FRAME_TRIALS)))
    assert {outcome.type for outcome in outcomes if isinstance(outcome, TrialError)} == {ErrorType.PROGRAM_EXCEPTION}
    (outcome,) = await run(client, spec("outputs_of", outputs=PAYLOAD_BYTES), judge="fails_at_length")
    assert isinstance(outcome, TrialError)
    assert (outcome.type, len(outcome.outputs_payload)) == (ErrorType.METRIC_EXCEPTION, PAYLOAD_BYTES)


# ---------------------------------------------------------------------- through fake ends of real streams


def padded(frame: Any, part: Any, field: str, size: int) -> Any:
    """Return *frame* with so much in a field of its *part* that it takes *size* bytes."""
    setattr(part, field, bytes(size))
    setattr(part, field, bytes(size - (frame.ByteSize() - size)))
    assert frame.ByteSize() == size
    return frame


async def test_an_outcome_that_fills_a_message_reaches_the_client_with_its_history(
    bridge: Bridge, dialled: PoolClient
) -> None:
    session = await ready(dialled)
    running = asyncio.create_task(run_trial(dialled, session))
    async with FakeWorker(bridge.address, "w" * 200, 1) as worker:
        for attempt in range(3):
            await worker.until(lambda seen, attempt=attempt: len(seen.trials) == attempt + 1)
            number = max(worker.seen.trials)
            if attempt < 2:
                failure = failure_to_wire(
                    ErrorType.PROGRAM_EXCEPTION, f"{attempt}" * 5 * MIB, retryable=True, fingerprint=f"{attempt}" * MIB
                )
                await worker.call.write(
                    worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=number, failure=failure)])
                )
        frame = worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=number)])
        await worker.call.write(padded(frame, frame.outcomes[0], "trace", MESSAGE_LIMIT))
        outcome = await running
        assert isinstance(outcome, TrialResult)
        assert (outcome.attempts, [past.message[:1] for past in outcome.history]) == (3, ["0", "1"])
        assert len(outcome.trace_payload) == len(frame.outcomes[0].trace)


async def test_a_frame_over_the_limit_costs_a_worker_its_stream_and_no_trial(
    bridge: Bridge, dialled: PoolClient
) -> None:
    session = await ready(dialled)
    running = asyncio.create_task(run_trial(dialled, session))
    async with FakeWorker(bridge.address, "careless", 1, most_bytes=2 * MESSAGE_LIMIT) as worker:
        await worker.until(lambda seen: len(seen.trials) == 1)
        frame = worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=min(worker.seen.trials))])
        await worker.call.write(padded(frame, frame.outcomes[0], "outputs", MESSAGE_LIMIT + 1))
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await worker.read()
        assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with FakeWorker(bridge.address, "q", 1, quarantine=True) as other, doing(other.work()):
        outcome = await running
    assert isinstance(outcome, TrialResult)
    assert [past.type for past in outcome.history] == [ErrorType.WORKER_LOST]


async def test_a_trial_that_fills_a_message_reaches_the_worker_and_one_more_byte_costs_its_client_the_stream(
    bridge: Bridge, dialled: PoolClient
) -> None:
    session = await ready(dialled)
    async with FakeWorker(bridge.address, "w", 100) as worker, doing(worker.work()):
        for size in (MESSAGE_LIMIT - 1, MESSAGE_LIMIT, MESSAGE_LIMIT + 1):
            async with raw_client(bridge.address, most_bytes=2 * MESSAGE_LIMIT) as raw:
                trial = wire_trial(7, session)
                await raw.send(trials=[wire_trial(x, session) for x in range(3)])
                frame = execution_pb2.ExecuteProgramsRequest(trials=[trial])
                await raw.call.write(padded(frame, frame.trials[0], "outputs", size))
                if size <= MESSAGE_LIMIT:
                    assert {outcome.id for outcome in await raw.outcomes(4)} == {0, 1, 2, 7}
                else:
                    with pytest.raises(grpc.aio.AioRpcError) as refusal:
                        await raw.outcomes(4)
                    assert refusal.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                    outcome = await run_trial(dialled, session)
                    assert isinstance(outcome, TrialResult)


@pytest.mark.parametrize("field", ["scores", "usage", "trace", "outputs", "message"])
async def test_large_outcomes_share_frames_as_they_fit(bridge: Bridge, dialled: PoolClient, field: str) -> None:
    """Whatever it is that is large in them; each comes in a frame of its own, and they wait for the client together."""
    session = await ready(dialled)
    count, size = FRAME_TRIALS, MIB // 2
    async with FakeWorker(bridge.address, "w", count) as worker, raw_client(bridge.address) as raw:
        await raw.send(trials=[wire_trial(x, session) for x in range(count)])
        await worker.until(lambda seen: len(seen.trials) == count)
        for number in worker.seen.trials:
            outcome = types_pb2.Outcome(id=number)
            if field == "message":
                outcome.failure.CopyFrom(failure_to_wire(ErrorType.PROGRAM_EXCEPTION, "-" * size))
            else:
                setattr(outcome, field, bytes(size))
            await worker.call.write(worker_pb2.AttachRequest(outcomes=[outcome]))
        outcomes = await raw.outcomes(count)
    assert sorted(outcome.id for outcome in outcomes) == list(range(count))
    assert all(outcome.ByteSize() > size for outcome in outcomes)


async def test_large_sessions_and_snapshots_share_frames_as_they_fit(bridge: Bridge, dialled: PoolClient) -> None:
    count, size = 40, 1_000_000
    program = ProgramSpec(entry_point="somewhere.else:program", init={"x": "-" * size}, version="1" * 32)
    sessions = [await dialled.open_session(program, [], "") for _ in range(count)]
    for session in sessions:
        await dialled.set_variables(session, {"k": "-" * size})
    async with raw_client(bridge.address) as raw:
        await raw.send(trials=[wire_trial(x, session) for x, session in enumerate(sessions)])
        while (await dialled.status()).queue_depth < count:
            pass
        async with FakeWorker(bridge.address, "w", count) as worker, doing(worker.work()):
            assert len(await raw.outcomes(count)) == count
            assert len(worker.seen.sessions) == count


@pytest.mark.parametrize("where", ["trial_id", "unknown field"])
async def test_what_no_trial_has_is_refused_with_the_trial(bridge: Bridge, dialled: PoolClient, where: str) -> None:
    """It would not be seen when the worker's frames are filled."""
    session = await ready(dialled)
    hiding = wire_trial(5, session)
    if where == "trial_id":
        hiding.trial_id = bytes(MIB)
    else:
        hiding.MergeFromString(
            types_pb2.Session.FromString(b"").SerializeToString() + b"\xfa\x06\x80\x80\x40" + bytes(MIB)
        )
    async with FakeWorker(bridge.address, "w", 9) as worker, raw_client(bridge.address) as raw, doing(worker.work()):
        await raw.send(trials=[hiding, wire_trial(6, session)])
        outcomes = {outcome.id: outcome for outcome in await raw.outcomes(2)}
        assert outcomes[5].failure.type == types_pb2.ERROR_TYPE_SERIALIZATION
        assert not outcomes[6].HasField("failure")
        assert [trial.ByteSize() < MIB for trial in worker.seen.trials.values()] == [True]


# ---------------------------------------------------------------------- what the bridge holds


async def test_a_client_that_sends_more_than_is_held_waits_and_loses_nothing(
    bridge: Bridge, dialled: PoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MOST_HELD_BYTES", 10 * MIB)
    session = await ready(dialled)
    async with raw_client(bridge.address) as raw:
        link = max(bridge.hub.clients.values(), key=lambda link: link.number)

        async def send() -> None:
            for x in range(100):
                await raw.send(trials=[wire_trial(x, session, size=MIB)])

        sending = asyncio.create_task(send())
        while not link.held.is_full:
            await asyncio.sleep(0)
        while (await dialled.status()).queue_depth < 10:
            pass
        # Others are read as ever, for as long as this one is not.
        for _ in range(50):
            await dialled.get_session(session)
        assert (len(link.live), sending.done()) == (10, False)
        async with FakeWorker(bridge.address, "w", 4) as worker, doing(worker.work()):
            assert {outcome.id for outcome in await raw.outcomes(100)} == set(range(100))
        await sending
        assert (link.held.is_half_empty, link.held.sizes) == (True, {})


async def test_a_client_that_does_not_read_is_sent_no_more_and_loses_nothing(
    bridge: Bridge, dialled: PoolClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(links, "MOST_UNREAD_BYTES", 20 * MIB)
    session = await ready(dialled)
    async with FakeWorker(bridge.address, "w", 4) as worker, raw_client(bridge.address) as raw:

        async def work() -> None:
            answered = 0
            while True:
                for trial in await worker.next():
                    answered += 1
                    outcome = types_pb2.Outcome(id=trial.id, outputs=bytes(MIB), configuration_digest=b"-" * 16)
                    await worker.call.write(worker_pb2.AttachRequest(outcomes=[outcome]))

        async with doing(work()):
            await raw.send(trials=[wire_trial(x, session) for x in range(300)])
            link = max(bridge.hub.clients.values(), key=lambda link: link.number)
            while not link.stopped:
                await asyncio.sleep(0)
            # The worker is free for others, and they are served.
            for _ in range(50):
                outcome = await run_trial(dialled, session)
                dialled.commit(1)
                assert isinstance(outcome, TrialResult)
            assert (link.stopped, len(link.live) > 150) == (True, True)
            assert sum(outcome.ByteSize() for outcome in link.outcomes) < 30 * MIB
            assert {outcome.id for outcome in await raw.outcomes(300)} == set(range(300))
            assert (link.stopped, link.unread.sizes) == (False, {})
