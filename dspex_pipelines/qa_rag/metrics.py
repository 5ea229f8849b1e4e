"""How good an answer is, and whether it could have been: DSPy's metrics, as one would write them for an optimizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Labelled(Protocol):
    """An example, as far as a metric looks at it."""

    @property
    def answer(self) -> str:
        """The right name."""
        ...


class Answered(Protocol):
    """A prediction, as far as a metric looks at it."""

    @property
    def answer(self) -> str:
        """The name that was given."""
        ...

    @property
    def retrieved(self) -> Sequence[str]:
        """The names of the passages that were in the prompt."""
        ...


def answered(example: Labelled, prediction: Answered, trace: object = None) -> bool:  # noqa: ARG001 - DSPy's signature
    """Return whether the answer is the right name and nothing else."""
    return prediction.answer.strip() == example.answer


def found(example: Labelled, prediction: Answered, trace: object = None) -> bool:  # noqa: ARG001 - DSPy's signature
    """Return whether the right name was among the passages."""
    return example.answer in prediction.retrieved
