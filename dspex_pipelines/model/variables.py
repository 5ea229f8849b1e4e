"""Typed, named, bounded behavioural parameters of a program."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, TypeAlias, cast

from dspex_pipelines.errors import InvalidValue

Value: TypeAlias = float | int | bool | str
GRID_LEVELS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Float:
    """A real number in ``[low, high]``; `log` samples its logarithm evenly; `points` is its grid."""

    kind: ClassVar[str] = "float"
    name: str
    low: float
    high: float
    default: float | None = None
    log: bool = False
    points: tuple[float, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_bounds(self.name, self.low, self.high)
        if self.log and self.low <= 0:
            raise InvalidValue(field=f"{self.name}.low", value=self.low, fix="log needs a low above 0")
        _check_declared(self, (*self.points, *_given(self.default)))

    def validate(self, value: object) -> float:
        """Return *value* as a float; an integer is a real number, a boolean, NaN or infinity is not."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InvalidValue(field=self.name, value=value, fix=f"give a finite number in {self._range}")
        if not self.low <= value <= self.high:
            raise InvalidValue(field=self.name, value=value, fix=f"give a number in {self._range}")
        return float(value)

    def grid(self) -> tuple[float, ...]:
        """Return `points`, or three values spread evenly from low to high."""
        if self.points:
            return tuple(float(point) for point in self.points)
        if self.low == self.high:
            return (float(self.low),)
        steps = [index / (GRID_LEVELS - 1) for index in range(GRID_LEVELS)]
        return tuple(self._at(step) for step in steps)

    def sample(self, rng: random.Random) -> float:
        """Return a value drawn evenly (in the logarithm when `log`)."""
        return self._at(rng.random())

    def _at(self, step: float) -> float:
        if self.log:
            exponent = math.log(self.low) + step * (math.log(self.high) - math.log(self.low))
            value = math.exp(exponent)
        else:
            value = self.low + step * (self.high - self.low)
        return min(float(self.high), max(float(self.low), value))

    @property
    def _range(self) -> str:
        return f"[{self.low:g}, {self.high:g}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Integer:
    """A whole number in ``[low, high]``; a float is refused even when it is whole."""

    kind: ClassVar[str] = "integer"
    name: str
    low: int
    high: int
    default: int | None = None
    points: tuple[int, ...] = ()
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        for end, bound in (("low", self.low), ("high", self.high)):
            if type(bound) is not int:
                raise InvalidValue(field=f"{self.name}.{end}", value=bound, fix="give an integer")
            _check_size(f"{self.name}.{end}", bound)
        _check_bounds(self.name, self.low, self.high)
        _check_declared(self, (*self.points, *_given(self.default)))

    def validate(self, value: object) -> int:
        """Return *value*; integers do not silently become floats, nor floats integers."""
        if isinstance(value, bool) or not isinstance(value, int):
            raise InvalidValue(field=self.name, value=value, fix=f"give an integer in {self._range}")
        if not self.low <= value <= self.high:
            raise InvalidValue(field=self.name, value=value, fix=f"give an integer in {self._range}")
        return value

    def grid(self) -> tuple[int, ...]:
        """Return `points`, or up to three integers spread from low to high."""
        if self.points:
            return self.points
        span = self.high - self.low
        steps = (self.low, self.low + span // 2, self.high)
        return tuple(dict.fromkeys(steps))

    def sample(self, rng: random.Random) -> int:
        """Return an integer drawn evenly."""
        return rng.randint(self.low, self.high)

    @property
    def _range(self) -> str:
        return f"[{self.low}, {self.high}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Boolean:
    """True or false; 0 and 1 are refused."""

    kind: ClassVar[str] = "boolean"
    name: str
    default: bool | None = None
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        _check_declared(self, _given(self.default))

    def validate(self, value: object) -> bool:
        """Return *value*, which must be a boolean."""
        if not isinstance(value, bool):
            raise InvalidValue(field=self.name, value=value, fix="give true or false")
        return value

    def grid(self) -> tuple[bool, ...]:
        """Return both values."""
        return (False, True)

    def sample(self, rng: random.Random) -> bool:
        """Return either value with equal chance."""
        return rng.random() < 0.5  # noqa: PLR2004 - a fair coin


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One of `options`, told apart by type as well as value (1, 1.0 and true are three options)."""

    kind: ClassVar[str] = "choice"
    name: str
    options: tuple[Value, ...]
    default: Value | None = None
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "options", tuple(self.options))
        if not self.options:
            raise InvalidValue(field=f"{self.name}.options", value=(), fix="give at least one option")
        for option in self.options:
            if type(option) not in (bool, int, float, str) or (isinstance(option, float) and not math.isfinite(option)):
                raise InvalidValue(
                    field=f"{self.name}.options", value=option, fix="give finite numbers, booleans or strings"
                )
            _check_size(f"{self.name}.options", option)
        if len({_typed(option) for option in self.options}) != len(self.options):
            raise InvalidValue(field=f"{self.name}.options", value=self.options, fix="give each option once")
        _check_declared(self, _given(self.default))

    def validate(self, value: object) -> Value:
        """Return the option equal to *value* in type and value."""
        for option in self.options:
            if _typed(option) == _typed(value):
                return option
        raise InvalidValue(field=self.name, value=value, fix=f"give one of {', '.join(map(repr, self.options))}")

    def grid(self) -> tuple[Value, ...]:
        """Return all options in their order."""
        return self.options

    def sample(self, rng: random.Random) -> Value:
        """Return an option drawn evenly."""
        return self.options[rng.randrange(len(self.options))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """A string of at most `max_length` characters, such as an instruction; `candidates` is its grid."""

    kind: ClassVar[str] = "text"
    name: str
    candidates: tuple[str, ...] = ()
    default: str | None = None
    max_length: int = 10_000
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "candidates", tuple(self.candidates))
        if isinstance(self.max_length, bool) or self.max_length < 1:
            raise InvalidValue(
                field=f"{self.name}.max_length", value=self.max_length, fix="give an integer of 1 or more"
            )
        _check_declared(self, (*self.candidates, *_given(self.default)))

    def validate(self, value: object) -> str:
        """Return *value*, a string within the length."""
        if not isinstance(value, str) or len(value) > self.max_length:
            raise InvalidValue(
                field=self.name, value=value, fix=f"give a string of at most {self.max_length} characters"
            )
        return value

    def grid(self) -> tuple[str, ...]:
        """Return the candidates (the default where there are none)."""
        if not self.candidates and self.default is None:
            raise InvalidValue(field=f"{self.name}.candidates", value=(), fix="give candidates or a default")
        return self.candidates or (cast("str", self.default),)

    def sample(self, rng: random.Random) -> str:
        """Return a candidate drawn evenly."""
        candidates = self.grid()
        return candidates[rng.randrange(len(candidates))]


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """An import path, ``module:attribute``, out of an allowed set: a strategy to be plugged in."""

    kind: ClassVar[str] = "module"
    name: str
    allowed: tuple[str, ...]
    default: str | None = None
    description: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        object.__setattr__(self, "allowed", tuple(self.allowed))
        if not self.allowed:
            raise InvalidValue(field=f"{self.name}.allowed", value=(), fix="give at least one import path")
        for path in self.allowed:
            module, _, attribute = str(path).partition(":")
            if not module or not attribute:
                raise InvalidValue(field=f"{self.name}.allowed", value=path, fix="write it as module:attribute")
        _check_declared(self, _given(self.default))

    def validate(self, value: object) -> str:
        """Return *value*, one of the allowed import paths."""
        if not isinstance(value, str) or value not in self.allowed:
            raise InvalidValue(field=self.name, value=value, fix=f"give one of {', '.join(self.allowed)}")
        return value

    def grid(self) -> tuple[str, ...]:
        """Return all allowed paths in their order."""
        return self.allowed

    def sample(self, rng: random.Random) -> str:
        """Return an allowed path drawn evenly."""
        return self.allowed[rng.randrange(len(self.allowed))]


Variable: TypeAlias = Float | Integer | Boolean | Choice | Text | Module
VARIABLE_KINDS: dict[str, type[Float | Integer | Boolean | Choice | Text | Module]] = {
    variable.kind: variable for variable in (Float, Integer, Boolean, Choice, Text, Module)
}


def values_drawn(variable: Variable) -> Sequence[Value] | None:
    """Return every value that `sample` may draw, each once; None for the real numbers of an interval."""
    match variable:
        case Float():
            return (float(variable.low),) if variable.low == variable.high else None
        case Integer():
            return range(variable.low, variable.high + 1)
        case Text() | Module():
            return tuple(dict.fromkeys(variable.grid()))
        case Boolean() | Choice():
            return variable.grid()


def variable_to_json(variable: Variable) -> dict[str, object]:
    """Return the variable as a JSON object with its `kind`; defaults are left out."""
    document: dict[str, object] = {"kind": variable.kind}
    for field in fields(variable):
        value = getattr(variable, field.name)
        if value != field.default:
            document[field.name] = list(cast("tuple[object, ...]", value)) if isinstance(value, tuple) else value
    return document


def variable_from_json(document: Mapping[str, object]) -> Variable:
    """Return the variable that `variable_to_json` wrote; raises `InvalidValue` for anything else."""
    kind = document.get("kind")
    if not isinstance(kind, str) or kind not in VARIABLE_KINDS:
        raise InvalidValue(field="variable.kind", value=kind, fix=f"give one of {', '.join(VARIABLE_KINDS)}")
    variable = VARIABLE_KINDS[kind]
    known = {field.name for field in fields(variable)}
    given = {name: value for name, value in document.items() if name != "kind"}
    if unknown := sorted(set(given) - known):
        raise InvalidValue(
            field=f"variable.{unknown[0]}", value=given[unknown[0]], fix=f"a {kind} has {', '.join(sorted(known))}"
        )
    arguments = {
        name: tuple(cast("list[object]", value)) if isinstance(value, list) else value for name, value in given.items()
    }
    try:
        return variable(**arguments)  # type: ignore[arg-type]  # each class checks its own fields
    except TypeError as error:
        raise InvalidValue(field=f"variable {given.get('name')!r}", value=document, fix=str(error)) from error


def _given(default: Value | None) -> tuple[Value, ...]:
    return () if default is None else (default,)


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise InvalidValue(field="variable.name", value=name, fix="give an identifier, or identifiers joined by dots")


def _check_bounds(name: str, low: object, high: object) -> None:
    for end, bound in (("low", low), ("high", high)):
        if isinstance(bound, bool) or not isinstance(bound, int | float) or not math.isfinite(bound):
            raise InvalidValue(field=f"{name}.{end}", value=bound, fix="give a finite number")
    if cast("float", low) > cast("float", high):
        raise InvalidValue(field=f"{name}.low", value=low, fix=f"give a low of at most high ({high})")


def _check_size(field: str, value: object) -> None:
    if type(value) is int and not -(2**63) <= value < 2**63:
        fix = "give an integer of 64 bits, which is what a column of results holds; what is larger can be a string"
        raise InvalidValue(field=field, value=value, fix=fix)


def _check_declared(variable: Variable, values: tuple[Value, ...]) -> None:
    for value in values:
        variable.validate(value)


def _typed(value: object) -> tuple[str, object]:
    return type(value).__name__, value
