"""Whether a failed attempt is followed by another, and when."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from dspex_pipelines.model.outcome import Attempt, ErrorType

MOST_ATTEMPTS: Mapping[ErrorType, int] = {
    ErrorType.PROGRAM_EXCEPTION: 5,
    ErrorType.MALFORMED_OUTPUT: 3,
    ErrorType.RATE_LIMITED: 10,
    ErrorType.PROVIDER_UNAVAILABLE: 6,
}
"""Attempts that may fail by one type before the trial does; types that are not here fail it at once."""

SAYS_LITTLE = frozenset({ErrorType.RATE_LIMITED, ErrorType.PROVIDER_UNAVAILABLE})
"""Types that look the same every time without being the trial's own doing."""

_MOST_DOUBLINGS = 62
"""More make no difference to any wait, and in the end no number."""


class Fault(NamedTuple):
    """What a worker says of a failed attempt."""

    type: ErrorType
    message: str = ""
    retryable: bool = False
    fingerprint: str = ""
    """Equal for the same error at the same place; empty for none."""
    retry_after_s: float = 0.0
    """As the provider asked."""
    calls: tuple[Attempt, ...] = ()
    """Calls to models that failed within the attempt and were made again."""
    usage: bytes = b""
    """What the attempt used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Retries by type, with exponential back-off and full jitter.

    The wait before attempt n + 1 of a type is uniform in [0, min(`cap_s`, `base_s` · 2^(n-1))], after whatever the
    provider asked for ("full jitter", M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015).
    """

    most: Mapping[ErrorType, int] = field(default_factory=lambda: dict(MOST_ATTEMPTS))
    same_error: int = 3
    """The same error of the same fingerprint so many times running is permanent."""
    base_s: float = 0.5
    cap_s: float = 30.0
    longest_wait_s: float = 600.0
    """A provider that asks for more ends the trial."""

    def delay_s(
        self, fault: Fault, history: Sequence[Attempt], *, most_attempts: int, rng: random.Random
    ) -> float | None:
        """Return the seconds to wait before the next attempt; None when *fault* ends the trial.

        *history* holds the attempts before, and calls that failed within them, which count as attempts of their type;
        *most_attempts* bounds the charged ones of all types, 0 for no bound.
        """
        # What a worker says may be no number at all, and such a wait would never end.
        if not (fault.retryable and fault.retry_after_s <= self.longest_wait_s):
            return None
        # A lost worker is not the trial's fault until it is found alone.
        charged = [attempt for attempt in history if attempt.type is not ErrorType.WORKER_LOST and not attempt.call]
        calls = (*(attempt for attempt in history if attempt.call), *fault.calls)
        of_type = 1 + sum(attempt.type is fault.type for attempt in (*charged, *calls))
        if of_type >= self.most.get(fault.type, 1) or 0 < most_attempts <= len(charged) + 1:
            return None
        if fault.fingerprint and fault.type not in SAYS_LITTLE:
            last = charged[1 - self.same_error :] if self.same_error > 1 else []
            same = sum(attempt.fingerprint == fault.fingerprint and attempt.type is fault.type for attempt in last)
            if same + 1 >= self.same_error:
                return None
        longest_s = min(self.cap_s, self.base_s * 2.0 ** min(of_type - 1, _MOST_DOUBLINGS))
        return max(0.0, fault.retry_after_s) + rng.uniform(0.0, longest_s)
