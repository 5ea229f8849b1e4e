"""What trials have used, summed up: calls to models, tokens, money and waiting, by model too, and what is in no sum."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.budget import Budget, dollars
from dspex_pipelines.model.outcome import TrialOutcome

UNPRICED = "unpriced_calls"
"""Calls that told their tokens, of a model without a known price."""
UNTOLD = "untold_calls"
"""Calls that did not tell what they used."""
UNTOLD_COPIES = "untold_copies"
"""Second copies of trials, or first ones, that were cancelled while they ran and so could not tell what they used."""
BY_MODEL = ("calls", "input_tokens", "output_tokens", "cost_usd", UNPRICED, UNTOLD)
"""What is counted by model too, as ``<model>.<name>``."""


@dataclass(slots=True)
class Usage:
    """Sums over trials. *amounts* are named as a trial's usage is."""

    amounts: dict[str, float] = field(default_factory=dict[str, float])
    run_s: float = 0.0
    throttled_s: float = 0.0

    def add(self, amounts: Mapping[str, float], *, run_s: float = 0.0, throttled_s: float = 0.0) -> None:
        """Count these too."""
        for name, amount in amounts.items():
            self.amounts[name] = self.amounts.get(name, 0) + amount
        self.run_s += run_s
        self.throttled_s += throttled_s

    def add_outcomes(self, outcomes: Iterable[TrialOutcome]) -> None:
        """Count what these trials have used; nothing of what cannot be read."""
        for outcome in outcomes:
            self.run_s += outcome.run_s
            self.throttled_s += outcome.throttled_s
            if outcome.usage_payload:
                self.add(usage_of(outcome))

    def merge(self, other: Usage) -> None:
        """Count what *other* has counted."""
        self.add(other.amounts, run_s=other.run_s, throttled_s=other.throttled_s)

    def to_document(self) -> dict[str, Any]:
        """Return it as plain values that `from_document` reads back."""
        return {"amounts": dict(self.amounts), "run_s": self.run_s, "throttled_s": self.throttled_s}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Usage:
        """Return what `to_document` wrote; nothing used for an empty one."""
        return cls(
            amounts=dict(document.get("amounts", {})),
            run_s=document.get("run_s", 0.0),
            throttled_s=document.get("throttled_s", 0.0),
        )

    # What it comes to

    @property
    def called(self) -> bool:
        """Whether models were called, or tokens or dollars reported."""
        return any(self.amounts.get(name) for name in ("calls", "retried_calls", "tokens", "cost_usd"))

    @property
    def throttled_share(self) -> float:
        """The part of the trials' time in which they waited for leave to call a model, 0 to 1."""
        whole_s = self.run_s + self.throttled_s
        return self.throttled_s / whole_s if whole_s > 0 else 0.0

    @property
    def models(self) -> dict[str, dict[str, float]]:
        """By model what was counted of it, in the order of their names."""
        found: dict[str, dict[str, float]] = {}
        for name in sorted(self.amounts):
            if model := model_of(name):
                found.setdefault(model, {})[name.removeprefix(f"{model}.")] = self.amounts[name]
        return found

    def short(self) -> str:
        """Return calls, tokens and cost in a few words; empty where there is none of them."""
        facts = [_counted(self.amounts["calls"], "call")] if self.amounts.get("calls") else []
        if tokens := self.amounts.get("tokens"):
            facts.append(f"{tokens:,.0f} tokens")
        if cost_usd := self.amounts.get("cost_usd"):
            facts.append(dollars(cost_usd))
        return ", ".join(facts)

    def spent(self) -> str:
        """Return what it costs so far, or how many tokens where no price is known; empty where nothing is."""
        if cost_usd := self.amounts.get("cost_usd"):
            return dollars(cost_usd)
        tokens = self.amounts.get("tokens")
        return f"{tokens:,.0f} tokens" if tokens else ""

    def lines(self) -> list[str]:
        """Return it for people: a line, and one for each model where there are several; empty where none was called."""
        if not self.called:
            return []
        facts = _facts(self.amounts)
        if self.amounts.get("calls") or self.amounts.get("retried_calls"):
            facts.append(f"throttled {self.throttled_share:.0%} of the time")
        if retried := self.amounts.get("retried_calls"):
            facts.append(f"{_counted(retried, 'call')} made again")
        if cached := self.amounts.get("cached_calls"):
            facts.append(f"{cached:,.0f} answered by a cache")
        models = self.models
        one = f"{next(iter(models))}: " if len(models) == 1 else ""
        several = [f"  {model}: {', '.join(_facts(amounts))}" for model, amounts in models.items()]
        return [f"Used: {one}{', '.join(facts)}", *(several if len(models) > 1 else ())]

    def warnings(self, budget: Budget | None = None) -> dict[str, str]:
        """Return what the sums leave out, with what to do about it, and which bounds of *budget* do not hold for it.

        The keys stay the same while the numbers in the texts grow.
        """
        budget = budget or Budget()
        said: dict[str, str] = {}
        for model, calls in self._left_out(UNPRICED):
            beyond = ", and max_cost_usd does not hold for them" if budget.max_cost_usd else ""
            price = f'prices=(Price(model="{model or "…"}", input_usd=…, output_usd=…),)'
            what = f"{_counted(calls, 'call')} to {model or 'further models'}"
            said[f"{UNPRICED} {model}"] = f"cost leaves out {what}{beyond}: give it a price with {price}"
        for model, calls in self._left_out(UNTOLD):
            bounds = [name for name in ("max_tokens", "max_cost_usd") if getattr(budget, name)]
            does = "does" if len(bounds) == 1 else "do"
            beyond = f", and {' and '.join(bounds)} {does} not hold for them" if bounds else ""
            what = f"{_counted(calls, 'call')} to {model or 'further models'}"
            said[f"{UNTOLD} {model}"] = (
                f"tokens and cost leave out {what}, whose answers say no usage{beyond}: have the call return its "
                "usage, or tell it by report_usage(tokens=…, cost_usd=…)"
            )
        if copies := self.amounts.get(UNTOLD_COPIES):
            s = "y" if copies == 1 else "ies"
            said[UNTOLD_COPIES] = (
                f"tokens and cost leave out {copies:,.0f} cop{s} of hedged trials, cancelled once the other answered; "
                "for max_tokens and max_cost_usd each counts as much as the other"
            )
        return said

    def _left_out(self, name: str) -> list[tuple[str, float]]:
        """Return the models with such calls, and how many; the empty one for those that trials had no name left for."""
        found = [(model, amounts[name]) for model, amounts in self.models.items() if amounts.get(name)]
        rest = self.amounts.get(name, 0) - sum(calls for _, calls in found)
        return [*found, *([("", rest)] if rest > 0 else [])]


def usage_of(outcome: TrialOutcome) -> Mapping[str, float]:
    """Return what a trial says it has used; nothing for what cannot be read."""
    try:
        return outcome.usage
    except SerializationError:
        return {}


def model_of(name: str) -> str:
    """Return the model that a name of a trial's usage is about; empty where it is about all of them."""
    model, _, counted = name.rpartition(".")
    return model if counted in BY_MODEL else ""


def _counted(number: float, what: str) -> str:
    return f"{number:,.0f} {what}{'' if number == 1 else 's'}"


def _facts(amounts: Mapping[str, float]) -> list[str]:
    facts = [_counted(amounts["calls"], "call")] if amounts.get("calls") else []
    if "input_tokens" in amounts or "output_tokens" in amounts:
        into, out = (amounts.get(f"{way}_tokens", 0) for way in ("input", "output"))
        facts.append(f"{into:,.0f} tokens in and {out:,.0f} out")
    elif tokens := amounts.get("tokens"):
        facts.append(f"{tokens:,.0f} tokens")
    if "cost_usd" in amounts:
        facts.append(dollars(amounts["cost_usd"]))
    return facts
