"""The shipped executor: a process for each step, forked from the run's own, over the local pool."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest

from dspex_pipelines.bridge import local_pool

ROOT = Path(__file__).parents[2]
RESULTS = dg.AssetKey(["served", "evaluation"])


@pytest.fixture(scope="module")
def runtime_root() -> Iterator[Path]:
    """Where the run's own local pool is, which its first step that needs one starts."""
    # Beneath a short folder, as a socket's path has few bytes.
    with tempfile.TemporaryDirectory(prefix="dspex-t-") as folder:
        yield Path(folder)
        local_pool.stop(runtime_root=Path(folder) / "dspex")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, runtime_root: Path) -> Path:
    """An instance as it is shipped, after one run of the job."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copy(ROOT / "dagster.yaml", folder)
    config = {"ops": {"served__evaluation": {"config": {"trials_per_op": 10}}}}
    (folder / "run.json").write_text(json.dumps(config))
    execute(folder, runtime_root, "", "-c", str(folder / "run.json"))
    return folder


def execute(folder: Path, runtime_root: Path, code: str, *options: str) -> None:
    """Run the job, of definitions that run *code* besides and write down each process that loads them."""
    (folder / "defs.py").write_text(
        "import os\nfrom tests.orchestration.served import defs\n"
        f"with open({str(folder / 'loaded')!r}, 'a') as file:\n    print(os.getpid(), file=file)\n{code}"
    )
    command = [sys.executable, "-m", "dagster", "job", "execute", "-f", str(folder / "defs.py"), "-j", "served_job"]
    tags = json.dumps({"dagster/partition": "text"})
    done = subprocess.run(
        [*command, "--tags", tags, *options],
        cwd=ROOT,
        env={**os.environ, "DAGSTER_HOME": str(folder), "XDG_RUNTIME_DIR": str(runtime_root)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def loaded(folder: Path) -> list[str]:
    """The processes that have loaded the definitions, as often as they did."""
    return (folder / "loaded").read_text().split()


@pytest.fixture
def instance(home: Path) -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.from_config(str(home)) as opened:
        yield opened


def test_the_job_succeeds_with_every_trial_in_its_table(instance: dg.DagsterInstance) -> None:
    wanted = dg.AssetRecordsFilter(asset_key=RESULTS, asset_partitions=["text"])
    (record,) = instance.fetch_materializations(wanted, limit=1).records
    assert record.asset_materialization
    table = pd.read_parquet(str(record.asset_materialization.metadata["path"].value))
    assert len(table) == 20
    failed = table[table["status"] == "error"]
    assert sorted(failed["example_id"]) == sorted(["e0", "e5"] * 2)
    assert record.asset_materialization.metadata["trials run"].value == 20


def test_its_run_claims_places_in_dagsters_pools_in_turn(home: Path) -> None:
    assert (home / "dspex_claims.lock").exists()


def test_every_step_joined_the_pool_that_the_first_one_started(home: Path, runtime_root: Path) -> None:
    assert len(local_pool.status(runtime_root=runtime_root / "dspex")) == 1


def test_each_step_is_a_process_of_its_own(instance: dg.DagsterInstance) -> None:
    (run,) = instance.get_runs()
    assert run.status is dg.DagsterRunStatus.SUCCESS
    assert run.tags["dspex/evaluation"] == "served"
    events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]
    started = {event.step_key for event in events if event.event_type is dg.DagsterEventType.STEP_WORKER_STARTED}
    assert started == {
        "served__dataset",
        "served__evaluation.plan_trials",
        "served__evaluation.run_trials[batch_000000]",
        "served__evaluation.run_trials[batch_000001]",
        "served__evaluation.collect_evaluation",
    }
    pids = {
        entry.value
        for event in events
        if event.event_type is dg.DagsterEventType.STEP_WORKER_STARTED
        for name, entry in event.engine_event_data.metadata.items()
        if name == "pid"
    }
    assert len(pids) == 5


def test_run_trials_steps_take_turns(instance: dg.DagsterInstance) -> None:
    """One at a time, so that max_concurrency holds for the whole run."""
    (run,) = instance.get_runs()
    kinds = (dg.DagsterEventType.STEP_START, dg.DagsterEventType.STEP_SUCCESS)
    events = [entry.dagster_event for entry in instance.all_logs(run.run_id) if entry.dagster_event]
    order = [
        event.event_type for event in events if event.event_type in kinds and "run_trials" in (event.step_key or "")
    ]
    assert order == [*kinds, *kinds]


def test_steps_fork_from_a_process_that_has_loaded_the_definitions(home: Path) -> None:
    assert len(loaded(home)) == 1


def test_steps_fork_from_a_server_where_the_definitions_have_started_a_thread(
    tmp_path: Path, runtime_root: Path
) -> None:
    shutil.copy(ROOT / "dagster.yaml", tmp_path)
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(3600,), daemon=True).start()\n"
    execute(tmp_path, runtime_root, code)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        (run,) = instance.get_runs()
        steps = len(instance.get_run_step_stats(run.run_id))
    assert len(set(loaded(tmp_path))) == steps + 1
