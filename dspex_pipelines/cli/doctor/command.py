"""The command itself."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from functools import partial
from typing import Annotated

import typer

from dspex_pipelines.cli import exits
from dspex_pipelines.cli.completing import Target
from dspex_pipelines.cli.doctor.findings import Check, Finding, Level, examined, print_findings
from dspex_pipelines.cli.output import console


def doctor(
    target: Target = "",
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Check all that an evaluation needs, and say what to do.

    That is installation, machine, Dagster instance, journal, pools and the evaluation itself.
    Nothing is started or changed. Exits 1 when there is a problem; a warning is none.
    """
    documents: list[dict[str, str]] = []
    for subject in ("environment", "pools", "instance", "evaluation"):
        found: list[Check] = []
        # Importing them needs much of what they look at.
        documents += examined([Check(subject, partial(_gather, subject, target, found))])
        documents += examined(found)
    if as_json:
        print(json.dumps(documents, indent=2, ensure_ascii=False))
    else:
        print_findings(documents, console)
    if any(one["level"] == Level.PROBLEM for one in documents):
        sys.exit(exits.PROBLEM)


def _gather(subject: str, target: str, into: list[Check]) -> Iterator[Finding]:
    """Collect the checks of a subject, finding nothing by itself."""
    module = importlib.import_module(f"dspex_pipelines.cli.doctor.{subject}")
    into += module.checks(target) if subject == "evaluation" else module.checks()
    return iter(())
