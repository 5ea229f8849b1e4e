"""How much a run may spend before it stops, keeps what it has, and says why."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from decimal import Decimal

from dspex_pipelines.errors import InvalidValue


def dollars(amount: float) -> str:
    """Return an amount of US dollars for people, to the hundredth of a cent where cents say too little.

    What is less than that has one digit: it is not nothing.
    """
    if 0 < amount < _LITTLE_USD:
        return f"${Decimal(f'{amount:.1g}'):f}"
    cents = f"{amount:,.2f}"
    return f"${cents}" if amount >= 1 or abs(float(cents) - amount) < _LITTLE_USD else f"${amount:,.4f}"


_LITTLE_USD = 0.000_05
_MOST_COUNT = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What one run has spent so far, over all its steps."""

    trials: int = 0
    """Trials that this run has an outcome of; reused ones cost nothing and are not among them."""
    failed: int = 0
    elapsed_s: float = 0.0
    tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """Bounds on one run; 0 is no bound. Every run starts with the whole of it."""

    max_errors: float = 0.0
    """From 1 on: so many failed trials. Below 1: such a fraction of the trials that have an outcome."""
    min_trials: int = 100
    """A fraction of errors counts only once so many trials have an outcome."""
    max_time_s: float = 0.0
    """Seconds from the first trial on."""
    max_tokens: int = 0
    """Tokens, of those trials that report their usage."""
    max_cost_usd: float = 0.0
    """US dollars, of those trials that report their usage."""

    def __post_init__(self) -> None:
        for name in ("max_errors", "max_time_s", "max_cost_usd"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
                raise InvalidValue(field=f"budget.{name}", value=value, fix="give a finite number, 0 or more")
        for name, least in (("min_trials", 1), ("max_tokens", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _MOST_COUNT:
                raise InvalidValue(field=f"budget.{name}", value=value, fix=f"give an integer of {least} or more")
        if self.max_errors > 1 and self.max_errors != int(self.max_errors):
            raise InvalidValue(
                field="budget.max_errors", value=self.max_errors, fix="give a whole number, or a fraction below 1"
            )

    @property
    def is_bounded(self) -> bool:
        """Whether there is any bound."""
        return bool(self.max_errors or self.max_time_s or self.max_tokens or self.max_cost_usd)

    def exceeded_by(self, spent: Spent) -> str:
        """Return which bound has been reached, in words; empty for none."""
        if self._is_over(spent.failed, spent.trials):
            most = f"{self.max_errors:,.0f}" if self.max_errors >= 1 else f"{self.max_errors:.1%}"
            return f"{spent.failed:,} of the first {spent.trials:,} trials failed; the limit is {most} (max_errors)"
        if self.max_time_s and spent.elapsed_s >= self.max_time_s:
            return f"{self.max_time_s:g} s are over (max_time_s)"
        if self.max_tokens and spent.tokens >= self.max_tokens:
            return f"{spent.tokens:,} of {self.max_tokens:,} tokens are spent (max_tokens)"
        if self.max_cost_usd and spent.cost_usd >= self.max_cost_usd:
            return f"{dollars(spent.cost_usd)} of {dollars(self.max_cost_usd)} are spent (max_cost_usd)"
        return ""

    def _is_over(self, failed: int, trials: int) -> bool:
        if self.max_errors >= 1:
            return failed >= self.max_errors
        return self.max_errors > 0 and trials >= self.min_trials and failed > self.max_errors * trials
