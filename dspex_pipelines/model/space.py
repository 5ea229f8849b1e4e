"""The variables of one program, the constraints between them, and assignments of values."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias, cast, get_args

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.payload import digest_of
from dspex_pipelines.model.variables import (
    Value,
    Variable,
    values_drawn,
    variable_from_json,
    variable_to_json,
)

_TRIES_PER_SAMPLE = 1_000
_MOST_COUNTED = 1_000_000
"""Combinations that are gone through to see how many of them are allowed."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A frozen assignment of values to the variables of a program, with a content digest."""

    values: Mapping[str, Value]
    digest: bytes = field(init=False, repr=False)

    def __post_init__(self) -> None:
        ordered = {name: self.values[name] for name in sorted(self.values)}
        object.__setattr__(self, "values", ordered)
        object.__setattr__(self, "digest", digest_of(ordered))

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Configuration) and self.digest == other.digest

    def __str__(self) -> str:
        return " ".join(f"{name}={_shown(value)}" for name, value in self.values.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """``lower <= upper`` (``<`` when `strict`), both of them number variables."""

    kind: ClassVar[str] = "ordered"
    lower: str
    upper: str
    strict: bool = False

    def __post_init__(self) -> None:
        for name in (self.lower, self.upper):
            _check_name("ordered", name)

    @property
    def names(self) -> tuple[str, ...]:
        """The variables it is about."""
        return (self.lower, self.upper)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Return whether *values* keep the constraint."""
        lower, upper = cast("float", values[self.lower]), cast("float", values[self.upper])
        return lower < upper if self.strict else lower <= upper

    def __str__(self) -> str:
        return f"{self.lower} {'<' if self.strict else '<='} {self.upper}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Implies:
    """When every variable of `when` has one of its listed values, every one of `then` must too."""

    kind: ClassVar[str] = "implies"
    when: Mapping[str, tuple[Value, ...]]
    then: Mapping[str, tuple[Value, ...]]

    def __post_init__(self) -> None:
        for part in ("when", "then"):
            given = cast("Mapping[str, Any]", getattr(self, part))
            if not given or not isinstance(given, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - read from JSON
                raise InvalidValue(field=f"implies.{part}", value=given, fix="name at least one variable")
            for name in given:
                _check_name(f"implies.{part}", name)
            object.__setattr__(self, part, {name: tuple(options) for name, options in given.items()})

    @property
    def names(self) -> tuple[str, ...]:
        """The variables it is about."""
        return (*self.when, *self.then)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Return whether *values* keep the constraint."""
        applies = all(values[name] in options for name, options in self.when.items())
        return not applies or all(values[name] in options for name, options in self.then.items())

    def __str__(self) -> str:
        def said(part: Mapping[str, tuple[Value, ...]]) -> str:
            return " and ".join(f"{name} in {list(options)}" for name, options in part.items())

        return f"{said(self.then)} when {said(self.when)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AtMost:
    """A weighted sum of number variables stays at or under `bound`."""

    kind: ClassVar[str] = "at_most"
    weights: Mapping[str, float]
    bound: float

    def __post_init__(self) -> None:
        if not isinstance(self.weights, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - read from JSON
            raise InvalidValue(field="at_most.weights", value=self.weights, fix="give a map of variables to numbers")
        for name, weight in (*self.weights.items(), ("bound", self.bound)):
            _check_name("at_most", name)
            if type(weight) not in (int, float) or not math.isfinite(weight):
                raise InvalidValue(field=f"at_most.{name}", value=weight, fix="give a finite number")

    @property
    def names(self) -> tuple[str, ...]:
        """The variables it is about."""
        return tuple(self.weights)

    def holds(self, values: Mapping[str, Value]) -> bool:
        """Return whether *values* keep the constraint."""
        total = sum(float(weight) * float(values[name]) for name, weight in self.weights.items())
        return total <= self.bound

    def __str__(self) -> str:
        total = " + ".join(f"{weight:g}*{name}" for name, weight in self.weights.items())
        return f"{total} <= {self.bound:g}"


def _check_name(constraint: str, name: object) -> None:
    if not isinstance(name, str):
        raise InvalidValue(field=constraint, value=name, fix="name variables by strings")


Constraint: TypeAlias = Ordered | Implies | AtMost
_CONSTRAINT_KINDS: dict[str, type[Ordered | Implies | AtMost]] = {
    constraint.kind: constraint for constraint in (Ordered, Implies, AtMost)
}
_NUMERIC = ("float", "integer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigurationSpace:
    """The variables of one program and the constraints between them.

    `grid` and `sample` give only configurations that keep every constraint; `validate` refuses every other
    with an error that names the variable, its value and its bound.
    """

    variables: tuple[Variable, ...] = ()
    constraints: tuple[Constraint, ...] = ()

    def __post_init__(self) -> None:
        for part in ("variables", "constraints"):
            given: object = getattr(self, part)
            if not isinstance(given, tuple | list):
                raise InvalidValue(field=f"space.{part}", value=given, fix="give a tuple; one alone needs a comma")
            object.__setattr__(self, part, tuple(cast("list[object]", given)))
            kinds_of = get_args(Variable if part == "variables" else Constraint)
            for one in cast("tuple[object, ...]", getattr(self, part)):
                if not isinstance(one, kinds_of):
                    fix = f"give {', '.join(kind.__name__ for kind in kinds_of)}"
                    raise InvalidValue(field=f"space.{part}", value=one, fix=fix)
        kinds: dict[str, str] = {}
        for variable in self.variables:
            if variable.name in kinds:
                raise InvalidValue(field="space.variables", value=variable.name, fix="give each variable once")
            kinds[variable.name] = variable.kind
        for constraint in self.constraints:
            for name in constraint.names:
                if name not in kinds:
                    raise InvalidValue(
                        field=f"constraint {constraint}", value=name, fix=f"the variables are {', '.join(kinds)}"
                    )
                if not isinstance(constraint, Implies) and kinds[name] not in _NUMERIC:
                    raise InvalidValue(
                        field=f"constraint {constraint}", value=name, fix="compare float or integer variables only"
                    )

    @property
    def names(self) -> tuple[str, ...]:
        """The variables' names in their order."""
        return tuple(variable.name for variable in self.variables)

    @property
    def digest(self) -> bytes:
        """Content digest, equal for equal spaces on every machine."""
        return digest_of(json.loads(self.to_json()))

    def validate(self, values: Mapping[str, object]) -> Configuration:
        """Return the configuration of *values*; a variable that has a default may be left out.

        Raises `InvalidValue` for an unknown or missing name, a value out of bounds, or a broken constraint.
        """
        known = set(self.names)
        for name, value in values.items():
            if name not in known:
                raise InvalidValue(
                    field=name, value=value, fix=f"there is no such variable; they are {', '.join(self.names)}"
                )
        checked: dict[str, Value] = {}
        for variable in self.variables:
            value = values.get(variable.name, variable.default)
            if value is None:
                raise InvalidValue(field=variable.name, value=None, fix="give the variable a value: it has no default")
            checked[variable.name] = variable.validate(value)
        for constraint in self.constraints:
            if not constraint.holds(checked):
                broken = {name: checked[name] for name in constraint.names}
                raise InvalidValue(field=", ".join(broken), value=broken, fix=f"keep the constraint {constraint}")
        return Configuration(checked)

    @property
    def combinations(self) -> int:
        """How many combinations the grid looks at, allowed or not."""
        return math.prod(len(variable.grid()) for variable in self.variables)

    def grid(self) -> Iterator[Configuration]:
        """Yield every allowed combination of the variables' grids, the last variable fastest."""
        levels = [variable.grid() for variable in self.variables]
        seen: set[bytes] = set()
        for combination in itertools.product(*levels):
            values = dict(zip(self.names, combination, strict=True))
            if all(constraint.holds(values) for constraint in self.constraints):
                configuration = Configuration(values)
                if configuration.digest not in seen:
                    seen.add(configuration.digest)
                    yield configuration

    def sample(self, count: int, *, seed: int) -> tuple[Configuration, ...]:
        """Return *count* different allowed configurations, the same ones for the same *seed* everywhere.

        Raises `InvalidValue` when so many cannot be found (a small discrete space, or constraints that
        almost nothing satisfies).
        """
        if type(count) is not int or count < 1:
            raise InvalidValue(field="samples", value=count, fix="give an integer of 1 or more")
        rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
        found: dict[bytes, Configuration] = {}
        size = self._size()
        if size is not None and size < count:
            self._check_enough(size, count)
        for drawn in range(_TRIES_PER_SAMPLE * count):
            # So many draws have met most of them: what is still missing is worth drawing on for only if it exists.
            if size is not None and drawn == size <= _MOST_COUNTED:
                self._check_enough(size, count)
            values = {variable.name: variable.sample(rng) for variable in self.variables}
            if all(constraint.holds(values) for constraint in self.constraints):
                configuration = Configuration(values)
                found.setdefault(configuration.digest, configuration)
                if len(found) == count:
                    return tuple(found.values())
        raise InvalidValue(
            field="samples", value=count, fix=f"only {len(found)} different allowed configurations were found"
        )

    def _size(self) -> int | None:
        """Return how many combinations can be drawn, allowed or not; None when real numbers are among them."""
        drawn = [values_drawn(variable) for variable in self.variables]
        # `len` ends at what an index can be; integers go on.
        sizes = [values[-1] - values[0] + 1 if isinstance(values, range) else len(values or ()) for values in drawn]
        return math.prod(sizes) or None

    def _check_enough(self, size: int, count: int) -> None:
        """Raise unless *count* of the *size* combinations keep every constraint."""
        there = size
        if size <= _MOST_COUNTED:
            combinations = itertools.product(*(values_drawn(variable) or () for variable in self.variables))
            named = (dict(zip(self.names, combination, strict=True)) for combination in combinations)
            allowed = (1 for values in named if all(constraint.holds(values) for constraint in self.constraints))
            there = sum(itertools.islice(allowed, count))
        if there < count:
            raise InvalidValue(
                field="samples", value=count, fix=f"there are only {there} different allowed configurations"
            )

    def to_json(self) -> str:
        """Return the space as JSON text that `from_json` reads back to an equal space."""
        return json.dumps(
            {
                "variables": [variable_to_json(variable) for variable in self.variables],
                "constraints": [_constraint_to_json(constraint) for constraint in self.constraints],
            },
            sort_keys=True,
        )

    @classmethod
    def from_json(cls, text: str) -> ConfigurationSpace:
        """Return the space that `to_json` wrote; raises `InvalidValue` for anything else."""
        try:
            document = cast("dict[str, list[dict[str, Any]]]", json.loads(text))
            variables = tuple(variable_from_json(item) for item in document["variables"])
            constraints = tuple(constraint_from_json(item) for item in document.get("constraints", []))
        except InvalidValue:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InvalidValue(field="space", value=text, fix="give the JSON that to_json wrote") from error
        return cls(variables=variables, constraints=constraints)


def _constraint_to_json(constraint: Constraint) -> dict[str, object]:
    match constraint:
        case Ordered():
            body: dict[str, object] = {
                "lower": constraint.lower,
                "upper": constraint.upper,
                "strict": constraint.strict,
            }
        case Implies():
            body = {
                "when": {name: list(options) for name, options in constraint.when.items()},
                "then": {name: list(options) for name, options in constraint.then.items()},
            }
        case AtMost():
            body = {"weights": dict(constraint.weights), "bound": constraint.bound}
    return {"kind": constraint.kind, **body}


def constraint_from_json(document: Mapping[str, Any]) -> Constraint:
    """Return the constraint that `to_json` wrote; raises `InvalidValue` for anything else."""
    kind = document.get("kind")
    if kind not in _CONSTRAINT_KINDS:
        raise InvalidValue(field="constraint.kind", value=kind, fix=f"give one of {', '.join(_CONSTRAINT_KINDS)}")
    return _CONSTRAINT_KINDS[kind](**{name: value for name, value in document.items() if name != "kind"})


def _shown(value: Value) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
