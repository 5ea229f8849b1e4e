"""Trials suspected of having killed a worker, found by halving.

What ran on a lost worker is dealt out in two groups, each of which has a worker to itself; a group that kills again
is halved again. A trial that is alone in its group when the worker dies has killed it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from dspex_pipelines.engine.fleet import Fleet, Worker
from dspex_pipelines.engine.queues import Group, Trial
from dspex_pipelines.engine.tickets import Orders

NEVER = float("inf")


class Quarantine:
    """The groups that no worker has yet, and the workers that run suspects only.

    Orders say how many such workers are wanted, at most *most_workers*; *idle_s* without suspects and none is. Where
    none comes within *reserve_after_s*, the least busy ordinary worker is set apart for as long as there are suspects.
    *dispatch* sends a trial to a worker.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatch: Callable[[Orders, Trial, Worker, float], None],
        *,
        most_workers: int,
        reserve_after_s: float,
        idle_s: float,
    ) -> None:
        self._fleet = fleet
        self._dispatch = dispatch
        self._most_workers = most_workers
        self._reserve_after_s = reserve_after_s
        self._idle_s = idle_s
        self._groups: deque[Group] = deque()
        self._keepers: dict[str, Worker] = {}
        self._wanted = 0
        self._reserve_at = NEVER
        self._unwanted_at = NEVER

    @property
    def active(self) -> bool:
        """Whether there is anything to tend."""
        return bool(self._groups or self._keepers or self._wanted)

    @property
    def due(self) -> float:
        """When it is to be tended next, whatever happens; infinity for never."""
        return min(self._reserve_at, self._unwanted_at)

    @property
    def suspects(self) -> int:
        """How many suspects wait to be run."""
        taken = (worker.group for worker in self._keepers.values() if worker.group is not None)
        return sum(len(group.waiting) for group in (*self._groups, *taken))

    def keeps(self, worker: Worker) -> bool:
        """Return whether the worker runs suspects only."""
        return worker.worker_id in self._keepers

    def admit(self, worker: Worker) -> None:
        """Have a worker run suspects only."""
        self._keepers[worker.worker_id] = worker

    def dismiss(self, worker: Worker) -> None:
        """The worker takes no more, or is gone: what it has not been sent of its group waits for another."""
        if self._keepers.pop(worker.worker_id, None) is not None and worker.group is not None and worker.group.waiting:
            self._groups.appendleft(Group(list(worker.group.waiting)))

    def halve(self, trials: Sequence[Trial]) -> None:
        """Suspect *trials*, in two groups."""
        middle = len(trials) // 2
        self._groups.extend(Group(half) for half in (trials[:middle], trials[middle:]) if half)

    def single_out(self, trials: Sequence[Trial]) -> None:
        """Suspect each of *trials* alone."""
        self._groups.extend(Group([trial]) for trial in trials)

    def tend(self, orders: Orders, now: float) -> None:
        """Give each group of suspects a worker to itself, and say how many such workers there should be."""
        busy = sum(self._serve(orders, worker, now) for worker in self._keepers.values())
        # A group whose trials were all cancelled is none.
        waiting = sum(bool(group.waiting) for group in self._groups)
        self._want(orders, min(self._most_workers, busy + waiting), now)
        if not waiting or self._keepers:
            self._reserve_at = NEVER
        elif self._reserve_at == NEVER:
            self._reserve_at = now + self._reserve_after_s
        elif now >= self._reserve_at:
            self._reserve_at = NEVER
            self._set_apart(orders, now)
        if not waiting and not busy:
            self._give_back()

    def _serve(self, orders: Orders, worker: Worker, now: float) -> bool:
        """Send the worker what it has room for of its group, or of the next; return whether it has one."""
        if not worker.running and (worker.group is None or not worker.group.waiting):
            # Beside a trial that does not stop, no suspect is alone.
            worker.group = None if worker.abandoned else self._next_group()
        group = worker.group
        if group is None:
            return False
        while group.waiting and worker.free:
            trial = next(iter(group.waiting))
            del group.waiting[trial]
            self._dispatch(orders, trial, worker, now)
        return True

    def _next_group(self) -> Group | None:
        while self._groups:
            group = self._groups.popleft()
            if group.waiting:
                return group
        return None

    def _want(self, orders: Orders, workers: int, now: float) -> None:
        """Ask for more workers at once, for none after a while without suspects."""
        if workers > self._wanted:
            self._wanted = orders.quarantine = workers
        if workers:
            self._unwanted_at = NEVER
        elif self._wanted and self._unwanted_at == NEVER:
            self._unwanted_at = now + self._idle_s
        elif now >= self._unwanted_at:
            self._wanted = orders.quarantine = 0
            self._unwanted_at = NEVER

    def _set_apart(self, orders: Orders, now: float) -> None:
        able = [worker for worker in self._fleet if worker.open]
        if not able:
            self._reserve_at = now + self._reserve_after_s
            return
        worker = min(able, key=lambda one: one.slots - one.free)
        self._fleet.close(worker)
        self.admit(worker)
        self._serve(orders, worker, now)

    def _give_back(self) -> None:
        """Let workers that were set apart be ordinary again."""
        for worker in [worker for worker in self._keepers.values() if not worker.quarantine]:
            del self._keepers[worker.worker_id]
            self._fleet.open(worker)
