"""Performs the dispatcher's orders: between the streams of clients and the streams of workers."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dspex.v1 import execution_pb2, types_pb2, worker_pb2
from dspex_pipelines.bridge import inspection
from dspex_pipelines.bridge.sessions import SessionStore
from dspex_pipelines.engine.dispatcher import Dispatcher
from dspex_pipelines.engine.retries import Fault
from dspex_pipelines.engine.tickets import Orders, Settled, Ticket
from dspex_pipelines.errors import UnknownSession
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.wire.codec import (
    FRAME_BYTES,
    FRAME_TRIALS,
    attempt_to_wire,
    error_type_from_wire,
    failure_to_wire,
    metric_to_wire,
    program_to_wire,
)
from dspex_pipelines.wire.marks import MarksOfAnother


@dataclass(slots=True, eq=False)
class WorkerLink:
    """What waits to be written to one worker, and what it has been sent before."""

    worker_id: str
    pid: int
    marks: MarksOfAnother | None = None
    """Which of its threads runs which trial; None where that cannot be seen from here."""
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    sessions: list[types_pb2.Session] = field(default_factory=list[types_pb2.Session])
    snapshots: deque[types_pb2.Snapshot] = field(default_factory=deque[types_pb2.Snapshot])
    trials: deque[types_pb2.Trial] = field(default_factory=deque[types_pb2.Trial])
    cancels: list[int] = field(default_factory=list[int])
    closed_sessions: list[int] = field(default_factory=list[int])
    known: dict[int, set[int]] = field(default_factory=dict[int, set[int]])
    """Session to the versions this worker has been sent."""
    drain: bool = False
    gone: bool = False
    last_seen: float = field(default_factory=time.monotonic)

    def next_frame(self) -> worker_pb2.AttachResponse | None:
        """Return whatever waits, up to a frame's limits; None when nothing does."""
        if not (self.trials or self.cancels or self.snapshots or self.closed_sessions or self.drain):
            return None
        frame = worker_pb2.AttachResponse(sessions=self.sessions)
        self.sessions = []
        size = 0
        while self.snapshots:
            size += len(self.snapshots[0].values)
            if frame.snapshots and size > FRAME_BYTES:
                # Whose trials wait behind it is not known here, so all of them do.
                return frame
            frame.snapshots.append(self.snapshots.popleft())
        trials: list[types_pb2.Trial] = []
        while self.trials and len(trials) < FRAME_TRIALS:
            size += len(self.trials[0].example) + len(self.trials[0].outputs)
            if (trials or frame.snapshots) and size > FRAME_BYTES:
                break
            trials.append(self.trials.popleft())
        frame.trials.extend(trials)
        if not self.trials:
            # Not before the trials they are about: a cancel that overtakes its trial would be lost.
            frame.cancel_ids.extend(self.cancels)
            frame.closed_session_ids.extend(self.closed_sessions)
            frame.drain = self.drain
            self.cancels, self.closed_sessions, self.drain = [], [], False
        return frame


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

    def next_frame(self) -> execution_pb2.ExecuteProgramsResponse:
        """Return the outcomes that wait, up to a frame's limits."""
        outcomes: list[types_pb2.Outcome] = []
        size = 0
        while self.outcomes and len(outcomes) < FRAME_TRIALS:
            size += len(self.outcomes[0].outputs) + len(self.outcomes[0].trace)
            if outcomes and size > FRAME_BYTES:
                break
            outcomes.append(self.outcomes.popleft())
        return execution_pb2.ExecuteProgramsResponse(outcomes=outcomes)


class Hub:
    """The one place where events reach the dispatcher and its orders reach the streams."""

    def __init__(
        self,
        *,
        dispatcher: Dispatcher,
        sessions: SessionStore,
        tell: Callable[[Mapping[str, object]], None] = lambda _: None,
    ) -> None:
        self.sessions = sessions
        self.dispatcher = dispatcher
        self.workers: dict[str, WorkerLink] = {}
        self.clients: dict[int, ClientLink] = {}
        self.workers_lost = 0
        self.draining = False
        self.closing = asyncio.Event()
        self.failing = ""
        """Why the pool gives up; empty while it does not."""
        self._tell = tell
        self._answered = 0
        self._inspections: set[asyncio.Task[None]] = set()
        self._next_client = 1
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------ workers

    def attach(self, hello: worker_pb2.WorkerHello) -> WorkerLink:
        """A worker has said hello; raises ValueError for a name that is taken."""
        now = time.monotonic()
        orders = self.dispatcher.attach(hello.worker_id, hello.slots, now, quarantine=hello.quarantine)
        marks = MarksOfAnother.open(hello.pid, hello.marks_fd)
        link = self.workers[hello.worker_id] = WorkerLink(hello.worker_id, hello.pid, marks)
        self._perform(orders)
        return link

    def heard(self, link: WorkerLink, message: worker_pb2.AttachRequest) -> None:
        """A worker has sent outcomes, freed slots, or just a sign of life."""
        now = link.last_seen = time.monotonic()
        self.dispatcher.heard(link.worker_id, now, held_by=message.held_by)
        if message.draining:
            self._perform(self.dispatcher.drain_worker(link.worker_id, now))
        if message.outcomes:
            answers = [
                (outcome.id, outcome, _fault(outcome) if outcome.HasField("failure") else None)
                for outcome in message.outcomes
            ]
            self._answered += len(answers)
            self._perform(self.dispatcher.finish_many(link.worker_id, answers, now))
        if message.released_ids:
            self._perform(self.dispatcher.release(link.worker_id, message.released_ids, now))

    def inspect(self, link: WorkerLink, reason: str) -> None:
        """Find out which trial keeps a worker silent, and end the worker, unless it speaks meanwhile."""
        task = asyncio.create_task(self._inspect(link, reason))
        self._inspections.add(task)
        task.add_done_callback(self._inspections.discard)

    async def _inspect(self, link: WorkerLink, reason: str) -> None:
        seen = link.last_seen
        suspects = await asyncio.to_thread(inspection.suspects, link.pid, link.marks)
        if link.gone or link.last_seen != seen:
            return
        self._end(link, suspects, reason)

    def _end(self, link: WorkerLink, suspects: Sequence[int], reason: str) -> None:
        self._drop(link)
        inspection.kill(link.pid, link.worker_id)
        self._perform(self.dispatcher.hung(link.worker_id, suspects, time.monotonic(), reason))

    def _drop(self, link: WorkerLink) -> None:
        link.gone = True
        link.wake.set()
        del self.workers[link.worker_id]
        self.workers_lost += 1
        self._tell({"lost": link.worker_id, "answered": self._answered})
        self._answered = 0

    def lose(self, link: WorkerLink, reason: str) -> None:
        """A worker's stream has ended."""
        if link.gone:
            return
        self._drop(link)
        self._perform(self.dispatcher.lose(link.worker_id, time.monotonic(), reason))

    # ------------------------------------------------------------------ clients

    def connect(self) -> ClientLink:
        """A client has opened its stream."""
        link = ClientLink(self._next_client)
        self._next_client += 1
        self.clients[link.number] = link
        return link

    def submit(self, link: ClientLink, trials: Sequence[types_pb2.Trial]) -> None:
        """A client has sent trials; one that names no live snapshot is answered at once."""
        tickets: list[Ticket] = []
        number, live, pin = link.number, link.live, self.sessions.pin
        link.uncommitted += len(trials)
        for trial in trials:
            state = (trial.session_id, trial.version)
            try:
                pin(*state)
            except UnknownSession as error:
                self._refuse(link, trial.id, ErrorType.STALE_STATE, str(error), retryable=True)
                continue
            if self.draining or trial.id in live:
                self._unpin(state)
                why = "the pool is draining" if self.draining else f"trial {trial.id} is in flight already"
                self._refuse(link, trial.id, ErrorType.CANCELLED, why, retryable=True)
                continue
            live[trial.id] = state
            tickets.append(Ticket(number, trial.id, *state, trial.timeout_s, trial, trial.max_attempts))
        if tickets:
            self._perform(self.dispatcher.submit(number, tickets, time.monotonic()))

    def cancel(self, link: ClientLink, trial_ids: Iterable[int]) -> None:
        """A client no longer wants trials."""
        self._perform(self.dispatcher.cancel(link.number, trial_ids, time.monotonic()))

    def disconnect(self, link: ClientLink) -> None:
        """A client's stream has ended: nobody will read its outcomes."""
        if link.gone:
            return
        link.gone = True
        link.wake.set()
        del self.clients[link.number]
        orders = self.dispatcher.disconnect(link.number, time.monotonic())
        for state in link.live.values():
            self._unpin(state)
        link.live.clear()
        self._perform(orders)

    def close_session(self, session_id: int) -> None:
        """Close a session here, and in the workers once no trial refers to it; raises `UnknownSession`."""
        if self.sessions.close(session_id):
            self._forget(session_id)

    def _unpin(self, state: tuple[int, int]) -> None:
        if self.sessions.unpin(*state):
            self._forget(state[0])

    def _forget(self, session_id: int) -> None:
        for worker in self.workers.values():
            # Trials of it that run keep what they were given.
            if worker.known.pop(session_id, None) is not None:
                worker.closed_sessions.append(session_id)
                worker.wake.set()

    def fail(self, reason: str) -> None:
        """End the clients' streams, telling them why."""
        self.failing = reason
        for link in list(self.clients.values()):
            link.wake.set()

    def close(self) -> None:
        """End every stream of this hub; nothing is settled any more."""
        self.closing.set()
        for link in (*self.workers.values(), *self.clients.values()):
            link.gone = True
            link.wake.set()
        self.sessions.close_all()
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------------ orders

    def _perform(self, orders: Orders) -> None:
        for worker_id, dispatched in orders.dispatch.items():
            self._send(self.workers[worker_id], dispatched)
        for worker_id, attempt_ids in orders.cancel.items():
            if worker := self.workers.get(worker_id):
                worker.cancels.extend(attempt_ids)
                worker.wake.set()
        for worker_id in orders.retire:
            if worker := self.workers.get(worker_id):
                worker.drain = True
                worker.wake.set()
                self._tell({"retired": worker_id})
        for worker_id in orders.inspect:
            if worker := self.workers.get(worker_id):
                self.inspect(worker, "native code held its interpreter past a deadline")
        for worker_id, attempt_id in orders.kill.items():
            if worker := self.workers.get(worker_id):
                self._end(worker, [attempt_id], "a trial that did not end held it")
        if orders.quarantine is not None:
            self._tell({"quarantine": orders.quarantine})
        for settled in orders.settle:
            self._answer(settled)
        self._arm()

    def _answer(self, settled: Settled) -> None:
        ticket = settled.ticket
        client = self.clients.get(ticket.client)
        if client is None:
            return
        state = client.live.pop(ticket.client_trial_id, None)
        if state is not None:
            self._unpin(state)
        outcome = settled.outcome
        if not isinstance(outcome, types_pb2.Outcome):
            assert settled.error is not None
            outcome = types_pb2.Outcome(
                run_s=settled.run_s,
                session_version=ticket.version,
                failure=failure_to_wire(settled.error, settled.message, retryable=not settled.error.is_final),
            )
        outcome.id = ticket.client_trial_id
        outcome.queue_s = settled.queue_s
        outcome.attempts = settled.attempts
        outcome.worker_id = settled.worker_id
        if settled.history:
            outcome.history.extend(attempt_to_wire(attempt) for attempt in settled.history)
        client.outcomes.append(outcome)
        client.wake.set()

    def _send(self, worker: WorkerLink, dispatched: Sequence[tuple[int, Ticket]]) -> None:
        known = worker.known
        for attempt_id, ticket in dispatched:
            versions = known.get(ticket.session_id)
            if versions is None or ticket.version not in versions:
                self._introduce(worker, ticket.session_id, ticket.version)
            trial = ticket.body
            assert isinstance(trial, types_pb2.Trial)
            trial.id = attempt_id
            worker.trials.append(trial)
        worker.wake.set()

    def _introduce(self, worker: WorkerLink, session_id: int, version: int) -> None:
        """Queue session and snapshot ahead of the first trial that needs them."""
        session, snapshot = self.sessions.pinned(session_id, version)
        versions = worker.known.get(session_id)
        if versions is None:
            versions = worker.known[session_id] = set()
            worker.sessions.append(
                types_pb2.Session(
                    session_id=session_id,
                    program=program_to_wire(session.program),
                    metrics=[metric_to_wire(metric) for metric in session.metrics],
                )
            )
        versions.add(version)
        worker.snapshots.append(
            types_pb2.Snapshot(session_id=session_id, version=version, values=snapshot.values, digest=snapshot.digest)
        )

    @staticmethod
    def _refuse(link: ClientLink, trial_id: int, kind: ErrorType, message: str, *, retryable: bool) -> None:
        failure = failure_to_wire(kind, message, retryable=retryable)
        link.outcomes.append(types_pb2.Outcome(id=trial_id, failure=failure))
        link.wake.set()

    def _arm(self) -> None:
        """Keep one timer, for the dispatcher's next deadline."""
        due = self.dispatcher.next_deadline()
        timer = self._timer
        if due is None or (timer is not None and not timer.cancelled() and timer.when() <= due):
            return
        if timer is not None:
            timer.cancel()
        # The loop's clock is time.monotonic, the one that the dispatcher is told.
        self._timer = asyncio.get_running_loop().call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._perform(self.dispatcher.tick(time.monotonic()))


def _fault(outcome: types_pb2.Outcome) -> Fault:
    failure = outcome.failure
    return Fault(
        type=error_type_from_wire(failure.type),
        message=failure.message,
        retryable=failure.retryable,
        fingerprint=failure.fingerprint,
        retry_after_s=failure.retry_after_s,
    )
