"""Outcomes as Parquet: one row per trial, and the digest that versions them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult, scores_of
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import TrialSpec
from dspex_pipelines.model.usage import usage_of
from dspex_pipelines.model.variables import Choice, Variable

OK = "ok"
SHORT = 12
"""Hex digits of a configuration's digest that name it in tables."""
GROUP_ROWS = 10_000
GROUP_CHARACTERS = 16_000_000
"""A row group of results has at most so many trials, and ends where their outputs and errors come to so many."""
KNOWN_SCORES = 4_096
"""Different scores that are remembered."""
_Numbers: TypeAlias = tuple[tuple[str, float], ...]
"""Columns and what a trial has in them."""
_as_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode
_ARROW = {"float": pa.float64(), "integer": pa.int64(), "boolean": pa.bool_()}
_FIXED: dict[str, pa.DataType] = {
    "trial_id": pa.string(),
    "evaluation": pa.string(),
    "partition": pa.string(),
    "example_id": pa.string(),
    "group": pa.string(),
    "repeat": pa.int32(),
    "seed": pa.int64(),
    "configuration": pa.string(),
}
_FOUND: dict[str, pa.DataType] = {
    "status": pa.string(),
    "error_type": pa.string(),
    "error_message": pa.string(),
    "error_traceback": pa.string(),
    "run_s": pa.float64(),
    "queue_s": pa.float64(),
    "throttled_s": pa.float64(),
    "attempts": pa.int32(),
    "worker": pa.string(),
    "outputs": pa.string(),
}

_MEANING = {
    "trial_id": "digest of program, example, configuration and seed: the same trial has the same id in every run",
    "evaluation": "whose trial it is",
    "partition": "of the data set",
    "example_id": "which example",
    "group": "cluster of the example, for intervals",
    "repeat": "which repetition, from 0",
    "seed": "what the program is given where it asks for it",
    "configuration": "beginning of the digest of all var. columns",
    "status": "ok or error",
    "error_type": "one of a closed set; none where it succeeded",
    "error_message": "what the failure said",
    "error_traceback": "where the program raised",
    "run_s": "seconds that the program ran, without those throttled",
    "queue_s": "seconds from the trial's being submitted to its start",
    "throttled_s": "seconds that its calls to models waited for a limit",
    "attempts": "how often it was started",
    "worker": "who answered",
    "outputs": "what the program returned, as JSON",
}


def column_meanings(plan: Plan, names: Iterable[str]) -> dict[str, str]:
    """Return what each column of a plan's results means, in a few words."""
    described = {f"var.{one.name}": one.description for one in ConfigurationSpace.from_json(plan.space_json).variables}
    kinds = {"var": "value of the variable", "score": "by this metric; none for errors", "usage": "what the trial used"}
    return {name: _MEANING.get(name) or described.get(name) or kinds.get(name.partition(".")[0], "") for name in names}


def collect_trials(plan: Plan, rows: Iterable[tuple[TrialSpec, TrialOutcome]], path: Path) -> str:
    """Write *rows* to a Parquet file at *path*, a row group at a time; return their data version.

    Columns: identity, `var.<name>`, `score.<name>` (booleans as 0 and 1; null for errors), then status, error,
    times, worker, `outputs` as JSON text, and `usage.<name>` of what trials report that they have used. The data
    version is a hex digest of the plan and, in plan order, of statuses, error types, outputs and scores; timings,
    workers, attempts and usage are not in it. What raises in *rows* leaves no file.
    """
    version = _Version(plan)
    with _Parts(plan, path) as parts:
        group = _RowGroup(plan)
        for spec, outcome in rows:
            readable, outputs, judged = _readable(outcome)
            version.add(readable)
            group.add(spec, readable, outputs, judged)
            if group.is_full:
                parts.write(group)
                group = _RowGroup(plan)
        if group.count or not parts.written:
            parts.write(group)
        parts.join()
    return version.hexdigest()


def data_version(plan: Plan, rows: Iterable[tuple[TrialSpec, TrialOutcome]]) -> str:
    """Return the data version of *rows*, as `collect_trials` does."""
    version = _Version(plan)
    for _, outcome in rows:
        version.add(_readable(outcome)[0])
    return version.hexdigest()


class _Version:
    """The digest of a plan and of what was found, in its order."""

    def __init__(self, plan: Plan) -> None:
        self._hasher = hashlib.blake2b(plan.digest.encode() + plan.dataset_digest.encode(), digest_size=16)
        self.hexdigest = self._hasher.hexdigest

    def add(self, outcome: TrialOutcome) -> None:
        if isinstance(outcome, TrialResult):
            head, scores = _OK_HEAD, outcome.scores_payload
        else:
            head, scores = _head(outcome.type.encode()), b""
        outputs = outcome.outputs_payload
        # One call for all of it, which is most of what it costs.
        framed = (head, len(outputs).to_bytes(8, "big"), outputs, len(scores).to_bytes(8, "big"), scores)
        self._hasher.update(b"".join(framed))


def _head(kind: bytes) -> bytes:
    return len(kind).to_bytes(8, "big") + kind


_OK_HEAD = _head(b"ok")


class _RowGroup:
    """Rows that are written together, made a column at a time: that costs a fifth of what a row at a time does."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._specs: list[TrialSpec] = []
        self._outcomes: list[TrialOutcome] = []
        self._outputs: list[str | None] = []
        self._sparse: dict[str, dict[int, float]] = {}
        self._characters = 0

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._specs)

    @property
    def sparse(self) -> AbstractSet[str]:
        """The columns of scores and usage that these rows have something in."""
        return self._sparse.keys()

    @property
    def is_full(self) -> bool:
        """Whether it is as large as row groups become."""
        return len(self._specs) >= GROUP_ROWS or self._characters >= GROUP_CHARACTERS

    def add(self, spec: TrialSpec, outcome: TrialOutcome, outputs: str | None, scores: _Numbers) -> None:
        """Add a trial with its outcome, what it has returned as JSON text, and its scores."""
        row = len(self._specs)
        for found in (scores, _usage(outcome)) if outcome.usage_payload else (scores,):
            for name, value in found:
                self._sparse.setdefault(name, {})[row] = value
        if isinstance(outcome, TrialError):
            self._characters += len(outcome.message) + len(outcome.traceback)
        if outputs is not None:
            self._characters += len(outputs)
        self._specs.append(spec)
        self._outcomes.append(outcome)
        self._outputs.append(outputs)

    def table(self, schema: Any) -> Any:
        """Return it with all columns of *schema*."""
        columns = {**self._identity(), **self._found()}
        for name in schema.names:
            if name not in columns:
                columns[name] = list(map(self._sparse.get(name, {}).get, range(self.count)))
        return pa.table([pa.array(columns[field.name], field.type) for field in schema], schema=schema)

    def _identity(self) -> dict[str, Any]:
        specs = self._specs
        configurations = {spec.configuration.digest: spec.configuration for spec in specs}
        digests = [spec.configuration.digest for spec in specs]
        short = {digest: digest.hex()[:SHORT] for digest in configurations}
        columns: dict[str, Any] = {
            "trial_id": [spec.trial_id.hex() for spec in specs],
            "evaluation": pa.repeat(self._plan.evaluation, len(specs)),
            "partition": pa.repeat(self._plan.partition, len(specs)),
            "example_id": [spec.example.example_id for spec in specs],
            "group": [spec.example.cluster for spec in specs],
            "repeat": [spec.repeat for spec in specs],
            "seed": [spec.seed for spec in specs],
            "configuration": [short[digest] for digest in digests],
        }
        for name, (_, shown) in _variable_columns(self._plan).items():
            variable = name.removeprefix("var.")
            values = {digest: shown(one.values.get(variable)) for digest, one in configurations.items()}
            columns[name] = [values[digest] for digest in digests]
        return columns

    def _found(self) -> dict[str, Any]:
        outcomes = self._outcomes
        errors = [outcome if isinstance(outcome, TrialError) else None for outcome in outcomes]
        return {
            "status": ["error" if error else OK for error in errors],
            "error_type": [error.type.value if error else None for error in errors],
            "error_message": [error.message if error else None for error in errors],
            "error_traceback": [error.traceback if error else None for error in errors],
            "run_s": [outcome.run_s for outcome in outcomes],
            "queue_s": [outcome.queue_s for outcome in outcomes],
            "throttled_s": [outcome.throttled_s for outcome in outcomes],
            "attempts": [outcome.attempts for outcome in outcomes],
            "worker": [outcome.worker for outcome in outcomes],
            "outputs": self._outputs,
        }


class _Parts:
    """Row groups in files beside one that is to be.

    Which scores and usage there are is known only at the end. A part ends where a row group has some that no earlier
    one had; nearly always the first part is the whole.
    """

    def __init__(self, plan: Plan, path: Path) -> None:
        self._plan = plan
        self._path = path
        self._sparse: frozenset[str] = frozenset()
        self._schema: Any = None
        self._writer: Any = None
        self.written: list[Path] = []

    def __enter__(self) -> _Parts:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        for part in self.written:
            part.unlink(missing_ok=True)

    def write(self, group: _RowGroup) -> None:
        """Write a row group."""
        self._sparse |= group.sparse
        schema = _schema(self._plan, self._sparse)
        if schema != self._schema:
            self._close()
            self._schema = schema
            self.written.append(self._path.with_name(f"{self._path.name}.{len(self.written)}"))
            self._writer = pq.ParquetWriter(self.written[-1], schema)
        self._writer.write_table(group.table(schema))

    def join(self) -> None:
        """Make the whole file of the parts."""
        self._close()
        if len(self.written) > 1:
            whole = self._path.with_name(f"{self._path.name}.{len(self.written)}")
            with pq.ParquetWriter(whole, self._schema) as writer:
                for part in self.written:
                    _copy(part, writer, self._schema)
            self.written.append(whole)
        self.written.pop().replace(self._path)

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _copy(part: Path, writer: Any, schema: Any) -> None:
    """Write the row groups of a part, with nothing in the columns that it lacks."""
    with pq.ParquetFile(part) as file:
        for number in range(file.num_row_groups):
            group = file.read_row_group(number)
            arrays = [
                group[field.name] if field.name in group.column_names else pa.nulls(group.num_rows, field.type)
                for field in schema
            ]
            writer.write_table(pa.table(arrays, schema=schema))


def _schema(plan: Plan, sparse: AbstractSet[str]) -> Any:
    """Return the columns of a plan's results that have these of scores and usage."""
    declared = [f"score.{metric.name}" for metric in plan.metrics]
    # In the order of the metrics: the first one ranks. A dict's scores are called metric.name, and stand in its place.
    order = {name: place for place, name in enumerate(declared)}
    scores = [name for name in sparse if name.startswith("score.")]
    scores = sorted(scores, key=lambda name: (order[".".join(name.split(".")[:2])], name)) or declared
    used = sorted(name for name in sparse if name.startswith("usage."))
    variables = {name: kind for name, (kind, _) in _variable_columns(plan).items()}
    numbers = [dict.fromkeys(names, pa.float64()) for names in (scores, used)]
    return pa.schema({**_FIXED, **variables, **numbers[0], **_FOUND, **numbers[1]})


def _readable(outcome: TrialOutcome) -> tuple[TrialOutcome, str | None, _Numbers]:
    """Return the outcome, its outputs as JSON text, and its scores.

    One whose payloads are none, as a worker of another make may send, is a malformed output.
    """
    try:
        outputs = as_json(decode(outcome.outputs_payload)) if outcome.outputs_payload else None
        return outcome, outputs, _scores(outcome.scores_payload) if isinstance(outcome, TrialResult) else ()
    except (SerializationError, RecursionError) as error:
        malformed = TrialError(
            trial_id=outcome.trial_id,
            configuration_digest=outcome.configuration_digest,
            type=ErrorType.MALFORMED_OUTPUT,
            message=f"worker {outcome.worker} sent what cannot be read: {error}",
            attempts=outcome.attempts,
            worker=outcome.worker,
            queue_s=outcome.queue_s,
            run_s=outcome.run_s,
            throttled_s=outcome.throttled_s,
            history=outcome.history,
        )
        return malformed, None, ()


@lru_cache(KNOWN_SCORES)
def _scores(payload: bytes) -> _Numbers:
    """Return scores by their columns; raises `SerializationError` as `scores_of` does. Many trials score alike."""
    return tuple((f"score.{name}", float(value)) for name, value in scores_of(payload).items())


def _usage(outcome: TrialOutcome) -> _Numbers:
    return tuple((f"usage.{name}", float(value)) for name, value in usage_of(outcome).items())


def as_json(value: Any) -> str:
    """Return outputs as JSON text; bytes are ``{"base64": …}``, non-finite numbers their names as strings."""
    try:
        return _as_json(value)
    except (TypeError, ValueError):
        return json.dumps(_jsonable(value), ensure_ascii=False)


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_jsonable(item) for item in value]
    return value


def _variable_columns(plan: Plan) -> dict[str, tuple[Any, Callable[[Any], Any]]]:
    space = ConfigurationSpace.from_json(plan.space_json)
    return {f"var.{variable.name}": _variable_column(variable) for variable in space.variables}


def _variable_column(variable: Variable) -> tuple[Any, Callable[[Any], Any]]:
    """Return the column's type, and what makes a value fit it: options of several types are JSON text."""
    kind = variable.kind
    if isinstance(variable, Choice):
        types = {type(option) for option in variable.options}
        if len(types) > 1:
            return pa.string(), json.dumps
        kind = {"float": "float", "int": "integer", "bool": "boolean"}.get(types.pop().__name__, kind)
    return _ARROW.get(kind, pa.string()), _unchanged


def _unchanged(value: Any) -> Any:
    return value
