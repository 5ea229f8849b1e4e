"""How the stand-in behaves, and by which draw a request meets a fault."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, cast

Fault = Literal["server_error", "overloaded", "overloaded_529", "hung", "malformed", "dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What is done to requests; as declared, to none anything.

    Raises ValueError where a value is of the wrong type or out of its range, and where the rates add up to more than 1.
    """

    latency_s: float = 0.0
    """Mean seconds until an answer."""
    jitter: float = 0.0
    """Each request's latency is its own, within this fraction of the mean."""
    requests_per_s: float = 0.0
    """Above it requests are refused with 429; 0: as many as come."""
    burst: int = 1
    """Requests that are let through at once after a pause."""
    tokens_per_minute: int = 0
    """Prompt and answer together; above it requests are refused with 429; 0: as many as come."""
    error_rate: float = 0.0
    """Share of requests that fail with 500."""
    overload_rate: float = 0.0
    """Share of requests that fail with 503 or 529, half of them each."""
    hang_rate: float = 0.0
    """Share of requests that are never answered, their connection kept open."""
    malformed_rate: float = 0.0
    """Share of requests whose answer no adapter of DSPy can parse."""
    drop_rate: float = 0.0
    """Share of requests whose connection is closed without an answer."""
    down: bool = False
    """Every connection is closed without an answer, those of requests under way too."""
    context_tokens: int = 0
    """Longer prompts (with `max_tokens`) are refused with 400; 0: none is."""
    filter: str = ""
    """Prompts with this word are refused with 400."""
    models: str = ""
    """Names with commas between; others are refused with 404. None named: all are there."""
    seed: int = 0
    """Other seeds, other requests that meet a fault."""

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _checked(field.name, getattr(self, field.name), field.default))
        for name in ("jitter", *_RATES):
            if getattr(self, name) > 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give at most 1")
        if self.burst < 1:
            raise ValueError(f"burst is {self.burst}; give 1 or more")
        if (total := sum(getattr(self, name) for name in _RATES)) > 1 + 1e-9:
            raise ValueError(f"{', '.join(_RATES)} add up to {total:g}; give at most 1")

    def changed(self, values: Mapping[str, object]) -> Behaviour:
        """Return the behaviour with *values* instead of its own; raises ValueError for what is none of its fields."""
        if unknown := sorted(set(values) - {field.name for field in fields(self)}):
            raise ValueError(f"there is no {unknown[0]}; there are {', '.join(field.name for field in fields(self))}")
        return replace(self, **values)  # pyright: ignore[reportArgumentType] - checked where it is made

    def has(self, model: str) -> bool:
        """Return whether there is a *model* of this name."""
        return not self.models or model in (name.strip() for name in self.models.split(","))

    def fault(self, content: bytes, admitted: int) -> Fault | None:
        """Return what befalls a request of *content* that was let through *admitted* times before, if anything."""
        drawn = fraction(content, f"fault {self.seed} {admitted}")
        end = 0.0
        for rate, kinds in _FAULTS:
            begin, end = end, end + getattr(self, rate)
            if drawn < end:
                return kinds[int((drawn - begin) / (end - begin) * len(kinds))]
        return None

    def latency_of(self, content: bytes) -> float:
        """Return how many seconds the answer to a request of *content* takes."""
        return self.latency_s * (1 + self.jitter * (2 * fraction(content, "latency") - 1))


_FAULTS: tuple[tuple[str, tuple[Fault, ...]], ...] = (
    ("error_rate", ("server_error",)),
    ("overload_rate", ("overloaded", "overloaded_529")),
    ("hang_rate", ("hung",)),
    ("malformed_rate", ("malformed",)),
    ("drop_rate", ("dropped",)),
)
_RATES = tuple(rate for rate, _ in _FAULTS)


def fraction(content: bytes, draw: str) -> float:
    """Return a number in [0, 1) that *content* and the name of the *draw* decide, the same in every process."""
    return int.from_bytes(hashlib.blake2b(draw.encode(), key=content, digest_size=7).digest()) / 2**56


def _checked(name: str, value: object, default: object) -> object:
    if isinstance(default, bool | str):
        if type(value) is not type(default):
            raise ValueError(f"{name} is {value!r}; give a {type(default).__name__}")
        return value
    allowed = (int,) if isinstance(default, int) else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ValueError(f"{name} is {value!r}; give a number")  # noqa: TRY004 - of which kind is for nobody to tell
    if not math.isfinite(value) or (value < 0 and name != "seed"):
        raise ValueError(f"{name} is {value}; give a finite number, 0 or more")
    return value if isinstance(default, int) else float(cast("float", value))
