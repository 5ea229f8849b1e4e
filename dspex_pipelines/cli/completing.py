"""What the shell completes: evaluations, partitions and outcomes, read without running or importing the user's code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from dspex_pipelines.model.outcome import ErrorType

DECLARATION = "evaluation.py"
MOST_MODULES = 200
"""So many files of a folder are looked at."""
OUTCOMES = ("ok", *(kind.value for kind in ErrorType))


def complete_target(incomplete: str) -> list[str]:
    """Return the shipped evaluations, those declared in ./evaluation.py, and `module:attribute` of this folder."""
    module, colon, _ = incomplete.partition(":")
    if colon:
        found = [f"{module}:{name}" for name in _attributes(Path(f"{module.replace('.', '/')}.py"))]
    else:
        found = [*_shipped(), *_declared_names(), *_modules()]
    return [name for name in found if name.startswith(incomplete)]


def complete_partition(context: typer.Context, incomplete: str) -> list[str]:
    """Return the partitions of the evaluation that the command line names."""
    # While an option lacks its value, arguments are not taken for what they are.
    arguments = [one for one in context.args if not one.startswith("-")]
    target = str(context.params.get("target") or next(iter(arguments), ""))
    shipped = _shipped()
    found = shipped[target] if target in shipped else _declared_partitions(target)
    return [name for name in found if name.startswith(incomplete)]


def complete_outcome(incomplete: str) -> list[str]:
    """Return the outcomes that a trial can have."""
    return [name for name in OUTCOMES if name.startswith(incomplete)]


Target = Annotated[
    str,
    typer.Argument(
        help="A shipped evaluation (stdlib_search, qa_rag), module:attribute, or the folder of a defs.yaml; "
        "default: ./evaluation.py.",
        autocompletion=complete_target,
    ),
]


def _shipped() -> dict[str, tuple[str, ...]]:
    from dspex_pipelines.declarations import EVALUATIONS

    named = {name: evaluation.dataset.partitions for name, evaluation in EVALUATIONS.items()}
    return {name: partitions if isinstance(partitions, tuple) else () for name, partitions in named.items()}


def _declared_names() -> list[str]:
    names = (_keyword(call, "name") for call in _calls(Path(DECLARATION), "Evaluation"))
    return [name for name in names if isinstance(name, str)]


def _declared_partitions(target: str) -> list[str]:
    module = target.partition(":")[0] if ":" in target else ""
    file = Path(f"{module.replace('.', '/')}.py") if module else Path(DECLARATION)
    found = (_keyword(call, "partitions") for call in _calls(file, "Dataset"))
    return [name for names in found if isinstance(names, tuple | list) for name in names if isinstance(name, str)]


def _modules() -> Iterator[str]:
    """Yield the modules of this folder that declare evaluations, each as the beginning of a target."""
    for file in sorted(Path().glob("*.py"))[:MOST_MODULES]:
        if file.name != DECLARATION and any(_attributes(file)):
            yield f"{file.stem}:"


def _attributes(file: Path) -> Iterator[str]:
    """Yield the names at the top of a module that evaluations are given."""
    for statement in _parsed(file).body:
        if isinstance(statement, ast.Assign) and _is_call(statement.value, "Evaluation"):
            yield from (target.id for target in statement.targets if isinstance(target, ast.Name))


def _calls(file: Path, of: str) -> Iterator[ast.Call]:
    return (node for node in ast.walk(_parsed(file)) if isinstance(node, ast.Call) and _is_call(node, of))


def _is_call(node: ast.AST, of: str) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func
    return (called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")) == of


def _keyword(call: ast.Call, name: str) -> object:
    """Return the literal that a call is given by that name; None where it is no literal, or not given."""
    for keyword in call.keywords:
        if keyword.arg == name:
            try:
                return ast.literal_eval(keyword.value)
            except ValueError:
                return None
    return None


def _parsed(file: Path) -> ast.Module:
    try:
        return ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])
