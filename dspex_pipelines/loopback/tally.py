"""What came in and what went out, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Seen:
    """One content: how often it was let through, and how often answered."""

    admitted: int = 0
    answered: int = 0


@dataclass(slots=True)
class Tally:
    """Counts since the start, or since the last reset. Times are of the machine's monotonic clock."""

    requests: int = 0
    answered: int = 0
    malformed: int = 0
    refused: int = 0
    dropped: int = 0
    hung: int = 0
    left: int = 0
    """Requests whose client went before the answer."""
    in_flight: int = 0
    max_in_flight: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_arrival_s: float | None = None
    last_arrival_s: float | None = None
    last_answer_s: float | None = None
    errors: Counter[str] = field(default_factory=Counter[str])
    contents: dict[bytes, Seen] = field(default_factory=dict[bytes, Seen])

    def arrived(self, now_s: float) -> None:
        """Count a request that has arrived."""
        self.requests += 1
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        self.first_arrival_s = now_s if self.first_arrival_s is None else self.first_arrival_s
        self.last_arrival_s = now_s

    def content(self, digest: bytes) -> Seen:
        """Return what was seen of the content of that *digest*."""
        return self.contents.setdefault(digest, Seen())

    def summary(self) -> dict[str, object]:
        """Return the counts as JSON.

        `admitted` are those that no key, limit or refusal kept out, `answered` those with an answer that can be parsed,
        `malformed` the others with status 200. `answered_per_s` is over the time from the first arrival to the last
        answer.
        """
        begin_s, end_s = self.first_arrival_s, self.last_answer_s
        active_s = end_s - begin_s if begin_s is not None and end_s is not None else 0.0
        return {
            "requests": self.requests,
            "admitted": sum(seen.admitted for seen in self.contents.values()),
            "answered": self.answered,
            "malformed": self.malformed,
            "refused": self.refused,
            "errors": dict(self.errors),
            "dropped": self.dropped,
            "hung": self.hung,
            "left": self.left,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "first_arrival_s": begin_s,
            "last_arrival_s": self.last_arrival_s,
            "last_answer_s": end_s,
            "active_s": active_s,
            "answered_per_s": self.answered / active_s if active_s > 0 else 0.0,
            "distinct_contents": len(self.contents),
            "max_answered_of_one_content": max((seen.answered for seen in self.contents.values()), default=0),
        }
