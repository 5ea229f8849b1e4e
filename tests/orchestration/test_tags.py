"""What the tags of an evaluation's runs say of what it declares."""

from __future__ import annotations

import dagster as dg
import pytest

from dspex_pipelines.model.budget import Budget
from dspex_pipelines.model.calls import Price
from dspex_pipelines.model.limits import RateLimit
from dspex_pipelines.model.space import ConfigurationSpace
from dspex_pipelines.model.variables import Choice
from dspex_pipelines.orchestration.build import build_evaluation
from dspex_pipelines.orchestration.resources import WorkerPoolResource
from dspex_pipelines.orchestration.tags import VALUE_CHARACTERS, evaluation_tags, pool_tag, run_tags
from tests.orchestration.declared import declare

MINI = "openai/gpt-4o-mini"
TEAM = "/".join(["somebody", *["a-long-path"] * 6])


def price(model: str) -> Price:
    return Price(model=model, input_usd=1, output_usd=1)


def limit(model: str) -> RateLimit:
    return RateLimit(model=model, max_concurrency=1)


def models(*options: str, name: str = "model") -> ConfigurationSpace:
    return ConfigurationSpace(variables=(Choice(name=name, options=options),))


def tagged(**declared: object) -> dict[str, str]:
    """Provider, model and cost, by the last part of their names."""
    tags = evaluation_tags(declare("plain", **{"space": ConfigurationSpace(), **declared}))
    names = ("provider", "model", "cost")
    return {name: tags[f"dspex/{name}"] for name in names if f"dspex/{name}" in tags}


@pytest.mark.parametrize(
    ("declared", "tags"),
    [
        pytest.param({}, {"cost": "free"}, id="nothing"),
        pytest.param({"prices": (price(MINI),)}, {"provider": "openai", "model": MINI, "cost": "paid"}, id="price"),
        pytest.param({"limits": (limit(MINI),)}, {"provider": "openai", "model": MINI, "cost": "paid"}, id="limit"),
        pytest.param({"limits": (limit("openai/*"),)}, {"provider": "openai", "cost": "paid"}, id="pattern"),
        pytest.param({"limits": (limit("*"),)}, {"cost": "paid"}, id="pattern-of-all"),
        pytest.param(
            {"limits": (limit("openai/*"),), "prices": (price(MINI),)},
            {"provider": "openai", "model": MINI, "cost": "paid"},
            id="pattern-and-price",
        ),
        pytest.param(
            {"limits": (limit(f"{MINI}@http://here/v1"),), "prices": (price(MINI),)},
            {"provider": "openai", "model": MINI, "cost": "paid"},
            id="an-endpoint-is-no-other-model",
        ),
        pytest.param({"limits": (limit("scribe"),)}, {"model": "scribe", "cost": "paid"}, id="no-provider"),
        pytest.param(
            {"space": models(MINI, "openai/gpt-4o")},
            {"provider": "openai", "model": "several", "cost": "paid"},
            id="models-of-one-provider",
        ),
        pytest.param(
            {"space": models(MINI, "anthropic/haiku", name="judge.model")},
            {"provider": "several", "model": "several", "cost": "paid"},
            id="models-of-a-part",
        ),
        pytest.param({"space": models("fast", "slow", name="mode")}, {"cost": "free"}, id="no-model"),
        pytest.param({"budget": Budget(max_cost_usd=1)}, {"cost": "paid"}, id="budget-of-money"),
        pytest.param({"budget": Budget(max_errors=0.2)}, {"cost": "free"}, id="budget-of-errors"),
        pytest.param(
            {"limits": (limit("local/scribe"),), "tags": {"dspex/cost": "free"}},
            {"provider": "local", "model": "local/scribe", "cost": "free"},
            id="said-to-be-free",
        ),
    ],
)
def test_what_is_declared_of_models_is_tagged(declared: dict[str, object], tags: dict[str, str]) -> None:
    assert tagged(**declared) == tags


def test_long_values_are_shortened_and_stay_apart() -> None:
    values = [pool_tag(f"unix:/{TEAM}/{name}.sock")["dspex/pool"] for name in "ab"]
    assert {len(value) for value in values} == {VALUE_CHARACTERS}
    assert values[0] != values[1]
    assert values[0].startswith("unix:/somebody/")
    assert tagged(prices=(price(f"local/{TEAM}"),))["model"].startswith("local/somebody/")


@pytest.mark.parametrize(
    ("pool", "value"),
    [
        pytest.param(WorkerPoolResource(), "local", id="local"),
        pytest.param(WorkerPoolResource(address="bridge:7000"), "bridge:7000", id="address"),
        pytest.param(WorkerPoolResource(address=dg.EnvVar("TEAM_POOL")), "TEAM_POOL", id="variable"),
        pytest.param(WorkerPoolResource.configure_at_launch(), None, id="said-at-launch"),
    ],
)
def test_the_planning_step_says_which_pool_was_declared(pool: object, value: str | None) -> None:
    definitions = build_evaluation(declare("plain"), resources={"worker_pool": pool})
    node = definitions.resolve_implicit_global_asset_job_def().graph.node_named("tested__evaluation")
    planning = node.definition.node_named("plan_trials").definition
    assert planning.tags.get("dspex/pool") == value


def test_of_several_evaluations_each_tag_says_what_holds_for_all() -> None:
    one = {"dspex/evaluation": "one", "dspex/pool": "a:1", "dspex/model": MINI, "dspex/cost": "paid", "team": "x"}
    two = {"dspex/evaluation": "two", "dspex/pool": "b:1", "dspex/provider": "openai", "dspex/cost": "free"}
    assert run_tags([one, two], "all") == {
        "dspex/evaluation": "several",
        "dspex/target": "several/all",
        "dspex/pool": "several",
        "dspex/provider": "openai",
        "dspex/model": MINI,
        "dspex/cost": "paid",
        "team": "x",
    }
    assert run_tags([], "all") == {}


@pytest.mark.parametrize(("most", "target"), [(1, "tested/text"), (4, "tested"), (0, "tested")])
def test_runs_that_may_overlap_have_one_target(most: int, target: str) -> None:
    evaluation = declare("doubles", partitions_per_run=most)
    assert run_tags([evaluation_tags(evaluation)], "text")["dspex/target"] == target
