"""Performs the dispatcher's orders: between the streams of clients and the streams of workers."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any

from dspex.v1 import types_pb2, worker_pb2
from dspex_pipelines.bridge import inspection
from dspex_pipelines.bridge.endings import Endings
from dspex_pipelines.bridge.holding import is_large
from dspex_pipelines.bridge.links import ClientLink, WorkerLink
from dspex_pipelines.bridge.model_calls import ModelCalls
from dspex_pipelines.bridge.outcomes import NAME_CHARACTERS, fault_of, outcome_of, tell_history
from dspex_pipelines.bridge.sessions import Session, SessionStore
from dspex_pipelines.engine.alarm import Alarm
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.tickets import Orders, Settled, Ticket
from dspex_pipelines.engine.worker_options import MOST_SLOTS
from dspex_pipelines.errors import UnknownSession
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.wire.codec import failure_to_wire, session_to_wire
from dspex_pipelines.wire.marks import MarksOfAnother

TRIAL_BYTES = 1_024
"""Of a trial, beside its payloads."""

_VERDICTS = frozenset({ErrorType.POISON, ErrorType.TIMEOUT_RUN})
"""What a trial that costs its worker is found to be: an answer too, however many such trials there are in a row."""


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
        self.models = ModelCalls(dispatcher, permit=self._permit, leave=self._leave, changed=self._arm)
        self._tell = tell
        self._answered = 0
        self._sizes: dict[int, int] = {}
        """Of the outcomes that are being taken in and are large."""
        self.endings = Endings()
        self._inquiries: set[asyncio.Task[None]] = set()
        """What is being found out of silent and lost workers."""
        self._next_client = 1
        self._alarm = Alarm(self._tick)

    # ------------------------------------------------------------------ workers

    def attach(self, hello: worker_pb2.WorkerHello) -> WorkerLink:
        """A worker has said hello; raises ValueError for what cannot be, or a name that is taken."""
        if not 0 < len(hello.worker_id) <= NAME_CHARACTERS or not hello.worker_id.isprintable():
            raise ValueError(f"a worker's name has 1 to {NAME_CHARACTERS} printable characters")
        if hello.slots > MOST_SLOTS:
            raise ValueError(f"worker {hello.worker_id} offers {hello.slots} slots; at most {MOST_SLOTS} are taken")
        now = time.monotonic()
        orders = self.dispatcher.attach(hello.worker_id, hello.slots, now, quarantine=hello.quarantine)
        marks = MarksOfAnother.open(hello.pid, hello.marks_fd)
        link = self.workers[hello.worker_id] = WorkerLink(hello.worker_id, hello.pid, marks)
        self._perform(orders)
        return link

    def heard(self, link: WorkerLink, message: worker_pb2.AttachRequest, size: int) -> None:
        """A worker has sent outcomes, freed slots, or just a sign of life, in a frame of *size* bytes."""
        if link.gone:
            return
        now = link.last_seen = time.monotonic()
        self.dispatcher.heard(link.worker_id, now, held_by=message.held_by)
        if message.held_by:
            self._arm()
        if message.draining and not link.leaving:
            link.leaving = True
            self._tell({"retired": link.worker_id})
            self._perform(self.dispatcher.drain_worker(link.worker_id, now))
            # Behind the trials that are on their way: the worker waits for those.
            link.drain = True
            link.wake.set()
        if message.asks or message.ends:
            # Before the outcomes: with its trial, a call would be forgotten.
            self.models.heard(link.worker_id, message.asks, message.ends, now)
        if message.outcomes:
            outcomes = message.outcomes
            if is_large(size, len(outcomes)):
                outcomes = self._measured(outcomes)
            answers = [
                (outcome.id, outcome, fault_of(outcome) if outcome.HasField("failure") else None)
                for outcome in outcomes
            ]
            self._answered += len(answers)
            self._perform(self.dispatcher.finish_many(link.worker_id, answers, now))
            self._sizes.clear()
        if message.released_ids:
            self._perform(self.dispatcher.release(link.worker_id, message.released_ids, now))
        if message.returned_ids and link.leaving:
            # One that stays would be sent them again, for ever.
            self._perform(self.dispatcher.give_back(link.worker_id, message.returned_ids, now))

    def _measured(self, outcomes: Iterable[types_pb2.Outcome]) -> list[types_pb2.Outcome]:
        """Return outcomes that do not keep the frame alive that they came in, and whose sizes are known."""
        measured: list[types_pb2.Outcome] = []
        for outcome in outcomes:
            data = outcome.SerializeToString()
            measured.append(types_pb2.Outcome.FromString(data))
            self._sizes[id(measured[-1])] = len(data)
        return measured

    def _permit(self, worker_id: str, permit: worker_pb2.CallPermit) -> None:
        if link := self.workers.get(worker_id):
            link.permits.append(permit)
            link.wake.set()

    def _leave(self, worker_id: str, leave: worker_pb2.StandingLeave) -> None:
        if link := self.workers.get(worker_id):
            link.leaves.append(leave)
            link.wake.set()

    def inspect(self, link: WorkerLink, reason: str) -> None:
        """Find out which trial keeps a worker silent, and end the worker, unless it speaks meanwhile."""
        self._inquire(self._inspect(link, reason))

    def _inquire(self, inquiry: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(inquiry)
        self._inquiries.add(task)
        task.add_done_callback(self._inquiries.discard)

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
        self.workers_lost += not link.leaving
        self.models.lose(link.worker_id, time.monotonic())
        self.endings.forget(link.worker_id)
        self._tell_answered()

    def _tell_answered(self) -> None:
        if self._answered:
            self._tell({"answered": self._answered})
        self._answered = 0

    def lose(self, link: WorkerLink, reason: str) -> None:
        """A worker's stream is over, for that *reason*."""
        if link.gone:
            return
        self._drop(link)
        self._perform(self.dispatcher.lose(link.worker_id, time.monotonic(), reason))

    def stream_ended(self, link: WorkerLink) -> None:
        """A worker has ended its stream: lose it, once it is known how its process ended if it still ran something."""
        reason = "its stream ended"
        if link.gone or link.worker_id not in self.endings or not self.dispatcher.close(link.worker_id):
            self.lose(link, reason)
            return
        # At once: the supervisor gives up over processes that end one after another, and nothing is answered meanwhile.
        self._tell_answered()

        async def lose() -> None:
            self.lose(link, await self.endings.of(link.worker_id) or reason)

        self._inquire(lose())

    def process_ended(self, worker_id: str, code: int) -> None:
        """The supervisor says that a worker's process has ended, with that code or by minus that signal."""
        self.endings.end(worker_id, code)
        if worker_id not in self.workers:
            self.endings.forget(worker_id)

    # ------------------------------------------------------------------ clients

    def connect(self, weight: int = 1) -> ClientLink:
        """A client has opened its stream; *weight* is how many turns it has for each one of a client of weight 1."""
        link = ClientLink(self._next_client)
        self.dispatcher.join(link.number, weight)
        self._next_client += 1
        self.clients[link.number] = link
        if len(self.clients) == 1:
            self._tell({"clients": True})
        return link

    @property
    def is_idle(self) -> bool:
        """Whether every trial that was accepted is answered, and its answer on its way."""
        return not any(link.live or link.outcomes for link in self.clients.values())

    def submit(self, link: ClientLink, trials: Sequence[types_pb2.Trial], size: int) -> None:
        """A client has sent trials in a frame of *size* bytes; one that cannot be run is answered at once."""
        tickets: list[Ticket] = []
        number, live = link.number, link.live
        link.uncommitted += len(trials)
        large = is_large(size, len(trials))
        trials = self._fitting(link, trials) if large else list(trials)
        states = [(trial.session_id, trial.version) for trial in trials]
        sessions = {state: self._pin(state, count) for state, count in Counter(states).items()}
        for trial, state in zip(trials, states, strict=True):
            session = sessions[state]
            trial_id, timeout_s = trial.id, trial.timeout_s
            if isinstance(session, UnknownSession):
                self._refuse(link, trial_id, ErrorType.STALE_STATE, str(session), retryable=True)
                continue
            if self.draining or trial_id in live or not timeout_s >= 0.0:
                self._unpin([state])
                if self.draining:
                    self._refuse(link, trial_id, ErrorType.CANCELLED, "the pool is draining", retryable=True)
                elif trial_id in live:
                    why = f"trial {trial_id} is in flight already"
                    self._refuse(link, trial_id, ErrorType.CANCELLED, why, retryable=True)
                else:
                    why = f"timeout_s is {timeout_s}; give seconds, or 0 for no limit"
                    self._refuse(link, trial_id, ErrorType.INVALID_CONFIGURATION, why)
                continue
            live[trial_id] = state
            if large:
                link.held.add(trial_id, trial.ByteSize())
            tickets.append(Ticket(number, trial_id, state, timeout_s, trial, trial.max_attempts, session.trial_slots))
        if tickets:
            self._perform(self.dispatcher.submit(number, tickets, time.monotonic()))

    def _fitting(self, link: ClientLink, trials: Iterable[types_pb2.Trial]) -> list[types_pb2.Trial]:
        """Return trials that do not keep the frame alive that they came in; refuse those that no frame could hold."""
        fitting: list[types_pb2.Trial] = []
        for trial in trials:
            data = trial.SerializeToString()
            if len(data) - len(trial.example) - len(trial.outputs) > TRIAL_BYTES:
                why = f"beside example and outputs, a trial has at most {TRIAL_BYTES:,} bytes"
                self._refuse(link, trial.id, ErrorType.SERIALIZATION, why)
            else:
                fitting.append(types_pb2.Trial.FromString(data))
        return fitting

    def has_read(self, link: ClientLink) -> None:
        """A frame has gone to a client: its trials go on where they waited for that."""
        if link.stopped and link.unread.is_half_empty:
            link.stopped = False
            self._perform(self.dispatcher.resume(link.number, time.monotonic()))

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
        if not self.clients:
            self._tell({"clients": False})
        orders = self.dispatcher.disconnect(link.number, time.monotonic())
        self._unpin(link.live.values())
        link.live.clear()
        self._perform(orders)

    def close_session(self, session_id: int) -> None:
        """Close a session here, and in the workers once no trial refers to it; raises `UnknownSession`."""
        self.models.withdraw(session_id)
        if self.sessions.close(session_id):
            self._forget(session_id)

    def expire_sessions(self, now: float) -> None:
        """Close the sessions that nobody has used for long."""
        for session_id in self.sessions.expire(now):
            self.models.withdraw(session_id)
            self._forget(session_id)

    def _pin(self, state: tuple[int, int], trials: int) -> Session | UnknownSession:
        try:
            return self.sessions.pin(*state, trials)
        except UnknownSession as error:
            return error

    def _unpin(self, states: Iterable[tuple[int, int]]) -> None:
        """One trial less refers to each."""
        for (session_id, version), trials in Counter(states).items():
            if self.sessions.unpin(session_id, version, trials):
                self._forget(session_id)
        if self.sessions.gone:
            self.forget_versions()

    def forget_versions(self) -> None:
        """Have the workers forget the versions that the store has let go."""
        gone, self.sessions.gone = self.sessions.gone, []
        for session_id, version in gone:
            for worker in self.workers.values():
                versions = worker.known.get(session_id)
                if versions is not None and version in versions:
                    versions.discard(version)
                    worker.forgotten.append((session_id, version))

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
        self.models.close()
        self._alarm.cancel()

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
                worker.drain = worker.leaving = True
                worker.wake.set()
                self._tell({"retired": worker_id})
        self.models.abandon(orders.stuck)
        for worker_id in orders.inspect:
            if worker := self.workers.get(worker_id):
                self.inspect(worker, "native code held its interpreter past a deadline")
        for worker_id, attempt_id in orders.kill.items():
            if worker := self.workers.get(worker_id):
                self._end(worker, [attempt_id], "a trial that did not end held it")
        if orders.quarantine is not None:
            self._tell({"quarantine": orders.quarantine})
        if orders.settle:
            self._answer(orders.settle)
        self._arm()

    def _answer(self, settled: Iterable[Settled]) -> None:
        states: list[tuple[int, int]] = []
        verdicts = 0
        client: ClientLink | None = None
        for one in settled:
            ticket, outcome = one.ticket, one.outcome
            trial_id = ticket.client_trial_id
            if not isinstance(outcome, types_pb2.Outcome):
                verdicts += one.error in _VERDICTS
                outcome = outcome_of(one)
            if client is None or client.number != ticket.client:
                client = self.clients.get(ticket.client)
                if client is None:
                    continue
                client.wake.set()
            if (state := client.live.pop(trial_id, None)) is not None:
                states.append(state)
            if client.held.sizes:
                client.held.drop(trial_id)
                client.room.set()
            outcome.id = trial_id
            outcome.queue_s = one.queue_s
            outcome.attempts = one.attempts
            outcome.worker_id = one.worker_id
            if one.throttled_s:
                outcome.throttled_s = max(outcome.throttled_s, one.throttled_s)
            if one.history or outcome.history:
                tell_history(outcome, one)
            if self._sizes and (size := self._sizes.get(id(outcome))):
                client.unread.add(id(outcome), size)
                if client.unread.is_full and not client.stopped:
                    client.stopped = True
                    self.dispatcher.stop(ticket.client)
            client.outcomes.append(outcome)
        if verdicts:
            # At once: the worker that it took may be one too many.
            self._tell({"answered": verdicts})
        self._unpin(states)

    def _send(self, worker: WorkerLink, dispatched: Sequence[tuple[int, Ticket]]) -> None:
        known, trials = worker.known, worker.trials
        client: ClientLink | None = None
        for attempt_id, ticket in dispatched:
            if client is None or client.number != ticket.client:
                client = self.clients[ticket.client]
                worker.has_large |= bool(client.held.sizes)
            session_id, version = ticket.snapshot
            versions = known.get(session_id)
            if versions is None or version not in versions:
                self._introduce(worker, session_id, version)
            trial: types_pb2.Trial = ticket.body
            trial.id = attempt_id
            trial.attempt += 1
            trials.append(trial)
        worker.wake.set()

    def _introduce(self, worker: WorkerLink, session_id: int, version: int) -> None:
        """Queue session and snapshot ahead of the first trial that needs them."""
        session, snapshot = self.sessions.pinned(session_id, version)
        versions = worker.known.get(session_id)
        if versions is None:
            versions = worker.known[session_id] = set()
            worker.sessions.append(session_to_wire(session_id, session.about))
        versions.add(version)
        worker.snapshots.append(
            types_pb2.Snapshot(session_id=session_id, version=version, values=snapshot.values, digest=snapshot.digest)
        )

    @staticmethod
    def _refuse(link: ClientLink, trial_id: int, kind: ErrorType, message: str, *, retryable: bool = False) -> None:
        failure = failure_to_wire(kind, message, retryable=retryable)
        link.outcomes.append(types_pb2.Outcome(id=trial_id, failure=failure))
        link.wake.set()

    def _arm(self) -> None:
        # The loop's clock is time.monotonic, the one that the dispatcher is told.
        self._alarm.set(self.dispatcher.next_deadline())

    def _tick(self) -> None:
        self._perform(self.dispatcher.tick(time.monotonic()))
