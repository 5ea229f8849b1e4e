"""Token buckets, and the declared limits that lanes have in common."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable

from dspex_pipelines.model.limits import RateLimit

NEVER = math.inf
SHARE = 0.99
"""Of a declared rate that is used: the provider's clock and ours need not agree."""
BURST_S = 0.015
"""Requests that a late timer has kept are caught up with for so long; providers allow little more at once."""
TOKEN_BURST_S = 1.0
_CRUMB = 1e-6
"""What is missing for want of digits is not missed: a timer must not fire for it again and again."""


class Bucket:
    """Fills at `rate` per second up to `burst`; may be overdrawn, and then pays that back first."""

    __slots__ = ("_at", "burst", "level", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate = rate
        self.burst = burst
        self.level = burst
        self._at = now

    def set(self, rate: float, burst: float, now: float) -> None:
        """Go on at another rate with what is in it."""
        self._fill(now)
        self.rate = rate
        self.burst = burst
        self.level = min(self.level, burst)

    def due(self, amount: float, now: float) -> float:
        """Return when *amount* is in it, or as much as it holds: *now* when it is."""
        self._fill(now)
        missing = min(amount, self.burst) - self.level
        return now if missing <= _CRUMB else now + missing / self.rate

    def take(self, amount: float) -> None:
        """Take *amount* out, there or not; a negative one goes back in."""
        self.level = min(self.burst, self.level - amount)

    def _fill(self, now: float) -> None:
        if now > self._at:
            self.level = min(self.burst, self.level + (now - self._at) * self.rate)
            self._at = now


class Budget:
    """What the lanes that match one pattern may use together: the strictest that any of its owners declares."""

    __slots__ = ("in_flight", "lanes", "most", "owners", "pattern", "requests", "tokens")

    def __init__(self, pattern: str) -> None:
        self.pattern = pattern
        self.owners: dict[Hashable, tuple[RateLimit, ...]] = {}
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.most = NEVER
        self.in_flight = 0
        self.lanes = 0
        """How many share it."""

    def settle(self, now: float) -> None:
        """Take the numbers of those who own it now; what has been used stays used."""
        limits = [limit for declared in self.owners.values() for limit in declared]
        self.most = _least(limit.max_concurrency for limit in limits)
        per_s = SHARE * _least(limit.requests_per_minute for limit in limits) / 60.0
        fresh = self.requests is None
        self.requests = _bucket(self.requests, per_s, max(2.0, per_s * BURST_S), now)
        if fresh and self.requests is not None:
            self.requests.level = 1.0
        per_s = SHARE * _least(limit.tokens_per_minute for limit in limits) / 60.0
        self.tokens = _bucket(self.tokens, per_s, per_s * TOKEN_BURST_S, now)

    def due(self, cost: float, now: float) -> float:
        """Return when a call that costs so many tokens may go, as far as is known; `NEVER` until another ends."""
        if self.in_flight >= self.most:
            return NEVER
        at = now
        if self.requests is not None:
            at = self.requests.due(1.0, now)
        if self.tokens is not None:
            at = max(at, self.tokens.due(cost, now))
        return at

    def take(self, cost: float) -> None:
        """Count a call that goes."""
        self.in_flight += 1
        if self.requests is not None:
            self.requests.take(1.0)
        if self.tokens is not None:
            self.tokens.take(cost)

    def correct(self, more: float) -> None:
        """Count *more* tokens than a call was expected to use."""
        if self.tokens is not None:
            self.tokens.take(more)


def _least(numbers: Iterable[float]) -> float:
    return min((number for number in numbers if number), default=NEVER)


def _bucket(bucket: Bucket | None, rate: float, burst: float, now: float) -> Bucket | None:
    if rate == NEVER:
        return None
    if bucket is None:
        return Bucket(rate, burst, now)
    bucket.set(rate, burst, now)
    return bucket
