"""A pool without processes, sockets or waiting: the real dispatcher under a virtual clock, driven as `bridge.hub` does.

`Simulation(schedule).run()` plays a schedule to its end and raises `Wrong` when the dispatcher breaks a promise.

    python -m tests.engine.simulation 1234      plays the schedule of that seed, and prints every step
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from dspex_pipelines.engine.dispatch.dispatcher import Dispatcher
from dspex_pipelines.engine.dispatch.retries import RetryPolicy
from dspex_pipelines.engine.dispatch.tickets import Orders
from tests.engine.deserts import SILENT_S, bound_s
from tests.engine.records import Records, Wrong
from tests.engine.schedules import FaultPlan, Schedule, schedule
from tests.engine.simulated import BEAT_DELAY_S, Client, Link, Worker
from tests.engine.virtual import NEVER, Clock, Stream

LOOK_S = 0.2
MOST_LEAVING = 4
MOST_EVENTS = 20_000
TELLS_S = 0.01
"""The supervisor hears of a worker's end, and of what is wanted, after so long."""


class Simulation:
    """Bridge and supervisor of the pool, with all that is attached to them."""

    def __init__(self, schedule: Schedule, *, tell: Callable[[str], None] | None = None) -> None:
        self.schedule = schedule
        self.rng = random.Random(f"{schedule.seed} plays")
        self.clock = Clock()
        self.happened: Counter[str] = Counter()
        retries = RetryPolicy()
        # Throttles are made here once the dispatcher has them. The programs that a provider limits belong to
        # `schedules`, what throttles promise to `records`.
        self.dispatcher = Dispatcher(
            retries=retries,
            most_quarantined=schedule.most_quarantined,
            rng=random.Random(f"{schedule.seed} retries"),
        )
        self.records = Records(schedule, self.dispatcher, retries, self.clock)
        self._tell = tell
        self._links: dict[str, Link] = {}
        self._downs: dict[int, Stream] = {}
        self._client_numbers = itertools.count(1)
        self._timer = NEVER
        self._children: list[Worker] = []
        self._wanted = 0
        self._names = itertools.count(1)
        for _ in range(schedule.workers):
            self._start_worker(quarantine=False)
        self.clients = [Client(self, plan) for plan in schedule.clients]
        for fault in schedule.faults:
            self.clock.after(fault.at_s, partial(self._strike, fault))

    def run(self) -> None:
        """Play everything to its end, and until nothing more happens."""
        longest_s = bound_s(self.schedule, self.records.retries)
        bound = self.clock.now + longest_s
        while not all(client.done for client in self.clients):
            if all(client.only_endless for client in self.clients):
                for client in self.clients:
                    client.give_up()
            if not self.clock.step() or self.clock.now > bound:
                waiting = {client.number: client.waits_for for client in self.clients if not client.done}
                raise Wrong(f"no outcome within {bound - 100.0:.0f} s of {waiting}\n{self.dispatcher.stats()}")
        self.records.took_s = self.clock.now - 100.0
        # Faults that are planned still come, and who is idle leaves; then nothing happens any more.
        quiet = self.clock.now + longest_s
        while self.clock.step():
            if self.clock.now > quiet:
                raise Wrong("it does not come to rest")
        self.records.at_rest(self._links.values(), self.clients, wanted=self._wanted)

    def note(self, text: str, *values: object) -> None:
        """Tell who follows the simulation."""
        if self._tell is not None:
            self._tell(f"{self.clock.now - 100.0:9.3f}  {text % values}")

    # The bridge: what arrives

    def heard(self, link: Link, message: Any) -> None:
        """Something of a worker has arrived."""
        if link.gone:
            return
        now, worker, dispatcher = self.clock.now, link.worker, self.dispatcher
        link.heard = now
        if message == "hello":
            link.attached = True
            self._links[worker.name] = link
            self._do(partial(dispatcher.attach, worker.name, worker.slots, quarantine=worker.quarantine))
        elif message == "end":
            self._lose(link, "its stream ended")
        else:
            answers, released, returned, draining = message
            dispatcher.heard(worker.name, now, held_by=worker.says_held_by(now))
            if draining and not link.leaving:
                link.leaving = worker.leaving = True
                self._supervise()
                self._do(partial(dispatcher.drain_worker, worker.name))
                worker.down.send([("drain", None)])
            if answers:
                self.records.answers(link, answers)
                self._do(partial(dispatcher.finish_many, worker.name, answers), answers)
            if released:
                self.records.released(link, released)
                self._do(partial(dispatcher.release, worker.name, released))
            if returned:
                self.happened["returned"] += 1
                self.records.returned(link, returned)
                self._do(partial(dispatcher.give_back, worker.name, returned))

    def asked(self, number: int, message: tuple[str, Any]) -> None:
        """Something of a client has arrived."""
        what, value = message
        if number not in self._downs:
            return
        match what:
            case "submit":
                tickets = [self.records.submitted(number, plan) for plan in value]
                self._do(partial(self.dispatcher.submit, number, tickets))
            case "cancel":
                self.records.cancelled(number, value)
                self._do(partial(self.dispatcher.cancel, number, value))
            case "stop":
                self.records.stopped.add(number)
                self.dispatcher.stop(number)
            case "resume":
                self.records.stopped.discard(number)
                self._do(partial(self.dispatcher.resume, number))
            case _:
                del self._downs[number]
                self.records.disconnected(number)
                self._do(partial(self.dispatcher.disconnect, number))

    def connect(self, down: Stream, weight: int) -> int:
        """Return the number of a client that has opened its streams."""
        number = next(self._client_numbers)
        self._downs[number] = down
        self.dispatcher.join(number, weight)
        return number

    # The bridge: workers that are silent

    def watch(self, link: Link) -> None:
        """Look at a worker again and again for as long as it is silent."""
        if not link.watched:
            link.watched = True
            self.clock.after(SILENT_S + self.rng.uniform(0.0, 2.5), partial(self._watch, link))

    def _watch(self, link: Link) -> None:
        link.watched = False
        if link.gone or not link.attached:
            return
        self._catch_up()
        if self.clock.now - link.heard > SILENT_S:
            self._inspect(link, "it was silent for 10 s")
        if link.worker.frozen_since < NEVER or link.worker.up.stalled_until > self.clock.now:
            self.watch(link)

    def _inspect(self, link: Link, reason: str) -> None:
        self.happened["inspected"] += 1
        self.clock.after(LOOK_S, partial(self._look, link, link.heard, reason))

    def _look(self, link: Link, heard: float, reason: str) -> None:
        self._catch_up()
        if link.gone or link.heard != heard:
            return
        suspects = [link.culprit] if link.culprit in link.worker.runs else []
        if suspects and self.rng.random() >= self.schedule.looks:
            others = [attempt_id for attempt_id in link.worker.runs if attempt_id != link.culprit]
            suspects = self.rng.choice([[], suspects + others[:1], suspects + others])
        self._end(link, suspects, reason)

    def _end(self, link: Link, suspects: Sequence[int], reason: str) -> None:
        self._drop(link)
        link.worker.die(reason)
        self.records.lost(link, suspects)
        self._do(lambda now: self.dispatcher.hung(link.worker.name, suspects, now, reason))

    def _lose(self, link: Link, reason: str) -> None:
        if link.gone or not link.attached:
            return
        self._drop(link)
        self.records.lost(link, None)
        self._do(lambda now: self.dispatcher.lose(link.worker.name, now, reason))

    def _drop(self, link: Link) -> None:
        self.happened["lost"] += 1
        link.gone = True
        del self._links[link.worker.name]

    def listen(self) -> None:
        """A heartbeat has come that may say something."""
        self._catch_up()
        self._arm()

    def _catch_up(self) -> None:
        """Hear the heartbeats since the last time. They change nothing by themselves, so none of them is an event."""
        for link in self._links.values():
            beat = link.worker.last_beat(self.clock.now)
            if beat + BEAT_DELAY_S > link.heard:
                link.heard = beat + BEAT_DELAY_S
                self.dispatcher.heard(link.worker.name, link.heard, held_by=link.worker.says_held_by(beat))

    # The bridge: orders

    def _do(self, event: Callable[[float], Orders], answers: Sequence[Any] = ()) -> None:
        self.records.events += 1
        if self.records.events > MOST_EVENTS:
            raise Wrong(f"it takes more than {MOST_EVENTS} events")
        orders = event(self.clock.now)
        self.records.answered(answers, orders)
        self._perform(orders)

    def _perform(self, orders: Orders) -> None:
        records, links = self.records, self._links
        records.settled(orders)
        records.dispatched(orders, links)
        for name, sent in orders.dispatch.items():
            links[name].worker.down.send([("trial", records.attempts[attempt_id]) for attempt_id, _ in sent])
        for name, attempt_ids in orders.cancel.items():
            if link := links.get(name):
                link.worker.down.send([("cancel", attempt_id) for attempt_id in attempt_ids])
        for name in orders.retire:
            self.happened["retired"] += 1
            self.note("%s is retired", name)
            if link := links.get(name):
                link.leaving = link.worker.leaving = True
                link.worker.down.send([("drain", None)])
                self._supervise()
        for name in orders.inspect:
            self._inspect(links[name], "it was silent at a deadline")
        if orders.quarantine is not None:
            self.happened["quarantine"] += orders.quarantine > 0
            self.note("%s quarantine workers are wanted", orders.quarantine)
            self._wanted = orders.quarantine
            self.clock.after(TELLS_S, self._supervise)
        for settled in orders.settle:
            self.note("%s", settled)
            self.happened[settled.error or "outcome"] += 1
            if down := self._downs.get(settled.ticket.client):
                down.send([(settled.ticket.client_trial_id, settled)])
        records.consistent(links)
        for name, attempt_id in orders.kill.items():
            self.happened["killed"] += 1
            if link := links.get(name):
                self._end(link, [attempt_id], "a trial that did not end held it")
        self._arm()

    def _arm(self) -> None:
        due = self.dispatcher.next_deadline()
        if due is not None and due < self._timer:
            self._timer = due
            self.clock.at(due + self.rng.choice([0.0, 0.0, 0.001, 0.02]), partial(self._tick, due))

    def _tick(self, due: float) -> None:
        if due == self._timer:
            self._timer = NEVER
            self._catch_up()
            self._do(self._ticked)

    def _ticked(self, now: float) -> Orders:
        orders = self.dispatcher.tick(now)
        after = self.dispatcher.next_deadline()
        if after is not None and after <= now:
            raise Wrong(f"it wants to be woken at {after}, which is not after {now}")
        return orders

    # The supervisor

    def _start_worker(self, *, quarantine: bool) -> None:
        worker = Worker(self, f"{'q' if quarantine else 'w'}{next(self._names)}", quarantine=quarantine)
        self._children.append(worker)
        self.clock.after(self.rng.uniform(*self.schedule.boot_s), worker.boot)

    def ended(self, worker: Worker) -> None:
        """A process has ended."""
        self._children.remove(worker)
        self.clock.after(TELLS_S, self._supervise)

    def _supervise(self) -> None:
        """Have as many workers of each kind as there should be."""
        for quarantine, wanted in ((False, self.schedule.workers), (True, self._wanted * self.schedule.supervised)):
            mine = [child for child in self._children if child.quarantine is quarantine]
            staying = [child for child in mine if not child.leaving]
            for child in staying[wanted:]:
                self._stop(child)
            room = wanted + max(wanted, MOST_LEAVING) - len(mine)
            for _ in range(min(wanted - len(staying), room)):
                self._start_worker(quarantine=quarantine)

    def _stop(self, child: Worker) -> None:
        """Ask a worker to leave; one that is not up yet just goes."""
        child.leaving = True
        if child.link.attached:
            child.on_loop(partial(child.drain, self.schedule.drain_s))
        else:
            child.die("it was stopped while it started")

    # Faults

    def _strike(self, fault: FaultPlan) -> None:
        """Let something happen to an ordinary worker: what is blamed alone must have earned it."""
        stats = self.dispatcher.stats().workers
        # Whoever is asked to leave says so, therefore that may happen to all.
        asked = fault.what in {"deploy", "worn", "full"}
        links = [
            link for name, link in self._links.items() if link.worker.alive and (asked or not stats[name].quarantine)
        ]
        if not links:
            return
        self.happened[fault.what] += 1
        self.records.faults += 1
        link = self.rng.choice(links)
        worker = link.worker
        self.note("%s happens to %s for %s s", fault.what, worker.name, fault.lasts_s)
        match fault.what:
            case "kill":
                worker.die("killed")
            case "cut":
                worker.up.cut()
                self.clock.after(self.rng.uniform(0.0, 0.1), partial(self._lose, link, "its stream broke"))
                self.clock.after(self.rng.uniform(0.0, 0.1), partial(worker.die, "its stream broke"))
            case "freeze":
                worker.freeze(fault.lasts_s)
            case "stall":
                worker.stall(fault.lasts_s)
            case "worn":
                worker.on_loop(worker.drain)
            case "full":
                worker.full = True
            case _:
                for each in links:
                    self._stop(each.worker)
                self._supervise()


def play(seed: int, tell: Callable[[str], None] = print) -> None:
    """Play the schedule of *seed* and tell every step."""
    plan = schedule(seed)
    tell(str(plan))
    Simulation(plan, tell=tell).run()


if __name__ == "__main__":
    play(int(sys.argv[1]))
