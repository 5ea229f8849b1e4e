"""Thousands of schedules of a simulated pool, with every kind of program and of misfortune, keep all promises.

`SIMULATION_SEED=1234` plays the schedule of that seed alone, `SIMULATIONS=100000` plays so many.
"""

from __future__ import annotations

import os
import random
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dspex_pipelines.engine.dispatch import failures, retries
from dspex_pipelines.engine.dispatch.board import Board
from dspex_pipelines.engine.dispatch.failures import Failures
from dspex_pipelines.engine.dispatch.quarantine import Quarantine
from dspex_pipelines.engine.dispatch.queues import Queues
from dspex_pipelines.engine.dispatch.retries import Fault, RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Orders
from dspex_pipelines.engine.timers import Timers
from dspex_pipelines.model.outcome import Attempt, ErrorType
from tests.engine.records import LATE_S, Wrong
from tests.engine.schedules import FAULTS, ClientPlan, Kind, Schedule, schedule, trial
from tests.engine.simulation import Simulation, play

ONE = os.environ.get("SIMULATION_SEED")
SEEDS = [int(ONE)] if ONE else range(int(os.environ.get("SIMULATIONS", "2000")))
BLOCKS = 20
LAST_STEPS = 40


def simulate(seed: int) -> Simulation:
    """Play the schedule of *seed*; when it fails, say how to see that again, and how it came to it."""
    simulation = Simulation(schedule(seed))
    try:
        simulation.run()
    except Exception as error:
        again = f"SIMULATION_SEED={seed} python -m pytest tests/engine/test_simulation.py -k promises"
        steps: deque[str] = deque(maxlen=LAST_STEPS)
        try:
            play(seed, steps.append)
        except Exception:
            shown = "\n".join(steps)
            pytest.fail(f"{type(error).__name__}: {error}\n\nseed {seed}; to see it again:\n{again}\n\n{shown}", False)
        pytest.fail(f"seed {seed} failed, and not when it was played again: {error}")
    return simulation


@pytest.mark.parametrize("block", range(1 if ONE else BLOCKS))
def test_every_schedule_keeps_all_promises(block: int):
    for seed in SEEDS[block :: 1 if ONE else BLOCKS]:
        simulate(seed)


def test_everything_happens_that_is_meant_to():
    happened: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    for seed in range(300):
        simulation = simulate(seed)
        happened += simulation.happened
        kinds.update(entry.plan.program.kind for entry in simulation.records.entries if entry.settled is not None)
    orders = ("retired", "inspected", "killed", "quarantine", "returned", "lost")
    errors = (ErrorType.TIMEOUT_RUN, ErrorType.POISON, ErrorType.CANCELLED)
    rare = {name: happened[name] for name in (*FAULTS, *orders, *errors) if happened[name] < 10}
    assert not rare
    assert not {kind: kinds[kind] for kind in Kind if kinds[kind] < 10}


def test_a_seed_plays_the_same_each_time():
    told: list[list[str]] = [[], []]
    for steps in told:
        for seed in range(20):
            play(seed, steps.append)
    assert len(told[0]) > 500
    assert told[0] == told[1]


# ---------------------------------------------------------------------- what is promised of one that hangs


def beside_healthy_ones(kind: Kind, timeout_s: float, seed: int) -> Schedule:
    """A trial of *kind* somewhere among 60 healthy ones, in two workers with room for all."""
    rng = random.Random(seed)
    trials = [replace(trial(rng, Kind.HEALTHY, number, 30.0, None), timeout_s=30.0) for number in range(1, 61)]
    hanging = trial(rng, kind, 61, timeout_s, None)
    while hanging.timeout_s != timeout_s:
        hanging = trial(rng, kind, 61, timeout_s, None)
    trials.insert(rng.randrange(60), hanging)
    return Schedule(
        seed=seed,
        clients=(ClientPlan(starts_s=2.0, window=64, trials=tuple(trials)),),
        faults=(),
        workers=2,
        slots=64,
        small=0.0,
        process_slots=1,
        supervised=True,
        most_quarantined=2,
        boot_s=(0.3, 1.5),
        delay_s=(0.0, 0.02),
        drain_s=30.0,
        looks=1.0,
    )


@pytest.mark.parametrize("timeout_s", [2.0, 5.0])
@pytest.mark.parametrize("kind", [Kind.HANGS, Kind.RAISES_LATE, Kind.HOLDS_LOOP, Kind.HOLDS_INTERPRETER])
def test_one_that_hangs_has_its_outcome_in_time_and_costs_its_neighbours_nothing(kind: Kind, timeout_s: float):
    most_s = 2 * timeout_s + 3.0 if kind is Kind.HOLDS_INTERPRETER else timeout_s + LATE_S
    for seed in range(15):
        simulation = Simulation(beside_healthy_ones(kind, timeout_s, seed))
        simulation.run()
        entries = {entry.plan.program.kind: entry for entry in simulation.records.entries}
        settled = entries[kind].settled
        assert settled is not None
        assert settled.error is ErrorType.TIMEOUT_RUN
        assert entries[kind].took_s <= most_s, f"seed {seed}"
        assert simulation.happened["outcome"] == 60, "neighbours pay"


# ---------------------------------------------------------------------- what it would notice


def nothing(*_: object, **__: object) -> None:
    """In the place of what ought to be done."""


def no(*_: object, **__: object) -> bool:
    """In the place of what ought to be asked."""
    return False


def twice(board: Board, orders: Orders, *rest: object) -> None:
    SETTLE(board, orders, *rest)
    orders.settle.append(orders.settle[-1])


def impatient(policy: RetryPolicy, fault: Fault, *rest: object, **options: Any) -> float | None:
    return DELAY(policy, fault._replace(retry_after_s=0.0), *rest, **options)


def unjust(policy: RetryPolicy, fault: Fault, history: Sequence[Attempt], **options: Any) -> float | None:
    return DELAY(policy, fault, [replace(past, type=fault.type) for past in history], **options)


SETTLE = Board.settle
DELAY = RetryPolicy.delay_s
BROKEN: list[tuple[str, object, str, object]] = [
    ("what is to be run again is queued by nobody", Queues, "put_again", nothing),
    ("suspects are forgotten", Quarantine, "halve", nothing),
    ("a suspect found by looking is forgotten", Quarantine, "single_out", nothing),
    ("outcomes come twice", Board, "settle", twice),
    ("timers do not fire", Timers, "arm", nothing),
    ("slots of abandoned trials stay taken", Board, "release", no),
    ("neighbours pay for a trial that holds their worker", Failures, "_postponed", no),
    ("a trial that does not stop costs nothing", Failures, "unstoppable", nothing),
    ("workers set apart stay so", Quarantine, "_give_back", nothing),
    ("one death is enough", failures, "MOST_DEATHS", 1),
    ("the same error is tried again", retries, "SAYS_LITTLE", frozenset(ErrorType)),
    ("the provider is not obeyed", RetryPolicy, "delay_s", impatient),
    ("lost workers count as failures", RetryPolicy, "delay_s", unjust),
]


@pytest.mark.parametrize(("where", "name", "instead"), [pytest.param(*row[1:], id=row[0]) for row in BROKEN])
def test_a_broken_dispatcher_is_noticed(where: object, name: str, instead: object, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(where, name, instead)
    with pytest.raises((Wrong, KeyError, AssertionError)):
        for seed in range(200):
            Simulation(schedule(seed)).run()
