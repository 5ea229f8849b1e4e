"""Whether a provider works at all."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from dspex_pipelines.engine.throttling.buckets import NEVER
from dspex_pipelines.engine.throttling.permits import Tuning

if TYPE_CHECKING:
    from dspex_pipelines.engine.throttling.lines import Call


class Breaker:
    """Lets one call at a time through to a provider that only fails, after ever longer waits."""

    __slots__ = (
        "_open_s",
        "_probe_at",
        "_rng",
        "_row",
        "_tuning",
        "detail",
        "down_since",
        "epoch",
        "given_up",
        "probe",
    )

    def __init__(self, tuning: Tuning, rng: random.Random) -> None:
        self._tuning = tuning
        self._rng = rng
        self._row = 0
        """Failures since a call last worked."""
        self._open_s = tuning.open_s
        self._probe_at = 0.0
        self.down_since: float | None = None
        self.given_up = False
        self.probe: Call | None = None
        """The call that is to find out, in flight."""
        self.epoch = 0
        """Counts the changes; calls granted before one say nothing of what came after it."""
        self.detail = ""
        """What the last failure said."""

    @property
    def down(self) -> bool:
        """Whether only a probe goes through."""
        return self.down_since is not None

    @property
    def doubtful(self) -> bool:
        """Whether the last thing heard was a failure."""
        return self._row > 0

    @property
    def probe_at(self) -> float:
        """When the next probe may go; `NEVER` while one is in flight."""
        return self._probe_at if self.probe is None else NEVER

    @property
    def give_up_at(self) -> float:
        """When those who wait are told so."""
        if self.down_since is None or self.given_up:
            return NEVER
        return self.down_since + self._tuning.give_up_s

    def worked(self, call: Call) -> bool:
        """Note an answer; return whether the provider is back."""
        if self.down_since is None:
            self._row = 0
            return False
        if call is not self.probe:
            return False
        self.down_since = self.probe = None
        self.given_up = False
        self._row = 0
        self._open_s = self._tuning.open_s
        self.epoch += 1
        return True

    def failed(self, call: Call, now: float) -> None:
        """Note a failure."""
        if self.down_since is None:
            if call.epoch == self.epoch:
                self._row += 1
                if self._row >= self._tuning.failures_to_open:
                    self.down_since = now
                    self.epoch += 1
                    self._wait(now)
        elif call is self.probe:
            self.probe = None
            self._wait(now)

    def dropped(self, call: Call, now: float) -> None:
        """Note a call that ended without telling anything."""
        if call is self.probe:
            self.probe = None
            self._probe_at = now

    def give_up(self, now: float) -> str:
        """Stop waiting for the provider; return for how long it has failed, and how, in words."""
        self.given_up = True
        self._probe_at = min(self._probe_at, now + self._tuning.probe_every_s)
        return self.reason(now)

    def reason(self, now: float) -> str:
        """Return for how long the provider has failed, and how, in words."""
        since = now if self.down_since is None else self.down_since
        what = self.detail or "server errors, time-outs or lost connections, and no answer"
        return f"has failed for {now - since:,.0f} s: {what}"

    def _wait(self, now: float) -> None:
        if self.given_up:
            self._probe_at = now + self._tuning.probe_every_s
            return
        # Bridges that lost a provider at the same moment should not all come back at the same moment.
        self._probe_at = now + self._open_s * self._rng.uniform(0.8, 1.2)
        self._open_s = min(2.0 * self._open_s, self._tuning.longest_open_s)
