"""How much a model's provider allows, as the user declares it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from dspex_pipelines.errors import InvalidValue

_LEAST_PER_MINUTE = 1e-6
_MOST_PER_MINUTE = 1e15
_MOST_AT_ONCE = 2**31 - 1
MOST_WEIGHT = 1_000
"""Of an evaluation, beside others in the same pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    """What the lanes that match `model` may use together; 0 is not declared. Raises `InvalidValue`."""

    model: str
    """Name of a lane as an `fnmatch` pattern: ``openai/gpt-4o-mini``, or ``openai/*`` for one budget that all share.

    A lane is called ``model`` or ``model@endpoint``; the pattern matches either all of it or what is before the ``@``.
    """
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    max_concurrency: int = 0

    def __post_init__(self) -> None:
        if not self.model or not self.model.strip():
            raise InvalidValue(
                field="limits.model",
                value=self.model,
                fix="give a model's name, such as openai/gpt-4o-mini or openai/*",
            )
        for name in ("requests_per_minute", "tokens_per_minute"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not (value == 0 or _LEAST_PER_MINUTE <= value <= _MOST_PER_MINUTE):
                fix = f"give 0, or a finite number from {_LEAST_PER_MINUTE:g} to {_MOST_PER_MINUTE:g}"
                raise InvalidValue(field=f"limits.{name}", value=value, fix=fix)
        value = self.max_concurrency
        # What a file says may be of any type.
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_AT_ONCE:  # pyright: ignore[reportUnnecessaryIsInstance]
            fix = f"give an integer of 0 or more, {_MOST_AT_ONCE:,} at most"
            raise InvalidValue(field="limits.max_concurrency", value=value, fix=fix)
        if not (self.requests_per_minute or self.tokens_per_minute or self.max_concurrency):
            raise InvalidValue(
                field="limits",
                value=self.model,
                fix="give at least one of requests_per_minute, tokens_per_minute and max_concurrency",
            )

    def matches(self, lane: str) -> bool:
        """Return whether a lane of that name is under this limit."""
        return fnmatchcase(lane, self.model) or fnmatchcase(lane.split("@", 1)[0], self.model)
