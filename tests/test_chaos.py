"""The campaign, scaled down; kill -9 of the run; and that each check goes red for what it is there for."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from chaos import checks
from chaos.faults import OUTSIDE, schedule
from chaos.processes import TOKEN
from chaos.run_process import journal_file, pool_root
from chaos.scenario import FAILS, KINDS, PARTS, ROOT, Scenario, act_of, expected
from dspex_pipelines.engine.journal.journal import Entry, Journal
from dspex_pipelines.model.outcome import Attempt, ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.payload import encode

ACTS = {act for part in PARTS for act in part.acts}


def chaos(*arguments: str) -> str:
    """What the command prints; it must find nothing wrong."""
    command = [sys.executable, "-m", "chaos", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "GREEN" in done.stdout
    return done.stdout


# On a busy machine it takes minutes; it ends by itself when nothing moves any more.
@pytest.mark.timeout(1_200)
def test_whatever_happens_each_trial_has_the_outcome_it_has_when_nothing_does() -> None:
    said = chaos("--seed", "7", "--trials", "3000", "--faults", str(KINDS + len(OUTSIDE)))
    lines = [line.strip() for line in said.splitlines()]
    for kind in (*OUTSIDE, *(f"a trial {act}" for act in ACTS)):
        assert any(line.startswith(kind) for line in lines), kind


@pytest.mark.timeout(600)
def test_a_run_that_is_killed_over_and_over_loses_nothing_and_repeats_only_what_was_in_flight() -> None:
    said = chaos("resume", "--seed", "3", "--trials", "3000", "--kills", "4")
    assert "killed 4 times" in " ".join(said.split())


@pytest.mark.timeout(600)
def test_so_does_dagster(tmp_path: Path) -> None:
    said = chaos("resume", "--seed", "3", "--trials", "1500", "--kills", "2", "--dagster")
    assert "killed 2 times" in " ".join(said.split())


def test_a_seed_decides_everything() -> None:
    scenario = Scenario(seed=5, trials=2_000, acts=60)
    acts, again = ([act_of(spec) for one in scenario.planned() for spec in one.specs()] for _ in range(2))
    other = [act_of(spec) for one in replace(scenario, seed=6).planned() for spec in one.specs()]
    assert acts == again != other
    counted = Counter(act for act in acts if act)
    assert counted.keys() == ACTS
    assert counted.total() == 60
    faults = schedule(seed=5, count=40, trials=2_000)
    assert faults == schedule(seed=5, count=40, trials=2_000) != schedule(seed=6, count=40, trials=2_000)
    assert {kind for _, kind in faults} == set(OUTSIDE)
    assert faults == sorted(faults, key=lambda one: one[0])


def test_the_campaign_that_is_asked_for_is_one() -> None:
    """Two hundred faults of ten kinds, in twenty thousand trials."""
    trials = sum(one.plan.total for one in Scenario(seed=1, trials=20_000, acts=150).planned())
    assert trials >= 20_000
    assert len(OUTSIDE) + len(ACTS) >= 10
    assert set(FAILS) <= ACTS


# ---------------------------------------------------------------------------- the checks go red


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    """Its journal holds exactly what must be."""
    made = Scenario(seed=1, trials=300, acts=KINDS)
    write(tmp_path, made, lambda outcome, _: outcome)
    return made


Change = Callable[[TrialOutcome, str], TrialOutcome | None]


def write(folder: Path, scenario: Scenario, change: Change) -> None:
    with Journal(str(journal_file(folder))) as journal:
        for one in scenario.planned():
            entries = [
                Entry(one.plan.scoring_of(spec.example), outcome)
                for spec in one.specs()
                if (outcome := change(as_run(expected(spec), act_of(spec)), act_of(spec))) is not None
            ]
            journal.record("", entries)


def as_run(outcome: TrialOutcome, act: str) -> TrialOutcome:
    """With the attempts that it takes."""
    failed = Attempt(number=1, worker="w", type=ErrorType.PROGRAM_EXCEPTION, message=act)
    return outcome._replace(history=(failed,) * (checks.ATTEMPTS.get(act, 1) - 1))


def test_what_must_be_is_well(tmp_path: Path, scenario: Scenario) -> None:
    assert checks.wrong_outcomes(tmp_path, scenario.planned()) == []


def lost(outcome: TrialOutcome, act: str) -> TrialOutcome | None:
    return None if act == "large" else outcome


def poisoned(outcome: TrialOutcome, act: str) -> TrialOutcome:
    if act != "recovers":
        return outcome
    return TrialError(trial_id=outcome.trial_id, configuration_digest=b"", type=ErrorType.POISON, message="not its own")


def of_another_type(outcome: TrialOutcome, act: str) -> TrialOutcome:
    return outcome._replace(type=ErrorType.TIMEOUT_RUN) if act == "raises" else outcome


def with_other_outputs(outcome: TrialOutcome, act: str) -> TrialOutcome:
    return outcome._replace(outputs_payload=encode({"y": 0})) if act == "moves" else outcome


def with_other_scores(outcome: TrialOutcome, act: str) -> TrialOutcome:
    return outcome._replace(scores_payload=encode({"share.of": 0.0})) if act == "moves" else outcome


def under_another_configuration(outcome: TrialOutcome, act: str) -> TrialOutcome:
    return outcome._replace(configuration_digest=b"other") if act == "moves" else outcome


def tried_too_often(outcome: TrialOutcome, act: str) -> TrialOutcome:
    return outcome._replace(history=outcome.history * 2) if act == "never recovers" else outcome


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lost, "planned trials have no outcome"),
        (poisoned, "(recovers): poison (not its own) instead of ok"),
        (of_another_type, "(raises): timeout_run (raises) instead of program_exception"),
        (with_other_outputs, "data version"),
        (with_other_scores, "data version"),
        (under_another_configuration, "it ran under another configuration"),
        (tried_too_often, "5 attempts instead of 3"),
    ],
)
def test_an_outcome_that_must_not_be_is_found(tmp_path: Path, change: Change, said: str) -> None:
    scenario = Scenario(seed=1, trials=300, acts=KINDS)
    write(tmp_path, scenario, change)
    assert said in "\n".join(checks.wrong_outcomes(tmp_path, scenario.planned()))


def test_what_is_recorded_twice_is_found(tmp_path: Path, scenario: Scenario) -> None:
    with closing(sqlite3.connect(journal_file(tmp_path), isolation_level=None)) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(executions)")]
        connection.execute("CREATE TABLE kept AS SELECT * FROM executions")
        connection.execute("DROP TABLE executions")
        connection.execute("ALTER TABLE kept RENAME TO executions")
        names = ", ".join(f'"{name}"' for name in columns if name != "id")
        connection.execute(f"INSERT INTO executions ({names}) SELECT {names} FROM executions LIMIT 3")
        total = sum(one.plan.total for one in scenario.planned())
        assert connection.execute("SELECT count(*) FROM executions").fetchone() == (total + 3,)
    assert "3 trials are recorded more than once" in checks.wrong_outcomes(tmp_path, scenario.planned())
    assert checks.recorded(journal_file(tmp_path), total) == ["3 outcomes are of trials recorded before"]
    assert checks.recorded(journal_file(tmp_path), total + 1)[1:] == [
        f"{total} trials are recorded instead of {total + 1}"
    ]


def test_what_nobody_planned_is_found(tmp_path: Path, scenario: Scenario) -> None:
    with Journal(str(journal_file(tmp_path))) as journal:
        journal.record("", [Entry(b"s" * 16, TrialResult(trial_id=b"u" * 16, configuration_digest=b""))])
    assert "1 trials are recorded that nobody planned" in checks.wrong_outcomes(tmp_path, scenario.planned())


def test_what_is_left_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "ENDS_WITHIN_S", 0.2)
    pool, temporary = pool_root(tmp_path) / "abc", tmp_path / "tmp"
    pool.mkdir(parents=True)
    temporary.mkdir()
    (pool / "pool.log").touch()

    def found() -> list[str]:
        return checks.left_over(pool_root(tmp_path), temporary, "this one")

    assert found() == []
    (pool / "bridge.sock").touch()
    (temporary / "half").touch()
    with (pool / "clients.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        wait = "import sys; print(flush=True); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", wait],
            env={**os.environ, TOKEN: "this one"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            left = "\n".join(found())
            process.communicate()
    assert f"a process is left: pid {process.pid}" in left
    for name in ("bridge.sock is left", "half is left", "clients.lock is held"):
        assert name in left
    deadline = time.monotonic() + 10
    (pool / "bridge.sock").unlink()
    (temporary / "half").unlink()
    while found() and time.monotonic() < deadline:
        pass
    assert found() == []
