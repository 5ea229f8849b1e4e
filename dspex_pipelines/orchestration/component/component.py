"""An evaluation declared in YAML: a Dagster component with the fields of the declaration."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Self, cast

import dagster as dg
from pydantic import BaseModel, RootModel

from dspex_pipelines.engine.documents import check_entry_points, evaluation_from_document
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.component.errors import Place
from dspex_pipelines.orchestration.component.fields import EvaluationFields
from dspex_pipelines.orchestration.component.scaffolding import EvaluationScaffolder
from dspex_pipelines.orchestration.component.schema import as_written

_CHECKING = "DAGSTER_IS_DEFS_VALIDATION_CLI"
"""Set by `dg check defs` and `dagster definitions validate`."""
_model_of = cache(as_written)


@contextmanager
def checking() -> Generator[None]:
    """Have the components that are loaded within import what they name, as `dg check defs` does."""
    before = os.environ.get(_CHECKING)
    os.environ[_CHECKING] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CHECKING]
        else:
            os.environ[_CHECKING] = before


@dg.scaffold_with(EvaluationScaffolder)
class EvaluationComponent(dg.Component, EvaluationFields, dg.Resolvable):
    """A program evaluated on a data set under many settings of its variables.

    Gives the assets NAME/dataset, NAME/evaluation and NAME/leaderboard, a job, and the schedule and sensors that are
    declared. Paths are relative to the folder of defs.yaml, which also names the evaluation where no name is given.
    """

    @classmethod
    def model(cls) -> type[BaseModel]:
        """Return the model of what is written, before templates are worked out."""
        return _model_of(cls)

    @classmethod
    def resolve_from_model(cls, context: dg.ResolutionContext, model: BaseModel) -> Self:
        """Return the component; raises `InvalidDeclaration` with file and line of what cannot be."""
        place = Place(tree=context.source_position_tree, prefix=tuple(context.path))
        written = cast("RootModel[dict[str, Any]]", model).root
        with place.located():
            component = cls.model_validate(_worked_out(written, context))
            evaluation = component.evaluation(place.folder)
            if os.environ.get(_CHECKING):
                check_entry_points(evaluation)
        return component

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """Return the definitions of the evaluation, as `build_evaluation` does."""
        folder = context.path if context.path.is_dir() else context.path.parent
        return build_evaluation(self.evaluation(folder))

    def evaluation(self, folder: Path) -> Evaluation:
        """Return the declaration as a value, with paths relative to *folder*; raises `InvalidPart`."""
        document = self.model_dump(exclude_unset=True, include=set(EvaluationFields.model_fields))
        return evaluation_from_document(document, folder=folder, name=folder.name)


def _worked_out(value: Any, context: dg.ResolutionContext) -> Any:
    """Return *value* with its templates worked out; whatever has none stays the very string it is."""
    if isinstance(value, dict):
        return {key: _worked_out(one, context.at_path(key)) for key, one in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_worked_out(one, context.at_path(index)) for index, one in enumerate(cast("list[Any]", value))]
    # Dagster would read '1' as a number, and a prompt that looks like a list as one.
    return context.resolve_value(value) if isinstance(value, str) and "{{" in value else value
