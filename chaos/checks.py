"""What must hold after a campaign. Each check returns what it found wrong, in words; nothing for what is well."""

from __future__ import annotations

import fcntl
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from chaos.processes import described, of_campaign
from chaos.run_process import journal_file
from chaos.scenario import ATTEMPTS, Planned, act_of, expected
from dspex_pipelines.analysis.results import data_version as version_of
from dspex_pipelines.engine.batch import planned_outcomes
from dspex_pipelines.engine.journal.journal import Journal
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialOutcome, TrialResult
from dspex_pipelines.model.trial import TrialSpec

MOST_SHOWN = 5
ENDS_WITHIN_S = 40.0
STAYS = frozenset({"pool.lock", "clients.lock", "pool.log"})


def wrong_outcomes(folder: Path, planned: Sequence[Planned]) -> list[str]:
    """Every planned trial has exactly one outcome, the one that its program gives where nothing else happens."""
    found = list(_recorded_twice(folder, planned))
    with Journal(str(journal_file(folder))) as journal:
        for one in planned:
            rows = planned_outcomes(one.plan, one.examples, journal)
            wrong: list[str] = []
            try:
                kept = list(rows)
            except DspexError as error:
                found.append(f"{one.part.name}: {error}")
                continue
            for spec, outcome in kept:
                if said := _unlike(spec, outcome):
                    wrong.append(f"{one.part.name}, {spec.example.example_id} ({act_of(spec) or 'healthy'}): {said}")
            found.extend(_some(wrong))
            version = version_of(one.plan, kept)
            if version != one.data_version():
                found.append(f"{one.part.name}: data version {version}, undisturbed {one.data_version()}")
    return found


def _recorded_twice(folder: Path, planned: Sequence[Planned]) -> Iterator[str]:
    wanted = {spec.trial_id for one in planned for spec in one.specs()}
    with closing(sqlite3.connect(journal_file(folder))) as connection:
        rows = connection.execute("SELECT trial_id, generation, count(*) FROM executions GROUP BY 1, 2").fetchall()
    if twice := sum(count > 1 for _, _, count in rows):
        yield f"{twice} trials are recorded more than once"
    if unplanned := sum(trial_id not in wanted for trial_id, _, _ in rows):
        yield f"{unplanned} trials are recorded that nobody planned"


def _unlike(spec: TrialSpec, outcome: TrialOutcome) -> str:
    must = expected(spec)
    if _essence(outcome) != _essence(must):
        return f"{_said(outcome)} instead of {_said(must)}"
    if isinstance(outcome, TrialResult) and outcome.configuration_digest != spec.configuration.digest:
        return "it ran under another configuration"
    limit = ATTEMPTS.get(act_of(spec))
    tried = _tries(outcome)
    if limit is not None and tried != limit:
        return f"{tried} attempts instead of {limit}"
    return ""


def _essence(outcome: TrialOutcome) -> tuple[object, ...]:
    if isinstance(outcome, TrialResult):
        return ("ok", outcome.outputs_payload, outcome.scores_payload)
    return (outcome.type, outcome.outputs_payload, b"")


def _said(outcome: TrialOutcome) -> str:
    if isinstance(outcome, TrialError):
        past = Counter(attempt.type.value for attempt in outcome.history)
        history = f" after {dict(past)}" if past else ""
        return f"{outcome.type.value} ({outcome.message[:120]}){history}"
    return f"ok ({len(outcome.outputs_payload)} bytes, scores {dict(outcome.scores)})"


def _tries(outcome: TrialOutcome) -> int:
    """Count the attempts that the trial itself ended, in the run that settled it."""
    tries = 1
    for attempt in outcome.history:
        if attempt.type in (ErrorType.CANCELLED, ErrorType.BUDGET_EXHAUSTED):
            tries = 1
        elif attempt.type is not ErrorType.WORKER_LOST:
            tries += 1
    return tries


def _some(wrong: Sequence[str]) -> Iterator[str]:
    yield from islice(wrong, MOST_SHOWN)
    if len(wrong) > MOST_SHOWN:
        yield f"… and {len(wrong) - MOST_SHOWN} more"


def left_over(pools: Path, temporary: Path, token: str) -> list[str]:
    """No process, socket, temporary file or lock of the pool is left, once it has had the time to end by itself."""
    deadline = time.monotonic() + ENDS_WITHIN_S
    while (left := of_campaign(token)) and time.monotonic() < deadline:
        time.sleep(0.1)
    found = [f"a process is left: {described(process)}" for process in left]
    for pool in sorted(pools.iterdir()):
        found += [f"{path} is left" for path in pool.iterdir() if path.name not in STAYS]
        for name in ("pool.lock", "clients.lock"):
            with (pool / name).open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(f"{pool / name} is held")
    found += [f"{path} is left" for path in temporary.iterdir()]
    return found


def recorded(journal: Path, planned: int) -> list[str]:
    """The journal holds *planned* trials, each once."""
    with closing(sqlite3.connect(journal)) as connection:
        (rows,) = connection.execute("SELECT count(*) FROM executions").fetchone()
        query = "SELECT count(*) FROM (SELECT DISTINCT trial_id, generation FROM executions)"
        (trials,) = connection.execute(query).fetchone()
    found = [f"{rows - trials:,} outcomes are of trials recorded before"] if rows != trials else []
    return found + ([f"{trials:,} trials are recorded instead of {planned:,}"] if trials != planned else [])


def data_version(folder: Path, planned: Planned) -> str:
    """Return the version of what the journal has of a plan; raises `EvaluationIncomplete`."""
    with Journal(str(journal_file(folder))) as journal:
        return version_of(planned.plan, planned_outcomes(planned.plan, planned.examples, journal))


def executions(folder: Path) -> Counter[tuple[str, int, int]]:
    """Return how often each trial was run, from the file that the programs append to."""
    return Counter((part, int(x), int(k)) for part, x, k, *_ in _calls(folder))


def acts_done(folder: Path) -> Counter[str]:
    """Return how many trials did each special thing at least once."""
    return Counter(act for _, act in {((part, x, k), " ".join(act)) for part, x, k, *act in _calls(folder)} if act)


def _calls(folder: Path) -> Iterator[list[str]]:
    with (folder / "calls").open() as calls:
        for line in calls:
            yield line.split()
