"""Runs one trial here, in a coroutine or a thread: the program, then the metrics, then the outcome that they make."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

from dspex.v1 import types_pb2
from dspex_pipelines.engine.calls.trial_calls import Caller, TrialCalls, begin_trial, end_trial
from dspex_pipelines.engine.programs import SEED
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.wire.codec import error_type_from_wire
from dspex_pipelines.worker.answers import answer_failed, answer_result
from dspex_pipelines.worker.forked import end_if_forked
from dspex_pipelines.worker.instances import Convention, LoadedProgram

_NUMBERS = frozenset((bool, int, float))
_NOTHING_AROUND: AbstractContextManager[None] = nullcontext()
T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Ready:
    """What a snapshot's trials run with: made once, then used by all of them."""

    program: LoadedProgram
    configuration: Configuration
    instance: Any
    """None for a program that is built in a process of its own."""
    call_variables: Mapping[str, Any]
    caller: Caller
    in_loop: bool = field(init=False)
    """Whether they are coroutines; else each has a thread."""
    convention: Convention | None = field(init=False)
    """How the library that the program is written in has it called, and its results judged."""
    process: int = field(init=False)
    """The one that the trials are for; a program may fork others off it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "in_loop", self.program.shape.is_async and self.instance is not None)
        object.__setattr__(self, "convention", self.program.convention)
        object.__setattr__(self, "process", os.getpid())


def answer_in_thread(
    trial: types_pb2.Trial,
    ready: Ready,
    example: Any,
    *,
    on_loop: Callable[[Coroutine[Any, Any, Any], int], Any],
) -> types_pb2.Outcome:
    """Return the trial's outcome; *on_loop* returns what a coroutine, which raises nothing, returns on the loop."""
    calls = _begin(trial, ready)
    scores: dict[str, Any] | BaseException = {}
    outputs, raised, run_s = None, None, 0.0
    with _around(ready, calls):
        try:
            try:
                outputs = _given(trial, ready) if trial.outputs else ready.instance(**_arguments(ready, trial, example))
            finally:
                end_if_forked(ready.process)
            if inspect.isawaitable(outputs):
                outputs, error = on_loop(_await(outputs, ready), trial.id)
                if error is not None:
                    raise error
        except BaseException as error:  # noqa: BLE001 - SystemExit is an outcome too
            raised = error
        run_s = calls.ran_s
        if raised is None:
            judging = _judge(ready, example, outputs)
            if any(inspect.iscoroutinefunction(metric) for _, metric in ready.program.metrics):
                scores = on_loop(judging, trial.id)
            else:
                scores = _finish(judging)
    end_trial()
    return _answer(trial, ready, outputs, scores, raised, calls, run_s)


async def answer_in_loop(trial: types_pb2.Trial, ready: Ready, example: Any) -> types_pb2.Outcome:
    """Return the outcome of a coroutine's trial; raises only what cancels it."""
    calls = _begin(trial, ready)
    scores: dict[str, Any] | BaseException = {}
    outputs, raised, run_s = None, None, 0.0
    with _around(ready, calls):
        try:
            if trial.outputs:
                outputs = _given(trial, ready)
            else:
                try:
                    outputs = await ready.instance(**_arguments(ready, trial, example))
                finally:
                    end_if_forked(ready.process)
        except BaseException as error:  # noqa: BLE001 - SystemExit is an outcome too
            raised = error
        run_s = calls.ran_s
        if raised is None:
            scores = await _judge(ready, example, outputs)
    return _answer(trial, ready, outputs, scores, raised, calls, run_s)


def _answer(
    trial: types_pb2.Trial,
    ready: Ready,
    outputs: Any,
    scores: dict[str, Any] | BaseException,
    raised: BaseException | None,
    calls: TrialCalls,
    run_s: float,
) -> types_pb2.Outcome:
    if raised is not None:
        outcome = answer_failed(trial, ready.configuration, raised, calls=calls, run_s=run_s)
    else:
        outcome = answer_result(trial, ready.configuration, outputs, scores, calls=calls, run_s=run_s)
    if calls.spans is not None:
        failure = outcome.failure if outcome.HasField("failure") else None
        calls.spans.ended("" if failure is None else error_type_from_wire(failure.type).value)
    return outcome


async def outputs_and_scores(trial: types_pb2.Trial, ready: Ready, example: Any) -> tuple[Any, dict[str, Any]]:
    """Return what the program returned and what the metrics say of it; raises what they raise."""
    with _around(ready, _begin(trial, ready)):
        try:
            outputs = ready.instance(**_arguments(ready, trial, example))
            if inspect.isawaitable(outputs):
                outputs = await outputs
        finally:
            end_if_forked(ready.process)
        scores = await _judge(ready, example, outputs)
    if isinstance(scores, BaseException):
        raise scores
    return outputs, scores


def _begin(trial: types_pb2.Trial, ready: Ready) -> TrialCalls:
    calls = TrialCalls(
        ready.caller, trial=trial.id, seed=trial.seed, attempt=trial.attempt or 1, timeout_s=trial.timeout_s
    )
    if ready.caller.spans is not None:
        calls.spans = ready.caller.spans.begin(trial.trial_id, calls.attempt)
    begin_trial(calls)
    return calls


def _around(ready: Ready, calls: TrialCalls) -> AbstractContextManager[None]:
    convention = ready.convention
    return _NOTHING_AROUND if convention is None else convention.around(calls, ready.instance)


def _given(trial: types_pb2.Trial, ready: Ready) -> Any:
    """Return the outputs of an earlier run, of which only the metrics are wanted."""
    outputs = decode(trial.outputs)
    return outputs if ready.convention is None else ready.convention.outputs(outputs)


def _arguments(ready: Ready, trial: types_pb2.Trial, example: Any) -> dict[str, Any]:
    arguments = {**example.inputs, **ready.call_variables}
    if ready.program.shape.takes_seed:
        arguments[SEED] = trial.seed
    return arguments


async def _judge(ready: Ready, example: Any, outputs: Any) -> dict[str, Any] | BaseException:
    """Return the scores by name, or what a metric raised."""
    scores: dict[str, Any] = {}
    convention = ready.convention
    for spec, metric in ready.program.metrics:
        try:
            value = metric(example, outputs) if convention is None else convention.judge(metric, example, outputs)
            if type(value) in _NUMBERS:
                scores[spec.name] = value
                continue
            if inspect.isawaitable(value):
                value = await value
            if isinstance(value, Mapping):
                if not value:
                    raise ValueError("the metric returned an empty dict, which is no score")
                scores.update({f"{spec.name}.{name}": one for name, one in value.items()})
            else:
                scores[spec.name] = value
        except BaseException as error:  # noqa: BLE001 - told as metric_exception
            with contextlib.suppress(Exception):
                error.add_note(f"in metric {spec.name}")
            return error
        finally:
            end_if_forked(ready.process)
    return scores


def _finish(judging: Any) -> dict[str, Any] | BaseException:
    """Run a coroutine that awaits nothing to its end, without a loop."""
    try:
        judging.send(None)
    except StopIteration as end:
        return end.value
    judging.close()
    return TypeError("a metric returned an awaitable; declare it with `async def`")


async def _await(awaitable: Any, ready: Ready) -> tuple[Any, BaseException | None]:
    """Return what it returned or raised: a SystemExit raised in a task would end the loop."""
    try:
        return await awaitable, None
    except BaseException as error:  # noqa: BLE001 - the thread raises it
        return None, error
    finally:
        end_if_forked(ready.process)
