"""The ends of a simulated pool: its workers and its clients."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeAlias

from dspex_pipelines.engine.dispatch.retries import Fault
from dspex_pipelines.engine.dispatch.tickets import Settled
from tests.engine.records import Attempt, Wrong
from tests.engine.schedules import ClientPlan, Kind, TrialPlan, Where, answer
from tests.engine.virtual import NEVER, Pool, Stream

HEARTBEAT_S = 0.5
BEAT_DELAY_S = 0.01
CANCEL_S = 0.01
LOOK_S = 0.05
"""A worker that leaves looks so often whether it may."""
Frame: TypeAlias = Sequence[tuple[str, Any]]


class Bridge(Pool, Protocol):
    """What the ends know of the rest."""

    def note(self, text: str, *values: object) -> None: ...
    def heard(self, link: Link, message: Any) -> None: ...
    def asked(self, number: int, message: tuple[str, Any]) -> None: ...
    def connect(self, down: Stream, weight: int) -> int: ...
    def watch(self, link: Link) -> None: ...
    def listen(self) -> None: ...
    def ended(self, worker: Worker) -> None: ...


@dataclass(slots=True, eq=False)
class Link:
    """A worker, as the bridge sees it."""

    worker: Worker
    heard: float
    attached: bool = False
    gone: bool = False
    leaving: bool = False
    watched: bool = False
    culprit: int = 0
    """What holds the interpreter, for who can see it."""
    held: dict[int, Attempt] = field(default_factory=dict[int, Attempt])
    """Attempts sent, whose slots have not come back."""

    @property
    def used(self) -> int:
        """How many of the worker's slots they take."""
        return sum(attempt.slots for attempt in self.held.values())


@dataclass(slots=True, eq=False)
class Run:
    """An attempt, in its worker."""

    attempt: Attempt
    plan: TrialPlan
    cancelled: bool = False


class Worker:
    """A process with slots: runs what it is sent, says what became of it, and may be held up or die of it."""

    def __init__(self, bridge: Bridge, name: str, *, quarantine: bool) -> None:
        self.bridge = bridge
        self.name = name
        self.quarantine = quarantine
        small = bridge.rng.random() < bridge.schedule.small
        self.slots = max(1, bridge.schedule.slots // 4) if small else bridge.schedule.slots
        self.alive = True
        self.leaving = False
        """Whether its supervisor has another in its place."""
        self.full = False
        """Whether it cannot begin any more trials, which it finds out with the next."""
        self.frozen_since = NEVER
        self.held_since = NEVER
        self.held_by = 0
        """What keeps the program loop from turning."""
        self.runs: dict[int, Run] = {}
        self.link = Link(self, bridge.clock.now)
        self.up = Stream(bridge, partial(bridge.heard, self.link))
        self.down = Stream(bridge, self._take)
        self._draining = False
        self._sent_all = False
        self._end_by = NEVER
        self._postponed: list[Callable[[], object]] = []
        self._postponed_on_loop: list[Callable[[], object]] = []
        self._answers: list[tuple[int, object, Fault | None]] = []
        self._released: list[int] = []
        self._returned: list[int] = []
        self._flushing = False

    def boot(self) -> None:
        """Be up, and say so."""
        if self.alive:
            self.up.send("hello")

    # What holds it up

    def anywhere(self, act: Callable[[], object]) -> None:
        """Do something in a thread: now, or when the process goes on."""
        if not self.alive:
            return
        if self.frozen_since < NEVER:
            self._postponed.append(partial(self.anywhere, act))
        else:
            act()

    def on_loop(self, act: Callable[[], object]) -> None:
        """Do something on the program loop: now, or when the process goes on; never where a program holds it."""
        if self.alive and self.frozen_since < NEVER:
            self._postponed.append(partial(self.on_loop, act))
        elif self.alive and self.held_by:
            self._postponed_on_loop.append(act)
        else:
            self.anywhere(act)

    def freeze(self, lasts_s: float = NEVER) -> None:
        """Stop the whole process, the wire included."""
        if not self.alive or self.frozen_since < NEVER:
            return
        self.frozen_since = self.bridge.clock.now
        self.bridge.watch(self.link)
        if lasts_s < NEVER:
            self.disturb()
            self.bridge.clock.after(lasts_s, self._thaw)

    def _thaw(self) -> None:
        self.frozen_since = NEVER
        self.bridge.clock.after(2 * HEARTBEAT_S, self.bridge.listen)
        postponed, self._postponed = self._postponed, []
        for act in postponed:
            # One of them may stop it again.
            act()

    def stall(self, lasts_s: float) -> None:
        """Let nothing that it says arrive for a while."""
        self.up.stalled_until = max(self.up.stalled_until, self.bridge.clock.now + lasts_s)
        self.disturb()
        self.bridge.watch(self.link)
        self.bridge.clock.after(lasts_s + 2 * HEARTBEAT_S, self.bridge.listen)

    def disturb(self) -> None:
        """What is held up from outside need not make its deadline."""
        for attempt in self.link.held.values():
            attempt.disturbed = True

    @property
    def disturbed(self) -> bool:
        """Whether it is held up, and not by what it runs."""
        return (self.frozen_since < NEVER and not self.link.culprit) or self.up.stalled_until > self.bridge.clock.now

    def last_beat(self, now: float) -> float:
        """Return when the last heartbeat was sent that has arrived by now."""
        last = NEVER if self.up.stalled_until <= now else self.link.heard - BEAT_DELAY_S
        return math.floor(min(now - BEAT_DELAY_S, self.frozen_since, last) / HEARTBEAT_S) * HEARTBEAT_S

    def says_held_by(self, now: float) -> int:
        """Return what it says holds its loop, which it looks at with each heartbeat."""
        return self.held_by if self.held_since + HEARTBEAT_S <= now else 0

    # What it is sent

    def _take(self, frame: Frame) -> None:
        self.on_loop(partial(self._take_on_loop, frame))

    def _take_on_loop(self, frame: Frame) -> None:
        for what, value in frame:
            if what == "trial" and self.full:
                self._returned.append(value.attempt_id)
                self.drain()
                self._flush()
            elif what == "trial":
                run = self.runs[value.attempt_id] = Run(value, value.entry.plan)
                self.bridge.note("%s starts %s", self.name, value)
                self._start(run)
            elif what == "cancel":
                self._cancel(value)
            else:
                self._sent_all = True
                self.drain()

    def _start(self, run: Run) -> None:
        program = run.plan.program
        clock, do = self.bridge.clock, self.on_loop if program.where is Where.LOOP else self.anywhere

        def later(act: Callable[[Run], object]) -> None:
            clock.after(program.takes_s, lambda: do(lambda: run.attempt.attempt_id in self.runs and act(run)))

        match program.kind:
            case Kind.HANGS | Kind.ENDLESS:
                pass
            case Kind.HOLDS_INTERPRETER:
                later(self._hold_interpreter)
            case Kind.HOLDS_LOOP | Kind.ENDLESS_LOOP:
                later(self._hold_loop)
            case Kind.DEADLY | Kind.LEAKY:
                if program.kind is Kind.LEAKY:
                    self.drain()
                later(lambda _: self.die("a deadly trial"))
            case Kind.DEADLY_BESIDE:
                later(lambda run: self.die("a trial that bears no company") if len(self.runs) > 1 else self._end(run))
            case _:
                later(self._end)

    def _hold_interpreter(self, run: Run) -> None:
        self.bridge.note("%s is held by %s, interpreter and all", self.name, run.attempt)
        self.link.culprit = run.attempt.attempt_id
        self._hold_up(run)
        self.freeze()

    def _hold_loop(self, run: Run) -> None:
        self.bridge.note("%s has its loop held by %s", self.name, run.attempt)
        self.held_by = run.attempt.attempt_id
        self.held_since = self.bridge.clock.now
        self._hold_up(run)
        self.bridge.clock.after(2 * HEARTBEAT_S, self.bridge.listen)

    def _hold_up(self, run: Run) -> None:
        for attempt in self.link.held.values():
            attempt.held_up |= attempt is not run.attempt

    def _end(self, run: Run) -> None:
        attempt = run.attempt
        del self.runs[attempt.attempt_id]
        if run.cancelled:
            self._released.append(attempt.attempt_id)
        else:
            fault = answer(run.plan.program, attempt.entry.failed)
            attempt.answered = ("failed" if fault else "done", attempt.attempt_id)
            self._answers.append((attempt.attempt_id, attempt.answered, fault))
        self._flush()

    def _cancel(self, attempt_id: int) -> None:
        run = self.runs.get(attempt_id)
        if run is None:
            self._released.append(attempt_id)
            self._flush()
            return
        run.cancelled = True
        if run.plan.program.where is not Where.THREAD:
            end = partial(self.on_loop, lambda: attempt_id in self.runs and self._end(run))
            self.bridge.clock.after(CANCEL_S, end)

    def _flush(self) -> None:
        """Say what there is to say; what comes in the same moment goes along."""
        if not self._flushing:
            self._flushing = True
            self.bridge.clock.after(self.bridge.rng.choice([0.0, 0.005]), partial(self.anywhere, self._write))

    def _write(self) -> None:
        self._flushing = False
        self.up.send((self._answers, self._released, self._returned, self._draining))
        self._answers, self._released, self._returned = [], [], []

    # How it ends

    def drain(self, within_s: float = NEVER) -> None:
        """Ask for no more trials, finish those that anybody wants, and leave."""
        self._end_by = min(self._end_by, self.bridge.clock.now + within_s)
        if not self._draining:
            self._draining = True
            self._write()
            self._leave()

    def _leave(self) -> None:
        wanted = any(not run.cancelled for run in self.runs.values())
        if (self._sent_all and not wanted) or self.bridge.clock.now >= self._end_by:
            self._write()
            self.die("it was to leave", sudden=False)
        else:
            self.bridge.clock.after(LOOK_S, partial(self.on_loop, self._leave))

    def die(self, reason: str, *, sudden: bool = True) -> None:
        """End the process; what it said last may be lost with a sudden one."""
        if not self.alive:
            return
        self.alive = False
        self.bridge.note("%s ends: %s", self.name, reason)
        self.down.cut()
        if sudden and self.bridge.rng.random() < 0.5:
            self.up.cut()
            self.up = Stream(self.bridge, partial(self.bridge.heard, self.link))
        self.up.send("end")
        self.bridge.ended(self)


class Client:
    """Sends its trials, so many at once, and reads their outcomes."""

    def __init__(self, bridge: Bridge, plan: ClientPlan) -> None:
        self.bridge = bridge
        self.plan = plan
        self.gone = False
        self.number = 0
        self.outcomes: dict[int, Settled] = {}
        self._given_up: list[int] = []
        self._to_send = deque(plan.trials)
        self._in_flight: dict[int, TrialPlan] = {}
        clock = bridge.clock
        clock.after(plan.starts_s, self._connect)
        if plan.leaves_s is not None:
            clock.after(plan.starts_s + plan.leaves_s, self._leave)
        if plan.cut_s is not None:
            clock.after(plan.starts_s + plan.cut_s, self._reconnect)

    @property
    def done(self) -> bool:
        return self.gone or len(self.outcomes) == len(self.plan.trials)

    @property
    def waits_for(self) -> list[TrialPlan]:
        """What it has no outcome of."""
        return [] if self.gone else [plan for plan in self.plan.trials if plan.number not in self.outcomes]

    @property
    def only_endless(self) -> bool:
        """Whether nothing will come unless it cancels what it waits for."""
        endless = all(plan.program.kind is Kind.ENDLESS for plan in self._in_flight.values())
        return self.done or (bool(self._in_flight) and endless)

    def give_up(self) -> None:
        """Cancel what is in flight, once."""
        if not self._given_up:
            self._given_up = list(self._in_flight)
            for number in self._given_up:
                self._cancel(number)

    def _connect(self) -> None:
        self.down = Stream(self.bridge, self._read)
        self.number = self.bridge.connect(self.down, self.plan.weight)
        self.up = Stream(self.bridge, partial(self.bridge.asked, self.number))
        self._given_up = []
        for stops_s, resumes_s in self.plan.reads_slowly:
            self.bridge.clock.after(stops_s, partial(self.bridge.asked, self.number, ("stop", None)))
            self.bridge.clock.after(resumes_s, partial(self.bridge.asked, self.number, ("resume", None)))
        self._send()

    def _send(self) -> None:
        frame: list[TrialPlan] = []
        while self._to_send and len(self._in_flight) < self.plan.window:
            plan = self._to_send.popleft()
            self._in_flight[plan.number] = plan
            frame.append(plan)
            if plan.cancel_after_s is not None:
                self.bridge.clock.after(plan.cancel_after_s, partial(self._cancel, plan.number))
        if frame:
            self.up.send(("submit", frame))

    def _cancel(self, number: int) -> None:
        if not self.gone and number in self._in_flight:
            self.up.send(("cancel", [number]))

    def _read(self, answers: Sequence[tuple[int, Settled]]) -> None:
        for number, settled in answers:
            if number in self.outcomes:
                raise Wrong(f"trial {number} of client {self.number} has two outcomes")
            self.outcomes[number] = settled
            del self._in_flight[number]
        if not self._in_flight:
            self._given_up = []
        self._send()

    def _leave(self) -> None:
        if not self.done:
            self.gone = True
            self._hang_up()

    def _reconnect(self) -> None:
        if not self.done:
            self.bridge.note("client %s comes again", self.number)
            self._hang_up()
            self._to_send.extendleft(reversed(self._in_flight.values()))
            self._in_flight.clear()
            self._connect()

    def _hang_up(self) -> None:
        self.down.cut()
        self.up.send(("end", None))
