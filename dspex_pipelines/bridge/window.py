"""The trials that a client has sent and not committed: as many as its bridge gives it credit for."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from dspex.v1 import execution_pb2, types_pb2
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import TrialOutcome
from dspex_pipelines.model.trial import TrialSpec
from dspex_pipelines.wire.codec import FRAME_BYTES, FRAME_TRIALS, PAYLOAD_BYTES, outcome_from_wire, write_trial

if TYPE_CHECKING:
    from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

_Waiting: TypeAlias = tuple[TrialSpec, bytes, int, int, int, float, bytes, int, int]
"""A trial that is to be sent: its example's payload, its id in this stream, session, version, timeout, outputs, most
attempts, and how many bytes its payloads have."""

_About = TypeVar("_About")
Answered: TypeAlias = Callable[[_About, TrialOutcome | Exception], None]


class Window:
    """What is to be sent, what is in flight, and credit for more. It makes and takes frames, and opens nothing."""

    def __init__(self) -> None:
        self.limit = 0
        """Most trials that may be sent and not yet be committed."""
        self.credit = 0
        self.is_open = False
        """Whether there is a stream to send on."""
        self.wake = asyncio.Event()
        """Set when there may be a frame to send."""
        self.outbox: deque[_Waiting] = deque()
        self._cancels: list[int] = []
        self._committed = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        """Those who wait for credit."""
        self._pending: dict[int, tuple[Answered[Any], Any, bytes]] = {}
        """Trials in flight: who is told of the outcome, and with what, and the trial's own id."""
        self._last_id = 0

    def renew(self) -> None:
        """End the frames of the stream before, which gRPC leaves waiting where the other side has ended it."""
        self.wake.set()
        self.wake = asyncio.Event()

    def open(self, limit: int) -> None:
        """There is a stream, of a bridge that gives so much credit in all."""
        # Outcomes that are here and not durable yet still count.
        self.credit += limit - self.limit
        self.limit = limit
        self.is_open = True

    def send(
        self,
        spec: TrialSpec,
        session_id: int,
        version: int,
        timeout_s: float,
        outputs: bytes,
        most_attempts: int,
        answered: Answered[_About],
        about: _About,
    ) -> int:
        """Do what `PoolClient.execute` does, where nothing has to be waited for first.

        Return the trial's number, or 0, having done nothing, elsewhere. *answered* is called once, with *about* and the
        outcome, or what `execute` would raise.
        """
        example = spec.example.payload
        size = len(example) + len(outputs)
        if self.credit <= 0 or size > PAYLOAD_BYTES or not self.is_open:
            return 0
        self.credit -= 1
        self._last_id = number = self._last_id + 1
        self._pending[number] = (answered, about, spec.trial_id)
        if not self.outbox:
            self.wake.set()
        self.outbox.append((spec, example, number, session_id, version, timeout_s, outputs, most_attempts, size))
        return number

    def drop(self, number: int) -> None:
        """Cancel a trial; nobody is told of its outcome."""
        if number in self._pending:
            *_, trial_id = self._pending[number]
            self._pending[number] = (self.unwanted, None, trial_id)
            self.cancel(number)

    def drop_all(self, answered: Answered[Any]) -> None:
        """Cancel the trials of whose outcomes *answered* would be told; it is told of none."""
        for number in [number for number, (one, *_) in self._pending.items() if one == answered]:
            self.drop(number)

    def cancel(self, number: int) -> None:
        """Cancel a trial; its outcome says what became of it."""
        if number in self._pending:
            self._cancels.append(number)
            self.wake.set()

    def unwanted(self, _: object, outcome: TrialOutcome | BaseException) -> None:
        """A trial's caller has gone; nobody else will commit its outcome."""
        if not isinstance(outcome, BaseException):
            self.commit(1)

    # ------------------------------------------------------------------ credit

    def commit(self, count: int) -> None:
        """*count* outcomes are durable: so many more trials may be sent."""
        # Outcomes that came from no bridge took no credit.
        count = max(0, min(count, self.limit - self.credit - len(self._pending)))
        self._committed += count
        self.credit += count
        self._admit(count)
        self.wake.set()

    async def room(self, withdrawn: asyncio.Future[None] | None) -> None:
        """Return once there may be credit, or *withdrawn* is done."""
        room = asyncio.get_running_loop().create_future()
        self._waiters.append(room)
        if withdrawn is not None:
            withdrawn.add_done_callback(lambda _: self._give_way(room))
        try:
            await room
        except asyncio.CancelledError:
            if not room.cancelled():
                # It had been its turn, which is the next one's now.
                self._admit(self.credit)
            raise

    def _give_way(self, room: asyncio.Future[None]) -> None:
        """Wake one that waits for credit and is not to be sent any more: what comes back is the others'."""
        if not room.done():
            self._waiters.remove(room)
            room.set_result(None)

    def _admit(self, count: int) -> None:
        """Wake so many of those that wait for credit."""
        while count > 0 and self._waiters:
            room = self._waiters.popleft()
            if not room.done():
                # One that was cancelled has no use for it.
                room.set_result(None)
                count -= 1

    # ------------------------------------------------------------------ frames

    @property
    def is_quiet(self) -> bool:
        """Whether there is nothing to tell the bridge."""
        return not (self.outbox or self._cancels or self._committed)

    def next_frame(self) -> execution_pb2.ExecuteProgramsRequest:
        """Return whatever waits, up to a frame's limits."""
        frame = execution_pb2.ExecuteProgramsRequest()
        self._take_trials(frame.trials)
        # A cancel goes after the trial it is about.
        if self._cancels and not self.outbox:
            frame.cancel_ids.extend(self._cancels)
            self._cancels = []
        frame.committed, self._committed = self._committed, 0
        return frame

    def _take_trials(self, trials: RepeatedCompositeFieldContainer[types_pb2.Trial]) -> None:
        """Move what waits into a frame, up to its limits."""
        outbox, add = self.outbox, trials.add
        size = 0
        for count in range(min(len(outbox), FRAME_TRIALS)):
            waiting = outbox.popleft()
            spec, example, number, session_id, version, timeout_s, outputs, most_attempts, payloads = waiting
            size += payloads
            if count and size > FRAME_BYTES:
                outbox.appendleft(waiting)
                break
            trial = add()
            try:
                write_trial(trial, spec, example, number, session_id, version, timeout_s)
                if outputs:
                    trial.outputs = outputs
                if most_attempts:
                    trial.max_attempts = most_attempts
            except (TypeError, ValueError) as error:
                # A number that the wire has no room for: its caller's affair, and nobody else's.
                del trials[-1]
                answered, about, _ = self._pending.pop(number)
                if answered == self.unwanted:
                    self.commit(1)
                answered(about, error)

    def take(self, frame: execution_pb2.ExecuteProgramsResponse) -> None:
        """Tell whoever waits of the outcomes that a frame brings."""
        pending = self._pending
        for outcome in frame.outcomes:
            entry = pending.pop(outcome.id, None)
            if entry is not None:
                answered, about, trial_id = entry
                answered(about, outcome_from_wire(outcome, trial_id))

    # ------------------------------------------------------------------ the end of a stream

    def interrupt(self, error: DspexError) -> None:
        """The bridge is gone with all that was in flight, which ends with *error*."""
        self.credit += len(self._pending)
        self.outbox.clear()
        self._cancels.clear()
        self._committed = 0
        self.wake.set()
        self.close(error)

    def close(self, error: DspexError) -> None:
        """There is no stream any more: what is in flight ends with *error*, and nobody waits for credit."""
        self.is_open = False
        pending, self._pending = self._pending, {}
        for answered, about, _ in pending.values():
            answered(about, error)
        self._admit(len(self._waiters))
