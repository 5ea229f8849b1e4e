"""Runs trials in this process: coroutines on the program loop, everything else in threads.

All methods are called on the program loop; programs run there or in threads, never on the wire's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from dspex.v1 import types_pb2
from dspex_pipelines.engine.programs import SEED
from dspex_pipelines.engine.usage import collect_usage
from dspex_pipelines.errors import DspexError
from dspex_pipelines.model.outcome import ErrorType
from dspex_pipelines.model.payload import decode
from dspex_pipelines.model.space import Configuration
from dspex_pipelines.wire.codec import example_from_wire, failure_to_wire
from dspex_pipelines.wire.marks import Marks
from dspex_pipelines.worker.answers import answer_failed, answer_result, answer_unavailable
from dspex_pipelines.worker.instances import Instances, LoadedProgram, Loader, ProgramLoader
from dspex_pipelines.worker.session_context import KnownSession, SessionContext
from dspex_pipelines.worker.threads import CannotStart, Threads

MOST_READY = 64
_NUMBERS = frozenset((bool, int, float))
T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Ready:
    """What a snapshot's trials run with: made once, then used by all of them."""

    program: LoadedProgram
    configuration: Configuration
    instance: Any
    """None for a program that is built in a process of its own."""
    call_variables: Mapping[str, Any]


class Isolated(Protocol):
    """A trial in a process of its own."""

    def run(self) -> types_pb2.Outcome | None:
        """Return its outcome; None when it was stopped first. Raises `CannotStart`."""
        ...

    def stop(self) -> None:
        """End its process; from any thread, at any time."""
        ...


def _raise(error: BaseException) -> None:
    raise error


class ProgramExecutor:
    """Trials in, answers out through *deliver*; slots that come free late through *release*.

    A trial for which there is no thread or process goes to *give_back*, with the reason; without it, it fails as
    `WORKER_LOST`. *isolate* gives a trial a process of its own; without it, this process is the trial's own. *restore*
    is called after each trial in a thread, and *broken* with what nobody expected: an outcome is missing from then on.
    All callbacks are thread-safe. Nothing that a program does comes out as an exception here.
    """

    def __init__(
        self,
        *,
        slots: int,
        deliver: Callable[[types_pb2.Outcome], None],
        release: Callable[[int], None],
        marks: Marks | None = None,
        loader: Loader | None = None,
        give_back: Callable[[int, str], None] | None = None,
        isolate: Callable[[LoadedProgram, Configuration, types_pb2.Trial], Isolated] | None = None,
        restore: Callable[[], None] = lambda: None,
        broken: Callable[[BaseException], None] = _raise,
    ) -> None:
        self._deliver = deliver
        self._release = release
        self._give_back = give_back or self._fail
        self._isolate = isolate
        self._restore = restore
        self._broken = broken
        self._context = SessionContext()
        self._loader = loader or ProgramLoader()
        self._instances = Instances()
        self._ready: OrderedDict[tuple[int, int, tuple[str, ...]], asyncio.Future[Ready]] = OrderedDict()
        # A cancelled thread cannot be killed, so its replacement needs a thread of its own.
        self._threads = Threads(most=2 * slots, broken=broken)
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._in_threads: dict[int, Callable[[], None]] = {}
        """Trial to what stops it, if it can be stopped."""
        self._cancelled: set[int] = set()
        self._ending = threading.Lock()
        """Held while it is decided whether a thread's trial was cancelled or has ended."""
        self._loop = asyncio.get_running_loop()
        self._marks = marks or Marks()

    @property
    def running(self) -> int:
        """Trials that have not ended, those that were cancelled included."""
        return len(self._tasks) + len(self._in_threads)

    @property
    def wanted(self) -> int:
        """Trials that have not ended and were not cancelled."""
        return sum(number not in self._cancelled for number in (*list(self._tasks), *list(self._in_threads)))

    @property
    def context(self) -> SessionContext:
        """The sessions and snapshots that the bridge has sent."""
        return self._context

    def submit(self, trial: types_pb2.Trial) -> None:
        """Run *trial* under exactly the snapshot it names."""
        try:
            found = self._context.find(trial.session_id, trial.version)
        except DspexError as error:
            self._deliver(answer_unavailable(trial, None, error))
            return
        if found is None:
            message = f"this worker was never sent version {trial.version} of its session"
            failure = failure_to_wire(ErrorType.STALE_STATE, message, retryable=True)
            self._deliver(types_pb2.Outcome(id=trial.id, failure=failure))
            return
        session, configuration = found
        try:
            example = example_from_wire(trial.example)
            inputs = tuple(example.inputs)
        except DspexError as error:
            # A client of another make may send anything.
            message = f"the example cannot be read: {error}"
            self._deliver(types_pb2.Outcome(id=trial.id, failure=failure_to_wire(ErrorType.SERIALIZATION, message)))
            return
        key = (trial.session_id, trial.version, inputs)
        ready = self._ready.get(key)
        if ready is not None and ready.done() and ready.exception() is None:
            self._ready.move_to_end(key)
            self._start(trial, ready.result(), example)
            return
        if ready is None or ready.done():
            try:
                ready = self._prepare(key, session, configuration)
            except CannotStart as error:
                self._give_back(trial.id, str(error))
                return
        self._tasks[trial.id] = self._loop.create_task(self._start_when_ready(trial, ready, configuration, example))

    def cancel(self, attempt_id: int) -> None:
        """Stop a trial if that can be done; its slot is released when it really ends."""
        task = self._tasks.get(attempt_id)
        if task is not None:
            self._cancelled.add(attempt_id)
            # Only here: a task cancelled before its first step never gets to its own end.
            task.add_done_callback(lambda _: self._ended(attempt_id))
            task.cancel()
            return
        with self._ending:
            stop = self._in_threads.get(attempt_id)
            if stop is not None:
                self._cancelled.add(attempt_id)
        if stop is not None:
            stop()
        else:
            self._release(attempt_id)

    def _fail(self, trial_id: int, reason: str) -> None:
        failure = failure_to_wire(ErrorType.WORKER_LOST, reason, retryable=True)
        self._deliver(types_pb2.Outcome(id=trial_id, failure=failure))

    # ------------------------------------------------------------------ getting ready

    def _prepare(
        self, key: tuple[int, int, tuple[str, ...]], session: KnownSession, configuration: Configuration
    ) -> asyncio.Future[Ready]:
        """Import and build off the loop: it may take seconds, and the neighbours go on."""
        future: asyncio.Future[Ready] = self._loop.create_future()

        def settle(ready: Ready | None, error: BaseException | None) -> None:
            if error is not None:
                future.set_exception(error)
                future.exception()  # seen: every waiting trial tells it
            elif ready is not None:
                future.set_result(ready)

        def work() -> None:
            try:
                program = self._loader.load(session.program, session.metrics, key[2], tuple(configuration.values))
                isolated = session.program.isolation == "process" and self._isolate is not None
                instance = None if isolated else self._instances.get(program, configuration)
                variables = {} if program.shape.configured else configuration.values
                ready = Ready(program, configuration, instance, variables)
            except BaseException as error:  # noqa: BLE001 - a constructor may raise anything
                self._loop.call_soon_threadsafe(settle, None, _storable(error))
            else:
                self._loop.call_soon_threadsafe(settle, ready, None)
            self._restore()

        self._threads.run(work)
        self._ready[key] = future
        while len(self._ready) > MOST_READY:
            self._ready.popitem(last=False)
        return future

    async def _start_when_ready(
        self, trial: types_pb2.Trial, ready: asyncio.Future[Ready], configuration: Configuration, example: Any
    ) -> None:
        try:
            state = await asyncio.shield(ready)
            if state.program.shape.is_async and state.instance is not None:
                await self._run_coroutine(trial, state, example)
            else:
                self._start_thread(trial, state, example)
        except DspexError as error:
            self._deliver(answer_unavailable(trial, configuration, error))
        except Exception as error:  # noqa: BLE001 - the program's constructor
            self._deliver(answer_failed(trial, configuration, error, run_s=0.0))
        finally:
            self._tasks.pop(trial.id, None)

    # ------------------------------------------------------------------ running

    def _start(self, trial: types_pb2.Trial, ready: Ready, example: Any) -> None:
        if ready.program.shape.is_async and ready.instance is not None:
            self._tasks[trial.id] = self._loop.create_task(self._run_coroutine(trial, ready, example))
        else:
            self._start_thread(trial, ready, example)

    def _ended(self, attempt_id: int) -> None:
        """A cancelled task is over: its slot is free, unless a thread of the trial still runs."""
        self._tasks.pop(attempt_id, None)
        if attempt_id in self._cancelled and attempt_id not in self._in_threads:
            self._cancelled.discard(attempt_id)
            self._release(attempt_id)

    async def _run_coroutine(self, trial: types_pb2.Trial, ready: Ready, example: Any) -> None:
        try:
            outcome = await self._marks.marked(_answer(trial, ready, example), trial.id)
            if trial.id not in self._cancelled:
                self._deliver(outcome)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - told
            self._broken(error)
        finally:
            self._tasks.pop(trial.id, None)

    def _start_thread(self, trial: types_pb2.Trial, ready: Ready, example: Any) -> None:
        isolated: Isolated | None = None
        if ready.instance is None:
            assert self._isolate is not None
            isolated = self._isolate(ready.program, ready.configuration, trial)
        stop = _cannot_be_stopped if isolated is None else isolated.stop

        def work() -> None:
            outcome, reason = None, ""
            try:
                if isolated is not None:
                    outcome = isolated.run()
                else:
                    self._marks.mark(trial.id)
                    outcome = self._run_in_thread(trial, ready, example)
                    self._marks.mark(0)
                    self._restore()
            except CannotStart as error:
                reason = str(error)
            with self._ending:
                del self._in_threads[trial.id]
                cancelled = trial.id in self._cancelled
                self._cancelled.discard(trial.id)
            if cancelled:
                self._release(trial.id)
            elif outcome is not None:
                self._deliver(outcome)
            else:
                self._give_back(trial.id, reason)

        self._in_threads[trial.id] = stop
        try:
            self._threads.run(work)
        except CannotStart as error:
            del self._in_threads[trial.id]
            self._give_back(trial.id, str(error))

    def _run_in_thread(self, trial: types_pb2.Trial, ready: Ready, example: Any) -> types_pb2.Outcome:
        used = collect_usage()
        started = time.perf_counter()
        try:
            # Given outputs of an earlier run, only the metrics are wanted.
            outputs = decode(trial.outputs) if trial.outputs else ready.instance(**_arguments(ready, trial, example))
            if inspect.isawaitable(outputs):
                outputs, error = self._on_loop(_await(outputs), trial.id)
                if error is not None:
                    raise error
        except BaseException as error:  # noqa: BLE001 - SystemExit is an outcome too
            return answer_failed(trial, ready.configuration, error, run_s=_since(started), used=used)
        run_s = _since(started)
        judging = _judge(ready, example, outputs)
        if any(inspect.iscoroutinefunction(metric) for _, metric in ready.program.metrics):
            scores = self._on_loop(judging, trial.id)
        else:
            scores = _finish(judging)
        return answer_result(trial, ready.configuration, outputs, scores, run_s=run_s, used=used)

    def _on_loop(self, coroutine: Coroutine[Any, Any, T], trial_id: int) -> T:
        """Return what *coroutine*, which raises nothing, returns on the program loop."""

        async def run() -> T:
            return await self._marks.marked(coroutine, trial_id)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()


def _cannot_be_stopped() -> None:
    """Do what can be done about a thread."""


def _arguments(ready: Ready, trial: types_pb2.Trial, example: Any) -> dict[str, Any]:
    arguments = {**example.inputs, **ready.call_variables}
    if ready.program.shape.takes_seed:
        arguments[SEED] = trial.seed
    return arguments


async def _answer(trial: types_pb2.Trial, ready: Ready, example: Any) -> types_pb2.Outcome:
    """Return the outcome of a coroutine's trial; raises only what cancels it."""
    used = collect_usage()
    started = time.perf_counter()
    try:
        # Given outputs of an earlier run, only the metrics are wanted.
        outputs = decode(trial.outputs) if trial.outputs else await ready.instance(**_arguments(ready, trial, example))
    except BaseException as error:  # noqa: BLE001 - SystemExit is an outcome too
        return answer_failed(trial, ready.configuration, error, run_s=_since(started), used=used)
    run_s = _since(started)
    scores = await _judge(ready, example, outputs)
    return answer_result(trial, ready.configuration, outputs, scores, run_s=run_s, used=used)


async def _judge(ready: Ready, example: Any, outputs: Any) -> dict[str, Any] | BaseException:
    """Return the scores by name, or what a metric raised."""
    scores: dict[str, Any] = {}
    for spec, metric in ready.program.metrics:
        try:
            value = metric(example, outputs)
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
    return scores


def _finish(judging: Any) -> dict[str, Any] | BaseException:
    """Run a coroutine that awaits nothing to its end, without a loop."""
    try:
        judging.send(None)
    except StopIteration as end:
        return end.value
    judging.close()
    return TypeError("a metric returned an awaitable; declare it with `async def`")


async def _await(awaitable: Any) -> tuple[Any, BaseException | None]:
    """Return what it returned or raised: a SystemExit raised in a task would end the loop."""
    try:
        return await awaitable, None
    except BaseException as error:  # noqa: BLE001 - the thread raises it
        return None, error


def _since(started: float) -> float:
    return time.perf_counter() - started


def _storable(error: BaseException) -> BaseException:
    """Return an exception that a future can hold; StopIteration cannot be one."""
    if isinstance(error, Exception) and not isinstance(error, StopIteration):
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")
