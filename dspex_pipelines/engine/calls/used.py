"""What a call to a model used, as its answer says it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from dspex_pipelines.model.calls import MOST_TOKENS


class Used(NamedTuple):
    """What a call used; tokens that the provider had cached are among the input."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_input_tokens: int = 0
    cost_usd: float | None = None
    """As the client library reckons; a declared price goes before it."""
    cached: bool = False
    """Whether the answer came out of a cache of the client library: it cost nothing."""


def used_by_answer(answer: Any) -> Used:
    """Return what an answer of OpenAI's form says that it used; nothing where it says nothing."""
    return used_of(field_of(answer, "usage"))


def used_of(usage: Any, cost_usd: float | None = None) -> Used:
    """Return what a usage of OpenAI's form, a map or an object, says; nothing where it is neither."""
    details = field_of(usage, "prompt_tokens_details") or field_of(usage, "input_tokens_details")
    return Used(
        input_tokens=_count(usage, "prompt_tokens") or _count(usage, "input_tokens"),
        output_tokens=_count(usage, "completion_tokens") or _count(usage, "output_tokens"),
        cached_input_tokens=_count(details, "cached_tokens"),
        cost_usd=cost_usd if isinstance(cost_usd, float) and math.isfinite(cost_usd) and cost_usd >= 0 else None,
    )


def field_of(holder: Any, name: str) -> Any:
    """Return a field of a map or an object; None where there is none."""
    return holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)


def _count(holder: Any, name: str) -> int:
    return credible_tokens(field_of(holder, name))


def credible_tokens(tokens: Any) -> int:
    """Return a number of tokens; 0 for what cannot be one."""
    return int(tokens) if isinstance(tokens, int | float) and 0 < tokens <= MOST_TOKENS else 0
