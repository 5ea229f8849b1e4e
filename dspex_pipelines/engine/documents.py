"""An evaluation as a document: plain maps, lists and scalars, such as a YAML file has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, cast

from dspex_pipelines.engine.programs import inspect_program, resolve
from dspex_pipelines.errors import InvalidValue, ProgramUnavailable
from dspex_pipelines.model.automation import Automation
from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.calls import Price
from dspex_pipelines.model.checks import Check, Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.evaluation import Dataset, Evaluation, Row, Upstream
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.partitions import Dates, Dynamic
from dspex_pipelines.model.search import Search
from dspex_pipelines.model.space import ConfigurationSpace, Constraint, constraint_from_json
from dspex_pipelines.model.variables import Variable, variable_from_json

Document: TypeAlias = Mapping[str, Any]
DocumentPath: TypeAlias = tuple[str | int, ...]
FILES = ("defs.yaml", "defs.yml")
"""What Dagster calls a file that declares a component."""
SOURCES = ("source", "callable", "asset")
"""Where examples come from: one of these is given."""
_CHECKS: Mapping[Any, Callable[..., Check]] = {
    "score_floor": ScoreFloor,
    "failure_rate": FailureRate,
    "coverage": Coverage,
    "no_regression": NoRegression,
}


class InvalidPart(InvalidValue):
    """A part of a document was refused; `path` is where it is, as far as it is known."""

    def __init__(self, *, path: DocumentPath, field: str, value: object, fix: str) -> None:
        self.path = path
        super().__init__(field=field, value=value, fix=fix)


def evaluation_from_document(document: Document, *, folder: Path, name: str = "") -> Evaluation:
    """Return the evaluation that *document* declares; its paths are relative to *folder*.

    *name* is what it is called where the document does not say. Raises `InvalidPart`.
    """
    given = dict(document)
    parts: dict[str, Callable[[Any], Any]] = {
        "dataset": lambda part: _dataset(part, folder),
        "search": _search,
        "files": lambda part: tuple(folder / path for path in part),
        "hedging": lambda part: None if part is None else Hedging(**part),
        "budget": lambda part: Budget(**part),
        "limits": lambda part: _each(part, lambda one: RateLimit(**one)),
        "prices": lambda part: _each(part, lambda one: Price(**one)),
        "checks": lambda part: _each(part, _check),
        "automation": lambda part: _automation(part, folder),
    }
    with _within(document):
        space = _space(given.pop("variables", {}), given.pop("constraints", ()))
        for key in parts.keys() & given.keys():
            with _within(given[key], key):
                given[key] = parts[key](given[key])
        arguments: dict[str, Any] = {"name": name, **given, "space": space}
        return _evaluation(arguments)


def _evaluation(arguments: Mapping[str, Any]) -> Evaluation:
    """Return the evaluation; what it says of a check, it says by that check's name."""
    try:
        return Evaluation(**arguments)
    except InvalidValue as error:
        name, _, part = error.field.partition(".")
        for index, check in enumerate(arguments.get("checks", ())):
            if check.name == name:
                path = ("checks", index, *([part] if part else ()))
                raise InvalidPart(path=path, field=error.field, value=error.value, fix=error.fix) from error
        raise


@contextmanager
def _within(document: object, *path: str | int) -> Generator[None]:
    """Tell of whatever is refused where in *document*, which is at *path* of its own document, it is."""
    try:
        yield
    except InvalidPart as error:
        error.path = (*path, *error.path)
        raise
    except InvalidValue as error:
        at = (*path, *_closest(document, error.field))
        raise InvalidPart(path=at, field=error.field, value=error.value, fix=error.fix) from error
    except ProgramUnavailable as error:
        named = [part for part in path if isinstance(part, str)]
        raise InvalidPart(path=path, field=named[-1], value=error.entry_point, fix=error.reason) from error


def _closest(document: object, field: str) -> DocumentPath:
    """Return the path in *document* to what an error calls *field*, as far as the names in it lead there."""
    path: list[str | int] = []
    for name in re.split(r"[\s.,]+", field.replace("space.", "variables.")):
        if isinstance(document, Mapping) and name in document:
            document = cast("Document", document)[name]
            path.append(name)
    return tuple(path)


def _each(parts: Sequence[Any], build: Callable[[Any], Any]) -> tuple[Any, ...]:
    built: list[Any] = []
    for index, part in enumerate(parts):
        with _within(part, index):
            built.append(build(part))
    return tuple(built)


def _dataset(document: Document, folder: Path) -> Dataset:
    given = dict(document)
    sources = [name for name in SOURCES if name in given]
    if len(sources) != 1:
        raise InvalidValue(field="dataset", value=sources, fix=f"give one of {', '.join(SOURCES)}")
    with _within(given[sources[0]], sources[0]):
        source = _source(sources[0], given.pop(sources[0]), folder)
    if "partitions" in given:
        with _within(given["partitions"], "partitions"):
            given["partitions"] = _partitions(given["partitions"])
    arguments: dict[str, Any] = {"inputs": (), **given, "source": source}
    return Dataset(**arguments)


def _source(kind: str, given: str, folder: Path) -> Path | Callable[[], Any] | Upstream:
    match kind:
        case "asset":
            return Upstream(given)
        case "callable":
            return cast("Callable[[], Sequence[Row]]", resolve(given))
        case _:
            return folder / given


def _partitions(given: Any) -> Any:
    if isinstance(given, Mapping):
        return Dates(**cast("Mapping[str, Any]", given))
    return Dynamic() if given == "dynamic" else given


def _space(variables: Mapping[str, Document], constraints: Sequence[Document]) -> ConfigurationSpace:
    declared: list[Variable] = []
    for name, part in variables.items():
        with _within(part, "variables", name):
            declared.append(variable_from_json({**_kind(part), "name": name}))
    with _within(constraints, "constraints"):
        kept: tuple[Constraint, ...] = _each(constraints, lambda part: constraint_from_json(_kind(part)))
        return _checked_space(tuple(declared), kept)


def _checked_space(variables: tuple[Variable, ...], constraints: tuple[Constraint, ...]) -> ConfigurationSpace:
    for index, constraint in enumerate(constraints):
        with _within(None, index):
            ConfigurationSpace(variables=variables, constraints=(constraint,))
    return ConfigurationSpace(variables=variables, constraints=constraints)


def _kind(document: Document) -> dict[str, Any]:
    """Return the document as variables and constraints are read from: its type is called their kind."""
    given = dict(document)
    return {"kind": given.pop("type", None), **given}


def _check(document: Document) -> Check:
    given = dict(document)
    kind = given.pop("type", None)
    if kind not in _CHECKS:
        raise InvalidValue(field="type", value=kind, fix=f"give one of {', '.join(_CHECKS)}")
    return _CHECKS[kind](**given)


def _given_at(error: InvalidPart) -> DocumentPath:
    """Return where a document has the input or variable that its program does not take; empty of any other error."""
    match error.field.partition(" ")[0]:
        case "input":
            return "dataset", "inputs"
        case "variable":
            return "variables", str(error.value)
        case _:
            return ()


def _search(given: Any) -> Search:
    return Search(**given) if isinstance(given, Mapping) else Search()


def _automation(document: Document, folder: Path) -> Automation:
    triggers = {"triggers": folder / document["triggers"]} if document.get("triggers") else {}
    return Automation(**{**document, **triggers})


def check_entry_points(evaluation: Evaluation) -> None:
    """Raise `InvalidPart` where the program or a metric cannot be imported, or does not take what it is given.

    Imports them, which may be slow, and may fail where only the workers have what they need.
    """
    names = {"inputs": evaluation.dataset.inputs, "variables": evaluation.space.names}
    try:
        with _within(evaluation.program, "program"):
            inspect_program(evaluation.program, evaluation.init, **names)
    except InvalidPart as error:
        error.path = _given_at(error) or error.path
        raise
    for index, metric in enumerate(evaluation.metrics):
        with _within(metric, "metrics", index):
            resolve(metric)
