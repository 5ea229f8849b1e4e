"""One model at one endpoint: who waits for it, and what may go."""

from __future__ import annotations

import math
import random

from dspex_pipelines.engine.throttling.breaker import Breaker
from dspex_pipelines.engine.throttling.buckets import NEVER, Budget
from dspex_pipelines.engine.throttling.lines import Call, Line
from dspex_pipelines.engine.throttling.pace import Pace
from dspex_pipelines.engine.throttling.permits import Answer, LaneStats, Tuning, Verdict
from dspex_pipelines.engine.timers import UNSET

_AVERAGE = 50
_FEW = 2
"""With so few in flight, it is not their number that is too much."""
_BELOW = 0.97
_ROOM_GROWTH = 0.01
_PATIENCE_S = 15.0
_LOOK_S = 0.1
"""So often it is looked whether a provider that has not answered yet may be sent more."""
_UNKNOWN_TOKENS = 1_000.0
"""What a call is taken to use while nothing is known; all that wait would go at once if it were nothing."""


class Lane:
    """The calls of one model at one endpoint."""

    __slots__ = (
        "_closed_reason",
        "_closed_until",
        "_room",
        "_room_since",
        "_settled",
        "_tuning",
        "breaker",
        "budgets",
        "due",
        "failed",
        "granted",
        "in_flight",
        "line",
        "name",
        "pace",
        "paused_until",
        "refused",
        "tokens",
        "used",
    )

    def __init__(self, name: str, budgets: tuple[Budget, ...], tuning: Tuning, rng: random.Random, now: float) -> None:
        self.name = name
        self.budgets = budgets
        self.line = Line()
        self.breaker = Breaker(tuning, rng)
        self.pace = Pace(tuning, now, declared=_paced(budgets))
        self.in_flight = 0
        self.paused_until = 0.0
        """Nothing goes before, because the provider said so."""
        self.tokens = 0.0
        """What a call uses, on average."""
        self.granted = self.refused = self.failed = 0
        self.used = now
        self.due = UNSET
        self._room = NEVER
        """Calls in flight when the provider last had no place for one more."""
        self._room_since = now
        self._settled = 0
        self._closed_until = 0.0
        self._closed_reason = ""
        self._tuning = tuning

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing is in flight."""
        return not (self.line or self.in_flight)

    def open(self, now: float) -> bool:
        """Return whether nothing holds calls back here, nor has for a while: they need not ask one by one."""
        return (
            self.pace.open
            and not (self.budgets or self.line or self.breaker.doubtful)
            and self._room == NEVER
            and now >= max(self.paused_until, self._closed_until)
        )

    def link(self, budgets: tuple[Budget, ...], now: float) -> None:
        """Go on under other declared limits."""
        self.budgets = budgets
        self.pace.declare(now, declared=_paced(budgets))

    def closed(self, now: float) -> str:
        """Return why a call that comes now is not even to wait; empty when it is."""
        if now < self._closed_until:
            return self._closed_reason
        breaker = self.breaker
        if breaker.given_up and (self.line or breaker.probe_at > now):
            return f"{self.name} {breaker.reason(now)}"
        return ""

    def fill(self, answers: list[Answer], now: float, most: float = NEVER) -> bool:
        """Grant what may go now, at most so many; return whether something was."""
        pace, line, before = self.pace, self.line, len(answers)
        pace.advance(now)
        while (call := self._first()) is not None and len(answers) - before < most:
            if self._next_at(call, now) > now:
                break
            line.take(call)
            self._grant(call, now, asked=True)
            answers.append(Answer(call.call_id, granted=True, reason=""))
        pace.hungry = bool(line)
        pace.pressed = call is not None and self._waits_for_pace(call, now)
        return len(answers) > before

    def next_event(self, now: float) -> float:
        """Return when there is something to do without anything else happening."""
        call = self._first()
        if call is None:
            return self.used + self._tuning.idle_s if not self.in_flight else NEVER
        return max(now, min(self._next_at(call, now), self.breaker.give_up_at))

    def end(self, call: Call, verdict: Verdict, now: float, *, retry_after_s: float, tokens: int, detail: str) -> None:
        """Take note of how a call ended."""
        self._land(now)
        if tokens > 0:
            self._settled = min(self._settled + 1, _AVERAGE)
            self.tokens += (tokens - self.tokens) / self._settled
            more = tokens - call.cost
        else:
            # A call that was turned away used nothing.
            more = -call.cost if verdict in _TURNED_AWAY else 0.0
        for budget in self.budgets:
            budget.correct(more)
        pace, breaker = self.pace, self.breaker
        pace.advance(now)
        if verdict is Verdict.OK:
            pace.answered(now - call.since, now)
        if verdict is Verdict.FAILED:
            self.failed += 1
            breaker.detail = detail or breaker.detail
            pace.failed(now)
            breaker.failed(call, now)
        elif verdict is Verdict.NEUTRAL:
            breaker.dropped(call, now)
        elif breaker.worked(call):
            pace.restart(now)
        if verdict is Verdict.REFUSED or verdict is Verdict.OVERLOADED:
            self.refused += 1
            if verdict is Verdict.OVERLOADED and retry_after_s == 0.0 and self.in_flight > _FEW:
                self._narrow(call, now)
            else:
                pace.refused(call.generation, self.in_flight, now)
            self._hold(retry_after_s, now, detail)

    def begin(self, call: Call, now: float) -> None:
        """Count a call that has gone unasked."""
        self.pace.advance(now)
        self._grant(call, now, asked=False)

    def drop(self, call: Call, now: float) -> None:
        """Forget a call, wherever it is."""
        if call.flying:
            self._land(now)
            self.breaker.dropped(call, now)
        else:
            self.line.remove(call)

    def dismiss(self, answers: list[Answer], now: float) -> list[Call]:
        """Tell those who wait that it is no use, if it is not; return whom."""
        reason = self._closed_reason if now < self._closed_until else ""
        if not reason and now >= self.breaker.give_up_at:
            reason = f"{self.name} {self.breaker.give_up(now)}"
        if not reason:
            return []
        calls = list(self.line)
        self.line.clear()
        answers.extend(Answer(call.call_id, granted=False, reason=reason) for call in calls)
        return calls

    def stats(self, now: float) -> LaneStats:
        """Return the state in numbers."""
        pace, breaker = self.pace, self.breaker
        window = min((self._window(now), *(budget.most for budget in self.budgets)))
        rate = min((pace.rate, *(budget.requests.rate for budget in self.budgets if budget.requests)))
        wait = breaker.probe_at if breaker.down and breaker.probe is None else 0.0
        return LaneStats(
            waiting=len(self.line),
            in_flight=self.in_flight,
            window=None if window == NEVER else math.ceil(window),
            paced_per_s=None if rate == NEVER else rate,
            granted=self.granted,
            refused=self.refused,
            failed=self.failed,
            paused_for_s=max(0.0, self.paused_until - now, wait - now),
            state=self._state(now),
        )

    def _state(self, now: float) -> str:
        if self.breaker.down:
            return "given up" if self.breaker.given_up else "down"
        if now < max(self.paused_until, self._closed_until):
            return "paused"
        if self.pace.limited or self.budgets or self._room < NEVER:
            return "limited"
        return "probing the limit" if self.pace.pressed else "open"

    def _first(self) -> Call | None:
        # Whatever fails is asked for again at once; one call must not use up its tries for all of them.
        return self.line.first(fresh=self.breaker.doubtful)

    def _next_at(self, call: Call, now: float) -> float:
        """Return when *call* may go; `NEVER` until something else happens."""
        at = self._others_at(call, now)
        if self.breaker.down:
            return max(at, self.breaker.probe_at)
        if self.in_flight >= self._window(now):
            return max(at, now + _LOOK_S) if self.pace.silent else NEVER
        return max(at, self.pace.due(now))

    def _others_at(self, call: Call, now: float) -> float:
        at = max(now, self.paused_until)
        cost = self._cost(call)
        for budget in self.budgets:
            at = max(at, budget.due(cost, now))
        return at

    def _cost(self, call: Call) -> float:
        return max(float(call.estimate), self.tokens) or _UNKNOWN_TOKENS

    def _waits_for_pace(self, call: Call, now: float) -> bool:
        if self.breaker.down:
            return False
        pace = self.pace
        full = pace.limited and self.in_flight >= self._window(now)
        return self._others_at(call, now) <= now and (full or pace.due(now) > now)

    def _grant(self, call: Call, now: float, *, asked: bool) -> None:
        call.flying = True
        call.since = now
        call.cost = self._cost(call)
        call.generation = self.pace.generation
        call.epoch = self.breaker.epoch
        self.in_flight += 1
        self.granted += 1
        self.pace.granted(asked=asked)
        for budget in self.budgets:
            budget.take(call.cost)
        if self.breaker.down:
            self.breaker.probe = call

    def _land(self, now: float) -> None:
        self.used = now
        self.in_flight -= 1
        for budget in self.budgets:
            budget.in_flight -= 1

    def _narrow(self, call: Call, now: float) -> None:
        # No word of when to come back: what is full is a number of places, and those in flight have taken them.
        if call.generation == self.pace.generation:
            self.pace.generation += 1
            self._room = _BELOW * self.in_flight
            self._room_since = now

    def _window(self, now: float) -> float:
        steady_s = now - self._room_since
        growth = _ROOM_GROWTH * steady_s * max(1.0, steady_s / _PATIENCE_S)
        return min(self.pace.window(), self._room * (1.0 + growth))

    def _hold(self, retry_after_s: float, now: float, detail: str) -> None:
        longest_s = self._tuning.longest_wait_s
        # What a provider says may be no number at all.
        if retry_after_s <= longest_s:
            self.paused_until = max(self.paused_until, now + retry_after_s)
        else:
            said = f" ({detail})" if detail else ""
            self._closed_until = now + longest_s
            self._closed_reason = (
                f"{self.name} asks to wait {retry_after_s:,.0f} s{said}; no call waits longer than {longest_s:,.0f} s"
            )


_TURNED_AWAY = frozenset({Verdict.REFUSED, Verdict.OVERLOADED})


def _paced(budgets: tuple[Budget, ...]) -> bool:
    return any(budget.requests is not None or budget.tokens is not None for budget in budgets)
