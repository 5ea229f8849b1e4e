"""What goes through the hub in one frame is everybody's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines.bridge.hub import Hub
from dspex_pipelines.bridge.sessions import SessionStore
from dspex_pipelines.engine.dispatcher import Dispatcher
from dspex_pipelines.wire.codec import FRAME_BYTES


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
