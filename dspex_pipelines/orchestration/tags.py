"""The run tags of evaluations: what the instance's run queue limits by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.variables import Choice

KIND = "dspex/kind"
EVALUATION = "dspex/evaluation"
TARGET = "dspex/target"
WORKERS = "dspex/pool"
PROVIDER = "dspex/provider"
MODEL = "dspex/model"
COST = "dspex/cost"
LOCAL, SEVERAL, FREE, PAID = "local", "several", "free", "paid"
RESULTS = "evaluation"
"""Last part of the key of an evaluation's results asset."""
PARTIAL = "partial"
"""Name of the metadata that says which trials a run did not get to, and why; complete results have none."""
SOURCE = "source digest"
"""Name of the metadata that says which content of its files a data set was read from, and how."""
RETRIES = {"dagster/max_retries": "2", "dagster/retry_strategy": "ALL_STEPS"}
"""Tags of a run that Dagster is to start again, as a whole: what is done is not done again."""
OFF = "STOPPED"
"""Status of every schedule and sensor until somebody turns it on: nothing runs because a project was loaded."""
POOL = "dspex_run_trials"
"""The Dagster pool that bounds `run_trials` steps over all runs."""
VALUE_CHARACTERS = 63
"""Where Dagster checks the values of tags, as it does for assets, they have at most so many."""


def evaluation_tags(evaluation: Evaluation) -> dict[str, str]:
    """Return the tags of every run of *evaluation*, whatever partition and worker pool it is over.

    `Evaluation.tags` go before what is found out here. Provider and model are those that limits, prices and
    ``model`` variables name; without one there is no tag, so no limit.
    """
    named = _models(evaluation)
    providers = {provider for name in named for provider, slash, _ in [name.partition("/")] if slash}
    paid = bool(named or evaluation.budget.max_cost_usd)
    found = {PROVIDER: _one_of(providers), MODEL: _one_of(named), COST: PAID if paid else FREE}
    own = {KIND: "evaluation", EVALUATION: evaluation.name}
    if evaluation.partitions_per_run != 1:
        # Runs over several partitions may overlap; so that no trial is paid for twice, one of them runs at a time.
        own[TARGET] = evaluation.name
    return {**{name: value for name, value in found.items() if value}, **evaluation.tags, **own}


def pool_tag(address: str) -> dict[str, str]:
    """Return the tag of runs over the worker pool there; the empty address is that of a local pool."""
    return {WORKERS: _fitting(address or LOCAL)}


def run_tags(evaluations: Sequence[Mapping[str, str]], partition: str) -> dict[str, str]:
    """Return the tags of a run of the evaluations that have these; none when it evaluates nothing.

    ``dspex/target`` names evaluation and partition, or the evaluation alone where its runs may be over several: at most
    one run works on each at a time. Of what one tag cannot
    say of all of them it says ``several``; a run that costs money for one of them is paid.
    """
    if not evaluations:
        return {}
    together = {name: value for tags in evaluations for name, value in tags.items()}
    for name in (EVALUATION, WORKERS, PROVIDER, MODEL):
        if value := _one_of({tags[name] for tags in evaluations if name in tags}):
            together[name] = value
    if any(tags.get(COST) == PAID for tags in evaluations):
        together[COST] = PAID
    evaluation = together[EVALUATION]
    return {TARGET: f"{evaluation}/{partition}" if partition else evaluation, **together}


def _models(evaluation: Evaluation) -> set[str]:
    """Return the models that an evaluation names, patterns such as ``openai/*`` among them, without their endpoints."""
    named = {one.model for one in (*evaluation.limits, *evaluation.prices)}
    for variable in evaluation.space.variables:
        if isinstance(variable, Choice) and variable.name.rpartition(".")[2] == "model":
            named.update(option for option in variable.options if isinstance(option, str))
    return {name.partition("@")[0] for name in named}


def _one_of(names: Iterable[str]) -> str:
    """Return the only one of these that is no pattern, `SEVERAL` for more than one; empty for none."""
    known = [name for name in names if not set(name) & set("*?[")]
    return _fitting(known[0]) if len(known) == 1 else SEVERAL if known else ""


def _fitting(value: str) -> str:
    """Return *value*, or a beginning of it that a digest keeps apart from others."""
    if len(value) <= VALUE_CHARACTERS:
        return value
    digest = hashlib.blake2b(value.encode(), digest_size=4).hexdigest()
    return f"{value[: VALUE_CHARACTERS - len(digest) - 1]}-{digest}"
