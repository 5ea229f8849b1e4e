"""Programs and metrics whose payloads have exactly the size that is asked for."""

from __future__ import annotations

HEADER = 5
"""Bytes before a large binary string in msgpack."""


def of_size(size: int) -> bytes:
    """What takes *size* bytes as a payload."""
    return bytes(size - HEADER)


def outputs_of(outputs: int) -> bytes:
    return of_size(outputs)


def both_of(outputs: int, scores: int) -> bytes:
    return of_size(outputs)


def echo(text: str) -> int:
    return len(text)


def raises(characters: int) -> None:
    raise ValueError("\N{GRINNING FACE}" * characters)


def judge_of(example, outputs) -> dict[str, float]:
    """Scores that take `scores` bytes: a map of one, a long name, a float."""
    name = "-" * (example.inputs["scores"] - 1 - HEADER - 9 - len("judge_of."))
    return {name: 0.5}


def fails_at_length(example, outputs) -> float:
    raise ValueError("\N{GRINNING FACE}" * 5_000_000)
