"""What a run can be told in the launchpad, on the command line, by schedules and sensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from enum import StrEnum
from typing import Any

import dagster as dg
from pydantic import Field, ValidationError, create_model

from dspex_pipelines.errors import InvalidValue
from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.evaluation import Evaluation
from dspex_pipelines.model.hedging import Hedging
from dspex_pipelines.model.limits import MOST_WEIGHT
from dspex_pipelines.model.search import LARGEST, MOST_CONFIGURATIONS, Search
from dspex_pipelines.model.space import Configuration, ConfigurationSpace

MAX_CONCURRENCY_TAG = "dspex/max_concurrency"
TRIALS_PER_STEP = 50_000
"""A step costs as much as thousands of trials that do nothing, and holds its place in a Dagster pool to its end."""
MOST_STEPS = 20
SHORT = 12
"""Characters by which results name a configuration."""
SHOWN = 5


class Reuse(StrEnum):
    """Which outcomes of earlier runs are kept instead of running the trials again."""

    # Dagster takes the name of an enum's member, and shows it.
    all = "all"
    successes = "successes"
    none = "none"


class EvaluationConfig(dg.Config):
    """How much of an evaluation a run does, and how."""

    limit: int = Field(default=0, description="Only the first so many examples; 0: all of them.")
    samples: int | None = Field(
        default=None,
        description="So many configurations drawn at random from the space; 0: the whole grid; "
        "left out: what the evaluation declares.",
    )
    seed: int | None = Field(
        default=None, description="Seed of the draw and of the trials; left out: what the evaluation declares."
    )
    configurations: list[str] = Field(
        default_factory=list[str],
        description="Only these of them, each by the first characters of its digest, as results name it; empty: all.",
    )
    repeats: int = Field(default=1, description="How often each configuration meets each example, with a seed each.")
    max_concurrency: int = Field(default=0, description="Most trials in flight; 0: what the evaluation declares.")
    weight: int = Field(
        default=0,
        description="How many turns the run has, in a pool that others want at the same time, for each one of a run "
        "of weight 1; 0: what the evaluation declares.",
    )
    hedge_fraction: float | None = Field(
        default=None,
        description="Most trials that may be run a second time because they take long, as a fraction of those with a "
        "final outcome; 0: none; left out: what the evaluation declares.",
    )
    timeout_s: float = Field(default=0.0, description="Seconds a trial may run; 0: what the evaluation declares.")
    trials_per_op: int = Field(
        default=0,
        description="Trials in one mapped run_trials step; 0: chosen by their number; 1: a step each.",
    )
    reuse: Reuse = Field(
        default=Reuse.all,
        description="Which outcomes of earlier runs are kept instead of running them again: all, successes or none.",
    )
    max_attempts: int = Field(
        default=0, description="Attempts of a trial whose errors may pass; 0: as many as the type of error deserves."
    )
    max_errors: float = Field(
        default=0.0,
        description="Stop after so many failed trials (from 1 on), or such a fraction (below 1) of those that have "
        "an outcome, once 100 have; "
        "0: what the evaluation declares.",
    )
    max_time_s: float = Field(
        default=0.0, description="Stop after so many seconds of trials; 0: what the evaluation declares."
    )
    max_tokens: int = Field(
        default=0, description="Stop after so many tokens, as programs report them; 0: what the evaluation declares."
    )
    max_cost_usd: float = Field(
        default=0.0,
        description="Stop after so many US dollars, as programs report them; 0: what the evaluation declares.",
    )


def launchpad_config(evaluation: Evaluation) -> type[EvaluationConfig]:
    """Return the config with the evaluation's own search as its defaults, so that the launchpad shows it."""
    search = evaluation.search
    drawn = "So many configurations drawn at random from the space; 0: the whole grid."
    return create_model(
        EvaluationConfig.__name__,
        __base__=EvaluationConfig,
        samples=(int, Field(default=search.samples, description=drawn)),
        seed=(int, Field(default=search.seed, description="Seed of the draw and of the trials.")),
    )


def config_of(values: Mapping[str, Any]) -> EvaluationConfig:
    """Return the config with these *values*; raises `InvalidValue` for an unknown name or a value of the wrong type."""
    if unknown := sorted(set(values) - set(EvaluationConfig.model_fields)):
        fix = f"there is no such setting; there are {', '.join(EvaluationConfig.model_fields)}"
        raise InvalidValue(field=unknown[0], value=values[unknown[0]], fix=fix)
    try:
        return EvaluationConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        fix = first["msg"].removeprefix("Input should be ").replace("'", "")
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidValue(field=field, value=first["input"], fix=f"give {fix}") from error


def checked(config: EvaluationConfig, evaluation: Evaluation, tags: dict[str, str]) -> dict[str, Any]:
    """Return the run's limits; raises `InvalidValue` naming the field, its value and its bound."""
    for name, least, most in (
        ("limit", 0, LARGEST),
        ("repeats", 1, LARGEST),
        ("max_concurrency", 0, LARGEST),
        ("weight", 0, MOST_WEIGHT),
        ("trials_per_op", 0, LARGEST),
        ("max_attempts", 0, LARGEST),
    ):
        value = getattr(config, name)
        if not least <= value <= most:
            raise InvalidValue(field=name, value=value, fix=f"give an integer in [{least}, {most}]")
    search_of(config, evaluation)
    hedging = hedging_of(config, evaluation)
    if not (math.isfinite(config.timeout_s) and config.timeout_s >= 0):
        raise InvalidValue(field="timeout_s", value=config.timeout_s, fix="give seconds, 0 or more")
    limit = config.max_concurrency or evaluation.max_concurrency
    if tag := tags.get(MAX_CONCURRENCY_TAG):
        if not tag.isdecimal() or int(tag) < 1:
            raise InvalidValue(field=MAX_CONCURRENCY_TAG, value=tag, fix="give an integer of 1 or more")
        limit = min(limit, int(tag))
    return {
        "max_concurrency": limit,
        "weight": config.weight or evaluation.weight,
        "timeout_s": config.timeout_s or evaluation.timeout_s,
        "most_attempts": config.max_attempts,
        "hedging": None if hedging is None else asdict(hedging),
        "budget": asdict(budget_of(config, evaluation)),
    }


def budget_of(config: EvaluationConfig, evaluation: Evaluation) -> Budget:
    """Return the run's budget; raises `InvalidValue` as the class does."""
    asked = {name: getattr(config, name) for name in ("max_errors", "max_time_s", "max_tokens", "max_cost_usd")}
    return replace(evaluation.budget, **{name: value for name, value in asked.items() if value})


def hedging_of(config: EvaluationConfig, evaluation: Evaluation) -> Hedging | None:
    """Return when the run's trials get second copies; raises `InvalidValue`."""
    fraction = config.hedge_fraction
    if fraction is None:
        return evaluation.hedging
    if not 0 <= fraction <= 1:
        raise InvalidValue(field="hedge_fraction", value=fraction, fix="give a number in [0, 1]; 0: no second copies")
    return replace(evaluation.hedging or Hedging(), fraction=fraction) if fraction else None


def search_of(config: EvaluationConfig, evaluation: Evaluation) -> Search:
    """Return the run's search; raises `InvalidValue` as the class does."""
    asked = {name: value for name in ("samples", "seed") if (value := getattr(config, name)) is not None}
    return replace(evaluation.search, **asked)


def chosen_configurations(
    config: EvaluationConfig, search: Search, space: ConfigurationSpace
) -> tuple[Configuration, ...]:
    """Return the configurations of *space* that *search* names, of which the run may want only some."""
    if not search.samples and space.combinations > MOST_CONFIGURATIONS:
        fix = f"it may have {MOST_CONFIGURATIONS:,}: declare fewer points, or draw samples of it (--samples)"
        raise InvalidValue(field="space", value=f"a grid of {space.combinations:,} combinations", fix=fix)
    found = space.sample(search.samples, seed=search.seed) if search.samples else tuple(space.grid())
    if not found:
        raise InvalidValue(field="space", value="its grid", fix="no combination keeps every constraint; loosen one")
    if not config.configurations:
        return found
    for wanted in config.configurations:
        if not wanted or not any(one.digest.hex().startswith(wanted) for one in found):
            few = ", ".join(one.digest.hex()[:SHORT] for one in found[:SHOWN])
            fix = f"give the first characters of the digest of one of the run's {len(found):,}, such as {few}"
            raise InvalidValue(field="configurations", value=wanted, fix=fix)
    return tuple(one for one in found if one.digest.hex().startswith(tuple(config.configurations)))


def trials_per_op(config: EvaluationConfig, total: int) -> int:
    """Return how many trials a mapped step runs: all while the run has few, never more than 20 steps of full size."""
    return config.trials_per_op or max(TRIALS_PER_STEP, -(-total // MOST_STEPS))
