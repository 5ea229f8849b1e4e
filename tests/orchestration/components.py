"""Evaluations written as YAML, and read as Dagster reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import dagster as dg
from dagster_shared.yaml_utils import parse_yaml_with_source_position
from jsonschema import Draft202012Validator

from dspex_pipelines import EvaluationComponent
from dspex_pipelines.model.checks import Coverage, FailureRate, NoRegression, ScoreFloor
from dspex_pipelines.model.evaluation import Dataset, Evaluation, Upstream
from dspex_pipelines.model.partitions import Dates, Dynamic

TYPE = "dspex_pipelines.EvaluationComponent"
CHECKS = {ScoreFloor: "score_floor", FailureRate: "failure_rate", Coverage: "coverage", NoRegression: "no_regression"}
PROGRAMS = "tests.orchestration.programs"
VALID = f"""\
type: {TYPE}
attributes:
  name: tested
  dataset:
    source: data.csv
    inputs: [x]
    labels: [y]
  program: {PROGRAMS}:fifth_raises
  metrics: ['{PROGRAMS}:right']
  variables:
    k: {{type: integer, low: 1, high: 3, points: [1, 2]}}
    how: {{type: choice, options: [one, '2', 3]}}
  constraints:
    - {{type: at_most, weights: {{k: 1}}, bound: 2}}
  budget:
    max_errors: 0.5
"""


def component_of(text: str, folder: Path) -> EvaluationComponent:
    """The component of a defs.yaml with that text, as Dagster loads it."""
    parsed = parse_yaml_with_source_position(text, str(folder / "defs.yaml"))
    (folder / "defs.yaml").write_text(text)
    context = dg.ResolutionContext.default(parsed.source_position_tree).at_path("attributes")
    written = EvaluationComponent.model().model_validate(parsed.value["attributes"])
    return EvaluationComponent.resolve_from_model(context, written)


def schema_errors(text: str) -> list[tuple[str, str]]:
    """What `dg check yaml` has to say: the path of each error, and its message."""
    validator = Draft202012Validator(EvaluationComponent.model().model_json_schema())
    written = parse_yaml_with_source_position(text).value["attributes"]
    found = validator.iter_errors(written)
    return [(".".join(map(str, error.absolute_path)), error.message) for error in found]


def document_of(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """The evaluation as somebody would write it, every field of it."""
    document = _plain(evaluation, folder, leave_out=("space", "dataset", "search", "checks"))
    document["checks"] = [{"type": CHECKS[type(one)], **_plain(one, folder)} for one in evaluation.checks]
    document["dataset"] = _dataset(evaluation.dataset, folder)
    document["variables"] = {one.name: _typed(one, folder) for one in evaluation.space.variables}
    document["constraints"] = [_typed(one, folder) for one in evaluation.space.constraints]
    document["search"] = _plain(evaluation.search, folder) if evaluation.search.samples else "grid"
    return document


def _dataset(dataset: Dataset, folder: Path) -> dict[str, Any]:
    document = _plain(dataset, folder, leave_out=("source", "partitions"))
    if isinstance(dataset.source, Upstream):
        document["asset"] = dataset.source.asset
    else:
        document["source"] = _value(dataset.source, folder)
    match dataset.partitions:
        case Dynamic():
            document["partitions"] = "dynamic"
        case Dates():
            document["partitions"] = _plain(dataset.partitions, folder)
        case names:
            document["partitions"] = list(names)
    return document


def _typed(part: Any, folder: Path) -> dict[str, Any]:
    return {"type": part.kind, **_plain(part, folder, leave_out=("name",))}


def _plain(part: Any, folder: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    given = {field.name: getattr(part, field.name) for field in fields(part) if field.name not in leave_out}
    return {name: _value(value, folder) for name, value in given.items() if value is not None}


def _value(value: Any, folder: Path) -> Any:
    if isinstance(value, Path):
        return str(value.relative_to(folder))
    if isinstance(value, tuple):
        return [_value(one, folder) for one in value]
    if isinstance(value, Mapping):
        return {name: _value(one, folder) for name, one in value.items()}
    return _plain(value, folder) if hasattr(value, "__dataclass_fields__") else value
