"""STUB"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from enum import Enum
from typing import NamedTuple

from dspex_pipelines.model.limits import RateLimit


class Verdict(Enum):
    OK = 1
    REFUSED = 2
    OVERLOADED = 3
    FAILED = 4
    NEUTRAL = 5


class Answer(NamedTuple):
    call_id: Hashable
    granted: bool
    reason: str


class Throttle:
    def declare(self, owner: Hashable, limits: Sequence[RateLimit], now: float) -> list[Answer]:
        return []

    def withdraw(self, owner: Hashable, now: float) -> list[Answer]:
        return []

    def ask(
        self, call_id: Hashable, model: str, tokens: int, now: float, *, again: bool = False, client: Hashable = None
    ) -> list[Answer]:
        return [Answer(call_id, True, "")]

    def done(
        self, call_id: Hashable, verdict: Verdict, now: float, *, retry_after_s: float = 0.0, tokens: int = 0
    ) -> list[Answer]:
        return []

    def forget(self, call_ids: Iterable[Hashable], now: float) -> list[Answer]:
        return []

    def tick(self, now: float) -> list[Answer]:
        return []

    def next_due(self) -> float | None:
        return None

    def stats(self) -> dict[str, object]:
        return {}
