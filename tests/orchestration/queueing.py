"""What a queue did, from its records alone: whether it ever passed a limit, or left a slot free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Stay:
    """When something came into a queue, took a slot, and gave it back; None for what has not happened yet."""

    name: str
    queued: float
    began: float | None = None
    ended: float | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    """What it is limited by, whatever tags it really had."""

    @property
    def is_waiting(self) -> bool:
        return self.began is None

    def is_waiting_at(self, when: float) -> bool:
        return self.queued <= when and (self.began is None or when < self.began)

    def is_going_at(self, when: float) -> bool:
        return self.began is not None and self.began <= when and (self.ended is None or when < self.ended)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """How many may go at once, over all and by tag."""

    most: int
    tags: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of_runs(cls, concurrency: Mapping[str, Any]) -> Limits:
        """Read them as an instance's `concurrency` says them."""
        runs = concurrency["runs"]
        return cls(most=runs["max_concurrent_runs"], tags=runs.get("tag_concurrency_limits", ()))

    def forbids(self, tags: Mapping[str, str], going: Iterable[Mapping[str, str]]) -> str:
        """Return which limit keeps one with *tags* from starting beside those that go; empty for none."""
        others = list(going)
        if len(others) >= self.most:
            return f"{self.most} at once"
        for limit in self.tags:
            key, wanted = limit["key"], limit["value"]
            value = tags.get(key)
            if value is None or (isinstance(wanted, str) and value != wanted):
                continue
            if sum(other.get(key) == value for other in others) >= limit["limit"]:
                return f"{limit['limit']} of {key} {value}"
        return ""


def startable(stays: Sequence[Stay], limits: Limits, when: float) -> list[str]:
    """Return what waits at that instant although it could go."""
    going = [stay.tags for stay in stays if stay.is_going_at(when)]
    return [stay.name for stay in stays if stay.is_waiting_at(when) and not limits.forbids(stay.tags, going)]


def violations(stays: Sequence[Stay], limits: Limits, let_go: Sequence[float] = ()) -> list[str]:
    """Play the records back in their order; return where a limit was passed, or a free slot was not used.

    *let_go* are the instants at which what is held was let go: none may come while something that waits could go.
    """
    found = [f"{stay.name} never started" for stay in stays if stay.is_waiting]
    for stay in stays:
        if stay.began is not None:
            others = [other for other in stays if other is not stay and other.is_going_at(stay.began)]
            if why := limits.forbids(stay.tags, [other.tags for other in others]):
                found.append(f"{stay.name} started beside {', '.join(other.name for other in others)}, against {why}")
    for when in let_go:
        if free := startable(stays, limits, when):
            found.append(f"{', '.join(free)} could have started, and had not when others were let go")
    return found


def peak(stays: Sequence[Stay]) -> int:
    """Return how many went at once at most."""
    return max(sum(other.is_going_at(stay.began) for other in stays) for stay in stays if stay.began is not None)


def in_turn(stays: Sequence[Stay], most: int) -> bool:
    """Tell whether each start after the first *most* follows one more end."""
    begins = sorted(stay.began for stay in stays if stay.began is not None)
    ends = sorted(stay.ended for stay in stays if stay.ended is not None)
    return all(end < begin for end, begin in zip(ends, begins[most:], strict=False))
