"""Keeps what is in flight within what is left of a budget of tokens or money."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

from dspex_pipelines.engine.journal.ledger import Ledger, spent_by
from dspex_pipelines.model.budget import dollars
from dspex_pipelines.model.outcome import TrialOutcome

FIRST = 8
"""So many trials may be in flight while it is not known what one uses."""
Item = TypeVar("Item")


class Reservation:
    """Lets a trial start only where what it may use is left; that is what the run's trials have used on average.

    It is reserved when the trial starts and settled when its outcome is booked. Where nothing is in flight and one more
    would be too much, the run has stopped: the *ledger* is told why.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._in_flight = 0
        self._settled = 0
        self._tokens = 0
        self._cost_usd = 0.0
        self._doubled: set[bytes] = set()
        """Trials in flight that have a second copy."""
        self._changed = asyncio.Event()

    async def over(self, items: Iterable[Item]) -> AsyncGenerator[Item]:
        """Yield *items*, each once there is room for it; ends when there never will be, or the run has stopped."""
        for item in items:
            while not self._has_room():
                if self._ledger.stopped:
                    return
                if not self._in_flight:
                    self._ledger.stop(self._reason())
                    return
                self._changed.clear()
                await self._changed.wait()
            self._in_flight += 1
            yield item

    def take_second(self, trial_id: bytes) -> bool:
        """Reserve what a second copy of a trial in flight may use; return False where there is no room for it now."""
        if trial_id in self._doubled:
            return not self._ledger.stopped
        if not self._has_room():
            return False
        self._in_flight += 1
        self._doubled.add(trial_id)
        return True

    def settle(self, outcomes: Iterable[TrialOutcome]) -> None:
        """What these have used is booked, and no more reserved."""
        for outcome in outcomes:
            self._in_flight -= 1
            if outcome.trial_id in self._doubled:
                self._doubled.remove(outcome.trial_id)
                self._in_flight -= 1
            self._settled += 1
            tokens, cost_usd = spent_by(outcome)
            self._tokens += tokens
            self._cost_usd += cost_usd
        self._changed.set()

    def _has_room(self) -> bool:
        if self._ledger.stopped:
            return False
        if not self._settled:
            return self._in_flight < FIRST
        after = self._in_flight + 1
        budget, spent = self._ledger.budget, self._ledger.spent
        tokens, cost_usd = self._mean()
        return not (
            (budget.max_tokens and spent.tokens + after * tokens > budget.max_tokens)
            # Sums of floats are off by their last digits.
            or (budget.max_cost_usd and spent.cost_usd + after * cost_usd > budget.max_cost_usd * (1 + 1e-9))
        )

    def _mean(self) -> tuple[float, float]:
        """Return the tokens and the US dollars of a trial, of which there has been one."""
        return self._tokens / self._settled, self._cost_usd / self._settled

    def _reason(self) -> str:
        budget, spent = self._ledger.budget, self._ledger.spent
        tokens, cost_usd = self._mean()
        if budget.max_tokens and spent.tokens + tokens > budget.max_tokens:
            return (
                f"{spent.tokens:,} of {budget.max_tokens:,} tokens are spent, and a trial uses about {tokens:,.0f} "
                "(max_tokens)"
            )
        return (
            f"{dollars(spent.cost_usd)} of {dollars(budget.max_cost_usd)} are spent, and a trial costs about "
            f"${cost_usd:,.4f} (max_cost_usd)"
        )
