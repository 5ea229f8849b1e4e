"""What goes through the hub in one frame is everybody's own."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines.bridge import endings, inspection
from dspex_pipelines.bridge.hub import Hub
from dspex_pipelines.bridge.links import WorkerLink
from dspex_pipelines.bridge.sessions import SessionLimits, SessionStore
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.errors import UnknownSession
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.wire.codec import FRAME_BYTES, failure_to_wire


@pytest.fixture
async def hub() -> Hub:
    return Hub(dispatcher=Dispatcher(), sessions=SessionStore())


@pytest.fixture
def session(hub: Hub) -> Iterator[int]:
    number = hub.sessions.open(b"", None).session_id
    for k in range(2):
        hub.sessions.set_variables(number, {"k": k})
    yield number
    hub.close()


def trials(session: int, *ids: int, outputs: bytes = b"") -> list[types_pb2.Trial]:
    return [types_pb2.Trial(id=x, session_id=session, version=1 + x % 2, outputs=outputs) for x in ids]


async def test_the_outcomes_of_a_frame_go_to_their_clients_and_wake_each(hub: Hub, session: int) -> None:
    worker = hub.attach(worker_pb2.WorkerHello(worker_id="w", slots=8, pid=1))
    clients = [hub.connect(), hub.connect(), hub.connect()]
    for client, ids in zip(clients, [(0, 1, 2), (0, 1, 2), (7, 8)], strict=True):
        hub.submit(client, trials(session, *ids), 0)
    frame = worker.next_frame()
    assert frame is not None
    hub.disconnect(clients[2])
    attempts = [trial.id for trial in frame.trials]
    mixed = [attempts[n] for n in (0, 3, 6, 1, 7, 4, 5, 2)]
    outcomes = [types_pb2.Outcome(id=attempt, outputs=b"%d" % attempt) for attempt in mixed]
    hub.heard(worker, worker_pb2.AttachRequest(outcomes=outcomes), 0)
    for client, mine in zip(clients, [(0, 1, 2), (3, 4, 5), ()], strict=True):
        assert client.wake.is_set()
        assert sorted((one.id, one.outputs) for one in client.outcomes) == [
            (number, b"%d" % attempts[n]) for number, n in enumerate(mine)
        ]
        assert not client.live
    assert hub.sessions.session(session).pins == {}


async def test_large_trials_share_a_workers_frames_as_they_fit_whoever_else_has_small_ones(
    hub: Hub, session: int
) -> None:
    small, large = hub.connect(), hub.connect()
    for ids in ((0, 1), (2, 3)):
        hub.submit(small, trials(session, *ids), 100)
        hub.submit(large, trials(session, *ids, outputs=bytes(FRAME_BYTES // 3)), FRAME_BYTES)
    worker = hub.attach(worker_pb2.WorkerHello(worker_id="w", slots=8, pid=1))
    frames: list[worker_pb2.AttachResponse] = []
    while (frame := worker.next_frame()) is not None:
        frames.append(frame)
    assert [sum(len(trial.outputs) > 0 for trial in frame.trials) for frame in frames] in ([2, 2], [3, 1])
    assert sum(len(frame.trials) for frame in frames) == 8
    assert all(frame.ByteSize() < FRAME_BYTES + 2_000 for frame in frames)


class Anything:
    """Clients, workers and sessions that come and go, and trials good and bad."""

    def __init__(self, chance: Random) -> None:
        self.chance = chance
        self.hub = Hub(dispatcher=Dispatcher(rng=chance), sessions=SessionStore(SessionLimits(unreferenced=2)))
        self.sessions: list[int] = []
        self.running: dict[str, list[int]] = {}
        self.named = 0

    def step(self) -> None:
        every = (self.connect, self.attach, self.open, self.submit, self.work)
        often = (self.submit, self.submit, self.work, self.work, self.work)
        seldom = (self.close, self.change, self.disconnect, self.cancel, self.lose, self.tick, self.drain)
        self.chance.choice((*every, *often, *seldom))()

    def connect(self) -> None:
        if len(self.hub.clients) < 3:
            self.hub.connect(self.chance.randint(1, 3))

    def attach(self) -> None:
        if len(self.hub.workers) < 3:
            self.named += 1
            slots, quarantine = self.chance.randint(1, 9), self.chance.random() < 0.2
            hello = worker_pb2.WorkerHello(worker_id=f"w{self.named}", slots=slots, pid=1, quarantine=quarantine)
            self.running[self.hub.attach(hello).worker_id] = []

    def open(self) -> None:
        self.sessions.append(self.hub.sessions.open(b"", None, trial_slots=self.chance.choice((1, 3))).session_id)
        self.change()

    def change(self) -> None:
        for session_id in self.sessions[-1:]:
            with contextlib.suppress(UnknownSession):
                self.hub.sessions.set_variables(session_id, {"k": self.chance.random()})

    def close(self) -> None:
        if self.sessions:
            with contextlib.suppress(UnknownSession):
                self.hub.close_session(self.chance.choice(self.sessions))

    def submit(self) -> None:
        if self.hub.clients and self.sessions:
            chance = self.chance
            frame = [
                types_pb2.Trial(
                    id=chance.randint(1, 20),
                    session_id=chance.choice(self.sessions),
                    version=chance.randint(1, 3),
                    timeout_s=chance.choice((0.0, 0.0, 5.0, -1.0)),
                    outputs=bytes(chance.choice((0, 0, 200_000))),
                )
                for _ in range(chance.randint(1, 6))
            ]
            link = chance.choice(list(self.hub.clients.values()))
            self.hub.submit(link, frame, sum(trial.ByteSize() for trial in frame))

    def disconnect(self) -> None:
        if self.hub.clients:
            self.hub.disconnect(self.chance.choice(list(self.hub.clients.values())))

    def cancel(self) -> None:
        if self.hub.clients:
            ids = [self.chance.randint(1, 20) for _ in range(4)]
            self.hub.cancel(self.chance.choice(list(self.hub.clients.values())), ids)

    def lose(self) -> None:
        if self.hub.workers:
            self.hub.lose(self.chance.choice(list(self.hub.workers.values())), "gone")

    def tick(self) -> None:
        self.hub._perform(self.hub.dispatcher.tick(time.monotonic() + self.chance.choice((0.0, 3.0, 10.0))))

    def drain(self) -> None:
        self.hub.draining = self.chance.random() < 0.3

    def work(self) -> None:
        if self.hub.workers:
            worker = self.chance.choice(list(self.hub.workers.values()))
            message = worker_pb2.AttachRequest(outcomes=self._outcomes(worker))
            self.hub.heard(worker, message, message.ByteSize())

    def _outcomes(self, worker: WorkerLink) -> Iterator[types_pb2.Outcome]:
        running = self.running[worker.worker_id]
        while (frame := worker.next_frame()) is not None:
            running += [trial.id for trial in frame.trials]
        self.chance.shuffle(running)
        for _ in range(self.chance.randint(0, len(running))):
            outcome = types_pb2.Outcome(id=running.pop())
            kind = self.chance.choice((None, None, ErrorType.RATE_LIMITED, ErrorType.PROGRAM_EXCEPTION))
            if kind is not None:
                outcome.failure.CopyFrom(failure_to_wire(kind, "no", retryable=True))
            yield outcome

    def check(self) -> None:
        live = Counter(state for client in self.hub.clients.values() for state in client.live.values())
        pinned = Counter(
            {
                (session_id, version): trials
                for session_id, session in self.hub.sessions._sessions.items()
                for version, trials in session.pins.items()
            }
        )
        assert pinned == live
        for client in self.hub.clients.values():
            assert set(self.hub.dispatcher._queues.clients[client.number].trials) == set(client.live)
            assert set(client.held.sizes) <= set(client.live)


@pytest.fixture
def harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "kill", lambda *_: None)


@pytest.mark.usefixtures("harmless")
@settings(max_examples=60, deadline=None)
@given(chance=st.randoms(use_true_random=False), steps=st.integers(1, 150))
def test_a_version_is_pinned_by_the_trials_that_are_live_and_by_no_others(chance: Random, steps: int) -> None:
    async def run() -> None:
        anything = Anything(chance)
        for _ in range(steps):
            anything.step()
            anything.check()
        for client in list(anything.hub.clients.values()):
            anything.hub.disconnect(client)
        anything.check()
        anything.hub.close()

    asyncio.run(run())


async def history_of(hub: Hub, session: int, lose: Callable[[WorkerLink], None]) -> list[str]:
    """What is told of a worker that is lost so, by the trial that it ran and another one answers."""
    client = hub.connect()
    lost = hub.attach(worker_pb2.WorkerHello(worker_id="lost", slots=1, pid=1))
    hub.submit(client, trials(session, 1), 0)
    lose(lost)
    other = hub.attach(worker_pb2.WorkerHello(worker_id="other", slots=1, pid=1, quarantine=True))
    # It is run elsewhere once it is known how the first one ended.
    while (frame := other.next_frame()) is None:
        other.wake.clear()
        await other.wake.wait()
    assert lost.gone
    hub.heard(other, worker_pb2.AttachRequest(outcomes=[types_pb2.Outcome(id=frame.trials[0].id)]), 0)
    (outcome,) = client.outcomes
    return [past.message for past in outcome.history]


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (0, "its process ended with exit code 0"),
        (-signal.SIGABRT, "its process was killed by signal 6 (SIGABRT)"),
        (-signal.SIGKILL, "its process was killed by signal 9 (SIGKILL; out of memory?)"),
        (-(signal.SIGRTMIN + 1), f"its process was killed by signal {signal.SIGRTMIN + 1}"),
    ],
)
@pytest.mark.parametrize("first", ["stream", "process"])
async def test_how_a_workers_process_ended_is_told_whichever_end_is_heard_of_first(
    hub: Hub, session: int, first: str, code: int, told: str
) -> None:
    hub.endings.begin("lost")

    def lose(link: WorkerLink) -> None:
        if first == "process":
            hub.process_ended("lost", code)
        hub.stream_ended(link)
        assert not link.gone
        if first == "stream":
            hub.process_ended("lost", code)

    assert await history_of(hub, session, lose) == [told]
    assert "lost" not in hub.endings


async def test_how_the_workers_of_others_ended_is_not_waited_for(hub: Hub, session: int) -> None:
    def lose(link: WorkerLink) -> None:
        hub.stream_ended(link)
        assert link.gone

    assert await history_of(hub, session, lose) == ["its stream ended"]


async def test_a_worker_whose_process_lives_on_is_lost_after_a_moment(
    hub: Hub, session: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endings, "TOLD_S", 0.0)
    hub.endings.begin("lost")
    assert await history_of(hub, session, hub.stream_ended) == ["its stream ended"]
    assert "lost" not in hub.endings
    hub.process_ended("lost", 0)


async def test_a_worker_that_ran_nothing_is_lost_at_once(hub: Hub) -> None:
    for name in ("attached", "never attached"):
        hub.endings.begin(name)
    link = hub.attach(worker_pb2.WorkerHello(worker_id="attached", slots=1, pid=1))
    hub.stream_ended(link)
    assert link.gone
    hub.process_ended("never attached", 1)
    for name in ("attached", "never attached"):
        assert name not in hub.endings
        assert await hub.endings.of(name) == ""
    hub.close()


async def test_a_worker_of_which_only_the_stream_has_ended_is_sent_nothing_more(hub: Hub, session: int) -> None:
    client = hub.connect()
    hub.endings.begin("lost")
    lost = hub.attach(worker_pb2.WorkerHello(worker_id="lost", slots=2, pid=1))
    hub.submit(client, trials(session, 1), 0)
    assert lost.next_frame() is not None
    hub.stream_ended(lost)
    hub.submit(client, trials(session, 2), 0)
    assert lost.next_frame() is None
    other = hub.attach(worker_pb2.WorkerHello(worker_id="other", slots=2, pid=1))
    frame = other.next_frame()
    assert frame is not None
    assert len(frame.trials) == 1
