"""A provider of models in virtual time, and callers that want a number of answers from it through a throttle."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from dspex_pipelines.engine.throttling.throttle import Answer, Throttle, Verdict
from tests.engine.virtual import Clock

MODEL = "sim/model"


@dataclass(kw_only=True)
class Provider:
    """A token bucket in front of a latency; refuses at once, and says when to come again."""

    rate: Callable[[float], float] | float = math.inf
    burst: float = 10.0
    latency_s: float = 0.3
    spread: float = 0.0
    """Latencies are uniform, within such a part of `latency_s` to both sides."""
    whole_seconds: bool = True
    """Whether the time to wait is rounded up to seconds, rather than exact; None is given when None."""
    most: float = math.inf
    """Calls in flight, more of which are refused as overloaded."""
    down: tuple[float, float] = (math.inf, math.inf)
    level: float = -1.0
    at: float = 0.0
    in_flight: int = 0

    def rate_at(self, now: float) -> float:
        return self.rate(now) if callable(self.rate) else self.rate

    def call(self, now: float, rng: random.Random) -> tuple[Verdict, float, float]:
        """Return the verdict, when it comes, and the time to wait."""
        if self.down[0] <= now < self.down[1]:
            return Verdict.FAILED, 0.01, 0.0
        if self.in_flight >= self.most:
            return Verdict.OVERLOADED, 0.001, 0.0
        rate = self.rate_at(now)
        if rate < math.inf:
            level = self.burst if self.level < 0 else min(self.burst, self.level + (now - self.at) * rate)
            self.level, self.at = level, now
            if level < 1.0:
                exact = (1.0 - level) / rate
                return Verdict.REFUSED, 0.001, math.ceil(exact) if self.whole_seconds else exact
            self.level -= 1.0
        return Verdict.OK, self.latency_s * rng.uniform(1 - self.spread, 1 + self.spread), 0.0


@dataclass(kw_only=True)
class Run:
    """So many calls, of which some are wanted at once; each is tried until it works."""

    calls: int
    wanted: int
    client: Hashable = None
    starts: float = 0.0
    model: str = MODEL
    begun: int = 0
    ended: list[float] = field(default_factory=list)
    tries: Counter[Hashable] = field(default_factory=Counter)
    reasons: list[str] = field(default_factory=list)
    granted_at: list[float] = field(default_factory=list)
    verdicts: Counter[Verdict] = field(default_factory=Counter)

    @property
    def refused(self) -> float:
        """Refused tries, as a part of the calls."""
        return (self.verdicts[Verdict.REFUSED] + self.verdicts[Verdict.OVERLOADED]) / self.calls


class World:
    """Callers, throttle and provider; messages take up to `jitter_s` each way."""

    def __init__(
        self,
        provider: Provider,
        *,
        seed: int = 0,
        jitter_s: float = 0.005,
        throttle: Throttle | None = None,
        leaves: bool = False,
    ):
        self.clock = Clock()
        self.began = self.clock.now
        self.rng = random.Random(seed)
        self.provider = provider
        self.jitter_s = jitter_s
        self.throttle = throttle or Throttle(rng=random.Random(seed))
        self.leaves = leaves
        """Whether calls go unasked where they may."""
        self.unasked = 0
        self.runs: list[Run] = []
        self._numbers = itertools.count()
        self._owner: dict[Hashable, Run] = {}
        self._due: float | None = None
        self.steps = 0

    @property
    def now(self) -> float:
        return self.clock.now - self.began

    def play(self, *runs: Run, until_s: float = math.inf) -> World:
        for run in runs:
            self.runs.append(run)
            self.clock.after(run.starts, lambda run=run: [self._begin(run) for _ in range(run.wanted)])
        while self.now <= until_s and self.clock.step():
            self.steps += 1
        return self

    def _begin(self, run: Run) -> None:
        if run.begun < run.calls:
            run.begun += 1
            call_id = ("worker", next(self._numbers))
            self._owner[call_id] = run
            if self.leaves and self.throttle.is_open(run.model, self.clock.now):
                self.unasked += 1
                self.throttle.begun(call_id, run.model, 0, self.clock.now, client=run.client)
                self._after([Answer(call_id, granted=True, reason="")])
                return
            self._after(self.throttle.ask(call_id, run.model, 0, self.clock.now, client=run.client))

    def _after(self, answers: list[Answer]) -> None:
        for answer in answers:
            run = self._owner[answer.call_id]
            if answer.granted:
                run.granted_at.append(self.now)
                run.tries[answer.call_id] += 1
                self._hop(lambda call_id=answer.call_id: self._arrive(call_id))
            else:
                run.reasons.append(answer.reason)
                run.ended.append(self.now)
                self.clock.after(0.0, lambda run=run: self._begin(run))
        due = self.throttle.next_due()
        if due is not None and due != self._due:
            self._due = due
            self.clock.at(due, lambda due=due: self._tick(due))

    def _tick(self, due: float) -> None:
        if self._due == due:
            self._due = None
            self._after(self.throttle.tick(self.clock.now))

    def _hop(self, act: Callable[[], object]) -> None:
        self.clock.after(self.rng.uniform(0.0, self.jitter_s), act)

    def _arrive(self, call_id: Hashable) -> None:
        verdict, after_s, wait_s = self.provider.call(self.now, self.rng)
        self.provider.in_flight += 1
        self.clock.after(after_s, lambda: self._leave(call_id, verdict, wait_s))

    def _leave(self, call_id: Hashable, verdict: Verdict, wait_s: float) -> None:
        self.provider.in_flight -= 1
        self._hop(lambda: self._end(call_id, verdict, wait_s))

    def _end(self, call_id: Hashable, verdict: Verdict, wait_s: float) -> None:
        run = self._owner[call_id]
        run.verdicts[verdict] += 1
        self._after(self.throttle.done(call_id, verdict, self.clock.now, retry_after_s=wait_s))
        if verdict is Verdict.OK:
            run.ended.append(self.now)
            self._begin(run)
        else:
            self._after(self.throttle.ask(call_id, run.model, 0, self.clock.now, again=True, client=run.client))
