"""What waits to be written to each worker and each client."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import islice

from dspex.v1 import execution_pb2, types_pb2, worker_pb2
from dspex_pipelines.bridge.holding import LARGE_BYTES, MOST_HELD_BYTES, MOST_UNREAD_BYTES, Held
from dspex_pipelines.wire.codec import FRAME_BYTES, FRAME_TRIALS
from dspex_pipelines.wire.marks import MarksOfAnother


@dataclass(slots=True, eq=False)
class WorkerLink:
    """What waits to be written to one worker, and what it has been sent before."""

    worker_id: str
    pid: int
    marks: MarksOfAnother | None = None
    """Which of its threads runs which trial; None where that cannot be seen from here."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: deque[types_pb2.Session] = field(default_factory=deque[types_pb2.Session])
    snapshots: deque[types_pb2.Snapshot] = field(default_factory=deque[types_pb2.Snapshot])
    trials: deque[types_pb2.Trial] = field(default_factory=deque[types_pb2.Trial])
    has_large: bool = False
    """Whether any of them may be large."""
    cancels: list[int] = field(default_factory=list[int])
    permits: list[worker_pb2.CallPermit] = field(default_factory=list[worker_pb2.CallPermit])
    leaves: list[worker_pb2.StandingLeave] = field(default_factory=list[worker_pb2.StandingLeave])
    closed_sessions: list[int] = field(default_factory=list[int])
    known: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    """Session to the versions this worker has been sent."""
    forgotten: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    """Versions it has been sent and will not be asked for again; told when there is something else to be told."""
    drain: bool = False
    """Whether it is yet to be told that no more trials come."""
    leaving: bool = False
    """Whether it is known here, and to the supervisor, that it takes no more."""
    gone: bool = False
    last_seen: float = field(default_factory=time.monotonic)

    def next_frame(self) -> worker_pb2.AttachResponse | None:
        """Return whatever waits, up to a frame's limits; None when nothing does."""
        calls = self.permits or self.leaves
        if not (self.trials or self.cancels or calls or self.snapshots or self.closed_sessions or self.drain):
            return None
        frame = worker_pb2.AttachResponse()
        if calls:
            frame.permits.extend(self.permits)
            frame.leaves.extend(self.leaves)
            self.permits, self.leaves = [], []
        size = 0
        while self.sessions:
            size += self.sessions[0].ByteSize()
            if frame.sessions and size > FRAME_BYTES:
                return frame
            frame.sessions.append(self.sessions.popleft())
        while self.snapshots:
            size += len(self.snapshots[0].values)
            if (frame.sessions or frame.snapshots) and size > FRAME_BYTES:
                # Whose trials wait behind it is not known here, so all of them do.
                return frame
            frame.snapshots.append(self.snapshots.popleft())
        fitting = self._fitting(size, alone=not (frame.sessions or frame.snapshots))
        frame.trials.extend([self.trials.popleft() for _ in range(fitting)])
        if not self.trials:
            self.has_large = False
            # Not before the trials they are about: a cancel that overtakes its trial would be lost.
            frame.cancel_ids.extend(self.cancels)
            frame.closed_session_ids.extend(self.closed_sessions)
            if self.forgotten:
                frame.forgotten.extend(types_pb2.Snapshot(session_id=one, version=two) for one, two in self.forgotten)
                self.forgotten = []
            frame.drain = self.drain
            self.cancels, self.closed_sessions, self.drain = [], [], False
        return frame

    def _fitting(self, size: int, *, alone: bool) -> int:
        """Return how many trials fit a frame beside *size* bytes; one does that would be *alone*."""
        most = min(len(self.trials), FRAME_TRIALS)
        if self.has_large:
            # So many that are not large fit a message.
            for number, trial in enumerate(islice(self.trials, most)):
                size += len(trial.example) + len(trial.outputs)
                if size > FRAME_BYTES and (number or not alone):
                    return number
        return most


@dataclass(slots=True, eq=False)
class ClientLink:
    """What waits to be written to one client, and how much of its credit is used."""

    number: int
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    outcomes: deque[types_pb2.Outcome] = field(default_factory=deque[types_pb2.Outcome])
    live: dict[int, tuple[int, int]] = field(default_factory=dict[int, tuple[int, int]])
    """Trials in flight and the (session, version) each keeps alive."""
    uncommitted: int = 0
    gone: bool = False
    held: Held = field(default_factory=lambda: Held(MOST_HELD_BYTES))
    """The trials in flight that are large."""
    unread: Held = field(default_factory=lambda: Held(MOST_UNREAD_BYTES))
    """The outcomes that wait and are large."""
    stopped: bool = False
    """Whether its trials wait until it has read what waits for it."""
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def next_frame(self) -> execution_pb2.ExecuteProgramsResponse:
        """Return the outcomes that wait, up to a frame's limits."""
        outcomes = [self.outcomes.popleft() for _ in range(self._fitting())]
        if self.unread.sizes:
            for outcome in outcomes:
                self.unread.drop(id(outcome))
        return execution_pb2.ExecuteProgramsResponse(outcomes=outcomes)

    def _fitting(self) -> int:
        """Return how many outcomes fit a frame; one does that is alone."""
        most = min(len(self.outcomes), FRAME_TRIALS)
        if self.unread.sizes:
            # So many that are not large fit a message.
            size = 0
            for number, outcome in enumerate(islice(self.outcomes, most)):
                size += self.unread.sizes.get(id(outcome), LARGE_BYTES)
                if number and size > FRAME_BYTES:
                    return number
        return most

    async def has_room(self) -> None:
        """Return once the client may send more."""
        while self.held.is_full:
            self.room.clear()
            await self.room.wait()
