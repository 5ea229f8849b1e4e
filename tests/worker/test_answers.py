"""What a program or metric returns or raises: always an outcome, of the right type, with its own traceback."""

from __future__ import annotations

import pytest

from dspex.v1 import types_pb2
from dspex_pipelines import redaction
from dspex_pipelines.engine.calls.trial_calls import TrialCalls
from dspex_pipelines.model.outcome import ErrorType, TrialError, TrialResult
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.worker import answers
from dspex_pipelines.worker.plain import plain
from tests.worker import programs
from tests.worker.conftest import Bench, program

RAISED = ErrorType.PROGRAM_EXCEPTION


@pytest.mark.parametrize(
    ("name", "kind", "says"),
    [
        pytest.param("raises", RAISED, "ZeroDivisionError: ", id="sync"),
        pytest.param("raises_later", RAISED, "ZeroDivisionError: ", id="async"),
        pytest.param("raises_unspeakable", RAISED, "Unspeakable: (its message", id="no-message"),
        pytest.param("exits", RAISED, "SystemExit: 0", id="exit"),
        pytest.param("exits_later", RAISED, "SystemExit: 0", id="exit-async"),
        pytest.param("cancels_itself", RAISED, "CancelledError", id="cancels-itself"),
        pytest.param("an_object", ErrorType.SERIALIZATION, "outputs['deep'][1]['er']", id="object"),
        pytest.param("bad_dump", ErrorType.SERIALIZATION, "no dump today", id="own-dump-raises"),
        pytest.param("bad_dump_later", ErrorType.SERIALIZATION, "no dump today", id="own-dump-raises-async"),
    ],
)
async def test_a_failing_program_is_an_error_of_its_type(bench: Bench, name: str, kind: ErrorType, says: str) -> None:
    outcome = await bench.run(name, judges=["good"], x=0)
    assert isinstance(outcome, TrialError)
    assert outcome.type is kind
    assert says in outcome.message
    assert outcome.configuration_digest


async def test_outputs_that_are_too_large_without_their_secrets_are_refused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redaction, "_SECRETS", redaction.Secrets())
    redaction.learn({"A_LONG_NAME" * 20: "longenough"})
    monkeypatch.setattr(answers, "OUTCOME_BYTES", 1_000)
    outcome = await bench.run("sync_function", values={"k": 1}, x="longenough " * 50)
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.SERIALIZATION
    assert "more than the 1,000 allowed" in outcome.message


def test_scores_whose_secrets_cannot_be_taken_out_are_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: bytes) -> bytes:
        raise ValueError("no")

    monkeypatch.setattr(answers, "holds_secret", lambda payload: b"good" in payload)
    monkeypatch.setattr(answers, "_redacted", cannot)
    trial, calls = types_pb2.Trial(id=1), TrialCalls(None)
    outcome = answers.answer_result(trial, Configuration({}), 1, {"good": 1.0}, calls=calls, run_s=0.0)
    assert outcome.failure.type == types_pb2.ERROR_TYPE_METRIC_EXCEPTION
    assert outcome.scores == b""


async def test_the_program_loop_survives_an_exit_in_an_awaitable(bench: Bench) -> None:
    outcome = await bench.run("awaitable", x=-1)
    assert isinstance(outcome, TrialError)
    assert outcome.message == "SystemExit: -1"
    outcome = await bench.run("awaitable", x=5)
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs == 5


@pytest.mark.parametrize(
    ("name", "frames"),
    [
        pytest.param("raises", ["raises", "inner"], id="sync"),
        pytest.param("raises_later", ["raises_later", "inner"], id="async"),
        pytest.param("Unbuildable", ["__init__"], id="constructor"),
        pytest.param("awaitable", ["_later"], id="awaitable"),
    ],
)
async def test_a_traceback_has_the_users_lines_and_none_of_the_worker(
    bench: Bench, name: str, frames: list[str]
) -> None:
    values = {"k": 1} if name == "Unbuildable" else {}
    outcome = await bench.run(name, values=values, x=-1 if name == "awaitable" else 0)
    assert isinstance(outcome, TrialError)
    places = [line.strip() for line in outcome.traceback.splitlines() if line.startswith("  File")]
    assert [place.rpartition(" in ")[2] for place in places] == frames
    assert all(programs.__file__ in place for place in places)


async def test_the_same_error_has_the_same_fingerprint_whatever_numbers_it_names(bench: Bench) -> None:
    prints = [
        outcome.fingerprint
        for outcome in (
            await bench.run("Unbuildable", values={"k": 1}),
            await bench.run("Unbuildable", values={"k": 22}),
            await bench.run("raises", x=0),
        )
        if isinstance(outcome, TrialError)
    ]
    assert prints[0] == prints[1] != prints[2]


@pytest.mark.parametrize("name", ["sync_function", "async_function"])
@pytest.mark.parametrize(
    ("judge", "says"),
    [
        ("raising", "KeyError: 'nothing there'"),
        ("raising_later", "KeyError: 'nothing there'"),
        ("exiting", "SystemExit"),
        ("nan", "metric nan returned nan"),
        ("infinite", "metric infinite.part returned inf"),
        ("text", "metric text returned 'good'"),
        ("nothing", "metric nothing returned None"),
        ("no_parts", "the metric returned an empty dict"),
        ("huge", "metric huge returned 1180591620717411303424"),
        ("two_numbers", "ValueError"),
        ("unnameable", "SerializationError"),
    ],
)
async def test_a_failing_metric_keeps_the_outputs(bench: Bench, name: str, judge: str, says: str) -> None:
    outcome = await bench.run(name, judges=["good", judge], values={"k": 4})
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.METRIC_EXCEPTION
    assert says in outcome.message
    assert outcome.outputs["k"] == 4


@pytest.mark.parametrize("name", ["sync_function", "async_function"])
async def test_scores_are_numbers_booleans_and_maps_of_them(bench: Bench, name: str) -> None:
    judges = ["good", "good_later", "parts", "numpy_scalar"]
    outcome = await bench.run(name, judges=judges, values={"k": 4})
    assert isinstance(outcome, TrialResult)
    assert outcome.scores == {
        "good": True,
        "good_later": 0.5,
        "parts.precision": 0.5,
        "parts.found": 1,
        "numpy_scalar": 0.5,
    }


async def test_outputs_too_large_for_a_message_are_refused_by_size(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dspex_pipelines.worker.answers.OUTCOME_BYTES", 5)
    outcome = await bench.run("seeded", x=2**40)
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.SERIALIZATION
    assert "more than the 5 allowed" in outcome.message


async def test_a_dataclass_is_its_fields(bench: Bench) -> None:
    outcome = await bench.run("point", x=1)
    assert isinstance(outcome, TrialResult)
    assert outcome.outputs == {"x": 1, "y": 2}


def test_a_class_is_not_asked_for_its_fields() -> None:
    assert plain(programs.Point) is programs.Point


async def test_a_long_traceback_is_cut_in_the_middle(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dspex_pipelines.worker.faults.TRACEBACK_CHARACTERS", 60)
    outcome = await bench.run("raises", x=0)
    assert isinstance(outcome, TrialError)
    first, left_out, last = outcome.traceback.partition("characters left out")
    assert first.startswith("Traceback")
    assert left_out
    assert last.endswith("by zero\n")


async def test_a_program_that_cannot_be_had_is_unavailable(bench: Bench) -> None:
    from dataclasses import replace

    other = replace(program("seeded"), version="0" * 32)
    outcome = await bench.run(other)
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.PROGRAM_UNAVAILABLE
    assert "run the evaluation again" in outcome.message


async def test_a_parameter_that_nobody_supplies_is_named(bench: Bench) -> None:
    outcome = await bench.run("sync_function", x=1)
    assert isinstance(outcome, TrialError)
    assert outcome.type is ErrorType.INVALID_CONFIGURATION
    assert "parameter 'k'" in outcome.message
