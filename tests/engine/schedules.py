"""What a simulated pool is given, made from a seed: programs of every kind, clients, workers, a network and faults.

Each seed takes a few of the kinds and faults only, at rates of its own: what needs many of one kind, or none of
another, to show comes up too.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import StrEnum

from dspex_pipelines.engine.dispatch.retries import Fault, RetryPolicy
from dspex_pipelines.model.outcome import ErrorType

TAKES_S = (0.001, 3.0)
SPARE_S = 1.7
"""What a healthy program leaves of its time: a worker's silence is noticed 1.5 s after it has begun."""


class Kind(StrEnum):
    """What a program does, each time it is run."""

    HEALTHY = "healthy"
    RAISES = "raises"
    RECOVERS = "recovers"
    """Fails so many times, differently each time, then succeeds."""
    REPEATS = "repeats"
    """Fails for ever, by the same error."""
    HANGS = "hangs"
    RAISES_LATE = "raises late"
    HOLDS_INTERPRETER = "holds interpreter"
    HOLDS_LOOP = "holds loop"
    DEADLY = "deadly"
    DEADLY_BESIDE = "deadly beside another"
    DEADLY_TO_ITS_OWN = "deadly to its own process"
    LEAKY = "leaky"
    """Uses so much memory that its worker wants to leave, and so much more that it dies before that."""
    ENDLESS = "endless"
    """Hangs without a deadline until it is cancelled."""
    ENDLESS_LOOP = "endless loop"
    """Keeps the program loop from turning, without a deadline, until it is cancelled."""


class Where(StrEnum):
    """What runs a program: decides what can stop it, and what stops with it."""

    LOOP = "loop"
    THREAD = "thread"
    PROCESS = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a trial's program does, and how long it takes until then."""

    kind: Kind
    where: Where
    takes_s: float
    times: int = 0
    error: ErrorType = ErrorType.PROGRAM_EXCEPTION
    retry_after_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialPlan:
    """One trial of a client."""

    number: int
    program: Program
    timeout_s: float
    most_attempts: int = 0
    cancel_after_s: float | None = None
    """When its client no longer wants it, counted from when it is sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientPlan:
    """Whose trials they are, how many it has in flight at most, and whether it stays."""

    starts_s: float
    window: int
    trials: tuple[TrialPlan, ...]
    leaves_s: float | None = None
    cut_s: float | None = None
    """When its stream is lost; it comes back and sends again what it has no outcome of."""
    reads_slowly: tuple[tuple[float, float], ...] = ()
    """From when until when none of its trials is to be dispatched, counted from when it connects."""
    weight: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """What happens to some worker at some time."""

    at_s: float
    what: str
    """One of `FAULTS`."""
    lasts_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Everything that is decided beforehand; the rest is drawn from the seed as it comes."""

    seed: int
    clients: tuple[ClientPlan, ...]
    faults: tuple[FaultPlan, ...]
    workers: int
    slots: int
    small: float
    """How often a worker has a quarter of them."""
    process_slots: int
    """How many of them a trial in a process of its own takes."""
    supervised: bool
    """Whether quarantine workers come when they are wanted."""
    most_quarantined: int
    boot_s: tuple[float, float]
    delay_s: tuple[float, float]
    drain_s: float
    looks: float
    """How often whoever looks at a silent worker sees which trial it is; otherwise that, and others, or nothing."""

    @property
    def trials(self) -> int:
        """How many there are."""
        return sum(len(client.trials) for client in self.clients)


FAULTS = ("kill", "cut", "freeze", "stall", "deploy", "worn", "full")
"""A worker is killed, or loses its stream, or is stopped, or is not heard, for a while; all are asked to leave, or one
leaves when it is done, or finds that it cannot begin another trial."""
FAILING = (Kind.RAISES, Kind.RECOVERS, Kind.REPEATS)
HANGING = (Kind.HANGS, Kind.RAISES_LATE, Kind.HOLDS_INTERPRETER, Kind.HOLDS_LOOP)
KILLING = (Kind.DEADLY, Kind.DEADLY_BESIDE, Kind.DEADLY_TO_ITS_OWN, Kind.LEAKY)
ENDLESS = (Kind.ENDLESS, Kind.ENDLESS_LOOP)
MOST_OF = {
    Kind.HOLDS_INTERPRETER: 3,
    Kind.HOLDS_LOOP: 3,
    Kind.DEADLY: 4,
    Kind.LEAKY: 3,
    Kind.ENDLESS: 2,
    Kind.ENDLESS_LOOP: 2,
}
"""Each of these costs its worker its life, or a slot for good."""


def schedule(seed: int) -> Schedule:
    """Return the schedule of that seed."""
    rng = random.Random(seed)
    workers = rng.choice([1, 2, 2, 3, 4])
    slots = rng.choice([1, 2, 3, 4, 8, 8, 16])
    process_slots = rng.choice([1, 1, 3, 8])
    kinds = [kind for kind in (*FAILING, *HANGING, *KILLING) if rng.random() < 0.3]
    supervised = rng.random() < 0.75
    small = rng.choice([0.0, 0.0, 0.3])
    if rng.random() < 0.2:
        kinds += ENDLESS
        # What never ends takes a slot for good, and there have to be some for the others.
        workers, slots, process_slots = max(workers, 2 if supervised else 4), max(slots, 8), 1
    bad = rng.choice([0.05, 0.2, 0.5]) if kinds else 0.0
    left = dict(MOST_OF)
    deadline = rng.choice([0.0, 5.0, 5.0, 30.0])
    if rng.random() < 0.1:
        # Little happens that would wake anybody, and of what is suspected some never ends.
        kinds, bad, deadline, workers, slots, process_slots, supervised = (
            [*ENDLESS, Kind.DEADLY],
            0.5,
            0.0,
            4,
            8,
            1,
            False,
        )

    most = (1, 5, 15, 30)
    if rng.random() < 0.04:
        # So many deadlines that were kept that their timers are cleared away, beside some that are still needed.
        kinds, bad, deadline, most = [Kind.HANGS, Kind.RECOVERS], 0.05, 30.0, (200,)

    def plan(number: int) -> TrialPlan:
        kind = rng.choice(kinds) if rng.random() < bad else Kind.HEALTHY
        if kind in left:
            left[kind] -= 1
            if left[kind] < 0:
                kind = Kind.HEALTHY
        cancel = round(rng.uniform(0.0, 6.0), 3) if rng.random() < cancelling else None
        return trial(rng, kind, number, deadline, cancel)

    clients: list[ClientPlan] = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        cancelling = rng.choice([0.0, 0.0, 0.1])
        clients.append(
            ClientPlan(
                starts_s=rng.choice([0.0, 0.0, rng.uniform(0.0, 5.0)]),
                window=rng.choice([1, 4, 16, 64]),
                trials=tuple(plan(number) for number in range(1, 1 + rng.choice(most))),
                leaves_s=rng.uniform(0.1, 20.0) if rng.random() < 0.15 else None,
                cut_s=rng.uniform(0.1, 10.0) if rng.random() < 0.1 else None,
                reads_slowly=((3.0, 6.0), (7.0, 7.5)) if rng.random() < 0.1 else (),
                weight=rng.choice([1, 1, 2, 5]),
            )
        )
    faults: list[FaultPlan] = []
    for what in FAULTS:
        if rng.random() < 0.15:
            for _ in range(rng.randint(1, 2 if what == "deploy" else 3)):
                lasts_s = rng.choice([0.4, 1.0, 3.0, 15.0])
                faults.append(FaultPlan(at_s=rng.uniform(0.0, 20.0), what=what, lasts_s=lasts_s))
    return Schedule(
        seed=seed,
        clients=tuple(clients),
        faults=tuple(faults),
        workers=workers,
        slots=slots,
        small=small,
        process_slots=process_slots,
        supervised=supervised,
        most_quarantined=rng.choice([1, 2, 2, 3]),
        boot_s=rng.choice([(0.1, 0.3), (0.5, 2.0)]),
        delay_s=rng.choice([(0.0, 0.001), (0.0, 0.02), (0.0, 0.15)]),
        drain_s=rng.choice([3.0, 30.0]),
        looks=rng.choice([0.0, 0.7, 1.0]),
    )


def trial(rng: random.Random, kind: Kind, number: int, deadline_s: float, cancel_after_s: float | None) -> TrialPlan:
    """Return a trial of *kind*; *deadline_s* is that of the ones that need none."""
    where = rng.choice([Where.LOOP, Where.THREAD, Where.THREAD, Where.PROCESS])
    takes_s = rng.uniform(*TAKES_S) if rng.random() < 0.5 else 0.01
    timeout_s = deadline_s
    most_attempts = rng.choice([0, 0, 0, 1, 2, 4])
    times, error, retry_after_s = 0, ErrorType.PROGRAM_EXCEPTION, 0.0
    match kind:
        case Kind.RECOVERS:
            error = rng.choice(
                [
                    ErrorType.PROGRAM_EXCEPTION,
                    ErrorType.MALFORMED_OUTPUT,
                    ErrorType.RATE_LIMITED,
                    ErrorType.PROVIDER_UNAVAILABLE,
                ]
            )
            times = rng.choice([1, 1, 2, 3, 4, 11])
            if error is ErrorType.RATE_LIMITED:
                retry_after_s = rng.choice([0.0, 2.0, 20.0])
        case Kind.HANGS | Kind.RAISES_LATE | Kind.HOLDS_LOOP | Kind.HOLDS_INTERPRETER:
            timeout_s = rng.choice([2.0, 5.0])
            if kind is Kind.HOLDS_INTERPRETER:
                timeout_s = rng.choice([0.0, 2.0, 2.0, 5.0, 40.0])
                where = Where.THREAD
            elif kind is Kind.HOLDS_LOOP:
                timeout_s = rng.choice([2.0, 2.0, 5.0, 300.0])
                where = Where.LOOP
            elif kind is Kind.RAISES_LATE:
                where = Where.THREAD
                takes_s = timeout_s + rng.uniform(0.1, 4.0)
        case Kind.DEADLY | Kind.DEADLY_BESIDE | Kind.LEAKY:
            where = rng.choice([Where.LOOP, Where.THREAD])
        case Kind.DEADLY_TO_ITS_OWN:
            where = Where.PROCESS
        case Kind.ENDLESS | Kind.ENDLESS_LOOP:
            timeout_s = 0.0
            if kind is Kind.ENDLESS_LOOP:
                where, cancel_after_s = Where.LOOP, rng.uniform(0.0, 6.0)
        case _:
            pass
    if timeout_s and kind is not Kind.RAISES_LATE:
        takes_s = min(takes_s, max(0.01, timeout_s - SPARE_S))
    return TrialPlan(
        number=number,
        program=Program(kind=kind, where=where, takes_s=takes_s, times=times, error=error, retry_after_s=retry_after_s),
        timeout_s=timeout_s,
        most_attempts=most_attempts,
        cancel_after_s=cancel_after_s,
    )


def answer(program: Program, failed: int) -> Fault | None:
    """Return what the program fails by when it has failed so many times before; None when it succeeds."""
    fault = Fault(program.error, "as planned", retryable=True, retry_after_s=program.retry_after_s)
    match program.kind:
        case Kind.RAISES:
            return fault._replace(retryable=False)
        case Kind.REPEATS:
            return fault._replace(fingerprint="always")
        case Kind.RECOVERS if failed < program.times:
            return fault._replace(fingerprint=f"{failed}")
        case Kind.RAISES_LATE:
            return fault._replace(fingerprint="late")
        case Kind.DEADLY_TO_ITS_OWN:
            return fault._replace(type=ErrorType.WORKER_LOST)
        case _:
            return None


def charged(plan: TrialPlan, policy: RetryPolicy) -> tuple[int, bool]:
    """Return how many failed attempts of its own doing a trial is allowed, and whether it fails in the end."""
    most = policy.most.get(plan.program.error, 1)
    if plan.most_attempts:
        most = min(most, plan.most_attempts)
    match plan.program.kind:
        case Kind.RAISES:
            return 1, True
        case Kind.REPEATS:
            return min(most, policy.same_error), True
        case Kind.RECOVERS if plan.program.times < most:
            return plan.program.times, False
        case Kind.RECOVERS:
            return most, True
        case _:
            return 0, False
