"""What a data set is like, column by column: what one looks at before one trusts it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass, field
from typing import Any

MOST_DISTINCT = 1_000
"""Values of a column that are told apart; beyond it the number is a lower bound."""

_UNITS = {"str": " characters", "bytes": " bytes", "int": "", "float": ""}
_UNMEASURED = ("bool",)


@dataclass(slots=True)
class ColumnProfile:
    """One column's values, as they went by."""

    name: str
    role: str
    """`input` or `label`."""
    types: Counter[str] = field(default_factory=Counter[str])
    values: Counter[str] = field(default_factory=Counter[str])
    """Those that were told apart, as text."""
    missing: int = 0
    shortest: float = math.inf
    """Characters of a text, items of a list, or the number itself."""
    longest: float = -math.inf
    total: float = 0.0
    measured: int = 0

    def add(self, value: Any) -> None:
        """Count one value."""
        if value is None or value == "":
            self.missing += 1
            return
        self.types[type(value).__name__] += 1
        text = value if isinstance(value, str) else repr(value)
        if text in self.values or len(self.values) < MOST_DISTINCT:
            self.values[text] += 1
        size = _size(value)
        if size is not None:
            self.shortest, self.longest = min(self.shortest, size), max(self.longest, size)
            self.total += size
            self.measured += 1

    @property
    def type(self) -> str:
        """The types of its values, the commonest first."""
        return ", ".join(name for name, _ in self.types.most_common())

    @property
    def distinct(self) -> str:
        """How many values were told apart."""
        return f"{MOST_DISTINCT:,} or more" if len(self.values) >= MOST_DISTINCT else f"{len(self.values):,}"

    @property
    def sizes(self) -> str:
        """Least, most and mean, with their unit; empty where there is nothing to measure."""
        if not self.measured:
            return ""
        units = {_UNITS.get(name, " items") for name in self.types if name not in _UNMEASURED}
        unit = units.pop() if len(units) == 1 else ""
        return f"{self.shortest:,.4g} to {self.longest:,.4g}{unit}, mean {self.total / self.measured:,.4g}"

    def balance(self, most: int) -> list[tuple[str, int]]:
        """Return the commonest *most* values and how often each is there; none where hardly any is there twice."""
        if len(self.values) >= MOST_DISTINCT or 2 * len(self.values) > sum(self.values.values()):
            return []
        return self.values.most_common(most)


def profile(rows: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> list[ColumnProfile]:
    """Return a profile of each column of *rows*: inputs and labels of each example."""
    columns: dict[tuple[str, str], ColumnProfile] = {}
    for inputs, labels in rows:
        for role, values in (("input", inputs), ("label", labels)):
            for name, value in values.items():
                column = columns.get((role, name))
                if column is None:
                    column = columns[role, name] = ColumnProfile(name, role)
                column.add(value)
    return list(columns.values())


def _size(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    return float(len(value)) if isinstance(value, Sized) else None
