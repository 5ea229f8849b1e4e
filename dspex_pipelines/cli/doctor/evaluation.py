"""Checks of the evaluation that is named, or declared in this folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from dspex_pipelines.cli.completing import DECLARATION
from dspex_pipelines.cli.doctor.findings import Check, Finding, ok, problem, refused, warning
from dspex_pipelines.cli.targets import find_evaluation
from dspex_pipelines.engine.programs import inspect_program, resolve
from dspex_pipelines.errors import DspexError, InvalidValue
from dspex_pipelines.model.evaluation import Evaluation, Upstream
from dspex_pipelines.orchestration.data.datasets import ReadPartition, read_partitions
from dspex_pipelines.orchestration.data.sources import files_left_out, source_digests
from dspex_pipelines.redaction import LISTED, is_secret_variable

_VARIABLE = re.compile(r"[A-Z][A-Z0-9]*(_[A-Z0-9]+)+")


def checks(target: str) -> list[Check]:
    """Return the checks of this module."""
    if not target and not Path(DECLARATION).exists():
        return [Check("evaluation", _none_here)]
    try:
        evaluation = find_evaluation(target)
    except DspexError as error:
        return [Check("evaluation", partial(_refused, error))]
    looks = {
        "evaluation": declared,
        "program": program,
        "metrics": metrics,
        "data set": dataset,
        "files": files,
        "variables": variables,
    }
    return [Check(name, partial(look, evaluation)) for name, look in looks.items()]


def _none_here() -> Finding:
    return ok(f"no {DECLARATION} in this folder; `dspex init` writes one")


def _refused(error: DspexError) -> Finding:
    if isinstance(error, InvalidValue):
        return refused(error)
    return problem(str(error), "mend the declaration, or the module that it names")


def declared(evaluation: Evaluation) -> Finding:
    """Look what is declared."""
    return ok(f"{evaluation.name}, with the variables {', '.join(evaluation.space.names) or '(none)'}")


def program(evaluation: Evaluation) -> Finding:
    """Look whether the program can be imported and takes what it is given."""
    try:
        shape = inspect_program(
            evaluation.program,
            evaluation.init,
            inputs=evaluation.dataset.inputs,
            variables=evaluation.space.names,
        )
    except DspexError as error:
        return _refused(error)
    return ok(f"{evaluation.program} ({shape.kind.value}{', async' if shape.is_async else ''})")


def metrics(evaluation: Evaluation) -> Iterator[Finding]:
    """Look whether the metrics can be imported."""
    for name in evaluation.metrics:
        try:
            resolve(name)
        except DspexError as error:
            yield _refused(error)
        else:
            yield ok(name)


def dataset(evaluation: Evaluation) -> Iterator[Finding]:
    """Look whether every partition can be read."""
    source = evaluation.dataset.source
    if isinstance(source, Upstream):
        yield ok(f"it is the asset {source.asset}, which only Dagster loads")
        return
    try:
        for what in files_left_out(evaluation.dataset).values():
            yield warning(f"a file is left out: {what}", "mend it, or take it out of the folder")
        for name, read in read_partitions(evaluation.dataset, tuple(source_digests(evaluation.dataset))):
            yield from _partition(name, read)
    except DspexError as error:
        yield _refused(error)


def _partition(name: str, read: ReadPartition | InvalidValue) -> Iterator[Finding]:
    if isinstance(read, InvalidValue):
        yield refused(read)
        return
    if read.rejected:
        what = f"{name}: {len(read.rejected):,} of {len(read.rejected) + len(read.examples):,} rows are left out"
        yield warning(what, f"mend them: {read.rejected[0].reason}")
    else:
        yield ok(f"{name}: {len(read.examples):,} examples")
    for what, fix in read.doubts:
        yield warning(f"{name}: {what}", fix)


def files(evaluation: Evaluation) -> Iterator[Finding]:
    """Look whether the files that the program reads are there."""
    for path in evaluation.files:
        if os.access(path, os.R_OK):
            yield ok(str(path))
        else:
            yield problem(f"{path} cannot be read", "give its path in files=, from the folder that is evaluated in")


def variables(evaluation: Evaluation) -> Iterator[Finding]:
    """Look whether the environment has what the declaration names, and the secrets that are listed; never at values."""
    listed = {name.strip() for name in os.environ.get(LISTED, "").split(",")} - {""}
    for name in sorted({*evaluation.environment, *_secrets_named(evaluation.init), *listed}):
        if os.environ.get(name):
            yield ok(f"{name} is set")
        else:
            yield warning(f"{name} is not set", f"export {name}=… in the shell that the pool is started from")


def _secrets_named(value: object) -> Iterator[str]:
    """Yield the texts within a declared value that are names of variables with secrets."""
    if isinstance(value, str):
        if _VARIABLE.fullmatch(value) and is_secret_variable(value):
            yield value
    elif isinstance(value, Mapping):
        for one in cast("Mapping[Any, object]", value).values():
            yield from _secrets_named(one)
    elif isinstance(value, list | tuple):
        for one in cast("list[object]", value):
            yield from _secrets_named(one)
