"""The evaluation that a `defs.yaml` declares, for whoever has only its path."""

from contextlib import nullcontext
from pathlib import Path

import dagster as dg

from dspex_pipelines.engine.documents import FILES
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.orchestration.component.component import EvaluationComponent, checking
from dspex_pipelines.orchestration.component.errors import InvalidDeclaration


def evaluation_at(path: Path, *, check: bool = False) -> Evaluation:
    """Return the one evaluation that the `defs.yaml` at *path*, or in that folder, declares.

    It is loaded as Dagster loads it, so *path* lies in a project of `dg` that can be imported; with *check* what it
    names is imported too. Raises `DspexError`, which names the file, and the line where it is known.
    """
    folder = path.absolute() if path.is_dir() else path.absolute().parent
    try:
        with checking() if check else nullcontext():
            tree = dg.ComponentTree.for_project(folder)
            component = tree.load_component(folder)
    except Exception as error:
        file = next((folder / name for name in FILES if (folder / name).exists()), folder)
        raise DspexError(_placed(_reason(error), file)) from error
    found = [one for one in getattr(component, "components", [component]) if isinstance(one, EvaluationComponent)]
    if len(found) != 1:
        fix = f"it declares {len(found)} evaluations; give each a folder of its own"
        raise InvalidValue(field="target", value=str(path), fix=fix)
    return found[0].evaluation(folder)


def _placed(reason: str, file: Path) -> str:
    """Return *reason* after its place; Dagster tells none for a type that there is not."""
    if str(file) in reason or not file.is_file():
        return reason
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        key, _, value = line.partition(":")
        if key == "type" and any(part and part in reason for part in value.strip().split(".")):
            return f"{file}:{number} - {reason}"
    return f"{file}: {reason}"


def _reason(error: BaseException) -> str:
    """Return what is wrong, without the tree of components that Dagster draws around it."""
    while not isinstance(error, InvalidDeclaration) and error.__cause__:
        error = error.__cause__
    return str(error)
