"""What trials ask of models, over a real pool and a server: columns, metadata, and what the user is told meanwhile."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from typing import Any

import pytest

from dspex_pipelines import ConfigurationSpace, Integer, Price
from dspex_pipelines.bridge.pool_status import ModelStatus, PoolStatus
from dspex_pipelines.engine import batch
from dspex_pipelines.errors import PoolUnreachable
from dspex_pipelines.loopback.process import Server, serving
from dspex_pipelines.model.usage import Usage
from dspex_pipelines.orchestration import waiting
from dspex_pipelines.orchestration.resources import ProgressReporter, ProgressResource
from dspex_pipelines.orchestration.waiting import Waiting, why_calls_wait
from tests.orchestration.conftest import Lab, failure
from tests.orchestration.declared import declare, rows
from tests.orchestration.programs import MODELS

PRICED, UNPRICED = MODELS
PRICES = (Price(model="openai/*", input_usd=1_000.0, output_usd=2_000.0),)


class Told(ProgressReporter):
    """What the user is told."""

    def __init__(self) -> None:
        self.usage = Usage()
        self.waited: list[str] = []
        self.warned: list[str] = []

    def used(self, usage: Usage) -> None:
        self.usage = usage

    def waits(self, why: str, for_s: float) -> None:
        assert for_s > 0
        self.waited.append(why)

    def warns(self, what: str, about: str) -> None:
        self.warned.append(what)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(api_key="loopback", latency_s=0.01) as server:
        yield server


def asking(lab: Lab, base: str, told: Told, **changes: Any) -> Lab:
    given = {"prices": PRICES, **changes}
    evaluation = declare("asks_models", rows(6, base=base), inputs=("x", "base"), **given)
    return lab.declare(evaluation, progress=ProgressResource.to(told))


def test_each_trial_has_its_tokens_by_model_and_the_asset_their_sums(lab: Lab, server: Server) -> None:
    told = Told()
    server.control(reset=True)
    table, metadata = asking(lab, server.base_url, told).evaluated()
    twice = table["var.k"] == 2
    for ways in ("input", "output"):
        one = table[f"usage.{PRICED}.{ways}_tokens"]
        assert (one > 0).all()
        assert (table[f"usage.{UNPRICED}.{ways}_tokens"] == one * table["var.k"]).all()
        assert (table[f"usage.{ways}_tokens"] == one * (1 + table["var.k"])).all()
        assert metadata[f"used {PRICED}.{ways}_tokens"] == one.sum()
    assert (table.loc[twice, "usage.calls"] == 3).all()
    assert metadata["used calls"] == metadata["spent calls"] == table["usage.calls"].sum() == 6 * 2 + 6 * 3
    assert server.stats()["requests"] == 30
    cost = table[f"usage.{PRICED}.input_tokens"].sum() / 1e3 + table[f"usage.{PRICED}.output_tokens"].sum() / 500
    assert metadata["used cost_usd"] == metadata["spent cost_usd"] == pytest.approx(cost)
    assert metadata["used unpriced_calls"] == metadata[f"used {UNPRICED}.unpriced_calls"] == 6 + 12
    assert metadata["used retried_calls"] == 0
    share = table["throttled_s"].sum() / (table["throttled_s"] + table["run_s"]).sum()
    assert metadata["throttled share"] == pytest.approx(share, abs=1e-6)
    assert f"cost leaves out 18 calls to {UNPRICED}: give it a price" in metadata["not counted"]
    assert told.warned == [], "there is no budget that would not hold"
    assert told.usage.amounts["calls"] == 30

    _, metadata = lab.evaluated()
    assert (metadata["used calls"], metadata["spent calls"], metadata["spent cost_usd"]) == (30, 0, 0), "all reused"
    assert server.stats()["requests"] == 30


def test_one_model_has_no_entries_beside_the_sums(lab: Lab, server: Server) -> None:
    space = ConfigurationSpace(variables=(Integer(name="k", low=0, high=1, points=(0,)),))
    table, metadata = asking(lab, server.base_url, Told(), space=space).evaluated()
    assert metadata["used calls"] == table[f"usage.{PRICED}.calls"].sum() == 6
    assert not [name for name in metadata if name.startswith("used ") and "." in name]
    assert "not counted" not in metadata


def test_what_programs_report_for_themselves_is_spent_too(lab: Lab) -> None:
    _, metadata = lab.declare(declare("costs_in_a_thread", rows(2))).evaluated()
    assert metadata["used tokens"] == metadata["spent tokens"] == 40
    assert metadata["used cost_usd"] == pytest.approx(metadata["spent cost_usd"]) == pytest.approx(0.04)


def test_programs_that_call_no_model_have_no_such_entries(lab: Lab) -> None:
    _, metadata = lab.declare(declare("logged", rows(2, log=os.devnull), inputs=("x", "log"))).evaluated()
    assert not [name for name in metadata if name.startswith(("used ", "spent ", "throttled"))]


def test_a_budget_that_a_model_without_a_price_escapes_is_told_at_once(lab: Lab, server: Server) -> None:
    told = Told()
    result = asking(lab, server.base_url, told).evaluate(max_cost_usd=1_000.0)
    assert result.success, failure(result)
    (warning,) = told.warned
    assert f"to {UNPRICED}, and max_cost_usd does not hold for them: give it a price with prices=(Price(" in warning
    _, metadata = lab.newest()
    assert "max_cost_usd does not hold" in metadata["not counted"]
    logged = [entry.user_message for entry in lab.instance.all_logs(result.run_id) if entry.level == 30]
    assert [line for line in logged if "max_cost_usd does not hold" in line]


def test_a_provider_that_is_down_is_told_while_nothing_moves(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.3)
    monkeypatch.setattr(batch, "STOP_S", 0.3)
    told = Told()
    with serving(api_key="loopback") as gone:
        base = gone.base_url
    result = asking(lab, base, told).evaluate(max_time_s=4.0)
    assert result.success, failure(result)
    down = f"{PRICED}@{base} is not answering"
    assert down in told.waited, told.waited
    assert len(told.waited) <= 4.6 / 0.3, "asked at a bounded rate"
    logged = [entry.user_message for entry in lab.instance.all_logs(result.run_id)]
    assert sum(down in line for line in logged) == 1, "once for as long as it stays so"


async def test_the_pool_is_asked_only_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.1)
    asked = 0

    async def ask() -> PoolStatus:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise PoolUnreachable(address="x", waited_s=0)
        return status(model("m", "down", waiting=1))

    said: list[str] = []
    async with Waiting(ask, lambda why, _: said.append(why)) as watching:
        for _ in range(20):
            watching.moved()
            await asyncio.sleep(0.02)
        assert asked == 0
        await asyncio.sleep(0.55)
    assert 2 <= asked <= 6
    assert said == ["m is not answering"] * (asked - 1)
    asked = 0
    await asyncio.sleep(0.25)
    assert asked == 0


async def test_whoever_is_cancelled_while_it_ends_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK_S", 0.0)
    asked, ending = asyncio.Event(), asyncio.Event()

    async def ask() -> PoolStatus:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            await asyncio.sleep(0.01)
        raise AssertionError("waits for ever")

    async def run() -> None:
        async with Waiting(ask, lambda *_: None):
            await asked.wait()

    running = asyncio.create_task(run())
    await ending.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


@pytest.mark.parametrize(
    ("models", "why"),
    [
        ([("m", "down", 0, 1)], "m is not answering"),
        ([("m", "given up", 1, 0)], "m has not answered for so long that its calls fail"),
        ([("m", "paused", 1, 0)], "m has asked to wait"),
        ([("m", "limited", 1, 5)], "m is rate-limited"),
        ([("m", "limited", 0, 5)], "m has not answered yet"),
        ([("m", "open", 0, 5)], "m has not answered yet"),
        ([("m", "down", 0, 0), ("n", "limited", 0, 0)], ""),
        ([("a", "open", 0, 1), ("b", "down", 1, 0)], "b is not answering; a has not answered yet"),
        (
            [(name, "down", 1, 0) for name in "abcde"],
            "a is not answering; b is not answering; c is not answering and 2 more models",
        ),
    ],
)
def test_why_calls_wait(models: list[tuple[str, str, int, int]], why: str) -> None:
    found = [model(name, state, waiting=waits, in_flight=flies) for name, state, waits, flies in models]
    assert why_calls_wait(found) == why


def model(name: str, state: str, *, waiting: int = 0, in_flight: int = 0) -> ModelStatus:
    return ModelStatus(
        model=name,
        state=state,
        waiting=waiting,
        in_flight=in_flight,
        granted=0,
        refused=0,
        failed=0,
        window=None,
        per_s=None,
        paused_for_s=0.0,
    )


def status(*models: ModelStatus) -> PoolStatus:
    return PoolStatus(
        package_version="",
        workers=(),
        queue_depth=0,
        in_flight=1,
        sessions=1,
        clients=1,
        settled=0,
        workers_lost=0,
        draining=False,
        models=models,
    )
