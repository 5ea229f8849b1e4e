"""Finds the evaluation that a command is about."""

from __future__ import annotations

import importlib
import os
import traceback
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from dspex_pipelines.cli.completing import DECLARATION
from dspex_pipelines.engine.compiled import check_compiled
from dspex_pipelines.engine.documents import FILES
from dspex_pipelines.engine.programs import resolve_value
from dspex_pipelines.errors import DspexError, InvalidValue, ProgramUnavailable
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.wire.import_path import add_folder

MOST_NAMED = 5
"""Folders of a defs.yaml that an error names."""
_DEPTH = 6
_NO_SOURCES = ("node_modules", "site-packages", "venv")


def find_evaluation(target: str, *, check: bool = False) -> Evaluation:
    """Return a shipped evaluation by name, one at ``module:attribute``, in a folder of a defs.yaml, or ./evaluation.py.

    With *check* what a defs.yaml names is imported, so that what is wrong with it is told by its line.
    Raises `InvalidValue` or `ProgramUnavailable`, which say what there is, and `DspexError` with file and line where
    the declaration itself raises.
    """
    add_folder(Path.cwd())
    if ":" in target:
        with _located(target):
            found = resolve_value(target)
        if not isinstance(found, Evaluation):
            raise InvalidValue(field="target", value=target, fix=f"it is a {type(found).__name__}, not an Evaluation")
        return found
    if Path(target).name in FILES or any((Path(target) / name).exists() for name in FILES if target):
        from dspex_pipelines.orchestration.component.file import evaluation_at

        _import_as_dg(Path(target))
        return evaluation_at(Path(target), check=check)
    from dspex_pipelines.declarations import EVALUATIONS

    if target in EVALUATIONS:
        return EVALUATIONS[target]
    if not Path(DECLARATION).exists() and not target:
        below = list(islice(_declared_below(), MOST_NAMED))
        fix = f"name one that is declared below: {', '.join(below)}" if below else "run `dspex init` to write one"
        raise DspexError(f"no {DECLARATION} here; {fix}, or a shipped one: {', '.join(EVALUATIONS)}")
    if not Path(DECLARATION).exists():
        known = f"{', '.join(EVALUATIONS)}, module:attribute, the folder of a defs.yaml"
        fix = f"give one of {known}, or run `dspex init` to write {DECLARATION}"
        raise InvalidValue(field="target", value=target, fix=fix)
    module = DECLARATION.removesuffix(".py")
    check_compiled(module)
    with _located(DECLARATION):
        names_there = vars(importlib.import_module(module))
    # One evaluation may have several names.
    found = {id(value): value for value in names_there.values() if isinstance(value, Evaluation)}
    declared = list(found.values())
    named = [evaluation for evaluation in declared if target in ("", evaluation.name)]
    if len(named) != 1:
        names = ", ".join(evaluation.name for evaluation in declared) or "no evaluation"
        raise InvalidValue(field="target", value=target, fix=f"{DECLARATION} declares {names}; name one of them")
    return named[0]


def _declared_below() -> Iterator[str]:
    """Yield the folders below this one that have a defs.yaml, without looking everywhere."""
    for folder, names, files in os.walk("."):
        path = Path(folder)
        within = len(path.parts) < _DEPTH
        names[:] = sorted(name for name in names if within and not name.startswith(".") and name not in _NO_SOURCES)
        if any(name in files for name in FILES):
            yield str(path)


def _import_as_dg(path: Path) -> None:
    """Have modules of the dg project around *path* found as `dg` finds them."""
    from dagster_shared.utils.config import discover_config_file

    settings = discover_config_file(path)
    if settings is None:
        return
    sources = settings.parent / "src"
    add_folder(sources if sources.exists() else settings.parent)


@contextmanager
def _located(declaration: str) -> Generator[None]:
    """Turn whatever importing *declaration* raises into an error of ours that names file, line and error."""
    try:
        yield
    except ProgramUnavailable as error:
        if not isinstance(error.__cause__, Exception) or isinstance(error.__cause__, InvalidValue):
            raise
        where = _place(error.__cause__)
        if not where:
            raise
        raise DspexError(f"{where}: {error}") from error
    except DspexError:
        raise
    except (Exception, SystemExit) as error:
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        first = (said.splitlines() or [""])[0]
        what = f"{type(error).__name__}: {first}".removesuffix(": ")
        raise DspexError(f"{_place(error) or declaration}: {what}") from error


def _place(error: BaseException) -> str:
    """Return file and line of the caller's own code that *error* comes from; empty where there is none."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename)}:{error.lineno}"
    own = Path.cwd()
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        path = Path(frame.filename)
        if path.is_absolute() and path.is_relative_to(own) and "site-packages" not in path.parts:
            return f"{_relative(frame.filename)}:{frame.lineno}"
    return ""


def _relative(file: str) -> str:
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else file
