"""What goes into the dispatcher and what comes out of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dspex_pipelines.model.outcome import Attempt, ErrorType


# Not frozen: that would make them three times as dear, and there is one of each per trial. Nobody changes them.
@dataclass(slots=True, eq=False)
class Ticket:
    """A trial as the dispatcher knows it; `body` is the caller's and is handed back untouched."""

    client: int
    client_trial_id: int
    snapshot: tuple[int, int]
    """Session and version."""
    timeout_s: float
    """Run time allowed from dispatch on; 0 is no limit."""
    body: Any
    most_attempts: int = 0
    """Bounds the attempts of all types of error; 0 leaves it to the policy."""
    slots: int = 1
    """How many of a worker's slots it takes, from 1; of a worker that has fewer, all."""


@dataclass(slots=True, eq=False)
class Settled:
    """The one answer to a ticket: the worker's `outcome`, or the `error` that stands for it."""

    ticket: Ticket
    outcome: object | None
    error: ErrorType | None
    message: str
    worker_id: str
    """Empty when no worker has it."""
    attempts: int
    """How often it was dispatched; 0 for one cancelled in the queue."""
    queue_s: float
    """Time waited for a slot, over all attempts."""
    run_s: float
    """Time since the last dispatch; 0 in the queue."""
    history: Sequence[Attempt] = ()
    """The attempts before the one that settled it."""
    throttled_s: float = 0.0
    """Time in which its clock stood still, over all attempts."""


@dataclass(slots=True)
class Orders:
    """What an event asks its caller to do."""

    dispatch: defaultdict[str, list[tuple[int, Ticket]]] = field(default_factory=lambda: defaultdict(list))
    """Worker to (attempt id, ticket), in the order in which they are to be sent."""
    cancel: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    """Worker to attempt ids that it is to stop and then `release`."""
    settle: list[Settled] = field(default_factory=list[Settled])
    retire: list[str] = field(default_factory=list[str])
    """Workers to replace: too many of their slots are held by trials that do not stop. Each is named once."""
    inspect: list[str] = field(default_factory=list[str])
    """Workers that are silent at a trial's deadline: to be looked at, and then `hung` unless they speak."""
    kill: dict[str, int] = field(default_factory=dict[str, int])
    """Workers to be killed, and then `hung` by the attempt that is named and settled."""
    stuck: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    """Worker and attempt id of those that were to be stopped and go on. Each is named once."""
    quarantine: int | None = None
    """How many workers for suspects there should be from now on; None for as many as before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStats:
    """One worker, now."""

    slots: int
    in_flight: int
    abandoned: int
    """Slots held by trials that were settled without it and have not stopped yet."""
    done: int
    draining: bool
    quarantine: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """The dispatcher, now."""

    queue_depth: int
    """Trials that wait for a slot."""
    backing_off: int
    """Trials that wait for the time of their next attempt."""
    suspects: int
    """Trials that wait for a worker in quarantine."""
    in_flight: int
    settled: int
    workers: dict[str, WorkerStats]
