"""What holds for the calls to models that a program makes: how often, at what price, and what is kept of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from typing import Any

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.limits import RateLimit

TRACE_BYTES = 65_536
MOST_TRACE_BYTES = 1 << 20
LANE_CHARACTERS = 500
MOST_TOKENS = 100_000_000
"""Of one call, many times what any model reads: who says more says nothing."""
_MILLION = 1_000_000
_MOST_USD = 1e9


def lane_name(model: str) -> str:
    """Return what the lane of a model is called: so short, and with such characters, as can be sent and shown."""
    name = model[:LANE_CHARACTERS]
    return name if name.isprintable() else "".join(one if one.isprintable() else "?" for one in name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """What a model's tokens cost, in US dollars per million; `model` may be a pattern such as ``openai/gpt-4o*``."""

    model: str
    input_usd: float
    output_usd: float
    cached_input_usd: float | None = None
    """Of input tokens that the provider has cached; None: the same as other input."""

    def __post_init__(self) -> None:
        if not self.model:
            raise InvalidValue(field="price.model", value=self.model, fix="give a model, such as openai/gpt-4o-mini")
        for name in ("input_usd", "output_usd", "cached_input_usd"):
            value = getattr(self, name)
            if value is None and name == "cached_input_usd":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST_USD:
                fix = f"give US dollars per million tokens, 0 to {_MOST_USD:,.0f}"
                raise InvalidValue(field=f"price.{name} of {self.model}", value=value, fix=fix)

    def cost_usd(self, *, input_tokens: float, output_tokens: float, cached_input_tokens: float = 0) -> float:
        """Return what a call costs; *cached_input_tokens* are among the *input_tokens*."""
        cached_input_usd = self.input_usd if self.cached_input_usd is None else self.cached_input_usd
        fresh = max(0.0, input_tokens - cached_input_tokens)
        spent = fresh * self.input_usd + cached_input_tokens * cached_input_usd + output_tokens * self.output_usd
        return spent / _MILLION


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPolicy:
    """What holds for the calls of one evaluation's trials."""

    limits: tuple[RateLimit, ...] = ()
    prices: tuple[Price, ...] = ()
    """The first that matches a model counts; for others, what the client library knows, if anything."""
    trace_bytes: int = TRACE_BYTES
    """Most bytes, compressed, that are kept of one trial's calls; 0: nothing is."""
    _price: dict[str, Price | None] = field(
        init=False, repr=False, compare=False, default_factory=dict[str, Price | None]
    )

    def __post_init__(self) -> None:
        for name, kind in (("limits", RateLimit), ("prices", Price)):
            given = getattr(self, name)
            if not isinstance(given, Sequence) or not all(isinstance(one, kind) for one in given):
                raise InvalidValue(field=name, value=given, fix=f"give a tuple of {kind.__name__}")
            object.__setattr__(self, name, tuple(given))
        if type(self.trace_bytes) is not int or not 0 <= self.trace_bytes <= MOST_TRACE_BYTES:
            fix = f"give 0 (keep nothing) to {MOST_TRACE_BYTES:,} bytes"
            raise InvalidValue(field="trace_bytes", value=self.trace_bytes, fix=fix)

    def to_document(self) -> dict[str, Any]:
        """Return the policy as plain values that `from_document` reads back."""
        return {
            "limits": [asdict(limit) for limit in self.limits],
            "prices": [asdict(price) for price in self.prices],
            "trace_bytes": self.trace_bytes,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> CallPolicy:
        """Return the policy that `to_document` wrote."""
        return cls(
            limits=tuple(RateLimit(**limit) for limit in document["limits"]),
            prices=tuple(Price(**price) for price in document["prices"]),
            trace_bytes=document["trace_bytes"],
        )

    def price_of(self, model: str) -> Price | None:
        """Return the declared price of a model; None where none is."""
        if model not in self._price:
            found = (price for price in self.prices if fnmatchcase(model, price.model))
            self._price[model] = next(found, None)
        return self._price[model]
