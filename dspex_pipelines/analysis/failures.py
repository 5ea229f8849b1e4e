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


def failure_kinds(trials: pd.DataFrame) -> tuple[FailureKind, ...]:
    """Return the types of error in *trials* (columns `error_type`, `error_message`), the commonest first.

    Trials that were not run have not failed.
    """
    failed = trials["error_type"].notna() & (trials["error_type"] != ErrorType.BUDGET_EXHAUSTED.value)
    told = Counter(zip(trials["error_type"][failed], trials["error_message"][failed].fillna(""), strict=True))
    counts: Counter[str] = Counter()
    messages: dict[str, str] = {}
    for (kind, message), count in told.most_common():
        counts[kind] += count
        messages.setdefault(kind, message.strip().partition("\n")[0])
    return tuple(FailureKind(type=kind, count=count, message=messages[kind]) for kind, count in counts.most_common())
