"""Finds a trial of the newest results by the first characters of its id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow.compute

from dspex_pipelines.cli.results import instance, newest_results
from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.plan import Batch, Plan
from dspex_pipelines.model.trial import TrialSpec
from dspex_pipelines.orchestration.data.datasets import planned_examples
from dspex_pipelines.orchestration.resources import ResultStore


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTrial:
    """A trial, and the plan that it was run by."""

    spec: TrialSpec
    plan: Plan


def find_trial(evaluation: Evaluation, trial: str) -> FoundTrial:
    """Return the trial of the newest results whose id begins with *trial*; raises `InvalidValue` unless it is one."""
    newest = newest_results(evaluation)
    compute: Any = pyarrow.compute  # its functions are made at run time
    begins = compute.starts_with(compute.field("trial_id"), trial)
    found = newest.load(["trial_id", "partition"], where=begins)
    if len(found) != 1:
        fix = "several begin with it; give more characters: `dspex trials --json` has all of them"
        if found.empty:
            fix = "no trial begins with it; `dspex trials` lists them"
        raise InvalidValue(field="trial", value=trial, fix=fix)
    row = found.iloc[0]
    partition = str(row["partition"])
    plan = Plan.from_json(newest.plan_file(partition).read_text(encoding="utf-8"))
    with instance() as opened:
        folder = ResultStore().datasets(opened, evaluation.name, partition)
    examples = planned_examples(folder, plan)
    wanted = str(row["trial_id"])
    every = plan.trials(Batch(start=0, stop=plan.total), examples)
    spec = next((spec for spec in every if spec.trial_id.hex() == wanted), None)
    if spec is None:
        fix = "its results were made by an earlier release, which gave trials other ids; evaluate again"
        raise InvalidValue(field="trial", value=trial, fix=fix)
    return FoundTrial(spec=spec, plan=plan)
