"""Trials in flight, and the clients whose turn it is."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from dspex_pipelines.engine.dispatch.tickets import Ticket
from dspex_pipelines.engine.timers import UNSET

if TYPE_CHECKING:
    from dspex_pipelines.engine.dispatch.fleet import Worker
    from dspex_pipelines.model.outcome import Attempt


class Trial:
    """A trial in flight: queued, waiting for its next attempt, suspected, or running.

    `waits_since` and `left_s` (until its deadline; `UNSET` for none) have a meaning while its clock stands still,
    `attempt_id` and `slots` (how many it takes of its worker's) while it has a worker.
    """

    attempt_id: int
    slots: int
    waits_since: float
    left_s: float

    __slots__ = (
        "attempt_id",
        "attempts",
        "client",
        "deaths",
        "due",
        "group",
        "history",
        "left_s",
        "queue_s",
        "since",
        "slots",
        "spared",
        "stuck",
        "throttled_s",
        "ticket",
        "waiting_calls",
        "waits_since",
        "worker",
    )

    def __init__(self, ticket: Ticket, client: Client, now: float) -> None:
        self.ticket = ticket
        self.client = client
        self.worker: Worker | None = None
        self.group: Group | None = None
        """The suspects it belongs to; none for a trial that is under no suspicion."""
        self.attempts = 0
        self.deaths = 0
        """Workers that died while they ran it alone."""
        self.spared = False
        """Whether it was once lost with a worker that had been asked to leave."""
        self.history: list[Attempt] | None = None
        self.since = now
        """When it was queued or dispatched, whichever was later; later by as much as its clock has stood since."""
        self.queue_s = 0.0
        self.due = UNSET
        """When its timer fires: its next attempt while it waits, its deadline while it runs, the end of its
        grace once it is abandoned."""
        self.stuck = False
        self.waiting_calls = 0
        """Its calls to models that wait for leave; its clock stands still while there are any."""
        self.throttled_s = 0.0
        """For how long there were any, over all attempts."""


class Group:
    """Suspects that share a worker, and those of them that it has not been sent yet."""

    __slots__ = ("alone", "waiting")

    def __init__(self, trials: Sequence[Trial]) -> None:
        self.alone = len(trials) == 1
        self.waiting: dict[Trial, None] = dict.fromkeys(trials)
        for trial in trials:
            trial.group = self


class Client:
    """Whose trials they are."""

    __slots__ = ("again", "queue", "ready", "stopped", "trials", "turns", "weight")

    def __init__(self, weight: int = 1) -> None:
        self.weight = weight
        """How many turns it has for each one of a client of weight 1."""
        self.turns = weight
        """How many of them are left before others have theirs."""
        self.stopped = False
        """Whether its trials wait, whoever has room."""
        self.queue: OrderedDict[int, Trial] = OrderedDict()
        """Trials that have not been run yet."""
        self.again: OrderedDict[int, Trial] = OrderedDict()
        """Trials to be run again, before those."""
        self.trials: dict[int, Trial] = {}
        self.ready = False


class Queues:
    """The trials that can be dispatched now, in the clients' turns. Every step costs the same at any size."""

    def __init__(self) -> None:
        self.clients: dict[int, Client] = {}
        self._ready: deque[Client] = deque()
        self._gone = 0
        """How many of those may have been forgotten."""

    def __len__(self) -> int:
        return sum(len(client.queue) + len(client.again) for client in self.clients.values())

    def __iter__(self) -> Iterator[Client]:
        return iter(self.clients.values())

    def join(self, number: int, weight: int) -> None:
        """Take in a client; one that submits without has weight 1."""
        self.clients[number] = Client(weight)

    def submit(self, number: int, tickets: Sequence[Ticket], now: float) -> None:
        """Queue *tickets* in their order.

        Raises `ValueError`, having queued none, when one is not of that client or is in flight already.
        """
        client = self.clients.get(number)
        if client is None:
            client = self.clients[number] = Client()
        trials, queue = client.trials, client.queue
        for position, ticket in enumerate(tickets):
            trial_id = ticket.client_trial_id
            if ticket.client != number or trial_id in trials:
                for earlier in tickets[:position]:
                    del trials[earlier.client_trial_id], queue[earlier.client_trial_id]
                msg = f"trial {trial_id} of client {ticket.client}: "
                msg += "in flight already" if ticket.client == number else f"submitted by {number}"
                raise ValueError(msg)
            trials[trial_id] = queue[trial_id] = Trial(ticket, client, now)
        if queue:
            self._wake(client)

    def put_again(self, trial: Trial) -> None:
        """Queue a trial again: after those that wait for the same, before all others of its client."""
        client = trial.client
        client.again[trial.ticket.client_trial_id] = trial
        self._wake(client)

    def put_back(self, trial: Trial) -> None:
        """Undo the last `next`, which returned *trial*."""
        client = trial.client
        client.again[trial.ticket.client_trial_id] = trial
        client.again.move_to_end(trial.ticket.client_trial_id, last=False)
        if self._ready[0] is client:
            client.turns += len(self._ready) > 1
        else:
            # It still is among the ready ones: the last of them.
            self._ready.rotate(1)
            client.turns = 1

    def remove(self, trial: Trial) -> None:
        """Take out a trial that waits."""
        client, number = trial.client, trial.ticket.client_trial_id
        if client.queue.pop(number, None) is None:
            client.again.pop(number, None)

    def next(self) -> Trial | None:
        """Take out the trial whose turn it is."""
        ready = self._ready
        while ready:
            client = ready[0]
            if (queue := client.again or client.queue) and not client.stopped:
                _, trial = queue.popitem(last=False)
                if len(ready) > 1:
                    client.turns -= 1
                    if not client.turns:
                        client.turns = client.weight
                        ready.rotate(-1)
                return trial
            client.ready = False
            client.turns = client.weight
            ready.popleft()
        return None

    def resume(self, number: int) -> None:
        """Let the trials of a client that was stopped be dispatched again."""
        client = self.clients.get(number)
        if client is not None and client.stopped:
            client.stopped = False
            if client.again or client.queue:
                self._wake(client)

    def forget(self, number: int) -> Client | None:
        """Take out a client with all its trials; return what it was."""
        client = self.clients.pop(number, None)
        if client is not None:
            client.queue.clear()
            client.again.clear()
            self._gone += client.ready
            if 2 * self._gone > len(self._ready):
                # While there is no free slot, nobody comes upon those whose turn it never will be.
                for one in self._ready:
                    one.ready = bool(one.again or one.queue)
                self._ready = deque(one for one in self._ready if one.ready)
                self._gone = 0
        return client

    def _wake(self, client: Client) -> None:
        if not client.ready:
            client.ready = True
            self._ready.append(client)
