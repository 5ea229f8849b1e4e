"""How good an answer is: where the right name stands among the ten."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Labelled(Protocol):
    """An example, as far as a metric looks at it: `labels["name"]` is the right name."""

    @property
    def labels(self) -> Mapping[str, Any]:
        """What is right, by name."""
        ...


def reciprocal_rank(example: Labelled, outputs: Mapping[str, Any]) -> float:
    """Return 1 / rank of the right name, 0.0 where it is not among the ten."""
    names = list(outputs["names"])
    wanted = example.labels["name"]
    return 1.0 / (names.index(wanted) + 1) if wanted in names else 0.0


def hit_at_1(example: Labelled, outputs: Mapping[str, Any]) -> bool:
    """Return whether the right name is the first one."""
    return list(outputs["names"][:1]) == [example.labels["name"]]


def hit_at_10(example: Labelled, outputs: Mapping[str, Any]) -> bool:
    """Return whether the right name is among the ten."""
    return example.labels["name"] in outputs["names"]
