"""How fast a provider can be called, found out by calling it.

What is controlled is a rate, not only a window: most providers refuse by the minute, and a window below one call
(5 calls/s of 50 ms each) says nothing. The window follows as rate × latency.
"""

from __future__ import annotations

import math

from dspex_pipelines.engine.throttling.buckets import NEVER, Bucket
from dspex_pipelines.engine.throttling.permits import Tuning

_MOST_PER_S = 20_000.0
_LEAST_PER_S = 0.05
_SPREAD_S = 0.02
"""A timer that fires so late costs nothing."""
_MEMORY_S = 3.0
_MEMORY_CALLS = 10.0
_FEW = 5
_STEEPEST_CUT = 0.25
_BELOW = 0.96
"""Of the estimated ceiling, where the pace goes on after a refusal."""
_BACK_DOUBLING_S = 0.5
_FIND_DOUBLING_S = 1.5
"""From what was kept at the first refusal on, until the next one."""
_SLOW_GROWTH = 0.002
_PATIENCE_S = 15.0
_IMPATIENCE = 0.01
_MOST_GROWTH = 0.5
_DOUBT = 0.3
_SMALL_DOUBT = 0.04
_TRUST = 0.6
"""Of an earlier lower bound that still holds at the next refusal, as limits are lowered too."""
_GROWTH_PAUSE_S = 5.0
_LONE_FAILURE = 50
_ROOM = 1.25
_FIRST = 64
"""Calls in flight before anything is answered; each answer adds two, as long as nothing is refused."""
_SILENCE_S = 0.25
_SILENT_DOUBLING_S = 0.25
"""Refusals come at once, so that whoever is silent for longer is slow: more go, twice as many each time."""
_KNOWN = 1_000
_OPEN = 200
"""Answers without a refusal, after which calls need not ask one by one."""
_LATENCIES = 100
_LEAST_LATENCY_S = 1e-4
_RESTART_S = 10.0


class Pace:
    """Grants per second of one lane.

    It doubles while nothing is refused and calls wait. At a refusal it is set between what was accepted per second
    and what was asked for, which halves the doubt about the limit each time (in logarithms): accepted calls per second
    from one refusal to the next is a lower bound for what any bucket gives. From there it grows slowly, the faster the
    greater that doubt was, and faster still after a long time without a refusal, since limits are raised.
    """

    __slots__ = (
        "_answers",
        "_at",
        "_bucket",
        "_calls",
        "_doubt",
        "_first",
        "_floor",
        "_grow_after",
        "_kept",
        "_measured_s",
        "_undisturbed",
        "_waited_s",
        "ceiling",
        "generation",
        "hungry",
        "latency_s",
        "limited",
        "pressed",
        "rate",
        "steady_s",
        "tuning",
    )

    def __init__(self, tuning: Tuning, now: float, *, declared: bool) -> None:
        self.tuning = tuning
        self.rate = NEVER if declared else tuning.start_per_s
        """Grants per second; `NEVER` leaves it to what is declared."""
        self.limited = False
        """Whether it was ever refused."""
        self.ceiling = NEVER
        """The rate that is thought to be the limit."""
        self.generation = 0
        """Counts the decreases; a refusal counts only if its call was granted after the last one."""
        self.latency_s = 0.0
        self.hungry = False
        """Whether calls wait, for whatever."""
        self.pressed = False
        """Whether they wait for this pace and nothing else."""
        self.steady_s = 0.0
        """How long they did, since the last decrease."""
        self._at = now
        self._bucket = Bucket(1.0, 1.0, now)
        self._calls = 0.0
        self._measured_s = 0.0
        self._answers = 0
        self._waited_s = 0.0
        """While calls waited; looked at until the first answer."""
        self._first = 0
        """The generation after the first refusal."""
        self._kept = 0.0
        """Calls in flight that were not refused when others were, at first."""
        self._undisturbed = 0
        """Calls since the last failed one."""
        self._grow_after = 0.0
        self._doubt = 0.0
        self._floor = 0.0
        """What was accepted per second before the last decrease."""
        self._set(self.rate, now)

    @property
    def silent(self) -> bool:
        """Whether nothing has been answered or refused yet."""
        return not (self._answers or self.limited)

    @property
    def open(self) -> bool:
        """Whether enough was answered, and nothing refused."""
        return self._answers >= _OPEN and not self.limited

    def window(self) -> float:
        """Return how many calls may be in flight."""
        if not self.limited:
            # Whoever has not answered anything yet may refuse all of it.
            silent_s = 0.0 if self._answers else max(0.0, self._waited_s - _SILENCE_S)
            first = _FIRST * 2.0 ** min(silent_s / _SILENT_DOUBLING_S, 20.0)
            return first + 2 * self._answers if self._answers < _KNOWN else NEVER
        if not self.latency_s:
            return max(1.0, self._kept)
        return math.ceil(self.rate * self.latency_s * _ROOM) + 1

    def due(self, now: float) -> float:
        """Return when the next call may go."""
        return now if self.rate == NEVER else self._bucket.due(1.0, now)

    def declare(self, now: float, *, declared: bool) -> None:
        """Note whether a declared rate bounds the lane too."""
        if self.limited:
            return
        if declared:
            self._set(NEVER, now)
        elif self.rate == NEVER:
            self._set(self.tuning.start_per_s, now)

    def advance(self, now: float) -> None:
        """Let the time pass; `hungry` and `pressed` say what it was like."""
        passed = now - self._at
        if passed <= 0.0:
            return
        if self.hungry:
            self._waited_s += passed
            keep = math.exp(-passed / max(_MEMORY_S, _MEMORY_CALLS / self.rate))
            self._calls *= keep
            self._measured_s = self._measured_s * keep + passed
        elif passed > _RESTART_S and not self.limited and self.rate != NEVER:
            # What was right then would come as one blow now.
            self._set(self.tuning.start_per_s, now)
        growing_s = now - max(self._at, self._grow_after)
        self._at = now
        if self.pressed and growing_s > 0.0:
            self._grow(growing_s, now)

    def granted(self, *, asked: bool) -> None:
        """Count a call that goes; one that has gone without being *asked* for is not held against those that are."""
        self._calls += 1.0
        if asked and self.rate != NEVER:
            self._bucket.take(1.0)

    def answered(self, latency_s: float, now: float) -> None:
        """Learn from a call that worked."""
        first = not self._answers
        # A clock may not tell one moment from the next.
        latency_s = max(latency_s, _LEAST_LATENCY_S)
        self._undisturbed += 1
        self._answers += 1
        self.latency_s += (latency_s - self.latency_s) / min(self._answers, _LATENCIES)
        if first and self.limited:
            self._set(max(self._kept / self.latency_s, _LEAST_PER_S), now)

    def failed(self, now: float) -> None:
        """Do not grow for a while, unless such failures are rare."""
        if self._undisturbed < _LONE_FAILURE:
            self._grow_after = now + _GROWTH_PAUSE_S
        self._undisturbed = 0

    def refused(self, generation: int, in_flight: int, now: float) -> None:
        """Slow down, once for all calls granted at one pace; so many are *in_flight* still."""
        if not self.limited or generation < self._first:
            self._settle(in_flight)
            if self.latency_s:
                self._set(max(min(self.rate, in_flight / self.latency_s), _LEAST_PER_S), now)
            return
        if generation != self.generation:
            return
        self.generation += 1
        accepted = max(0.0, self._calls - 1.0)
        asked = self.rate
        measured = min(asked, max(accepted / max(self._measured_s, 1e-3), _TRUST * self._floor))
        self._floor = measured
        cut = 0.5 if self._calls < _FEW else _STEEPEST_CUT
        estimate = max(cut * asked, math.sqrt(measured * asked))
        self._doubt = _DOUBT * math.log(asked / max(measured, cut * cut * asked)) / 2
        self.ceiling = max(estimate, _LEAST_PER_S)
        self._calls = self._measured_s = self.steady_s = 0.0
        self._set(max(_BELOW * estimate, _LEAST_PER_S), now)

    def _settle(self, in_flight: int) -> None:
        """Go on with as many as the provider has kept, once it is known how long it takes for one (Little's law)."""
        if not self.limited:
            self.limited = True
            self.generation += 1
            self._first = self.generation
        self._kept = in_flight
        self._calls = self._measured_s = self.steady_s = 0.0

    def restart(self, now: float) -> None:
        """Begin anew after an outage, and be back soon."""
        self.generation += 1
        self._calls = self._measured_s = self.steady_s = 0.0
        self._grow_after = 0.0
        if self.rate == NEVER:
            return
        if self.limited:
            self.ceiling = max(self.ceiling, self.rate)
            self._set(self.rate / 4.0, now)
        else:
            self._set(self.tuning.start_per_s, now)

    def _grow(self, passed: float, now: float) -> None:
        rate = self.rate
        if rate == NEVER:
            return
        if not self.limited:
            rate *= 2.0 ** min(passed / self.tuning.doubling_s, 1.0)
        elif rate < _BELOW * self.ceiling:
            doubling_s = _FIND_DOUBLING_S if self.ceiling == NEVER else _BACK_DOUBLING_S
            rate = min(rate * 2.0 ** min(passed / doubling_s, 1.0), _BELOW * self.ceiling)
        else:
            self.steady_s += passed
            growth = max(_SLOW_GROWTH, self._doubt - _SMALL_DOUBT)
            growth += _IMPATIENCE * max(0.0, self.steady_s - _PATIENCE_S)
            rate *= 1.0 + min(growth, _MOST_GROWTH) * min(passed, 1.0)
        self._set(min(rate, _MOST_PER_S), now)

    def _set(self, rate: float, now: float) -> None:
        self.rate = rate
        if rate != NEVER:
            self._bucket.set(rate, max(1.0, rate * _SPREAD_S), now)
