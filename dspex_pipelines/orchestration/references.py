"""Where the code is that an evaluation's results come from, for the UI to link to."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

import dagster as dg
from dagster import CodeReferencesMetadataValue, LocalFileCodeReference

from dspex_pipelines.engine.syntax import parsed
from dspex_pipelines.model.evaluation import Evaluation


def code_references(evaluation: Evaluation) -> Mapping[str, CodeReferencesMetadataValue]:
    """Return metadata that names file and line of the program and its metrics; empty where none is found.

    Nothing is imported for it. `dagster.link_code_references_to_git` turns them into links to a repository.
    """
    named = [("program", evaluation.program), *(("metric", metric) for metric in evaluation.metrics)]
    found: list[LocalFileCodeReference | dg.UrlCodeReference] = [
        one for role, entry_point in named for one in _reference(role, entry_point)
    ]
    return {"dagster/code_references": CodeReferencesMetadataValue(code_references=found)} if found else {}


def _reference(role: str, entry_point: str) -> Iterator[LocalFileCodeReference]:
    module, _, attribute = entry_point.partition(":")
    try:
        spec = find_spec(module)
        file = Path(spec.origin or "") if spec else Path()
        tree = parsed(file.read_text(encoding="utf-8"))
    except (ImportError, OSError, SyntaxError, ValueError):
        return  # planning says what is wrong with it
    wanted = attribute.partition(".")[0]
    line = next((node.lineno for node in tree.body if wanted in _names(node)), 1)
    yield LocalFileCodeReference(file_path=str(file), line_number=line, label=f"{role} {entry_point}")


def _names(node: ast.stmt) -> list[str]:
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case _:
            return []
