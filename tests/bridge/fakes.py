"""The other ends of the bridge's streams, without programs and without manners."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from dspex.v1 import execution_pb2, execution_pb2_grpc, types_pb2, worker_pb2, worker_pb2_grpc
from dspex_pipelines.bridge.client import PoolClient
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.payload import decode, encode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.model.trial import Example, ProgramSpec, TrialSpec
from dspex_pipelines.wire.codec import CHANNEL_OPTIONS, MESSAGE_LIMIT, PROTOCOL_VERSION

PROGRAM = ProgramSpec(entry_point="somewhere.else:program", version="1" * 32)
TRIAL = TrialSpec(
    program=PROGRAM, example=Example(example_id="1", inputs={"x": 1}), configuration=Configuration({"k": 1})
)


async def run_trial(client: PoolClient, session: int) -> TrialOutcome:
    return await client.execute(TRIAL, session_id=session, version=1, timeout_s=0)


def channel(address: str, most_bytes: int) -> grpc.aio.Channel:
    """A channel that takes what the bridge may send, and sends so much itself."""
    return grpc.aio.insecure_channel(
        address, options=[*dict([*CHANNEL_OPTIONS, ("grpc.max_send_message_length", most_bytes)]).items()]
    )


class Seen:
    """What one end of `Attach` has read, in order: fails as soon as something comes before what it needs."""

    def __init__(self) -> None:
        self.sessions: dict[int, types_pb2.Session] = {}
        self.snapshots: dict[tuple[int, int], types_pb2.Snapshot] = {}
        self.trials: dict[int, types_pb2.Trial] = {}
        self.cancelled: list[int] = []
        self.closed: list[int] = []
        self.forgotten: list[tuple[int, int]] = []

    def take(self, frame: worker_pb2.AttachResponse) -> list[types_pb2.Trial]:
        for session in frame.sessions:
            assert session.session_id not in self.sessions, "sent once"
            self.sessions[session.session_id] = session
        for snapshot in frame.snapshots:
            assert snapshot.session_id in self.sessions, "a snapshot before its session"
            assert (snapshot.session_id, snapshot.version) not in self.snapshots, "sent once"
            self.snapshots[snapshot.session_id, snapshot.version] = snapshot
        for trial in frame.trials:
            assert (trial.session_id, trial.version) in self.snapshots, "a trial before its snapshot"
            assert trial.session_id not in self.closed, "a trial after its session was closed"
            assert (trial.session_id, trial.version) not in self.forgotten, "a trial after its snapshot was forgotten"
            assert trial.id not in self.trials
            self.trials[trial.id] = trial
        for attempt_id in frame.cancel_ids:
            assert attempt_id in self.trials, "a cancel before its trial"
            self.cancelled.append(attempt_id)
        self.forgotten.extend((one.session_id, one.version) for one in frame.forgotten)
        self.closed.extend(frame.closed_session_ids)
        return list(frame.trials)


class FakeWorker:
    """The other end of `Attach`, without programs."""

    def __init__(
        self,
        address: str,
        name: str,
        slots: int,
        protocol_version: int = PROTOCOL_VERSION,
        *,
        quarantine: bool = False,
        most_bytes: int = MESSAGE_LIMIT,
    ) -> None:
        self.channel = channel(address, most_bytes)
        self.hello = worker_pb2.WorkerHello(
            protocol_version=protocol_version,
            worker_id=name,
            slots=slots,
            pid=7,
            package_version="0",
            quarantine=quarantine,
        )
        self.seen = Seen()

    async def __aenter__(self) -> FakeWorker:
        stub: Any = worker_pb2_grpc.WorkerServiceStub(self.channel)
        self.call = stub.Attach()
        await self.call.write(worker_pb2.AttachRequest(hello=self.hello))
        welcome = (await self.read()).welcome
        assert welcome.protocol_version == PROTOCOL_VERSION
        assert welcome.heartbeat_s > 0
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.channel.close(None)

    async def read(self) -> worker_pb2.AttachResponse:
        frame = await self.call.read()
        if frame is grpc.aio.EOF:
            raise EOFError
        return frame

    async def next(self) -> list[types_pb2.Trial]:
        return self.seen.take(await self.read())

    async def until(self, true: Callable[[Seen], bool]) -> None:
        while not true(self.seen):
            await self.next()

    async def answer(self, trials: Iterable[types_pb2.Trial]) -> None:
        """Say what each trial's snapshot and example are."""
        for trial in trials:
            snapshot = self.seen.snapshots[trial.session_id, trial.version]
            outcome = types_pb2.Outcome(
                id=trial.id,
                configuration_digest=snapshot.digest,
                session_version=trial.version,
                outputs=encode([decode(snapshot.values), decode(trial.example)[0]]),
            )
            await self.call.write(worker_pb2.AttachRequest(outcomes=[outcome]))

    async def work(self, until: Callable[[Seen], bool] = lambda _: False) -> None:
        """Answer what has been read and all that comes, until that is true or the stream ends."""
        await self.answer(list(self.seen.trials.values()))
        with contextlib.suppress(EOFError):
            while not until(self.seen):
                await self.answer(await self.next())

    async def beat(self) -> None:
        while True:
            await self.call.write(worker_pb2.AttachRequest())
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def doing(work: Any) -> AsyncIterator[None]:
    """Do *work* meanwhile. A stream whose reader is cancelled is cancelled too."""
    task = asyncio.create_task(work)
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def wire_trial(number: int, session_id: int, version: int = 1, size: int = 0) -> types_pb2.Trial:
    example = Example(example_id=str(number), inputs={"x": "-" * size})
    return types_pb2.Trial(id=number, session_id=session_id, version=version, example=example.payload)


async def ready(client: PoolClient) -> int:
    """Return a session with one version."""
    session = await client.open_session(PROGRAM, [], "")
    await client.set_variables(session, {"k": 1})
    return session


class RawClient:
    """A client that keeps no account of its credit."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.waiting: list[types_pb2.Outcome] = []

    async def send(self, **frame: Any) -> None:
        await self.call.write(execution_pb2.ExecuteProgramsRequest(**frame))

    async def outcomes(self, count: int) -> list[types_pb2.Outcome]:
        while len(self.waiting) < count:
            frame = await self.call.read()
            assert frame is not grpc.aio.EOF, await self.call.code()
            self.waiting.extend(frame.outcomes)
        taken, self.waiting = self.waiting[:count], self.waiting[count:]
        return taken


@contextlib.asynccontextmanager
async def raw_client(address: str, *, most_bytes: int = MESSAGE_LIMIT) -> AsyncIterator[RawClient]:
    async with channel(address, most_bytes) as dialled:
        stub: Any = execution_pb2_grpc.ExecutionServiceStub(dialled)
        opened = RawClient(stub.ExecutePrograms())
        await opened.send(protocol_version=PROTOCOL_VERSION)
        welcome = await opened.call.read()
        assert welcome.protocol_version == PROTOCOL_VERSION
        yield opened
