"""Trials suspected of having killed a worker, found by halving.

What ran on a lost worker is dealt out in two groups, each of which has a worker to itself; a group that kills again
is halved again. A trial that is alone in its group when the worker dies has killed it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

from dspex_pipelines.engine.dispatch.fleet import Fleet, Worker
from dspex_pipelines.engine.dispatch.queues import Group, Trial
from dspex_pipelines.engine.dispatch.tickets import Orders

NEVER = float("inf")


class Quarantine:
    """The groups that no worker has yet, and the workers that run suspects only.

    Orders say how many such workers are wanted, at most *most_workers*; *idle_s* without suspects and none is. Where
    none comes within *reserve_after_s*, the least busy ordinary worker is set apart for as long as there are suspects.
    A worker that a trial without a deadline has kept for *patience_s* while others wait is not waited for: another is
    wanted beside it, or set apart. *dispatch* sends a trial to a worker, *retire* has one replaced.
    """

    def __init__(
        self,
        fleet: Fleet,
        dispatch: Callable[[Orders, Trial, Worker, float], None],
        retire: Callable[[Orders, Worker], None],
        *,
        most_workers: int,
        reserve_after_s: float,
        patience_s: float,
        idle_s: float,
    ) -> None:
        self._fleet = fleet
        self._dispatch = dispatch
        self._retire = retire
        self._most_workers = most_workers
        self._reserve_after_s = reserve_after_s
        self._patience_s = patience_s
        self._idle_s = idle_s
        self._groups: OrderedDict[Group, None] = OrderedDict()
        self._keepers: dict[str, Worker] = {}
        self._wanted = 0
        self._reserve_at = NEVER
        self._unwanted_at = NEVER
        self._impatient_at = NEVER

    @property
    def active(self) -> bool:
        """Whether there is anything to tend."""
        return bool(self._groups or self._keepers or self._wanted)

    @property
    def due(self) -> float:
        """When it is to be tended next, whatever happens; infinity for never."""
        return min(self._reserve_at, self._unwanted_at, self._impatient_at)

    @property
    def suspects(self) -> int:
        """How many suspects wait to be run."""
        taken = (worker.group for worker in self._keepers.values() if worker.group is not None)
        return sum(len(group.waiting) for group in (*self._groups, *taken))

    def keeps(self, worker: Worker) -> bool:
        """Return whether the worker runs suspects only."""
        return worker.worker_id in self._keepers

    def admit(self, worker: Worker, now: float) -> None:
        """Have a worker run suspects only."""
        worker.kept_since = now
        self._keepers[worker.worker_id] = worker

    def dismiss(self, worker: Worker) -> None:
        """The worker takes no more, or is gone: what it has not been sent of its group waits for another."""
        if self._keepers.pop(worker.worker_id, None) is not None:
            self._hand_on(worker)

    def halve(self, trials: Sequence[Trial]) -> None:
        """Suspect *trials*, in two groups."""
        middle = len(trials) // 2
        self._groups.update((Group(half), None) for half in (trials[:middle], trials[middle:]) if half)

    def single_out(self, trials: Sequence[Trial]) -> None:
        """Suspect each of *trials* alone."""
        self._groups.update((Group([trial]), None) for trial in trials)

    def remove(self, trial: Trial) -> None:
        """Take out a suspect that waits."""
        group = trial.group
        assert group is not None
        del group.waiting[trial]
        if not group.waiting:
            self._groups.pop(group, None)

    def tend(self, orders: Orders, now: float) -> None:
        """Give each group of suspects a worker to itself, and say how many such workers there should be."""
        keepers = self._keepers.values()
        busy = sum([self._serve(orders, worker, now) for worker in keepers])
        self._impatient_at = NEVER
        late: list[Worker] = []
        if self._groups or any(worker.group is not None and worker.group.waiting for worker in keepers):
            late = [worker for worker in keepers if self._is_late(worker, now)]
            for worker in late:
                self._hand_on(worker)
            ends = (worker.kept_since + self._patience_s for worker in keepers)
            self._impatient_at = min((end for end in ends if end > now), default=NEVER)
        waiting = len(self._groups)
        held = sum(worker.group is not None for worker in late)
        self._want(orders, held + min(self._most_workers, busy - held + waiting), now)
        if not waiting:
            self._reserve_at = NEVER
            self._give_back([worker for worker in keepers if worker.group is None])
        elif len(late) < len(keepers):
            self._reserve_at = NEVER
        elif self._reserve_at == NEVER:
            self._reserve_at = now + self._reserve_after_s
        elif now >= self._reserve_at:
            self._reserve_at = NEVER
            self._impatient_at = min(self._impatient_at, now + self._patience_s)
            self._set_apart(orders, now)

    def _serve(self, orders: Orders, worker: Worker, now: float) -> bool:
        """Send the worker what it has room for of its group, or of the next; return whether it has one."""
        if not worker.running and (worker.group is None or not worker.group.waiting):
            # Beside a trial that does not stop, no suspect is alone.
            worker.group = self._next_group() if not worker.abandoned else None
            if worker.group is not None:
                worker.kept_since = now
        group = worker.group
        if group is None:
            return False
        while group.waiting and worker.free:
            trial = next(iter(group.waiting))
            del group.waiting[trial]
            self._dispatch(orders, trial, worker, now)
        return True

    def _hand_on(self, worker: Worker) -> None:
        """What the worker has not been sent of its group is the next one's."""
        if worker.group is not None and worker.group.waiting:
            group = Group(list(worker.group.waiting))
            worker.group.waiting.clear()
            self._groups[group] = None
            self._groups.move_to_end(group, last=False)

    def _next_group(self) -> Group | None:
        return self._groups.popitem(last=False)[0] if self._groups else None

    def _is_late(self, worker: Worker, now: float) -> bool:
        """Return whether nobody can say how long the worker is kept yet."""
        return now >= worker.kept_since + self._patience_s and any(
            trial.ticket.timeout_s <= 0 for trial in worker.running.values()
        )

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
        """Set the least busy worker apart; those that are already can no longer be waited for."""
        able = [worker for worker in self._fleet if worker.open]
        if len(able) < 2:  # noqa: PLR2004 - the last one
            # Ordinary trials have to run somewhere, and these have been given their time.
            self._give_back(list(self._keepers.values()))
        if not able:
            self._reserve_at = now + self._reserve_after_s
            return
        worker = min(able, key=lambda one: (one.stuck > 0, one.slots - one.free))
        if worker.stuck:
            # No suspect will ever be alone on any of them, except on the one that comes in its place.
            self._retire(orders, worker)
            self._reserve_at = now + self._reserve_after_s
            return
        self._fleet.close(worker)
        self.admit(worker, now)
        self._serve(orders, worker, now)

    def _give_back(self, workers: Sequence[Worker]) -> None:
        """Let those that were set apart be ordinary workers again, whatever they run."""
        for worker in workers:
            if not worker.quarantine:
                del self._keepers[worker.worker_id]
                worker.group = None
                self._fleet.open(worker)
