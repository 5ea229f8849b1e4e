"""Runs over a real pool, and what a collector of OpenTelemetry is told of them."""

from __future__ import annotations

import time

import pytest

from dspex_pipelines.model.calls import LANE_CHARACTERS
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from tests.telemetry.conftest import Site, site
from tests.telemetry.programs import SECRET

pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

from tests.telemetry.collector import Collector, Span, collector

CLIENT = 3


def tree(collected: Collector, name: str, *, trials: int) -> tuple[Span, list[Span]]:
    """Return the newest run's span and those of its trials, once the workers have told theirs."""
    root = collected.named(f"evaluate {name}")[-1]

    def there() -> bool:
        below = [collected.below(one) for one in collected.below(root)]
        return len(below) == trials and all("run" in [span.name for span in each] for each in below)

    collected.until(there)
    return root, collected.below(root)


async def test_a_trial_is_a_span_with_its_queue_and_run_and_the_calls_below_that(
    traced: Site, collected: Collector
) -> None:
    _, outcomes, run_id = await traced.run("asks", trials=5)
    root, trials = tree(collected, "asks", trials=5)
    assert root.parent == ""
    assert (root.attributes["dspex.run.id"], root.attributes["dspex.evaluation"]) == (run_id, "asks")
    assert {one.attributes["dspex.trial.id"] for one in trials} == {one.trial_id.hex() for one in outcomes}
    assert {one.name for one in trials} == {"trial"}
    assert not any(one.failed for one in trials)
    for trial in trials:
        below = {span.name: span for span in collected.below(trial) if span.name != "throttle"}
        assert set(below) == {"queue", "run"}
        (call,) = collected.below(below["run"])
        assert (call.name, call.kind) == ("chat gpt-4o-mini", CLIENT)
        assert call.attributes == {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o-mini",
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 3,
            "server.address": "127.0.0.1",
            "server.port": 8123,
            "dspex.call.try": 1,
        }
        assert trial.resource["service.name"] == call.resource["service.name"] == "dspex"
        assert call.resource["service.instance.id"] == trial.attributes["dspex.worker"]
        for span in (below["queue"], below["run"], call):
            assert trial.start - 5_000_000 <= span.start <= span.end <= trial.end + 5_000_000
        assert root.start <= trial.start <= trial.end <= root.end


async def test_two_runs_are_two_traces(traced: Site, collected: Collector) -> None:
    for _ in range(2):
        await traced.run("asks", trials=1)
    first, second = collected.named("evaluate asks")[-2:]
    assert first.trace != second.trace
    assert len(collected.below(first)) == len(collected.below(second)) == 1


@pytest.mark.parametrize("isolation", ["shared", "process"])
async def test_a_refused_call_waits_in_a_throttle_span_and_is_made_again(
    traced: Site, collected: Collector, isolation: str
) -> None:
    _, (outcome,), _ = await traced.run("is_refused_once", trials=1, isolation=isolation)  # type: ignore[arg-type]
    assert isinstance(outcome, TrialResult)
    _, (trial,) = tree(collected, "is_refused_once", trials=1)
    (run,) = [span for span in collected.below(trial) if span.name == "run"]
    refused, answered = collected.below(run)
    assert (refused.failed, refused.attributes["error.type"]) == (True, "rate_limited")
    assert not answered.failed
    assert [call.attributes["dspex.call.try"] for call in (refused, answered)] == [1, 2]
    waits = [span for span in collected.below(trial) if span.name == "throttle"]
    assert refused.end <= waits[-1].start <= waits[-1].end <= answered.start
    assert waits[-1].end - waits[-1].start > 100_000_000, "as the provider asked for"


async def test_a_trial_in_a_process_of_its_own_is_told_of_as_any_other(traced: Site, collected: Collector) -> None:
    await traced.run("asks_in_a_thread", trials=3, isolation="process")
    _, trials = tree(collected, "asks_in_a_thread", trials=3)
    for trial in trials:
        (run,) = [span for span in collected.below(trial) if span.name == "run"]
        assert [span.name for span in collected.below(run)] == ["chat gpt-4o-mini"]


async def test_what_a_trial_called_before_its_process_ended_is_told(traced: Site, collected: Collector) -> None:
    _, (outcome,), _ = await traced.run("ends_its_process", trials=1, isolation="process")
    assert isinstance(outcome, TrialError)
    (trial,) = collected.below(collected.named("evaluate ends_its_process")[-1])
    assert trial.attributes["error.type"] == outcome.type.value
    collected.until(lambda: any(span.name.startswith("chat") and span.trace == trial.trace for span in collected.spans))


async def test_what_cannot_be_sent_as_it_is_is_sent_as_far_as_it_can_be(traced: Site, collected: Collector) -> None:
    await traced.run("uses_strange_numbers", trials=4)
    _, trials = tree(collected, "uses_strange_numbers", trials=4)
    runs = [span for trial in trials for span in collected.below(trial) if span.name == "run"]
    calls = [call for run in runs for call in collected.below(run)]
    assert len(calls) == 4
    # What no prompt can have is not believed.
    assert {call.attributes["gen_ai.usage.input_tokens"] for call in calls} == {7, 0}
    assert {len(call.attributes["gen_ai.request.model"]) for call in calls} == {LANE_CHARACTERS - len("openai/")}


@pytest.mark.parametrize("name", ["raises", "call_fails"])
async def test_what_goes_wrong_is_told_by_its_type_alone(traced: Site, collected: Collector, name: str) -> None:
    _, (outcome,), _ = await traced.run(name, trials=1)
    assert isinstance(outcome, TrialError)
    assert SECRET in outcome.message
    root, (trial,) = tree(collected, name, trials=1)
    (run,) = [span for span in collected.below(trial) if span.name == "run"]
    assert not root.failed, "trials that fail are results"
    for span in (trial, run):
        assert (span.failed, span.attributes["error.type"]) == (True, ErrorType.PROGRAM_EXCEPTION.value)
    assert [call.attributes["error.type"] for call in collected.below(run)] == ["ValueError"] * (name == "call_fails")
    assert {span.said for span in collected.spans} == {""}


def test_no_span_has_a_secret_in_it(collected: Collector) -> None:
    """After all the others."""
    assert collected.spans
    assert not any(SECRET.encode() in body for body in collected.bodies)


async def test_off_is_off(collected: Collector) -> None:
    with collector() as nobody, site(OTEL_EXPORTER_OTLP_ENDPOINT=nobody.endpoint) as untraced:
        _, (outcome,), _ = await untraced.run("imported", trials=1)
        assert isinstance(outcome, TrialResult)
        assert outcome.outputs == []
    assert not nobody.spans


async def test_a_collector_that_is_down_costs_no_trial_and_little_time() -> None:
    with site(DSPEX_OTEL="1", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as lonely:
        began = time.monotonic()
        summary, _, _ = await lonely.run("asks", trials=20)
        assert (summary.ran, summary.failed) == (20, 0)
        assert time.monotonic() - began < 15
        began = time.monotonic()
    assert time.monotonic() - began < 15


async def test_a_collector_that_is_slow_holds_nobody_up() -> None:
    """It takes connections and answers nothing."""
    import socket

    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        site(DSPEX_OTEL="1", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}") as lonely,
    ):
        began = time.monotonic()
        summary, _, _ = await lonely.run("asks", trials=20)
        assert (summary.ran, summary.failed) == (20, 0)
        assert time.monotonic() - began < 15


async def test_what_a_worker_has_not_sent_when_it_is_to_end_is_sent_then() -> None:
    switches = {"DSPEX_OTEL": "1", "OTEL_BSP_SCHEDULE_DELAY": "600000"}
    with collector() as late:
        with site(**switches, OTEL_EXPORTER_OTLP_ENDPOINT=late.endpoint) as one:
            await one.run("asks", trials=2)
            assert len(late.named("trial")) == 2, "the step sends its own when it ends"
            assert not late.named("run")
        late.until(lambda: len(late.named("run")) == 2)


async def test_of_many_steps_only_the_first_waits_for_a_collector_that_is_down() -> None:
    with site(DSPEX_OTEL="1", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9") as lonely:
        await lonely.run("asks", trials=1)
        began = time.monotonic()
        for _ in range(5):
            await lonely.run("asks", trials=1)
        assert time.monotonic() - began < 5
