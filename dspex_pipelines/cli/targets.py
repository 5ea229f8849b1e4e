"""Finds the evaluation that a command is about."""

from __future__ import annotations

import sys
from pathlib import Path

from dspex_pipelines.engine.programs import resolve_value
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Evaluation

DECLARATION = "evaluation.py"


def find_evaluation(target: str) -> Evaluation:
    """Return a shipped evaluation by name, one at ``module:attribute``, or the one in ./evaluation.py.

    Raises `InvalidValue` or `ProgramUnavailable`, which say what there is.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if ":" in target:
        found = resolve_value(target)
        if not isinstance(found, Evaluation):
            raise InvalidValue(field="target", value=target, fix=f"it is a {type(found).__name__}, not an Evaluation")
        return found
    from dspex_pipelines.declarations import EVALUATIONS

    if target in EVALUATIONS:
        return EVALUATIONS[target]
    if not Path(DECLARATION).exists():
        fix = f"give one of {', '.join(EVALUATIONS)}, module:attribute, or run `dspex init` to write {DECLARATION}"
        raise InvalidValue(field="target", value=target, fix=fix)
    declared = [value for value in vars(_declaration()).values() if isinstance(value, Evaluation)]
    named = [evaluation for evaluation in declared if target in ("", evaluation.name)]
    if len(named) != 1:
        names = ", ".join(evaluation.name for evaluation in declared) or "no evaluation"
        raise InvalidValue(field="target", value=target, fix=f"{DECLARATION} declares {names}; name one of them")
    return named[0]


def _declaration() -> object:
    import importlib

    return importlib.import_module(DECLARATION.removesuffix(".py"))
