"""The evaluation that a `defs.yaml` declares, for whoever has only its path."""

from pathlib import Path

import dagster as dg

from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.component import EvaluationComponent
from dspex_pipelines.orchestration.component_errors import InvalidDeclaration


def evaluation_at(path: Path) -> Evaluation:
    """Return the one evaluation that the `defs.yaml` at *path*, or in that folder, declares.

    It is loaded as Dagster loads it, so *path* lies in a project of `dg` that can be imported. Raises `DspexError`.
    """
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    try:
        tree = dg.ComponentTree.for_project(folder)
        component = tree.load_component(folder)
    except Exception as error:
        raise DspexError(_reason(error)) from error
    found = [one for one in getattr(component, "components", [component]) if isinstance(one, EvaluationComponent)]
    if len(found) != 1:
        fix = f"it declares {len(found)} evaluations; give each a folder of its own"
        raise InvalidValue(field="target", value=str(path), fix=fix)
    return found[0].evaluation(folder)


def _reason(error: BaseException) -> str:
    """Return what is wrong, without the tree of components that Dagster draws around it."""
    while not isinstance(error, InvalidDeclaration) and error.__cause__:
        error = error.__cause__
    return str(error)
