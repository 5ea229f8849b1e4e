"""Outcomes as a table: one row per trial, and the digest that versions it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from dspex_pipelines.errors import SerializationError
from dspex_pipelines.model.outcome import ErrorType, Scores, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.plan import Plan
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.trial import TrialSpec
from dspex_pipelines.model.usage import usage_of
from dspex_pipelines.model.variables import Choice, Variable

OK = "ok"
SHORT = 12
"""Hex digits of a configuration's digest that name it in tables."""
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


def collect_trials(plan: Plan, rows: Iterable[tuple[TrialSpec, TrialOutcome]]) -> tuple[Any, str]:
    """Return *rows* as a `pyarrow.Table`, and its data version.

    Columns: identity, `var.<name>`, `score.<name>` (booleans as 0 and 1; null for errors), then status, error,
    times, worker, `outputs` as JSON text, and `usage.<name>` of what trials report that they have used. The data
    version is a hex digest of the plan and, in plan order, of statuses, error types, outputs and scores; timings,
    workers, attempts and usage are not in it.
    """
    variables = _variable_columns(plan)
    columns: dict[str, list[Any]] = {name: [] for name in (*_FIXED, *variables, *_FOUND)}
    scores: dict[str, dict[int, float]] = {}
    used: dict[str, dict[int, float]] = {}
    hasher = hashlib.blake2b(plan.digest.encode() + plan.dataset_digest.encode(), digest_size=16)
    count = 0
    for spec, outcome in rows:
        _identity(columns, plan, spec)
        for name, (_, shown) in variables.items():
            columns[name].append(shown(spec.configuration.values.get(name.removeprefix("var."))))
        outcome, outputs, judged = _readable(outcome)  # noqa: PLW2901 - what is collected from here on
        _found(columns, outcome, outputs)
        for name, value in usage_of(outcome).items() if outcome.usage_payload else ():
            used.setdefault(f"usage.{name}", {})[count] = float(value)
        if isinstance(outcome, TrialResult):
            for name, value in judged.items():
                scores.setdefault(f"score.{name}", {})[count] = float(value)
            parts = (b"ok", outcome.outputs_payload, outcome.scores_payload)
        else:
            parts = (outcome.type.encode(), outcome.outputs_payload, b"")
        for part in parts:
            hasher.update(len(part).to_bytes(8, "big") + part)
        count += 1
    types = {**_FIXED, **{name: kind for name, (kind, _) in variables.items()}}
    arrays = {name: pa.array(columns[name], kind) for name, kind in types.items()}
    declared = [f"score.{metric.name}" for metric in plan.metrics]
    # In the order of the metrics: the first one ranks. A dict's scores are called metric.name, and stand in its place.
    order = {name: place for place, name in enumerate(declared)}
    names = sorted(scores, key=lambda name: (order[".".join(name.split(".")[:2])], name)) or declared
    for name in names:
        found = scores.get(name, {})
        arrays[name] = pa.array([found.get(row) for row in range(count)], pa.float64())
    arrays |= {name: pa.array(columns[name], kind) for name, kind in _FOUND.items()}
    for name in sorted(used):
        arrays[name] = pa.array([used[name].get(row) for row in range(count)], pa.float64())
    return pa.table(arrays), hasher.hexdigest()


def _identity(columns: Mapping[str, list[Any]], plan: Plan, spec: TrialSpec) -> None:
    columns["trial_id"].append(spec.trial_id.hex())
    columns["evaluation"].append(plan.evaluation)
    columns["partition"].append(plan.partition)
    columns["example_id"].append(spec.example.example_id)
    columns["group"].append(spec.example.cluster)
    columns["repeat"].append(spec.repeat)
    columns["seed"].append(spec.seed)
    columns["configuration"].append(spec.configuration.digest.hex()[:SHORT])


def _readable(outcome: TrialOutcome) -> tuple[TrialOutcome, str | None, Scores]:
    """Return the outcome, its outputs as JSON text, and its scores.

    One whose payloads are none, as a worker of another make may send, is a malformed output.
    """
    try:
        outputs = as_json(decode(outcome.outputs_payload)) if outcome.outputs_payload else None
        return outcome, outputs, outcome.scores if isinstance(outcome, TrialResult) else {}
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
        return malformed, None, {}


def _found(columns: Mapping[str, list[Any]], outcome: TrialOutcome, outputs: str | None) -> None:
    failed = isinstance(outcome, TrialError)
    columns["status"].append("error" if failed else OK)
    columns["error_type"].append(outcome.type.value if failed else None)
    columns["error_message"].append(outcome.message if failed else None)
    columns["error_traceback"].append(outcome.traceback if failed else None)
    columns["run_s"].append(outcome.run_s)
    columns["queue_s"].append(outcome.queue_s)
    columns["throttled_s"].append(outcome.throttled_s)
    columns["attempts"].append(outcome.attempts)
    columns["worker"].append(outcome.worker)
    columns["outputs"].append(outputs)


def as_json(value: Any) -> str:
    """Return outputs as JSON text; bytes are ``{"base64": …}``, non-finite numbers their names as strings."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
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
