"""Ten runs through a real daemon: no limit is ever passed, and no slot stays free while a run could use it.

Every run holds its slot until the test lets it go, and nothing is let go before everything that can start has started.
So that runs overlap is certain, and what is claimed is an order of records, not a matter of time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
import yaml
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import WorkspaceFileTarget

from tests.orchestration.launching import IMPLICIT_JOB, launch
from tests.orchestration.limited import FOLDER, MODELS, POOL
from tests.orchestration.queueing import Limits, Stay, in_turn, peak, startable, violations

# A daemon, and a process for each run.
pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "dagster.yaml").read_text())
EACH = {"applyLimitPerUniqueValue": True}
WARM = {"module": "tests.orchestration.warm_launcher", "class": "WarmRunLauncher"}
HOLDS = {dg.DagsterEventType.RUN_STARTING: "began", dg.DagsterEventType.RUN_ENQUEUED: "queued"}


def concurrency(runs: int, *tags: tuple[str, object, int], steps: int = 4) -> dict[str, Any]:
    """The shipped limits with others in their place."""
    limits = [{"key": f"dspex/{name}", "value": value, "limit": limit} for name, value, limit in tags]
    return {
        "runs": {**SHIPPED["concurrency"]["runs"], "max_concurrent_runs": runs, "tag_concurrency_limits": limits},
        "pools": {**SHIPPED["concurrency"]["pools"], "default_limit": steps},
    }


@contextmanager
def running(*command: str, log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run one of Dagster's processes, and end it with all that it has started."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=ROOT,
            env={**os.environ, "DAGSTER_DISABLE_TELEMETRY": "1", **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        # Its own instance and all its runs are thrown away, so nothing has to be put in order.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, kw_only=True)
class Served:
    """A code server, and where the trials of its evaluations say that they are there."""

    workspace: Path
    held: Path
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def served(pool_address: str, runtime_root: Path) -> Iterator[Served]:
    """One for all the instances: it is told with each run where that belongs."""
    folder = runtime_root / "limited"
    held = folder / "held"
    environment = {POOL: pool_address, FOLDER: str(held)}
    served = Served(workspace=folder / "workspace.yaml", held=held, environment=environment)
    served.held.mkdir(parents=True)
    server = {"socket": str(folder / "code.sock"), "location_name": "limited"}
    served.workspace.write_text(yaml.safe_dump({"load_from": [{"grpc_server": server}]}))
    command = ["dagster", "api", "grpc", "--socket", server["socket"], "--location-name", "limited"]
    log = folder / "code.log"
    with running(*command, "-m", "tests.orchestration.limited", log=log, **environment) as process:
        deadline = time.monotonic() + 100
        while not Path(server["socket"]).exists():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield served
    shutil.rmtree(folder)


@dataclass(frozen=True, kw_only=True)
class Queue:
    """A throw-away instance with a queue of runs."""

    instance: dg.DagsterInstance
    served: Served
    limits: Limits
    steps: int

    def launch(self, targets: Sequence[str], *, jobs: bool = True) -> list[Stay]:
        """Launch a run for each evaluation and partition: as "Materialize" does, and every other one by its job."""
        target = WorkspaceFileTarget([str(self.served.workspace)])
        launched: list[Stay] = []
        with WorkspaceProcessContext(self.instance, target) as process:
            for number, where in enumerate(targets):
                name, partition = where.split("/")
                as_job = jobs and number % 2
                run = launch(
                    process.create_request_context(),
                    f"{name}_job" if as_job else IMPLICIT_JOB,
                    *([] if as_job else [f"{name}/dataset", f"{name}/evaluation"]),
                    tags={"dagster/partition": partition},
                    config={"ops": {f"{name}__evaluation": {"config": {"reuse": "none"}}}},
                )
                launched.append(Stay(name=run.run_id, queued=0, tags=expected_tags(name, partition)))
        return launched

    def tags_of(self, stay: Stay) -> Mapping[str, str]:
        """The tags that it really has; raises for one that failed."""
        run = self.instance.get_run_by_id(stay.name)
        assert run
        assert run.status is dg.DagsterRunStatus.SUCCESS
        return run.tags

    def runs(self, launched: Sequence[Stay]) -> list[Stay]:
        """What their records say by now: a run takes its slot where the daemon starts it, before its process is up."""
        return [self._run(stay) for stay in launched]

    def _run(self, stay: Stay) -> Stay:
        record = self.instance.get_run_record_by_id(stay.name)
        assert record
        if stay.began is None and record.dagster_run.status is not dg.DagsterRunStatus.QUEUED:
            events = self.instance.all_logs(stay.name, of_type=set(HOLDS))
            times = {HOLDS[entry.get_dagster_event().event_type]: entry.timestamp for entry in events}
            stay = replace(stay, **times)
        if record.start_time is not None:
            assert stay.began is not None
            assert stay.began <= record.start_time
        return replace(stay, ended=record.end_time)

    def steps_of(self, launched: Sequence[Stay]) -> list[Stay]:
        """The `run_trials` steps: they wait for the pool from the end of the planning on."""
        stays: list[Stay] = []
        for stay in launched:
            at = {
                (event.event_type, (event.step_key or "").partition(".")[2].partition("[")[0]): entry.timestamp
                for entry in self.instance.all_logs(stay.name)
                if (event := entry.dagster_event)
            }
            stays.append(
                Stay(
                    name=f"run_trials of {stay.name}",
                    queued=at[dg.DagsterEventType.STEP_SUCCESS, "plan_trials"],
                    began=at[dg.DagsterEventType.STEP_START, "run_trials"],
                    ended=at[dg.DagsterEventType.STEP_SUCCESS, "run_trials"],
                )
            )
        return stays

    def drive(self, launched: Sequence[Stay], within_s: float = 600.0) -> list[float]:
        """Let go what is held whenever nothing more can start, until all have ended; return those instants."""
        let_go: list[float] = []
        released = 0
        deadline = time.monotonic() + within_s
        runs = list(launched)
        while not all(run.ended for run in runs):
            now = time.time()
            runs = [run if run.ended else self._run(run) for run in runs]
            held = list(self.served.held.iterdir())
            going = [run for run in runs if run.is_going_at(now)]
            could = startable(runs, self.limits, now)
            settled = sum(run.ended is not None for run in runs) == released
            if settled and not could and len(held) >= min(len(going), self.steps):
                # Later than all that was read: what is held has begun, and nothing else can begin or end by now.
                let_go.append(time.time())
                released += len(held)
                for file in held:
                    file.unlink()
            assert time.monotonic() < deadline, f"{could} could start, and did not; {len(going)} run, {held} are held"
            time.sleep(0.2)
        return let_go


def expected_tags(name: str, partition: str) -> Mapping[str, str]:
    """What a run must be limited by, whether it is tagged or not."""
    models = {"dspex/model": MODELS[name], "dspex/provider": "local"} if MODELS[name] else {}
    return {
        "dspex/kind": "evaluation",
        "dspex/evaluation": name,
        "dspex/target": f"{name}/{partition}",
        "dspex/pool": POOL,
        "dspex/cost": "paid" if models else "free",
        **models,
    }


@contextmanager
def queue(home: Path, served: Served, limits: Mapping[str, Any], **changes: object) -> Iterator[Queue]:
    """Make an instance of the shipped one with these limits; its daemon starts when runs have been launched."""
    (home / "dagster.yaml").write_text(
        yaml.safe_dump({**SHIPPED, "concurrency": dict(limits), "run_launcher": WARM, **changes})
    )
    with dg.DagsterInstance.from_config(str(home)) as instance:
        yield Queue(
            instance=instance,
            served=served,
            limits=Limits.of_runs(limits),
            steps=limits["pools"]["default_limit"],
        )


def daemon(home: Path, served: Served) -> Any:
    command = ["dagster._daemon", "run", "--workspace", str(served.workspace)]
    return running(*command, log=home / "daemon.log", DAGSTER_HOME=str(home), **served.environment)


SETTINGS = [
    pytest.param(
        concurrency(6, ("target", EACH, 1), ("kind", "evaluation", 2)),
        # The first three are of one target: those behind them must not wait for it.
        ["plain/a", "plain/a", "plain/a", "plain/b", "small/a", "plain/b", "small/a", "large/c", "plain/a", "small/b"],
        2,
        id="kind-2-target-1",
    ),
    pytest.param(
        concurrency(6, ("kind", EACH, 3), ("model", EACH, 1)),
        [*(f"small/{part}" for part in "abcd"), *(f"large/{part}" for part in "ab"), *(f"plain/{p}" for p in "abcd")],
        3,
        id="kind-3-model-1",
    ),
    pytest.param(
        concurrency(4, steps=1),
        [f"{name}/{part}" for part in "abcd" for name in MODELS][:10],
        4,
        id="runs-4-steps-1",
    ),
]


@pytest.mark.parametrize(("limits", "targets", "most"), SETTINGS)
def test_no_limit_is_passed_and_no_slot_stays_free(
    tmp_path: Path, served: Served, limits: dict[str, Any], targets: list[str], most: int
) -> None:
    assert len(targets) == 10
    with queue(tmp_path, served, limits) as queued:
        launched = queued.launch(targets)
        with daemon(tmp_path, served):
            let_go = queued.drive(launched)
        runs, steps = queued.runs(launched), queued.steps_of(launched)
        for run in runs:
            assert queued.tags_of(run).items() >= run.tags.items()
    assert violations(runs, queued.limits, let_go) == []
    assert peak(runs) == most
    assert in_turn(runs, most)
    assert violations(steps, Limits(most=queued.steps), let_go) == []
    assert peak(steps) == min(queued.steps, most)


def test_without_our_coordinator_the_same_check_fails(tmp_path: Path, served: Served) -> None:
    """What "Materialize" launches has no tags then: nothing holds it, and the records say so."""
    limits = concurrency(3, ("target", EACH, 1), ("kind", "evaluation", 2))
    plain = {**SHIPPED["run_coordinator"], "module": "dagster", "class": "QueuedRunCoordinator"}
    with queue(tmp_path, served, limits, run_coordinator=plain) as queued:
        launched = queued.launch(["plain/a", "plain/b", "plain/c", "plain/d"], jobs=False)
        with daemon(tmp_path, served):
            let_go = replace(queued, limits=Limits(most=3)).drive(launched)
        runs = queued.runs(launched)
        assert not any(name.startswith("dspex/") for run in runs for name in queued.tags_of(run))
    assert peak(runs) == 3
    first, second, third, _ = (run.name for run in runs)
    passed = f"{third} started beside {first}, {second}, against 2 of dspex/kind evaluation"
    assert passed in violations(runs, queued.limits, let_go)
