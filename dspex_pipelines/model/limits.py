from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RateLimit:
    model: str
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    max_concurrency: int = 0
