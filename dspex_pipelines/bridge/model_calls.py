"""Leave to call models, for the trials of all workers: what they ask goes to the throttle, what it answers to them.

The clock of a trial stands still while one of its calls waits. Where nothing is to be waited for, workers have a
standing leave, and tell of their calls afterwards.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from dspex.v1 import pool_pb2, worker_pb2
from dspex_pipelines.engine.alarm import Alarm
from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.throttling.throttle import Answer, Throttle, Verdict
from dspex_pipelines.model.calls import MOST_TOKENS, lane_name
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.wire.codec import verdict_from_wire

STUCK_S = 60.0
"""A call that a thread of a trial still makes so long after it was to stop is taken to have ended."""
MOST_ASKED = 100_000
"""Calls of one worker that wait or are made; more are refused."""

Key = tuple[str, int]
"""Worker and number of a call."""


class ModelCalls:
    """Between the workers and the throttle; *permit* and *leave* send to a worker. All times are `time.monotonic`."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        permit: Callable[[str, worker_pb2.CallPermit], None],
        leave: Callable[[str, worker_pb2.StandingLeave], None],
        changed: Callable[[], None],
        throttle: Throttle | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._permit = permit
        self._leave = leave
        self._changed = changed
        self._throttle = throttle or Throttle()
        self._waiting: dict[Key, int] = {}
        """Calls that wait for leave, and the attempt of each."""
        self._asked: dict[str, dict[int, int]] = {}
        """Worker to its calls that have not ended, and the attempt of each."""
        self._stuck: deque[tuple[float, str, int]] = deque()
        """When the calls of an attempt are taken to have ended."""
        self._leaves: dict[str, set[str]] = {}
        """Model to the workers that may call it unasked."""
        self._alarm = Alarm(self._tick)

    def heard(
        self, worker_id: str, asks: Iterable[worker_pb2.CallAsk], ends: Iterable[worker_pb2.CallEnd], now: float
    ) -> None:
        """A worker tells how calls went and which have gone unasked, then asks for others."""
        asked = self._asked.setdefault(worker_id, {})
        doubt = False
        late: list[worker_pb2.CallEnd] = []
        """Of calls that have begun and ended since the last frame."""
        for end in ends:
            if end.id in asked:
                doubt |= self._end(worker_id, end, now)
            else:
                late.append(end)
        called: dict[str, bool] = {}
        for ask in asks:
            if len(asked) >= MOST_ASKED or ask.id in asked:
                if not ask.begun:
                    reason = f"more than {MOST_ASKED:,} calls of one worker, or one of them twice"
                    self._permit(worker_id, worker_pb2.CallPermit(id=ask.id, reason=reason))
                continue
            model = lane_name(ask.model)
            called[model] = called.get(model, True) and ask.begun
            self._ask(worker_id, model, ask, now)
        for end in late:
            if end.id in asked:
                doubt |= self._end(worker_id, end, now)
        if doubt:
            self._take_back(now)
        for model, unasked in called.items():
            self._look_at_leave(worker_id, model, now, unasked=unasked)
        self._arm()

    def _end(self, worker_id: str, end: worker_pb2.CallEnd, now: float) -> bool:
        """Note how a call went; return whether it went badly."""
        key = (worker_id, end.id)
        self._asked[worker_id].pop(end.id, None)
        self._go_on(key, now)
        # A number that is none would put every timer out of order.
        retry_after_s = max(0.0, end.retry_after_s)
        tokens = end.tokens if end.tokens <= MOST_TOKENS else 0
        verdict = verdict_from_wire(end.verdict)
        self._answer(self._throttle.done(key, verdict, now, retry_after_s=retry_after_s, tokens=tokens), now)
        return verdict not in (Verdict.OK, Verdict.NEUTRAL)

    def _ask(self, worker_id: str, model: str, ask: worker_pb2.CallAsk, now: float) -> None:
        key = (worker_id, ask.id)
        self._asked[worker_id][ask.id] = ask.trial_id
        tokens = ask.tokens if ask.tokens <= MOST_TOKENS else 0
        client = self._dispatcher.client_of(worker_id, ask.trial_id)
        if ask.begun:
            self._throttle.begun(key, model, tokens, now, client=client)
            return
        weight = self._dispatcher.weight_of(client)
        answers = self._throttle.ask(key, model, tokens, now, again=ask.again, client=client, weight=weight)
        if not any(answer.call_id == key for answer in answers):
            self._waiting[key] = ask.trial_id
            self._dispatcher.stop_clock(worker_id, ask.trial_id, now)
            self._changed()
        self._answer(answers, now)

    def _look_at_leave(self, worker_id: str, model: str, now: float, *, unasked: bool) -> None:
        """Tell a worker that has called *model* what holds from now on, unless it acts by that already."""
        is_open = self._throttle.is_open(model, now)
        if is_open is not unasked:
            if is_open:
                self._leaves.setdefault(model, set()).add(worker_id)
            self._leave(worker_id, worker_pb2.StandingLeave(model=model, given=is_open))

    def _take_back(self, now: float) -> None:
        """Take back leave to call what is not open any more."""
        for model in [model for model in self._leaves if not self._throttle.is_open(model, now)]:
            for worker_id in self._leaves.pop(model):
                self._leave(worker_id, worker_pb2.StandingLeave(model=model))

    def lose(self, worker_id: str, now: float) -> None:
        """A worker is gone, and its calls with it, as far as can be known."""
        for holders in self._leaves.values():
            holders.discard(worker_id)
        asked = self._asked.pop(worker_id, {})
        for number in asked:
            self._waiting.pop((worker_id, number), None)
        self._answer(self._throttle.forget([(worker_id, number) for number in asked], now), now)
        self._arm()

    def abandon(self, attempts: Iterable[tuple[str, int]]) -> None:
        """Attempts that were to stop go on, each on its worker: others are not to wait for their calls for ever."""
        for worker_id, attempt_id in attempts:
            self._stuck.append((time.monotonic() + STUCK_S, worker_id, attempt_id))
            self._arm()

    def declare(self, session_id: int, limits: Sequence[RateLimit]) -> None:
        """The limits hold for everybody until the session is closed."""
        if limits:
            now = time.monotonic()
            self._answer(self._throttle.declare(session_id, limits, now), now)
            self._take_back(now)
            self._arm()

    def withdraw(self, session_id: int) -> None:
        """The session is closed."""
        now = time.monotonic()
        self._answer(self._throttle.withdraw(session_id, now), now)
        self._arm()

    def close(self) -> None:
        """Answer nothing any more."""
        self._alarm.cancel()

    def status(self) -> list[pool_pb2.ModelStatus]:
        """Return how calls to each model go."""
        return [
            pool_pb2.ModelStatus(
                model=model,
                state=lane.state,
                waiting=lane.waiting,
                in_flight=lane.in_flight,
                granted=lane.granted,
                refused=lane.refused,
                failed=lane.failed,
                window=lane.window or 0.0,
                per_s=lane.paced_per_s or 0.0,
                paused_for_s=lane.paused_for_s,
            )
            for model, lane in self._throttle.stats().items()
        ]

    def _answer(self, answers: Iterable[Answer], now: float) -> None:
        for answer in answers:
            key: Key = answer.call_id  # pyright: ignore[reportAssignmentType] - as it was asked
            worker_id, number = key
            self._go_on(key, now)
            if not answer.granted:
                self._asked.get(worker_id, {}).pop(number, None)
            self._permit(worker_id, worker_pb2.CallPermit(id=number, granted=answer.granted, reason=answer.reason))

    def _go_on(self, key: Key, now: float) -> None:
        attempt_id = self._waiting.pop(key, None)
        if attempt_id is not None:
            self._dispatcher.start_clock(key[0], attempt_id, now)
            self._changed()

    def _arm(self) -> None:
        self._alarm.set(self._throttle.next_due())
        if self._stuck:
            self._alarm.set(self._stuck[0][0])

    def _tick(self) -> None:
        now = time.monotonic()
        while self._stuck and self._stuck[0][0] <= now:
            _, worker_id, attempt_id = self._stuck.popleft()
            calls = self._asked.get(worker_id, {})
            for number in [number for number, of in calls.items() if of == attempt_id]:
                self._end(worker_id, worker_pb2.CallEnd(id=number), now)
        self._answer(self._throttle.tick(now), now)
        self._arm()
