"""What the declared checks have found, told in few lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import dagster as dg

_NUMBERS = re.compile(r"[-+]?\d[\d.,]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a declared check has found in a partition."""

    name: str
    partition: str
    said: str
    """Its value and its bound, or why it cannot tell."""
    passed: bool
    is_error: bool
    """Whether it is of severity error."""
    blocking: bool

    def __str__(self) -> str:
        return f"Check {self.name} of {self.partition} {'passed' if self.passed else 'failed'}: {self.said}"


def verdicts_of(result: dg.ExecuteInProcessResult) -> Iterator[Verdict]:
    """Return what the checks of a run have found."""
    for found in result.get_asset_check_evaluations():
        is_error = found.severity is dg.AssetCheckSeverity.ERROR
        yield Verdict(
            name=found.check_name,
            partition=found.partition or "",
            said=found.description or "",
            passed=found.passed,
            is_error=is_error,
            blocking=bool(found.blocking) and is_error,
        )


def told(verdicts: Sequence[Verdict]) -> Iterator[tuple[str, Verdict]]:
    """Return a line for each that failed, and one for all that have passed saying the same but for its numbers.

    The line stands where the first of them does, with the numbers of that one.
    """
    alike: dict[object, list[Verdict]] = {}
    for number, one in enumerate(verdicts):
        key = (one.name, _NUMBERS.sub("", one.said)) if one.passed else number
        alike.setdefault(key, []).append(one)
    for first, *others in alike.values():
        if not others:
            yield str(first), first
        elif all(one.said == first.said for one in others):
            yield f"Check {first.name} of {1 + len(others)} partitions passed: {first.said}", first
        else:
            yield (
                f"Check {first.name} of {1 + len(others)} partitions passed; of {first.partition}: {first.said}",
                first,
            )
