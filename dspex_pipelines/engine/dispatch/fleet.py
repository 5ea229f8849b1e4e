"""The attached workers: who has room, and who knows a snapshot already."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import TypeAlias

from dspex_pipelines.engine.dispatch.queues import Group, Trial

Snapshot: TypeAlias = tuple[int, int]

REMEMBERED_SNAPSHOTS = 1024
"""How many snapshots a worker is remembered to have run; about what it keeps instances of itself."""

_PROBES = 8
"""How many workers that know a snapshot are asked for a free slot before the freest worker is taken."""


class Worker:
    """One worker. Its slots are free, running an attempt, or held by one that was settled without it."""

    __slots__ = (
        "abandoned",
        "done",
        "draining",
        "free",
        "group",
        "heard",
        "held_by",
        "inspected",
        "kept_since",
        "open",
        "quarantine",
        "retired",
        "running",
        "slots",
        "stuck",
        "stuck_limit",
        "warm",
        "worker_id",
    )

    def __init__(self, worker_id: str, slots: int, now: float, *, quarantine: bool) -> None:
        self.worker_id = worker_id
        self.quarantine = quarantine
        """Whether it runs suspects only."""
        self.group: Group | None = None
        """The suspects that it is running."""
        self.kept_since = now
        """When it was set to running suspects, or last given a group of them."""
        self.heard = now
        """When it last gave a sign of life."""
        self.held_by = 0
        """The attempt that keeps its program loop from turning, as it says itself; 0 for none."""
        self.inspected = 0.0
        """When somebody was asked why it is silent; 0 for never."""
        self.slots = slots
        self.free = slots
        self.running: dict[int, Trial] = {}
        self.abandoned: dict[int, Trial] = {}
        self.stuck = 0
        self.stuck_limit = max(1, slots // 4)
        self.warm: OrderedDict[Snapshot, None] = OrderedDict()
        self.open = False
        """Whether `Fleet.choose` may choose it."""
        self.draining = False
        self.retired = False
        self.done = 0


class Fleet:
    """Workers by number of free slots and by the snapshots they have run; every step costs the same at any size.

    *affinity_lead*: how much busier, as a fraction, a worker that knows a snapshot may be than the freest one.
    """

    def __init__(self, *, affinity_lead: float) -> None:
        self._busier = 1.0 + affinity_lead
        self._workers: dict[str, Worker] = {}
        # Open workers at the number of their free slots, and the highest number there is.
        self._by_free: list[dict[Worker, None]] = [{}]
        self._knowing: dict[Snapshot, dict[Worker, None]] = {}
        self.most_free = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def get(self, worker_id: str) -> Worker | None:
        """Return the worker of that id."""
        return self._workers.get(worker_id)

    def add(self, worker_id: str, slots: int, now: float, *, quarantine: bool = False) -> Worker:
        """Take a worker into use; raises `ValueError` when one of that id is attached or *slots* is below 1."""
        if worker_id in self._workers:
            raise ValueError(f"worker {worker_id} is attached already")
        if slots < 1:
            raise ValueError(f"worker {worker_id} offers {slots} slots; at least 1 is needed")
        worker = self._workers[worker_id] = Worker(worker_id, slots, now, quarantine=quarantine)
        if not quarantine:
            self.open(worker)
        return worker

    def open(self, worker: Worker) -> None:
        """Let the worker be chosen."""
        worker.open = True
        self._by_free.extend({} for _ in range(len(self._by_free), worker.slots + 1))
        self._by_free[worker.free][worker] = None
        self.most_free = max(self.most_free, worker.free)

    def remove(self, worker_id: str) -> Worker | None:
        """Forget a worker; return what it was."""
        worker = self._workers.pop(worker_id, None)
        if worker is not None:
            self.close(worker)
        return worker

    def choose(self, snapshot: Snapshot, slots: int = 1) -> Worker | None:
        """Return the worker for a trial of *snapshot* and note that it will have run it; one must be free.

        None where none has so many *slots* free, nor all that it can ever have.
        """
        freest = next(iter(self._by_free[self.most_free]))
        if freest.free < slots and freest.running:
            # Slots of trials that do not stop may never come back.
            idle = (worker for worker in self._workers.values() if worker.open and worker.free and not worker.running)
            freest = next(idle, None)
            if freest is None:
                return None
        if snapshot in freest.warm:
            return freest
        knowing = self._knowing.get(snapshot)
        if knowing is None:
            knowing = self._knowing[snapshot] = {}
        else:
            busiest = (freest.slots - freest.free) * self._busier
            for worker in islice(knowing, _PROBES):
                # An infinite lead over an idle worker is not a number; such a lead always prefers.
                if worker.free >= slots and not worker.slots - worker.free > busiest:
                    return worker
        knowing[freest] = None
        freest.warm[snapshot] = None
        if len(freest.warm) > REMEMBERED_SNAPSHOTS:
            self._forget(freest, freest.warm.popitem(last=False)[0])
        return freest

    def move(self, worker: Worker, free: int) -> None:
        """Note that a worker has *free* slots now."""
        before, worker.free = worker.free, free
        if worker.open and free != before:
            self._by_free[free][worker] = None
            if free > self.most_free:  # noqa: PLR1730 - `max` takes as long as the rest
                self.most_free = free
            self._take_out(worker, before)

    def close(self, worker: Worker) -> None:
        """Choose the worker no more."""
        if not worker.open:
            return
        worker.open = False
        self._take_out(worker, worker.free)
        for snapshot in worker.warm:
            self._forget(worker, snapshot)
        worker.warm.clear()

    def _take_out(self, worker: Worker, free: int) -> None:
        peers = self._by_free[free]
        del peers[worker]
        if peers:
            return
        # Another dict, because finding the first of one costs a step for each that was deleted before it.
        self._by_free[free] = {}
        # All these steps down are no more than the slots that have been freed, or have come with workers, since.
        while self.most_free and not self._by_free[self.most_free]:
            self.most_free -= 1

    def _forget(self, worker: Worker, snapshot: Snapshot) -> None:
        knowing = self._knowing[snapshot]
        del knowing[worker]
        if not knowing:
            del self._knowing[snapshot]
