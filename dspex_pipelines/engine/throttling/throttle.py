"""Which call to a model may go now: events in, answers out, no I/O and no clock.

One throttle serves all workers, clients and runs of a bridge. Every event takes the time as a value (monotonic seconds)
and returns the calls it answers. Every `ask` is answered once, with a permit or with why there is none, unless it is
forgotten before. After each event the caller looks at `next_due` and calls `tick` then.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence

from dspex_pipelines.engine.throttling.buckets import NEVER, Budget
from dspex_pipelines.engine.throttling.lanes import Lane
from dspex_pipelines.engine.throttling.lines import Call
from dspex_pipelines.engine.throttling.permits import Answer, LaneStats, Tuning, Verdict
from dspex_pipelines.engine.timers import Timers
from dspex_pipelines.model.limits import RateLimit

__all__ = ["Answer", "LaneStats", "Throttle", "Tuning", "Verdict"]


class Throttle:
    """Hands out permits per lane, that is, per ``model`` or ``model@endpoint``.

    * What is declared is kept: requests and tokens are paced evenly a little below the declared rate, calls in flight
      never exceed the declared number. Lanes that match one pattern share its budget, and take turns.
    * What is not declared is found out (`Pace`): grants begin at `start_per_s` and double every `doubling_s` while
      calls wait and none is refused.
    * After a refusal with a time to wait nothing is granted until then. A provider that asks for more than
      `longest_wait_s` has all its calls answered with that.
    * `failures_to_open` failures with no answer between close the lane. One call goes after `open_s`, doubling to
      `longest_open_s` (± 20 %); the others wait. After `give_up_s` they are answered, and so is every new one,
      except for a probe every `probe_every_s`.
    * Within a client calls go in the order of asking, those asked `again` first, or last while the lane's calls fail;
      clients take turns, each as many as its weight.
    * Where nothing is declared, much was answered and nothing refused, calls need not ask (`is_open`): they are told of
      when they have gone (`begun`).
    * A lane that has not been used for `idle_s` is forgotten, earlier when there are `most_lanes`.

    Every event costs a constant time per call it moves; `tick` costs a step more per lane with calls waiting, `declare`
    and `withdraw` one per lane and pattern.
    """

    def __init__(self, *, rng: random.Random | None = None, tuning: Tuning | None = None) -> None:
        self._rng = rng or random.Random()  # noqa: S311 - spreads probes, hides nothing
        self._tuning = tuning or Tuning()
        self._calls: dict[Hashable, Call] = {}
        self._lanes: dict[str, Lane] = {}
        self._waiting: OrderedDict[str, Lane] = OrderedDict()
        """Lanes with calls waiting; the one that was granted something last is the last."""
        self._idle: OrderedDict[str, Lane] = OrderedDict()
        """Lanes with nothing waiting or in flight; the one that became so first is the first."""
        self._budgets: dict[str, Budget] = {}
        self._timers: Timers[Lane] = Timers()
        self._hurry = False
        """Whether lanes that share a budget are to be looked at in turns, at once."""
        self._now = 0.0

    # Limits

    def declare(self, owner: Hashable, limits: Sequence[RateLimit], now: float) -> list[Answer]:
        """Put *limits* in force for as long as *owner* is there, in place of those it declared before.

        Of several limits with one pattern the strictest of each number holds.
        """
        for budget in self._budgets.values():
            budget.owners.pop(owner, None)
        for limit in limits:
            budget = self._budgets.get(limit.model)
            if budget is None:
                budget = self._budgets[limit.model] = Budget(limit.model)
            budget.owners[owner] = (*budget.owners.get(owner, ()), limit)
        return self._relink(now)

    def withdraw(self, owner: Hashable, now: float) -> list[Answer]:
        """Take back what *owner* declared, if anything."""
        if not any(owner in budget.owners for budget in self._budgets.values()):
            return []
        return self.declare(owner, (), now)

    # Calls

    def ask(
        self,
        call_id: Hashable,
        model: str,
        tokens: int,
        now: float,
        *,
        again: bool = False,
        client: Hashable = None,
        weight: int = 1,
    ) -> list[Answer]:
        """Ask for a permit for one call of *model*, which is the lane's name; *tokens* is an estimate, 0 for none.

        *again* is for a call that was refused or failed, and goes before new ones; *weight* is the client's. An id that
        waits already goes on waiting; one in flight is taken to have ended unnoticed.
        """
        self._now = now
        earlier = self._calls.get(call_id)
        if earlier is not None:
            if not earlier.flying:
                return []
            self._remove(earlier, now)
        lane = self._lane(model, now)
        if lane is None:
            most = self._tuning.most_lanes
            return [
                Answer(call_id, granted=False, reason=f"{model}: {most:,} models are in use already, which is the most")
            ]
        if reason := lane.closed(now):
            self._rest(lane, now)
            return [Answer(call_id, granted=False, reason=reason)]
        self._calls[call_id] = call = Call(call_id, lane, client, max(0, tokens), again=again, weight=weight)
        lane.line.add(call)
        lane.used = now
        self._idle.pop(model, None)
        self._waiting.setdefault(model, lane)
        return self._serve(lane, [], now)

    def begun(self, call_id: Hashable, model: str, tokens: int, now: float, *, client: Hashable = None) -> None:
        """Note a call that has gone unasked, because its lane was open when it did; it ends like any other.

        One that would be of a lane too many is not counted.
        """
        self._now = now
        if call_id in self._calls or (lane := self._lane(model, now)) is None:
            return
        self._calls[call_id] = call = Call(call_id, lane, client, max(0, tokens), again=False)
        lane.used = now
        self._idle.pop(model, None)
        lane.begin(call, now)

    def is_open(self, model: str, now: float) -> bool:
        """Return whether calls of *model* may go unasked: nothing is declared for it, and it has refused none so far.

        It may change with every event, and also because the model was not used for long.
        """
        lane = self._lanes.get(model)
        return lane is not None and lane.open(now)

    def done(
        self,
        call_id: Hashable,
        verdict: Verdict,
        now: float,
        *,
        retry_after_s: float = 0.0,
        tokens: int = 0,
        detail: str = "",
    ) -> list[Answer]:
        """Note how a call in flight ended, having used *tokens* (0: unknown).

        One that waits is forgotten: nobody would tell how it went. Others are ignored.

        *detail* is what the provider said; it becomes part of the reason when it is given up.
        """
        self._now = now
        call = self._calls.get(call_id)
        if call is None:
            return []
        if not call.flying:
            return self.forget([call_id], now)
        del self._calls[call_id]
        lane = call.lane
        lane.end(call, verdict, now, retry_after_s=retry_after_s, tokens=tokens, detail=detail)
        answers: list[Answer] = []
        self._dismiss(lane, answers, now)
        return self._serve(lane, answers, now)

    def forget(self, call_ids: Iterable[Hashable], now: float) -> list[Answer]:
        """Take calls out wherever they are, because they were cancelled or their worker is gone."""
        self._now = now
        lanes: dict[str, Lane] = {}
        for call_id in call_ids:
            call = self._calls.get(call_id)
            if call is not None:
                self._remove(call, now)
                lanes[call.lane.name] = call.lane
        answers: list[Answer] = []
        for lane in lanes.values():
            self._serve(lane, answers, now)
        return answers

    # Time

    def tick(self, now: float) -> list[Answer]:
        """Answer what may be answered at *now*."""
        self._now = now
        self._hurry = False
        answers: list[Answer] = []
        due: list[Lane] = []
        while (lane := self._timers.pop(now)) is not None:
            if lane.idle and now >= lane.used + self._tuning.idle_s:
                self._drop(lane)
            else:
                self._dismiss(lane, answers, now)
                due.append(lane)
        turn = waiting = list(self._waiting.values())
        while turn:
            # One each, so that those who share a budget share it evenly.
            turn = [lane for lane in turn if lane.fill(answers, now, 1)]
            for lane in turn:
                self._waiting.move_to_end(lane.name)
        for lane in dict.fromkeys((*due, *waiting)):
            self._rest(lane, now)
        return answers

    def next_due(self) -> float | None:
        """Return when `tick` has something to do next, or ``None``."""
        return self._now if self._hurry else self._timers.next()

    def stats(self) -> dict[str, LaneStats]:
        """Return every lane as of the last event; costs a step per lane."""
        return {name: lane.stats(self._now) for name, lane in self._lanes.items()}

    # Decisions

    def _serve(self, lane: Lane, answers: list[Answer], now: float) -> list[Answer]:
        """Grant what may go in *lane* after something happened there."""
        if len(self._waiting) > 1 - (lane.name not in self._waiting) and any(
            budget.lanes > 1 for budget in lane.budgets
        ):
            # What it has just set free may be another's turn.
            self._hurry = True
        else:
            lane.fill(answers, now)
        self._rest(lane, now)
        return answers

    def _rest(self, lane: Lane, now: float) -> None:
        """Leave *lane* as what it is now: waiting, idle or neither, with the timer it needs."""
        name = lane.name
        if not lane.line:
            self._waiting.pop(name, None)
        if lane.idle:
            self._idle.setdefault(name, lane)
        due = lane.next_event(now)
        if due != lane.due:
            self._timers.disarm(lane)
            if due != NEVER:
                self._timers.arm(lane, due)

    def _dismiss(self, lane: Lane, answers: list[Answer], now: float) -> None:
        for call in lane.dismiss(answers, now):
            del self._calls[call.call_id]

    def _remove(self, call: Call, now: float) -> None:
        del self._calls[call.call_id]
        call.lane.drop(call, now)

    def _lane(self, name: str, now: float) -> Lane | None:
        lane = self._lanes.get(name)
        if lane is None:
            if len(self._lanes) >= self._tuning.most_lanes:
                if not self._idle:
                    return None
                self._drop(next(iter(self._idle.values())))
            budgets = self._budgets_of(name)
            lane = self._lanes[name] = Lane(name, budgets, self._tuning, self._rng, now)
            for budget in budgets:
                budget.lanes += 1
        return lane

    def _drop(self, lane: Lane) -> None:
        self._timers.disarm(lane)
        self._idle.pop(lane.name, None)
        del self._lanes[lane.name]
        for budget in lane.budgets:
            budget.lanes -= 1

    def _budgets_of(self, name: str) -> tuple[Budget, ...]:
        return tuple(
            budget
            for budget in self._budgets.values()
            if RateLimit(model=budget.pattern, max_concurrency=1).matches(name)
        )

    def _relink(self, now: float) -> list[Answer]:
        """Bring limits and lanes together again."""
        self._now = now
        self._budgets = {pattern: budget for pattern, budget in self._budgets.items() if budget.owners}
        for budget in self._budgets.values():
            budget.settle(now)
            budget.lanes = budget.in_flight = 0
        for lane in self._lanes.values():
            lane.link(self._budgets_of(lane.name), now)
            for budget in lane.budgets:
                budget.lanes += 1
                budget.in_flight += lane.in_flight
        return self.tick(now)
