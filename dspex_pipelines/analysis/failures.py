"""What went wrong, by type of error."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import pandas as pd

from dspex_pipelines.model.outcome import ErrorType


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureKind:
    """Failures of one type."""

    type: str
    count: int
    message: str
    """The first line of what most of them say."""
    alike: int
    """How many of them say it."""

    @property
    def said(self) -> str:
        """What they say, and how many of them where not all do."""
        if self.alike == self.count:
            return self.message
        alike = "each its own, one of them" if self.alike == 1 else f"{self.alike:,} of them"
        return f"{alike}: {self.message}"


def failure_kinds(trials: pd.DataFrame) -> tuple[FailureKind, ...]:
    """Return the types of error in *trials* (columns `error_type`, `error_message`), the commonest first.

    Trials that were not run have not failed.
    """
    failed = trials["error_type"].notna() & (trials["error_type"] != ErrorType.BUDGET_EXHAUSTED.value)
    lines = (message.strip().partition("\n")[0] for message in trials["error_message"][failed].fillna(""))
    told = Counter(zip(trials["error_type"][failed], lines, strict=True))
    counts: Counter[str] = Counter()
    commonest: dict[str, tuple[str, int]] = {}
    for (kind, message), count in told.most_common():
        counts[kind] += count
        commonest.setdefault(kind, (message, count))
    return tuple(
        FailureKind(type=kind, count=count, message=commonest[kind][0], alike=commonest[kind][1])
        for kind, count in counts.most_common()
    )
