"""What is evaluated: examples, programs, metrics, and the trials made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from struct import Struct
from typing import Any, Literal, NamedTuple, Self, TypeAlias, TypeGuard
from zlib import crc32

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.payload import DIGEST_BYTES, digest, digest_of, encode
from dspex_pipelines.model.space import Configuration

Isolation: TypeAlias = Literal["shared", "process"]
ISOLATIONS: tuple[Isolation, ...] = ("shared", "process")
_identity = Struct(f">{DIGEST_BYTES}s{DIGEST_BYTES}s{DIGEST_BYTES}sIQ").pack
"""Program, example, configuration, repeat and seed, each of a fixed length: their concatenation means one thing."""
CONFIGURATION_BYTES = 2
"""So many bytes of a trial's id are its program's and configuration's."""
_NEIGHBOURHOOD_BYTES = 1
BEGINNING_BYTES = CONFIGURATION_BYTES + _NEIGHBOURHOOD_BYTES
"""So many are these and its example's neighbourhood; the rest tell their trials apart."""
NEIGHBOUR_CHARACTERS = 3
"""Examples are neighbours whose ids differ in their last so many characters: those with numbers for ids are, a thousand
at a time."""


class _WorkedOut:
    """What an example is asked for again and again; no field of it, so that making one takes no longer."""

    __slots__ = ("_digest", "_payload", "_scoring")

    _digest: bytes
    _payload: bytes
    _scoring: tuple[bytes, bytes]
    """The metrics, and the digest of what they judge by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Example(_WorkedOut):
    """One data point. `group` is the cluster it belongs to; empty means a cluster of its own."""

    example_id: str
    inputs: Mapping[str, Any]
    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    group: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        if not self.example_id:
            raise InvalidValue(field="example.example_id", value=self.example_id, fix="give a non-empty string")

    @property
    def digest(self) -> bytes:
        """Digest of id and inputs. Labels and metadata are not in it: relabelling runs no program again."""
        try:
            return self._digest
        except AttributeError:
            worked_out = digest_of([self.example_id, self.inputs])
            object.__setattr__(self, "_digest", worked_out)
            return worked_out

    @property
    def payload(self) -> bytes:
        """The example as msgpack: a list of its five fields."""
        try:
            return self._payload
        except AttributeError:
            worked_out = encode([self.example_id, self.inputs, self.labels, self.group, self.metadata])
            object.__setattr__(self, "_payload", worked_out)
            return worked_out

    def judged_by(self, metrics: bytes) -> bytes:
        """Return the 16-byte digest of what its trials are judged by: labels, metadata and *metrics*, a digest too."""
        try:
            known, scoring = self._scoring
            if known == metrics:
                return scoring
        except AttributeError:
            pass
        scoring = digest(metrics, digest_of([self.labels, self.metadata]))
        object.__setattr__(self, "_scoring", (metrics, scoring))
        return scoring

    @property
    def cluster(self) -> str:
        """The group, or the example itself where it has none."""
        return self.group or self.example_id


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramSpec:
    """Which program runs: ``module:attribute``, what it is built with, and the version of its source."""

    entry_point: str
    init: Mapping[str, Any] = field(default_factory=dict[str, Any])
    version: str
    isolation: Isolation = "shared"
    digest: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_entry_point("program.entry_point", self.entry_point)
        if self.isolation not in ISOLATIONS:
            raise InvalidValue(
                field="program.isolation", value=self.isolation, fix=f"give one of {', '.join(ISOLATIONS)}"
            )
        object.__setattr__(self, "digest", digest_of([self.entry_point, self.init, self.version]))


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricSpec:
    """A callable of (example, outputs) returning a number, a boolean or a dict of them."""

    entry_point: str
    version: str
    name: str = ""

    def __post_init__(self) -> None:
        check_entry_point("metric.entry_point", self.entry_point)
        if not self.name:
            object.__setattr__(self, "name", self.entry_point.partition(":")[2].rpartition(".")[2])


class _TrialFields(NamedTuple):
    program: ProgramSpec
    example: Example
    configuration: Configuration
    repeat: int
    seed: int
    trial_id: bytes


class TrialSpec(_TrialFields):
    """Program + example + configuration + repeat + seed; `trial_id` is a digest of exactly these.

    Ids of one program and configuration begin alike, and among these the ids of neighbouring examples: whoever keeps
    trials sorted by id, as the journal's index does, has those that run together side by side.
    """

    # A tuple: there is one of them per trial, and a frozen dataclass takes twice as long.
    __slots__ = ()

    def __new__(  # noqa: D102 - as the class says
        cls, program: ProgramSpec, example: Example, configuration: Configuration, repeat: int = 0, seed: int = 0
    ) -> Self:
        of_program, of_configuration = program.digest, configuration.digest
        identity = _identity(of_program, example.digest, of_configuration, repeat, seed)
        own = blake2b(identity, digest_size=DIGEST_BYTES - BEGINNING_BYTES).digest()
        neighbourhood = _neighbourhood(example.example_id[:-NEIGHBOUR_CHARACTERS])
        trial_id = _beginning(of_program, of_configuration) + neighbourhood + own
        return tuple.__new__(cls, (program, example, configuration, repeat, seed, trial_id))

    def _replace(self, **changes: Any) -> Self:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return another trial, with an id of its own."""
        parts: dict[str, Any] = {**self._asdict(), **changes}
        del parts["trial_id"]
        return type(self)(**parts)

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Return what a copy is made of: the id is worked out again."""
        return self[:-1]


@lru_cache(maxsize=4_096)
def _beginning(program: bytes, configuration: bytes) -> bytes:
    return digest(program, configuration)[:CONFIGURATION_BYTES]


@lru_cache(maxsize=64)
def _neighbourhood(name: str) -> bytes:
    # Few, as they may be long. No digest of ours: where each example has its own, that would be much of making a trial.
    return crc32(name.encode()).to_bytes(4, "big")[-_NEIGHBOURHOOD_BYTES:]


def reads_as_entry_point(value: object) -> TypeGuard[str]:
    """Return whether a value is text that reads ``module:attribute``, as those of `Module` variables do."""
    try:
        check_entry_point("value", value)
    except InvalidValue:
        return False
    return True


def check_entry_point(field_name: str, entry_point: object) -> None:
    """Raise `InvalidValue` unless *entry_point* reads ``module:attribute`` and can be imported by name."""
    fix = "write it as module:attribute, such as my_project.search:find"
    if not isinstance(entry_point, str):
        raise InvalidValue(field=field_name, value=entry_point, fix=fix)
    module, colon, attribute = entry_point.partition(":")
    if "<" in attribute:
        raise InvalidValue(
            field=field_name,
            value=entry_point,
            fix="a lambda or a local function has no name to import; define it at the top of a module",
        )
    if module == "__main__":
        raise InvalidValue(
            field=field_name,
            value=entry_point,
            fix="a worker cannot import __main__ (a script or notebook); move the function into a module",
        )
    names = (*module.split("."), *attribute.split("."))
    if not colon or not all(name.isidentifier() for name in names):
        raise InvalidValue(field=field_name, value=entry_point, fix=fix)
