"""The campaign: an evaluation in a process of its own, faults that a seed chose, and the verdict."""

from __future__ import annotations

import os
import random
import secrets
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos import checks
from chaos.faults import FELT_BY_ALL, OUTSIDE, Scene, schedule
from chaos.processes import TOKEN, of_campaign
from chaos.run_process import CANCELLED, DONE, POOL_LOST, journal_file, pool_root
from chaos.scenario import Scenario

LOOK_S = 0.01
STALL_S = 150.0
"""No new outcome for so long, and the evaluation hangs."""
ENDS_WITHIN_S = 30.0
"""A run that is told to end has so long."""
MOST_FAILURES = 5
SERVED = 25
"""Outcomes between two faults that everybody feels."""
EXPECTED_ENDS = frozenset({CANCELLED, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT})


@dataclass(slots=True, kw_only=True)
class Findings:
    """What a campaign came to."""

    scenario: Scenario
    inside: Counter[str] = field(default_factory=Counter)
    outside: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    runs: int = 0
    executions: int = 0
    ran_again: int = 0
    """Executions beyond the first of a trial."""
    elapsed_s: float = 0.0

    @property
    def faults(self) -> int:
        """How many faults were injected."""
        return self.inside.total() + self.outside.total()


Say = Callable[[str], None]


def environment_of(folder: Path, token: str) -> dict[str, str]:
    """Return the environment of everything that a campaign in *folder* starts."""
    temporary = folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return {**os.environ, TOKEN: token, "CHAOS_CALLS": str(folder / "calls"), "TMPDIR": str(temporary)}


class Outcomes:
    """How many outcomes the journal holds: the clock of a campaign."""

    def __init__(self, journal: Path) -> None:
        self._file = journal
        self._connection: sqlite3.Connection | None = None

    def count(self) -> int:
        """Return the number; 0 while there is no journal."""
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)
            # Rows are added and never deleted; counting them a hundred times a second would be work.
            return int(self._connection.execute("SELECT coalesce(max(id), 0) FROM executions").fetchone()[0])
        except sqlite3.OperationalError:
            return 0

    def close(self) -> None:
        """Close the journal."""
        if self._connection is not None:
            self._connection.close()


class Campaign:
    """A scenario in *folder*, and *faults* from outside while it runs."""

    def __init__(self, *, scenario: Scenario, faults: int, folder: Path, say: Say) -> None:
        self.findings = Findings(scenario=scenario)
        self._planned = scenario.planned()
        self._total = sum(one.plan.total for one in self._planned)
        self._folder = folder
        self._say = say
        self._token = secrets.token_hex(8)
        self._due = schedule(seed=scenario.seed, count=faults, trials=self._total)
        self._faults = faults
        self._failures = 0
        self._started = 0.0
        (folder / "scenario.json").write_text(scenario.to_json())
        (folder / "calls").touch()

    def run(self) -> Findings:
        """Run it to its end, check everything, and leave nothing behind."""
        self._started = time.monotonic()
        try:
            self._run()
            if not self.findings.wrong:
                self.findings.wrong += checks.left_over(pool_root(self._folder), self._folder / "tmp", self._token)
        finally:
            for process in of_campaign(self._token):
                process.kill()
        self.findings.elapsed_s = time.monotonic() - self._started
        if journal_file(self._folder).exists():
            self.findings.wrong += checks.wrong_outcomes(self._folder, self._planned)
        ran = checks.executions(self._folder)
        self.findings.inside = checks.acts_done(self._folder)
        self.findings.executions = ran.total()
        self.findings.ran_again = ran.total() - len(ran)
        return self.findings

    def _run(self) -> None:
        environment = environment_of(self._folder, self._token)
        scene = Scene(
            folder=self._folder, environment=environment, rng=random.Random(f"scene-{self.findings.scenario.seed}")
        )
        outcomes = Outcomes(journal_file(self._folder))
        moved = ended = said = time.monotonic()
        self._start(scene)
        try:
            while True:
                time.sleep(LOOK_S)
                now = time.monotonic()
                count = outcomes.count()
                if count != scene.outcomes:
                    scene.outcomes, moved = count, now
                scene.undo()
                code = scene.run.poll()
                if code == DONE:
                    break
                if code is not None:
                    self._ended(scene, code)
                    self._start(scene)
                    ended = now
                elif not scene.told_to_end:
                    ended = now
                    self._inject(scene)
                if self._failures > MOST_FAILURES or now - moved > STALL_S or now - ended > ENDS_WITHIN_S:
                    self.findings.wrong.append(self._hangs(scene, now - moved, now - ended))
                    break
                if now - said > 1.0:
                    said = now
                    self._say(self._progress(scene))
        finally:
            outcomes.close()
            scene.undo(everything=True)
            self._dismiss(scene)
        if self._due and not self.findings.wrong:
            self.findings.wrong.append(f"{len(self._due)} faults found no moment: {[kind for _, kind in self._due]}")

    def _start(self, scene: Scene) -> None:
        scene.told_to_end = scene.pool_killed = False
        scene.run = scene.start("chaos.run_process")
        self.findings.runs += 1
        self._note(scene, f"run {self.findings.runs} starts")

    def _ended(self, scene: Scene, code: int) -> None:
        """Judge a run that ended before it was done."""
        if (scene.told_to_end and code in EXPECTED_ENDS) or (scene.pool_killed and code == POOL_LOST):
            return
        self._failures += 1
        self.findings.wrong.append(f"a run ended by itself with {code}: {self._last_words()}")

    def _inject(self, scene: Scene) -> None:
        """Do the first of what is due that can be done now."""
        for place, (moment, kind) in enumerate(self._due):
            if moment > scene.outcomes:
                return
            if kind in FELT_BY_ALL and scene.outcomes < scene.quiet_until:
                continue
            if OUTSIDE[kind][1](scene):
                del self._due[place]
                self.findings.outside[kind] += 1
                self._note(scene, kind)
                if kind in FELT_BY_ALL:
                    scene.quiet_until = scene.outcomes + SERVED
                return

    def _note(self, scene: Scene, what: str) -> None:
        """Keep what was done when, for whoever has to find out why."""
        with (self._folder / "faults.log").open("a") as log:
            log.write(f"{time.monotonic() - self._started:7.2f} s  {scene.outcomes:6,}  {what}\n")

    def _hangs(self, scene: Scene, silent_s: float, ending_s: float) -> str:
        if self._failures > MOST_FAILURES:
            return "runs only end; the campaign gives up"
        if ending_s > ENDS_WITHIN_S:
            return f"a run that was told to end has not, in {ending_s:.0f} s"
        return f"no outcome for {silent_s:.0f} s at {scene.outcomes:,} of {self._total:,}"

    def _dismiss(self, scene: Scene) -> None:
        for companion in (scene.run, *scene.companions):
            assert companion is not None
            try:
                companion.wait(ENDS_WITHIN_S)
            except subprocess.TimeoutExpired:
                companion.kill()
                companion.wait()
                if not self.findings.wrong:
                    self.findings.wrong.append(f"{companion.args} did not end")

    def _progress(self, scene: Scene) -> str:
        injected = self.findings.outside.total()
        return (
            f"{scene.outcomes:,} of {self._total:,} outcomes, {injected} of {self._faults} faults from outside, "
            f"run {self.findings.runs}"
        )

    def _last_words(self) -> str:
        log = (self._folder / "run.log").read_text(errors="replace")
        return log[-1_500:].strip()


def undisturbed(*, scenario: Scenario, folder: Path, say: Say) -> Findings:
    """Run a scenario without a fault from outside: what its programs give is what is expected of them."""
    return Campaign(scenario=scenario, faults=0, folder=folder, say=say).run()


def table(findings: Findings) -> list[tuple[str, str]]:
    """Return what to print, row by row."""
    rows = [("seed", str(findings.scenario.seed)), ("trials", f"{findings.scenario.trials:,}")]
    for title, counted in (("a trial", findings.inside), ("", findings.outside)):
        rows += [(f"{title} {kind}".strip(), str(count)) for kind, count in sorted(counted.items())]
    kinds = len(findings.inside) + len(findings.outside)
    return [
        *rows,
        ("faults", f"{findings.faults} of {kinds} kinds"),
        ("runs", str(findings.runs)),
        ("executions", f"{findings.executions:,}, of which {findings.ran_again:,} of a trial that had run before"),
        ("time", f"{findings.elapsed_s:.0f} s"),
    ]
