"""Runs are submitted to a real instance that has our run coordinator; each carries its evaluation's tags."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
import yaml
from dagster._core.test_utils import in_process_test_workspace
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from dagster._core.workspace.context import WorkspaceRequestContext

from tests.orchestration.launching import launch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def workspace() -> Iterator[WorkspaceRequestContext]:
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    with dg.instance_for_test(
        overrides={name: shipped[name] for name in ("run_coordinator", "concurrency")}
    ) as instance:
        origin = LoadableTargetOrigin(module_name="tests.orchestration.served", working_directory=str(ROOT))
        with in_process_test_workspace(instance, origin) as opened:
            yield opened


def ours(run: dg.DagsterRun) -> dict[str, str]:
    return {name: value for name, value in run.tags.items() if name.startswith("dspex/") or name == "team"}


TEXT = {"dagster/partition": "text"}
TAGGED = {
    "dspex/kind": "evaluation",
    "dspex/evaluation": "served",
    "dspex/target": "served/text",
    "dspex/pool": "local",
    "dspex/cost": "free",
    "team": "search",
}


@pytest.mark.parametrize(
    ("job", "assets", "tags"),
    [
        pytest.param("__ASSET_JOB", ["served/evaluation"], TEXT, id="materialize"),
        pytest.param("__ASSET_JOB", ["served/dataset", "served/evaluation"], TEXT, id="materialize-both"),
        pytest.param("__ASSET_JOB", ["served/evaluation", "finance/evaluation"], TEXT, id="beside-unrelated"),
        pytest.param("served_job", [], TEXT, id="its-job"),
        pytest.param("served_job", ["served/evaluation"], TEXT, id="part-of-its-job"),
        pytest.param("own_job", [], TEXT, id="a-job-of-the-user"),
        pytest.param("own_job", [], {**TEXT, "dagster/schedule_name": "nightly"}, id="as-a-schedule-does"),
    ],
)
def test_an_evaluation_is_tagged_on_every_route(
    workspace: WorkspaceRequestContext, job: str, assets: list[str], tags: dict[str, str]
) -> None:
    run = launch(workspace, job, *assets, tags=tags)
    assert ours(run) == TAGGED
    assert tags.items() <= run.tags.items()


@pytest.mark.parametrize(("job", "assets"), [("priced_job", []), ("__ASSET_JOB", ["priced/evaluation"])])
def test_what_an_evaluation_declares_of_models_is_tagged(
    workspace: WorkspaceRequestContext, job: str, assets: list[str]
) -> None:
    assert ours(launch(workspace, job, *assets, tags=TEXT)) == {
        "dspex/kind": "evaluation",
        "dspex/evaluation": "priced",
        "dspex/target": "priced/text",
        "dspex/pool": "local",
        "dspex/provider": "openai",
        "dspex/model": "openai/gpt-4o-mini",
        "dspex/cost": "paid",
    }


def test_a_run_of_several_evaluations_has_the_tags_of_all(workspace: WorkspaceRequestContext) -> None:
    run = launch(workspace, "__ASSET_JOB", "served/evaluation", "priced/evaluation", tags=TEXT)
    assert ours(run) == {
        "dspex/kind": "evaluation",
        "dspex/evaluation": "several",
        "dspex/target": "several/text",
        "dspex/pool": "local",
        "dspex/provider": "openai",
        "dspex/model": "openai/gpt-4o-mini",
        "dspex/cost": "paid",
        "team": "search",
    }


@pytest.mark.parametrize("job", ["served_job", "__ASSET_JOB"])
@pytest.mark.parametrize(
    ("address", "pool"),
    [("bridge:7000", "bridge:7000"), ({"env": "TEAM_POOL"}, "TEAM_POOL"), ("", "local")],
    ids=["address", "variable", "local"],
)
def test_the_pool_that_a_launch_names_is_the_one_that_is_tagged(
    workspace: WorkspaceRequestContext, monkeypatch: pytest.MonkeyPatch, job: str, address: object, pool: str
) -> None:
    monkeypatch.setenv("TEAM_POOL", "bridge:7000")
    config = {"resources": {"worker_pool": {"config": {"address": address}}}}
    assert launch(workspace, job, "served/evaluation", tags=TEXT, config=config).tags["dspex/pool"] == pool


@pytest.mark.parametrize(
    "assets",
    [["finance/evaluation"], ["served/dataset"], ["served/leaderboard"]],
    ids=["unrelated-of-that-name", "data-set-alone", "leaderboard-alone"],
)
def test_what_evaluates_nothing_is_not_tagged(workspace: WorkspaceRequestContext, assets: list[str]) -> None:
    assert ours(launch(workspace, "__ASSET_JOB", *assets, tags=TEXT)) == {}


def test_a_run_keeps_the_tags_it_was_given(workspace: WorkspaceRequestContext) -> None:
    given = {"dspex/target": "mine", "team": "other", "dspex/max_concurrency": "3"}
    run = launch(workspace, "__ASSET_JOB", "served/evaluation", tags={**TEXT, **given})
    assert ours(run) == {**TAGGED, **given}


def test_two_partitions_are_two_targets_whatever_launches_them(workspace: WorkspaceRequestContext) -> None:
    """The queue's limit is per target: the job and the button must agree on it."""
    targets = [
        launch(workspace, job, *assets, tags={"dagster/partition": partition}).tags["dspex/target"]
        for partition in ("text", "data")
        for job, assets in (("served_job", []), ("__ASSET_JOB", ["served/evaluation"]))
    ]
    assert targets == ["served/text", "served/text", "served/data", "served/data"]


def test_the_limits_of_the_shipped_instance_are_loaded(workspace: WorkspaceRequestContext) -> None:
    queue = workspace.instance.get_concurrency_config().run_queue_config
    assert queue
    assert queue.max_concurrent_runs == 6
    each = {"applyLimitPerUniqueValue": True}
    assert [(limit["key"], limit["value"], limit["limit"]) for limit in queue.tag_concurrency_limits] == [
        ("dspex/target", each, 1),
        ("dspex/pool", each, 2),
        ("dspex/model", each, 2),
        ("dspex/provider", each, 3),
        ("dspex/cost", "paid", 3),
        ("dspex/kind", "evaluation", 4),
    ]


@pytest.mark.parametrize(("last", "target"), [("text", "served/text"), ("data", "served")])
def test_a_backfills_run_is_of_the_partition_that_its_range_is(
    workspace: WorkspaceRequestContext, last: str, target: str
) -> None:
    name = "dagster/asset_partition_range"
    run = launch(workspace, "__ASSET_JOB", "served/evaluation", tags={f"{name}_start": "text", f"{name}_end": last})
    assert run.tags["dspex/target"] == target
