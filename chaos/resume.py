"""kill -9 of the run process at random moments, over and over, then a last run that is left alone.

What must hold: no trial is recorded twice, none is missing, the results are those of a run that nobody disturbed, and
no more trials ran twice than were in flight when a run was killed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos import checks
from chaos.campaign import Outcomes, Say, environment_of
from chaos.processes import of_campaign
from chaos.run_process import journal_file, pool_root
from chaos.scenario import ROOT, Scenario
from dspex_pipelines.bridge import local_pool

IN_FLIGHT = 64
LOOK_S = 0.005
STALL_S = 120.0
LONGEST_WAIT_S = 0.3
"""A kill comes up to so long after the outcome that it waits for: at any point between two transactions."""


@dataclass(slots=True, kw_only=True)
class Resumed:
    """What came of it."""

    trials: int
    kills: int = 0
    executions: int = 0
    ran_again: int = 0
    """Executions beyond the first of a trial."""
    allowed: int = 0
    data_version: str = ""
    elapsed_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Route:
    """How a run process is started in a folder, and what it leaves there: `run_batch` alone."""

    def __init__(self, *, seed: int, trials: int) -> None:
        self.scenario = Scenario(seed=seed, trials=trials, acts=0, parts=("awaited",), in_flight=IN_FLIGHT)
        self.planned = self.scenario.planned()
        self.total = sum(one.plan.total for one in self.planned)

    def prepare(self, folder: Path) -> None:
        """Write what the run process reads."""
        (folder / "scenario.json").write_text(self.scenario.to_json())

    def command(self, folder: Path) -> Sequence[str]:
        """Return the run process's command."""
        return (sys.executable, "-m", "chaos.run_process", str(folder))

    def environment(self, folder: Path, token: str) -> dict[str, str]:
        """Return its environment."""
        return environment_of(folder, token)

    def journal(self, folder: Path) -> Path:
        """Return its journal."""
        return journal_file(folder)

    def pools(self, folder: Path) -> Path:
        """Return where its pool lives."""
        return pool_root(folder)

    def end(self, folder: Path) -> None:
        """Have the pool end, as it does by itself after a while."""

    def data_version(self, folder: Path) -> str:
        """Return the version of the results; raises `DspexError` where there are none."""
        return checks.data_version(folder, self.planned[0])


class ThroughDagster(Route):
    """`dspex evaluate`: plan, batches and collection as Dagster runs them, on an instance of its own."""

    def prepare(self, folder: Path) -> None:
        """Make the Dagster instance."""
        (folder / "home").mkdir()
        (folder / "r").mkdir(mode=0o700)
        shutil.copy(ROOT / "dagster.yaml", folder / "home")

    def command(self, folder: Path) -> Sequence[str]:
        """Return the run process's command."""
        del folder
        main = "from dspex_pipelines.cli.commands import main; main()"
        target = "chaos.evaluation:healthy"
        return (sys.executable, "-c", main, "evaluate", target, "--max-concurrency", str(IN_FLIGHT), "--workers", "2")

    def environment(self, folder: Path, token: str) -> dict[str, str]:
        """Return its environment."""
        return {
            **super().environment(folder, token),
            "DAGSTER_HOME": str(folder / "home"),
            "DAGSTER_DISABLE_TELEMETRY": "1",
            "XDG_RUNTIME_DIR": str(folder / "r"),
            "CHAOS_TRIALS": str(self.total),
        }

    def journal(self, folder: Path) -> Path:
        """Return its journal."""
        return folder / "home" / "storage" / "dspex" / "journal.sqlite"

    def pools(self, folder: Path) -> Path:
        """Return where its pool lives."""
        return folder / "r" / "dspex"

    def end(self, folder: Path) -> None:
        """Have the pool end, which would wait a minute for the next run."""
        local_pool.stop(runtime_root=self.pools(folder))

    def data_version(self, folder: Path) -> str:
        """Return the data version that was materialised."""
        code = (
            "import dagster as dg, json, sys\n"
            "with dg.DagsterInstance.from_config(sys.argv[1]) as instance:\n"
            "    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(['healthy', 'evaluation']))\n"
            "    record = instance.fetch_materializations(wanted, limit=1).records[0]\n"
            "    print(json.dumps(record.asset_materialization.tags['dagster/data_version']))\n"
        )
        command = [sys.executable, "-c", code, str(folder / "home")]
        return json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)


def resume(*, route: Route, seed: int, kills: int, folder: Path, say: Say) -> Resumed:
    """Kill the run *kills* times, let it end, and hold it against one that nobody disturbed."""
    started = time.monotonic()
    found = Resumed(trials=route.total, allowed=kills * IN_FLIGHT)
    calm, storm = folder / "u", folder / "c"
    versions = []
    for where, times in ((calm, 0), (storm, kills)):
        where.mkdir()
        (where / "calls").touch()
        route.prepare(where)
        found.kills = _run(route, where, _moments(seed, times, route.total), say, found)
        if found.wrong:
            return found
        versions.append(route.data_version(where))
    found.elapsed_s = time.monotonic() - started
    found.data_version = versions[1]
    if versions[0] != versions[1]:
        found.wrong.append(f"data version {versions[1]}, undisturbed {versions[0]}")
    found.wrong += checks.recorded(route.journal(storm), route.total)
    ran = checks.executions(storm)
    found.executions, found.ran_again = ran.total(), ran.total() - len(ran)
    if len(ran) != route.total:
        found.wrong.append(f"{len(ran):,} trials were run instead of {route.total:,}")
    if found.ran_again > found.allowed:
        found.wrong.append(f"{found.ran_again:,} trials ran again, of {found.allowed:,} that were in flight")
    return found


def _moments(seed: int, kills: int, total: int) -> list[tuple[int, float]]:
    """Return after how many outcomes, and how long after those, the run is killed."""
    rng = random.Random(f"kills-{seed}")
    counts = sorted(rng.randint(1, total * 95 // 100) for _ in range(kills))
    return [(count, rng.uniform(0.0, LONGEST_WAIT_S)) for count in counts]


def _run(route: Route, folder: Path, moments: list[tuple[int, float]], say: Say, found: Resumed) -> int:
    """Run until it is done, killing it at *moments*; return how often it was killed."""
    token = os.urandom(8).hex()
    environment = route.environment(folder, token)
    outcomes = Outcomes(route.journal(folder))
    killed = 0
    try:
        for moment in (*moments, None):
            with (folder / "run.log").open("ab") as log:
                process = subprocess.Popen(
                    route.command(folder),
                    cwd=ROOT,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            code = _until(process, outcomes, moment, say)
            if code == -signal.SIGKILL and moment is not None:
                killed += 1
            elif code != 0:
                log_text = (folder / "run.log").read_text(errors="replace")[-1_500:]
                found.wrong.append(f"a run ended by itself with {code}: {log_text}")
                break
        route.end(folder)
        found.wrong += checks.left_over(route.pools(folder), folder / "tmp", token)
    finally:
        outcomes.close()
        for left in of_campaign(token):
            left.kill()
    return killed


def _until(process: subprocess.Popen[bytes], outcomes: Outcomes, moment: tuple[int, float] | None, say: Say) -> int:
    """Wait for the process, or kill it at its moment; return its exit code."""
    moved, last = time.monotonic(), -1
    while (code := process.poll()) is None:
        count = outcomes.count()
        if count != last:
            moved, last = time.monotonic(), count
            say(f"{count:,} outcomes")
        if moment is not None and count >= moment[0]:
            time.sleep(moment[1])
            process.kill()
            return process.wait()
        if time.monotonic() - moved > STALL_S:
            process.kill()
            process.wait()
            return 1
        time.sleep(LOOK_S)
    return code
