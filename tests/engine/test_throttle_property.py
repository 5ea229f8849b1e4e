"""Whatever happens in whatever order: no call is lost or granted twice, and what is declared is kept."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dspex_pipelines.engine.throttling.throttle import Answer, Throttle, Tuning, Verdict
from dspex_pipelines.model.limits import RateLimit

PER_S = 20.0
BURST = 2.0
MOST = 3
LANES = ("paced/a", "paced/b@http://localhost:1", "counted/a", "counted/b", "free")


class Throttling(RuleBasedStateMachine):
    @initialize(seed=st.integers(0, 99))
    def start(self, seed: int) -> None:
        self.now = 100.0
        self.throttle = Throttle(rng=random.Random(seed), tuning=Tuning(give_up_s=40.0))
        self.waiting: dict[int, str] = {}
        self.flying: dict[int, str] = {}
        self.paced: list[float] = []
        self.asked = 0
        self.take(
            self.throttle.declare(
                "run",
                [
                    RateLimit(model="paced/*", requests_per_minute=60 * PER_S),
                    RateLimit(model="counted/*", max_concurrency=MOST),
                ],
                self.now,
            )
        )

    def take(self, answers: list[Answer]) -> None:
        for answer in answers:
            lane = self.waiting.pop(answer.call_id)  # waits, and so is not answered twice
            if answer.granted:
                self.flying[answer.call_id] = lane
                if lane.startswith("paced/"):
                    self.paced.append(self.now)
            else:
                assert answer.reason

    @rule(lane=st.sampled_from(LANES), tokens=st.integers(0, 2_000), client=st.integers(0, 2), again=st.booleans())
    def ask(self, lane, tokens, client, again) -> None:
        self.asked += 1
        self.waiting[self.asked] = lane
        self.take(self.throttle.ask(self.asked, lane, tokens, self.now, client=client, again=again))

    @rule(lane=st.sampled_from(LANES[-1:]))
    def goes_unasked(self, lane) -> None:
        self.asked += 1
        self.flying[self.asked] = lane
        self.throttle.begun(self.asked, lane, 0, self.now)

    @rule(
        which=st.integers(0, 1_000),
        verdict=st.sampled_from(Verdict),
        wait_s=st.sampled_from([0.0, 0.0, 1.0, 700.0]),
        tokens=st.integers(0, 2_000),
    )
    def done(self, which, verdict, wait_s, tokens) -> None:
        if self.flying:
            call_id = list(self.flying)[which % len(self.flying)]
            del self.flying[call_id]
            self.take(self.throttle.done(call_id, verdict, self.now, retry_after_s=wait_s, tokens=tokens))

    @rule(which=st.integers(0, 1_000))
    def forget(self, which) -> None:
        if calls := [*self.waiting, *self.flying]:
            call_id = calls[which % len(calls)]
            self.waiting.pop(call_id, None)
            self.flying.pop(call_id, None)
            self.take(self.throttle.forget([call_id, "unknown"], self.now))

    @rule(seconds=st.sampled_from([0.01, 0.3, 5.0, 700.0]))
    def wait(self, seconds) -> None:
        until = self.now + seconds
        for _ in range(10_000):
            due = self.throttle.next_due()
            if due is None or due > until:
                break
            self.now = max(self.now, due)
            self.take(self.throttle.tick(self.now))
        else:
            raise AssertionError("the throttle is due for ever")
        self.now = until

    @rule(more=st.integers(1, 5))
    def declare_more(self, more) -> None:
        self.take(self.throttle.declare("other", [RateLimit(model="counted/*", max_concurrency=more)], self.now))
        self.take(self.throttle.withdraw("other", self.now))

    @invariant()
    def what_is_declared_is_kept(self) -> None:
        assert sum(lane.startswith("counted/") for lane in self.flying.values()) <= MOST
        for count, at in enumerate(reversed(self.paced), start=1):
            assert count <= PER_S * (self.now - at) + BURST + 1e-3

    @invariant()
    def nothing_is_lost(self) -> None:
        stats = self.throttle.stats().values()
        assert sum(lane.waiting for lane in stats) == len(self.waiting)
        assert sum(lane.in_flight for lane in stats) == len(self.flying)

    def teardown(self) -> None:
        for _ in range(5_000):
            if not (self.waiting or self.flying):
                break
            while self.flying:
                call_id = next(iter(self.flying))
                del self.flying[call_id]
                self.take(self.throttle.done(call_id, Verdict.OK, self.now))
            due = self.throttle.next_due()
            assert due is not None or not self.waiting
            self.now = max(self.now, due or 0.0)
            self.take(self.throttle.tick(self.now))
        assert not self.waiting


TestThrottling = Throttling.TestCase
TestThrottling.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
